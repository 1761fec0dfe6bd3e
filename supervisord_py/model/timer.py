"""When a timer fires next: pure functions over what it is, what has been, and now.

Theory of operation. A timer has *triggers*. Those that count from a moment (armed, boot, start-up, the begin or the end
of the last run) are on the monotonic clock, calendars are on the wall clock; each clock has its own earliest elapse,
and whichever comes first fires. A plan is made anew when the timer is armed, when a run has ended and when the clock
was set; between these it holds.

Laws: a trigger that counts from arming, boot or start-up fires once; what elapsed before the timer was armed fires at
once, a calendar only if it is persistent; the same elapse never fires twice, and a clock that is set does not make it.

Source: systemd.timer(5); core/timer.c (timer_enter_waiting), sd-event.c (accuracy); what a booted systemd did:
``tests/data/systemd/behaviour``. Ours are ``every`` and ``overrun``, and what becomes of a clock that was far ahead.
"""

from collections.abc import Callable, Iterator
from datetime import tzinfo
from typing import Final

from msgspec import Struct

from supervisord_py.model.calendar import Calendar
from supervisord_py.model.elapse import next_elapse_ns
from supervisord_py.model.states import Overrun, TimerFrom
from supervisord_py.model.unit import Timer
from supervisord_py.model.values import SECOND_NS

SET_BACK_NS: Final = 3 * 3600 * SECOND_NS
"""A clock that is set back by more than this was wrong before: what was fired under it is no reason to wait. By less,
nothing that has been fired is fired again. Three hours, as cron has it."""

_RASTERS_NS: Final = (60 * SECOND_NS, 10 * SECOND_NS, SECOND_NS, SECOND_NS // 4)
_MILLION: Final = 1_000_000


class Past(Struct, frozen=True):
    """What has been. Times of the monotonic clock and of the wall clock [ns], None for what has not been.

    Attributes:
        armed_mono_ns, armed_wall_ns: The timer was started.
        startup_mono_ns: The supervisor began; where it is process 1 of a container this is ``boot_mono_ns``, too.
        boot_mono_ns: The machine began; the monotonic clock counts from there.
        fired_mono_ns, fired_wall_ns: It fired last, since it was armed. A persistent timer that has not fired yet has
            the wall time of the last time alone, its stamp.
        fired_before_mono_ns: It fired last before it was armed anew.
        began_mono_ns, ended_mono_ns, ended_wall_ns: The last run, whoever started it.
    """

    armed_mono_ns: int
    armed_wall_ns: int
    startup_mono_ns: int = 0
    boot_mono_ns: int = 0
    fired_mono_ns: int | None = None
    fired_wall_ns: int | None = None
    fired_before_mono_ns: int | None = None
    began_mono_ns: int | None = None
    ended_mono_ns: int | None = None
    ended_wall_ns: int | None = None


class Plan(Struct, frozen=True):
    """When a timer fires next, by clock: at the earlier of the two; never, and it is elapsed, without any [ns]."""

    mono_ns: int | None = None
    wall_ns: int | None = None

    @property
    def is_elapsed(self) -> bool:
        return self.mono_ns is None and self.wall_ns is None


def plan_timer(
    timer: Timer,
    past: Past,
    now_mono_ns: int,
    now_wall_ns: int,
    zone_of: Callable[[Calendar], tzinfo],
    *,
    random_millionths: int = 0,
    clock_was_set: bool = False,
) -> Plan:
    """Plan the next firing of a timer whose unit does not run.

    Args:
        timer: Its triggers.
        past: What has been.
        now_mono_ns: Monotonic time [ns].
        now_wall_ns: Wall time [ns].
        zone_of: The time zone in which a calendar is read.
        random_millionths: This part of ``randomized_delay_ns`` is added, 0 to 1,000,000.
        clock_was_set: The plan is made because of that: what is due and has not fired yet stays due.

    Returns:
        The plan. A time in the past is one that fires at once.
    """
    delay_ns = timer.randomized_delay_ns * random_millionths // _MILLION
    mono = [*_once(timer, past, now_mono_ns, clock_was_set), *_again(timer, past, now_mono_ns)]
    wall = list(_calendars(timer, past, now_mono_ns, now_wall_ns, zone_of))
    return Plan(min(mono) + delay_ns if mono else None, min(wall) + delay_ns if wall else None)


def _once(timer: Timer, past: Past, now_mono_ns: int, clock_was_set: bool) -> Iterator[int]:
    """The triggers that fire once: one is spent when the timer has fired since, or when it elapsed during a run."""
    has_fired = past.fired_mono_ns is not None or past.fired_wall_ns is not None
    fired_ns = max(-1 if at_ns is None else at_ns for at_ns in (past.fired_mono_ns, past.fired_before_mono_ns))
    for base_ns, spans_ns in (
        (past.armed_mono_ns, timer.on_active_ns),
        (past.boot_mono_ns, timer.on_boot_ns),
        (past.startup_mono_ns, timer.on_startup_ns),
    ):
        for span_ns in spans_ns:
            elapse_ns = base_ns + span_ns
            was_missed = has_fired and elapse_ns < now_mono_ns and not clock_was_set
            if elapse_ns > fired_ns and not was_missed:
                yield elapse_ns


def _again(timer: Timer, past: Past, now_mono_ns: int) -> Iterator[int]:
    """The triggers that count from the last run; without any there is nothing to count from."""
    fired = () if past.fired_mono_ns is None else (past.fired_mono_ns,)
    began_ns = max((*fired, past.began_mono_ns) if past.began_mono_ns is not None else fired, default=None)
    ended_ns = max((*fired, past.ended_mono_ns) if past.ended_mono_ns is not None else fired, default=None)
    if began_ns is not None:
        yield from (began_ns + span_ns for span_ns in timer.on_unit_active_ns)
    if ended_ns is not None:
        yield from (ended_ns + span_ns for span_ns in timer.on_unit_inactive_ns)
    if timer.every_ns is None:
        return
    last_ns = ended_ns if timer.every_from is TimerFrom.END else began_ns
    if last_ns is None or last_ns < past.armed_mono_ns:
        yield past.armed_mono_ns
        return
    elapse_ns = last_ns + timer.every_ns
    overrun_ns = (past.ended_mono_ns or 0) - elapse_ns
    if overrun_ns > 0 and timer.overrun is Overrun.SKIP and timer.every_ns:
        # What fell into the run is left out, the beat is kept.
        elapse_ns += -(-overrun_ns // timer.every_ns) * timer.every_ns
    yield elapse_ns


def _calendars(
    timer: Timer, past: Past, now_mono_ns: int, now_wall_ns: int, zone_of: Callable[[Calendar], tzinfo]
) -> Iterator[int]:
    fired_ns = past.fired_wall_ns
    if fired_ns is None or (past.fired_mono_ns is None and fired_ns > now_wall_ns):
        # Never, or the stamp is from the future: a clock was wrong.
        base_ns = min(past.armed_wall_ns, now_wall_ns)
    elif fired_ns - now_wall_ns > SET_BACK_NS:
        base_ns = now_wall_ns
    else:
        base_ns = fired_ns
        if past.ended_wall_ns is not None and timer.overrun is Overrun.SKIP:
            base_ns = max(base_ns, min(past.ended_wall_ns, now_wall_ns))
    for calendar in timer.on_calendar:
        elapse_ns = next_elapse_ns(calendar, base_ns, zone_of(calendar))
        if elapse_ns is None:
            continue
        if past.fired_mono_ns is None:
            # What was missed counts from the start of the supervisor, so that a random delay spreads it.
            elapse_ns = max(elapse_ns, now_wall_ns - (now_mono_ns - past.startup_mono_ns))
        yield elapse_ns


def latest_wakeup_ns(elapse_ns: int, accuracy_ns: int, offset_ns: int) -> int:
    """Return when to wake up for an elapse, so that wake-ups fall together.

    The latest moment within the accuracy that is in the coarsest raster of a minute, ten, one and a quarter of a
    second; where none fits, the end of it. ``offset_ns`` shifts the rasters: machines that are alike differ in it.
    """
    last_ns = elapse_ns + accuracy_ns
    for raster_ns in _RASTERS_NS:
        found_ns = last_ns - (last_ns - offset_ns) % raster_ns
        if found_ns >= elapse_ns:
            return found_ns
    return last_ns
