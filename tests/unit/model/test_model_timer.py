"""When a timer fires next: what a booted systemd did (``tests/data/systemd/behaviour``), and rule by rule."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from supervisord_py.model.calendar import Calendar, parse_calendar
from supervisord_py.model.states import Overrun, TimerFrom
from supervisord_py.model.timer import Past, Plan, latest_wakeup_ns, plan_timer
from supervisord_py.model.unit import Timer
from supervisord_py.model.values import SECOND_NS, parse_timespan

BEHAVIOUR = Path(__file__).parents[2] / "data" / "systemd" / "behaviour" / "types-limits-timers.json"
ROWS = json.loads(BEHAVIOUR.read_text())["timers"]
HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
NOON_NS = int(datetime(2025, 7, 1, 12, tzinfo=UTC).timestamp()) * SECOND_NS
"""Wall time at which everything here is armed; monotonic time is an hour then."""


def zone_of(calendar: Calendar) -> tzinfo:
    return ZoneInfo(calendar.zone) if calendar.zone else UTC


def calendars(*texts: str) -> tuple[Calendar, ...]:
    return tuple(parse_calendar(text, ZoneInfo) for text in texts)


ARMED = Past(armed_mono_ns=HOUR_NS, armed_wall_ns=NOON_NS, startup_mono_ns=HOUR_NS - 60 * SECOND_NS)


def plan(timer: Timer, past: Past = ARMED, after_ns: int = 0, **more: Any) -> Plan:
    """The plan, this long after the timer was armed."""
    return plan_timer(timer, past, HOUR_NS + after_ns, NOON_NS + after_ns, zone_of, **more)


@dataclass
class Play:
    """Lets a timer fire and its unit run, in virtual time after arming."""

    timer: Timer
    runtime_ns: int = 0
    past: Past = ARMED
    fired_ns: list[int] = field(default_factory=list)
    last: Plan = field(default_factory=Plan)

    def until(self, end_ns: int) -> list[float]:
        now_ns = 0
        while True:
            self.last = plan(self.timer, self.past, now_ns)
            mono_ns = None if self.last.mono_ns is None else self.last.mono_ns - HOUR_NS
            wall_ns = None if self.last.wall_ns is None else self.last.wall_ns - NOON_NS
            times = [max(at_ns, now_ns) for at_ns in (mono_ns, wall_ns) if at_ns is not None]
            if not times or min(times) > end_ns:
                return [at_ns / SECOND_NS for at_ns in self.fired_ns]
            now_ns = min(times)
            self.fired_ns.append(now_ns)
            assert len(self.fired_ns) < 100, "it fires without end"
            ended_ns = now_ns + self.runtime_ns
            self.past = replace(
                self.past,
                fired_mono_ns=HOUR_NS + now_ns,
                fired_wall_ns=NOON_NS + now_ns,
                began_mono_ns=HOUR_NS + now_ns,
                ended_mono_ns=HOUR_NS + ended_ns,
                ended_wall_ns=NOON_NS + ended_ns,
            )
            now_ns = ended_ns


RUNTIMES_S = {
    "OnActiveSec=1 OnUnitInactiveSec=1 (service runs 1s)": 1,
    "OnActiveSec=1, service slower than period": 2.5,
}
FIELDS = {
    "OnActiveSec": "on_active_ns", "OnBootSec": "on_boot_ns", "OnUnitActiveSec": "on_unit_active_ns",
    "OnUnitInactiveSec": "on_unit_inactive_ns",
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_timers_fire_as_systemds_did(name: str) -> None:
    """As often, at the same seconds, and elapsed or still waiting as systemd found it."""
    row = ROWS[name]
    spans: dict[str, list[int]] = {}
    found: tuple[Calendar, ...] = ()
    for line in row["timer"].splitlines():
        key, _, value = line.partition("=")
        if key == "OnCalendar":
            found = calendars(value)
        elif key in FIELDS:
            spans.setdefault(FIELDS[key], []).append(parse_timespan(value) or 0)
        else:
            # That it is stopped then is not a matter of when it fires.
            assert line == "RemainAfterElapse=no"
    timer = Timer(on_calendar=found, **{name: tuple(values) for name, values in spans.items()})  # type: ignore[arg-type]
    play = Play(timer, int(RUNTIMES_S.get(name, 0) * SECOND_NS))
    expected = row["fired_after_s"]
    if expected is None:
        fired = play.until(11 * SECOND_NS)
        expected = [sum(row["gaps_s"][:count]) for count in range(row["count"])]
        fired = [at_s - fired[0] for at_s in fired]
    else:
        fired = play.until(int(max(expected, default=10) * SECOND_NS))
    # systemd was a few hundredths late each time, and what it was late counts on.
    assert fired == pytest.approx(expected, abs=0.15)
    assert play.last.is_elapsed == (row["timer_state"]["SubState"] in ("elapsed", "dead"))


def test_the_earlier_clock_fires() -> None:
    """Both clocks have a time of their own; without any trigger the timer is elapsed."""
    both = Timer(on_active_ns=(7 * SECOND_NS, 5 * SECOND_NS), on_calendar=calendars("12:30", "12:15"))
    assert plan(both) == Plan(HOUR_NS + 5 * SECOND_NS, NOON_NS + 900 * SECOND_NS)
    later = plan(replace(both, randomized_delay_ns=60 * SECOND_NS), random_millionths=250_000)
    assert later == Plan(HOUR_NS + 20 * SECOND_NS, NOON_NS + 915 * SECOND_NS)
    assert plan(Timer()).is_elapsed
    assert plan(Timer(on_calendar=calendars("2020-01-01"))).is_elapsed


def test_boot_and_startup_count_from_theirs() -> None:
    """What is past when the timer is armed for the first time fires at once; armed anew it has fired."""
    assert plan(Timer(on_boot_ns=(60 * SECOND_NS,))).mono_ns == 60 * SECOND_NS
    assert plan(Timer(on_startup_ns=(90 * SECOND_NS,))).mono_ns == HOUR_NS + 30 * SECOND_NS
    anew = replace(ARMED, fired_before_mono_ns=HOUR_NS - 1)
    assert plan(Timer(on_boot_ns=(60 * SECOND_NS,)), anew).is_elapsed
    assert plan(Timer(on_active_ns=(SECOND_NS,)), anew).mono_ns == HOUR_NS + SECOND_NS


def test_what_elapsed_in_a_run_is_spent_but_not_by_a_set_clock() -> None:
    """systemd's rule for the triggers that fire once: one in the past is disabled, unless the clock has just been
    set, because then nobody has seen it fire."""
    timer = Timer(on_active_ns=(SECOND_NS, 3 * SECOND_NS))
    past = replace(ARMED, fired_mono_ns=HOUR_NS + SECOND_NS, fired_wall_ns=NOON_NS + SECOND_NS)
    assert plan(timer, past, 5 * SECOND_NS).is_elapsed
    assert plan(timer, past, 5 * SECOND_NS, clock_was_set=True).mono_ns == HOUR_NS + 3 * SECOND_NS
    fired = replace(past, fired_mono_ns=HOUR_NS + 3 * SECOND_NS)
    assert plan(timer, fired, 5 * SECOND_NS, clock_was_set=True).is_elapsed


def test_a_persistent_stamp_makes_up_once() -> None:
    """A time that passed while nobody was there is due since the supervisor began; one from the future is none."""
    daily = Timer(on_calendar=calendars("daily"), randomized_delay_ns=HOUR_NS)
    missed = replace(ARMED, fired_wall_ns=NOON_NS - 3 * DAY_NS)
    assert plan(daily, missed).wall_ns == NOON_NS - 60 * SECOND_NS
    assert plan(daily, missed, random_millionths=500_000).wall_ns == NOON_NS - 60 * SECOND_NS + HOUR_NS // 2
    midnight_ns = NOON_NS + DAY_NS // 2
    assert plan(daily, replace(ARMED, fired_wall_ns=NOON_NS - HOUR_NS)).wall_ns == midnight_ns
    assert plan(daily, replace(ARMED, fired_wall_ns=NOON_NS + 900 * DAY_NS)).wall_ns == midnight_ns
    hourly = Timer(on_calendar=calendars("hourly"))
    assert plan(hourly, replace(ARMED, fired_wall_ns=NOON_NS + 2 * HOUR_NS)).wall_ns == NOON_NS + HOUR_NS
    # Not persistent: the shell hands no stamp in, and what was missed was missed.
    assert plan(daily).wall_ns == midnight_ns


def test_a_clock_that_is_set_back_fires_nothing_twice() -> None:
    """Within three hours what was fired stays fired; a clock that was years ahead does not hold a timer up."""
    hourly = Timer(on_calendar=calendars("hourly"))
    past = replace(ARMED, fired_mono_ns=HOUR_NS, fired_wall_ns=NOON_NS)
    assert plan_timer(hourly, past, HOUR_NS, NOON_NS - HOUR_NS // 2, zone_of).wall_ns == NOON_NS + HOUR_NS
    # The end of the run was before the clock was set; a run that ended before this firing is of no account.
    ended = replace(past, ended_wall_ns=NOON_NS + 2 * HOUR_NS)
    assert plan(hourly, ended, HOUR_NS // 2).wall_ns == NOON_NS + HOUR_NS
    assert plan(hourly, replace(past, ended_wall_ns=NOON_NS - 2 * HOUR_NS)).wall_ns == NOON_NS + HOUR_NS
    ahead = replace(past, armed_wall_ns=NOON_NS + 900 * DAY_NS, fired_wall_ns=NOON_NS + 900 * DAY_NS)
    assert plan(hourly, ahead).wall_ns == NOON_NS + HOUR_NS
    assert plan(hourly, replace(ahead, fired_mono_ns=None, fired_wall_ns=None)).wall_ns == NOON_NS + HOUR_NS


def test_a_clock_that_is_set_forward_fires_once() -> None:
    """Three hours were skipped (a suspend, too): one firing makes up for them."""
    hourly = Timer(on_calendar=calendars("hourly"))
    past = replace(ARMED, fired_mono_ns=HOUR_NS, fired_wall_ns=NOON_NS)
    now_ns = NOON_NS + 3 * HOUR_NS + 1
    assert plan_timer(hourly, past, HOUR_NS, now_ns, zone_of, clock_was_set=True).wall_ns == NOON_NS + HOUR_NS
    fired = replace(past, fired_mono_ns=HOUR_NS + 1, fired_wall_ns=now_ns)
    assert plan_timer(hourly, fired, HOUR_NS, now_ns, zone_of).wall_ns == NOON_NS + 4 * HOUR_NS


def test_a_run_that_is_too_long() -> None:
    """What elapses during a run is skipped, or made up for once: calendars and every, which keeps its beat."""
    for timer in (Timer(on_calendar=calendars("*:*:0/2")), Timer(every_ns=2 * SECOND_NS)):
        first = 2.0 if timer.on_calendar else 0.0
        skipped = [first + 6.0 * count for count in range(3)]
        assert Play(timer, 5 * SECOND_NS).until(15 * SECOND_NS)[:3] == skipped
        queued = [first + 5.0 * count for count in range(3)]
        assert Play(replace(timer, overrun=Overrun.QUEUE), 5 * SECOND_NS).until(15 * SECOND_NS)[:3] == queued


def test_a_run_by_hand_counts() -> None:
    """The triggers that count from the last run take the one that somebody started as well."""
    by_hand = replace(
        ARMED, fired_mono_ns=HOUR_NS, fired_wall_ns=NOON_NS, began_mono_ns=HOUR_NS + 5, ended_mono_ns=HOUR_NS + 9
    )
    assert plan(Timer(on_unit_active_ns=(SECOND_NS,)), by_hand, 10).mono_ns == HOUR_NS + 5 + SECOND_NS
    assert plan(Timer(on_unit_inactive_ns=(SECOND_NS,)), by_hand, 10).mono_ns == HOUR_NS + 9 + SECOND_NS
    assert plan(Timer(on_unit_inactive_ns=(SECOND_NS,))).is_elapsed


def test_every() -> None:
    """The first run is when it is armed, then from begin to begin, or from the end of one to the begin of the next."""
    assert Play(Timer(every_ns=10 * SECOND_NS), 3 * SECOND_NS).until(25 * SECOND_NS) == [0, 10, 20]
    assert Play(Timer(every_ns=10 * SECOND_NS, every_from=TimerFrom.END), 3 * SECOND_NS).until(30 * SECOND_NS) == [
        0,
        13,
        26,
    ]
    earlier = replace(ARMED, began_mono_ns=HOUR_NS - 9, ended_mono_ns=HOUR_NS - 5, ended_wall_ns=NOON_NS - 5)
    assert plan(Timer(every_ns=10 * SECOND_NS), earlier).mono_ns == HOUR_NS


@given(
    elapse_ns=st.integers(0, 10**18),
    accuracy_ns=st.one_of(st.integers(0, 10**9), st.integers(0, 10**12)),
    offset_ns=st.integers(0, 60 * SECOND_NS - 1),
)
def test_wake_ups_fall_together(elapse_ns: int, accuracy_ns: int, offset_ns: int) -> None:
    """Never before the elapse nor after its accuracy; whoever could wait for the same minute wakes up in the same."""
    found_ns = latest_wakeup_ns(elapse_ns, accuracy_ns, offset_ns)
    assert elapse_ns <= found_ns <= elapse_ns + accuracy_ns
    if accuracy_ns >= 60 * SECOND_NS:
        assert (found_ns - offset_ns) % (60 * SECOND_NS) == 0
    elif accuracy_ns >= SECOND_NS:
        assert (found_ns - offset_ns) % SECOND_NS == 0
    assert latest_wakeup_ns(elapse_ns, 0, offset_ns) == elapse_ns
