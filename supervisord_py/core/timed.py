"""A unit that is run by the clock: armed, it waits for its time; each run is an ordinary life of it.

Theory of operation
-------------------
The start of a unit with ``[timer]`` *arms* it: it is ``waiting``, active, without a process. A *plan*
(``model.timer.plan_timer``) says when it fires next; it is made when the timer is armed, when a run has ended, when the
clock was set and when its file has changed, and holds between these. To fire is to queue an automatic start that *runs*
the unit (``Job.runs``): what it needs, the limits and the conditions hold for a run as for any start, and a run that
has to wait for a slot waits. When the life is over and is not restarted the unit is ``waiting`` again. What fell into a
run is left out, or made up for once (``overrun``); both are matters of the plan, so there are never two runs at a time.

An order to stop, a bond, a quarantine and a start limit take the unit to rest, and that disarms it (``ledger.set_sub``
sees to it). So does a timer that will never elapse again; one whose times count from a run waits for somebody to run
it (``trigger``).

Calendars are on the wall clock. Their time is converted with the clocks of the last plan and looked at again when it
has come: where the clocks have moved against each other unnoticed, it is converted anew.

Laws: a unit with an armed timer is not at rest; a plan has a deadline only while the unit waits; no time is
fired twice.

Source: systemd, core/timer.c; defects B-AF-3 and B-AF-12 of the older systems.
"""

from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from supervisord_py.core import quarantine
from supervisord_py.core.actions import KeepState
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.state import REST, STARTING, STOPPING, UP, Ending, TimerState, UnitState
from supervisord_py.model.states import Overrun, Result, SubState
from supervisord_py.model.timer import Past, latest_wakeup_ns, plan_timer
from supervisord_py.model.unit import Timer, Unit
from supervisord_py.model.values import SECOND_NS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLION = 1_000_000
_OFFSET_MAX_NS = 60 * SECOND_NS
ELAPSED = "its timer has elapsed: no time is left at which it is to run"


def is_armed(state: UnitState) -> bool:
    """Tell whether the unit is run by its timer; it counts as up, in a run and between two."""
    return state.timer is not None and state.timer.armed_ns is not None


def has_timer(ledger: Ledger, name: str) -> bool:
    """Tell whether a start of the unit would arm it."""
    unit = ledger.set.units.get(name) or ledger.unit(name)
    return unit is not None and unit.timer is not None


def text_of_run(ledger: Ledger, name: str, unit: Unit) -> Unit:
    """Return the text of the next run: that of the file, by the timer that was armed."""
    armed = ledger.unit(name)
    if not is_armed(ledger.state(name)) or unit.timer is not None or armed is None:
        return unit
    return replace(unit, timer=armed.timer)


def arm(ledger: Ledger, name: str) -> None:
    """Begin to wait for the first time."""
    unit = ledger.set.units.get(name) or ledger.texts.get(name)
    assert unit is not None and unit.timer is not None, f"internal error: {name} has no timer"
    ledger.keep_text(name, unit)
    quarantine.begin_life(ledger, name)
    state, now = ledger.edit(name), ledger.now
    state.result, state.message, state.ending = Result.SUCCESS, None, Ending.ITSELF
    state.stopped = state.succeeded = state.accomplished = False
    ledger.arm_uphold(name, None)
    old = state.timer or TimerState()
    fired = [at_ns for at_ns in (old.fired_ns, old.fired_before_ns) if at_ns is not None]
    is_first = unit.timer.persistent and old.stamp_wall_ns is None
    timer = replace(
        old,
        armed_ns=now.mono_ns,
        armed_wall_ns=now.wall_ns,
        fired_ns=None,
        fired_wall_ns=old.stamp_wall_ns if unit.timer.persistent else None,
        fired_before_ns=max(fired, default=None),
        once_more=False,
        stamp_wall_ns=now.wall_ns if is_first else old.stamp_wall_ns,
    )
    ledger.set_timer(name, timer)
    if is_first:
        ledger.act(KeepState())
    if not _wait(ledger, name):
        state.message = ELAPSED
        ledger.set_sub(name, SubState.DEAD)
        ledger.record("unit.stopped", name, fields={"result": state.result.value, "message": state.message})
        return
    ledger.record("unit.ready", name, fields={"armed": True} | told_next(ledger, name))


def disarm(ledger: Ledger, name: str) -> None:
    """A stop of a unit that waits for its time."""
    state = ledger.set_sub(name, SubState.DEAD)
    ledger.arm_phase(name, None)
    ledger.record("unit.stopped", name, fields={"result": state.result.value})


def began(ledger: Ledger, name: str, unit: Unit) -> None:
    """A life begins, whoever asked for it."""
    old = ledger.state(name).timer
    if unit.timer is not None or old is not None:
        timer = replace(old or TimerState(), began_ns=ledger.now.mono_ns, mono_ns=None, wall_ns=None, at_ns=None)
        ledger.set_timer(name, timer)


def ended(ledger: Ledger, name: str) -> None:
    """A life is over, whatever follows."""
    timer, now = ledger.state(name).timer, ledger.now
    if timer is not None:
        ledger.set_timer(name, replace(timer, ended_ns=now.mono_ns, ended_wall_ns=now.wall_ns))


def wait_again(ledger: Ledger, name: str) -> bool:
    """After a run: wait for the next one; False if there is none to wait for."""
    state = ledger.state(name)
    if not is_armed(state) or state.ending is not Ending.ITSELF or ledger.globals.shutdown is not None:
        return False
    return _wait(ledger, name)


def _wait(ledger: Ledger, name: str) -> bool:
    unit = ledger.unit(name)
    if unit is None or unit.timer is None:
        return False
    plan(ledger, name)
    timer = ledger.state(name).timer
    assert timer is not None
    if timer.at_ns is None and not _counts_from_runs(unit.timer):
        return False
    ledger.set_sub(name, SubState.WAITING)
    ledger.arm_phase(name, None)
    return True


def _counts_from_runs(timer: Timer) -> bool:
    return bool(timer.on_unit_active_ns or timer.on_unit_inactive_ns)


def plan(ledger: Ledger, name: str, *, again: bool = False) -> None:
    """Plan the next firing of an armed timer; ``again``: because the clock was set or the file has changed."""
    unit, old, now = ledger.unit(name), ledger.state(name).timer, ledger.now
    assert unit is not None and unit.timer is not None, f"internal error: {name} has no timer"
    assert old is not None and old.armed_ns is not None, f"internal error: the timer of {name} is not armed"
    timer, millionths = unit.timer, old.random_millionths
    if timer.randomized_delay_ns and not again:
        millionths = ledger.draw() % (_MILLION + 1)
    began_ns = ledger.globals.began_ns or 0
    past = Past(
        armed_mono_ns=old.armed_ns,
        armed_wall_ns=old.armed_wall_ns,
        startup_mono_ns=began_ns,
        boot_mono_ns=began_ns if ledger.globals.is_init else 0,
        fired_mono_ns=old.fired_ns,
        fired_wall_ns=old.fired_wall_ns,
        fired_before_mono_ns=old.fired_before_ns,
        began_mono_ns=old.began_ns,
        ended_mono_ns=old.ended_ns,
        ended_wall_ns=old.ended_wall_ns,
    )
    found = plan_timer(
        timer,
        past,
        now.mono_ns,
        now.wall_ns,
        lambda calendar: ledger.zone_of(calendar.zone),
        random_millionths=millionths,
        clock_was_set=again,
    )
    mono_ns = now.mono_ns if old.once_more else found.mono_ns
    planned = replace(old, random_millionths=millionths, mono_ns=mono_ns, wall_ns=found.wall_ns)
    ledger.set_timer(name, replace(planned, at_ns=_wake_ns(ledger, planned, timer.accuracy_ns)))


def _due_ns(ledger: Ledger, timer: TimerState) -> int | None:
    """Return when a plan is due on our clock, as the clocks are now [ns]."""
    now = ledger.now
    wall_ns = None if timer.wall_ns is None else timer.wall_ns - now.wall_ns + now.mono_ns
    return min((at_ns for at_ns in (timer.mono_ns, wall_ns) if at_ns is not None), default=None)


def _wake_ns(ledger: Ledger, timer: TimerState, accuracy_ns: int) -> int | None:
    """Return when to look at a plan: what is overdue at once, all else as late as it may be, with other timers [ns]."""
    due_ns = _due_ns(ledger, timer)
    if due_ns is None:
        return None
    if due_ns <= ledger.now.mono_ns:
        # One that is due keeps the moment at which it wakes us, if that is soon enough.
        latest_ns = max(ledger.now.mono_ns, due_ns + accuracy_ns)
        return timer.at_ns if timer.at_ns is not None and timer.at_ns <= latest_ns else ledger.now.mono_ns
    offset_ns = ledger.globals.wake_offset_ns
    if offset_ns is None:
        offset_ns = ledger.draw() % _OFFSET_MAX_NS
        ledger.edit_globals().wake_offset_ns = offset_ns
    return latest_wakeup_ns(due_ns, accuracy_ns, offset_ns)


def deadline(ledger: Ledger, name: str) -> None:
    """A plan may be due: fire, or, if the wall clock has fallen behind meanwhile, wait on."""
    unit, timer, now = ledger.unit(name), ledger.state(name).timer, ledger.now
    assert timer is not None and unit is not None and unit.timer is not None
    due_ns = _due_ns(ledger, timer)
    if due_ns is None or due_ns > now.mono_ns:
        ledger.set_timer(name, replace(timer, at_ns=_wake_ns(ledger, timer, unit.timer.accuracy_ns)))
        return
    due_wall_ns = now.wall_ns - (now.mono_ns - due_ns)
    fired = replace(
        timer,
        fired_ns=now.mono_ns,
        fired_wall_ns=now.wall_ns,
        stamp_wall_ns=now.wall_ns,
        last_wall_ns=now.wall_ns,
        once_more=False,
        mono_ns=None,
        wall_ns=None,
        at_ns=None,
    )
    ledger.set_timer(name, fired)
    fields = {"due": format_wall(due_wall_ns), "late_ms": (now.mono_ns - due_ns) // 1_000_000}
    cause = ledger.record("timer.elapsed", name, fields=fields)
    if unit.timer.persistent:
        ledger.act(KeepState())
    ledger.intents.append(Task(Intent.RUN, name, name, cause))


def is_run(ledger: Ledger, name: str) -> bool:
    """Tell whether a run of the unit goes on: another one does not begin beside it."""
    return ledger.state(name).sub in STARTING | UP | STOPPING


def run_once_more(ledger: Ledger, name: str) -> bool:
    """Note that a unit was triggered in a run; tells whether one more run will follow."""
    unit, state = ledger.unit(name), ledger.state(name)
    is_queued = unit is not None and unit.timer is not None and unit.timer.overrun is Overrun.QUEUE
    if not is_queued or state.timer is None or not is_armed(state):
        return False
    ledger.set_timer(name, replace(state.timer, once_more=True))
    return True


def job_ended(ledger: Ledger, name: str) -> None:
    """The start of a run came to nothing, or what stood in its way has: wait for the next time."""
    timer, unit = ledger.state(name).timer, ledger.unit(name)
    if ledger.state(name).sub is not SubState.WAITING or timer is None or timer.at_ns is not None:
        return
    plan(ledger, name)
    timer = ledger.state(name).timer
    assert timer is not None and unit is not None and unit.timer is not None
    if timer.at_ns is None and not _counts_from_runs(unit.timer) and ledger.globals.shutdown is None:
        disarm(ledger, name)
        ledger.edit(name).message = ELAPSED


def clock_changed(ledger: Ledger) -> None:
    """The clock was set, or the machine has slept: plan anew what waits."""
    for name in sorted(ledger.alive):
        _plan_anew(ledger, name)


def text_changed(ledger: Ledger, name: str, before: Timer | None, after: Timer | None) -> None:
    """The file of a unit with an armed timer has another one now. New calendars count from now, all else from when it
    counted before."""
    state, now = ledger.state(name), ledger.now
    if before == after or after is None or state.timer is None or not is_armed(state):
        return
    if before is None or before.on_calendar != after.on_calendar:
        fired_wall_ns = None if state.timer.fired_wall_ns is None else now.wall_ns
        ledger.set_timer(name, replace(state.timer, armed_wall_ns=now.wall_ns, fired_wall_ns=fired_wall_ns))
    _plan_anew(ledger, name)
    timer = ledger.state(name).timer
    is_elapsed = timer is not None and timer.at_ns is None and not _counts_from_runs(after)
    if is_elapsed and state.sub is SubState.WAITING and name not in ledger.job_of:
        disarm(ledger, name)
        ledger.edit(name).message = ELAPSED


def _plan_anew(ledger: Ledger, name: str) -> None:
    state, job, unit = ledger.state(name), ledger.job_of.get(name), ledger.unit(name)
    if state.sub is SubState.WAITING and unit is not None and unit.timer is not None and not (job and job.runs):
        plan(ledger, name, again=True)


def next_wall_ns(ledger: Ledger, state: UnitState) -> int | None:
    """Return when the unit is run next, as the clocks were when that was last looked at [wall clock, ns]."""
    timer = state.timer
    if timer is None or state.sub in REST:
        return None
    due_ns = _due_ns(ledger, timer)
    return None if due_ns is None else ledger.now.wall_ns + due_ns - ledger.now.mono_ns


def told_next(ledger: Ledger, name: str) -> dict[str, object]:
    """The field of a record that says when the unit is run next."""
    at_ns = next_wall_ns(ledger, ledger.state(name))
    return {} if at_ns is None else {"next": format_wall(at_ns)}


def format_wall(wall_ns: int) -> str:
    """Write a wall time as RFC 3339 in UTC."""
    moment = _EPOCH + timedelta(microseconds=wall_ns // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
