"""``[timer]`` of one unit."""

from collections.abc import Mapping

from supervisord_py.model.calendar import Calendar, Zones, parse_calendar
from supervisord_py.model.fields import Fields
from supervisord_py.model.problems import BadValue, Problem
from supervisord_py.model.states import Overrun, Restart, TimerFrom
from supervisord_py.model.unit import Service, Timer

_TIMER = Timer()
_SPANS_OF_TIMERS = {
    "on-active-sec": "on_active_ns",
    "on-boot-sec": "on_boot_ns",
    "on-startup-sec": "on_startup_ns",
    "on-unit-active-sec": "on_unit_active_ns",
    "on-unit-inactive-sec": "on_unit_inactive_ns",
}
_FOLLOWING = {"on-unit-active-sec", "on-unit-inactive-sec"}
"""What counts from a run, and so never comes before the first."""


def read_calendars(fields: Fields, problems: list[Problem], zones: Zones) -> tuple[Calendar, ...]:
    """``on-calendar``: decoded it is text, because what zones there are is known here only."""
    decoded = fields.decoded("timer", "on-calendar")
    calendars: list[Calendar] = []
    for index, text in enumerate(() if decoded is None else decoded.value):
        try:
            calendars.append(parse_calendar(text, zones))
        except BadValue as bad:
            assert decoded is not None
            at = (index,) if isinstance(decoded.entry.value, list) else ()
            problems.append(decoded.entry.problem(bad.message, bad.hint, at))
    return tuple(calendars)


def assemble_timer(fields: Fields, service: Service, problems: list[Problem], zones: Zones) -> Timer:
    def complain(table: str, key: str, message: str, hint: str, *, warning: bool = False) -> None:
        problems.append(fields.problem(table, key, message, hint, warning=warning))

    spans: dict[str, tuple[int, ...]] = {key: fields.get("timer", key, ()) for key in _SPANS_OF_TIMERS}
    every: int | None = fields.get("timer", "every", None)
    calendar = read_calendars(fields, problems, zones)
    texts: tuple[str, ...] = fields.get("timer", "on-calendar", ())
    written = {key for key, value in {**spans, "every": every, "on-calendar": texts}.items() if value}
    if not written:
        hint = f"write every, on-calendar, or one of {', '.join(_SPANS_OF_TIMERS)}"
        complain("timer", "", "a timer without a time", hint)
    elif written <= _FOLLOWING:
        message = "this counts from a run, and nothing brings the first one about"
        complain("timer", sorted(written)[0], message, "write on-active-sec = 0 beside it, or every", warning=True)
    if every is None and fields.decoded("timer", "from") is not None:
        complain("timer", "from", "from means nothing without every", "take it out", warning=True)
    persistent = fields.get("timer", "persistent", _TIMER.persistent)
    if persistent and not calendar:
        complain("timer", "persistent", "only times of on-calendar are made up for", "take it out", warning=True)
    if service.restart.restart in (Restart.ALWAYS, Restart.ON_SUCCESS):
        message = (
            f"with restart = {service.restart.restart.value} a run is never over, and the next time never waited for"
        )
        complain("service", "restart", message, 'write "on-failure" or "no"')
    if service.remain_after_exit:
        message = "a run that stays active is never over, and the next time never waited for"
        complain("service", "remain-after-exit", message, "take it out")
    return Timer(
        every_ns=every,
        every_from=TimerFrom(fields.get("timer", "from", _TIMER.every_from.value)),
        on_calendar=calendar,
        accuracy_ns=fields.get("timer", "accuracy-sec", _accuracy_ns(every, spans)),
        randomized_delay_ns=fields.get("timer", "randomized-delay-sec", _TIMER.randomized_delay_ns),
        persistent=persistent,
        overrun=Overrun(fields.get("timer", "overrun", _TIMER.overrun.value)),
        **{field: spans[key] for key, field in _SPANS_OF_TIMERS.items()},
    )


def _accuracy_ns(every: int | None, spans: Mapping[str, tuple[int, ...]]) -> int:
    """Return how late a timer may be that does not say it: of short spans a tenth, so that they are kept [ns]."""
    counted = [span for found in spans.values() for span in found if span]
    shortest_ns = min((span for span in (*counted, every) if span), default=10 * _TIMER.accuracy_ns)
    return min(_TIMER.accuracy_ns, shortest_ns // 10)
