"""Silence that is held against a unit: no heartbeat for ``watchdog-sec``, no work done for ``progress-sec``.

Theory of operation
-------------------
Both are a ``Watch``: it begins when the start is done, begins anew with each sign, and ends with the life. A process
that cannot run is not blamed. Three quarters into a silence, and again at its end, the host looks at the processes
(``LookAtProcesses``): while they are stopped (SIGSTOP, a debugger, a frozen cgroup) the watch stands still, and it
begins anew when they run again. That catches every stop but one that begins in the last quarter and is over before the
end, of a process that was late already. A suspended machine has no monotonic time; where this supervisor itself was
held up, or the answer to its question was, so were the others, and the silence may last as much longer.

Laws: no silence is held against a unit before its watch has passed in full; a sign that was sent in time is heard in
time (facts go before deadlines).

Source: systemd, core/service.c (service_start_watchdog, service_dispatch_watchdog); system-anchors 1.7 and 4; defects
B-PO-16 and B-AF-2 of the older systems.
"""

from supervisord_py.core import processes, stopping
from supervisord_py.core.actions import LookAtProcesses
from supervisord_py.core.events import ProcessesSeen
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.state import Watch, WatchKind
from supervisord_py.model.states import Result, Severity, SubState
from supervisord_py.model.values import format_timespan

WATCHED = frozenset({SubState.START_POST, SubState.RUNNING, SubState.RELOAD})
"""Where silence means something; in any other state the watch has ended."""

_EARLY = 4
"""The first look is this share of the time before the end."""


def begin(ledger: Ledger, name: str) -> None:
    """The start of a life is done: what its text asks for is watched from now on."""
    service, state = ledger.service(name), ledger.edit(name)
    if service is None or not processes.is_alive(ledger, name):
        return
    period_ns = service.watchdog_ns if state.watchdog_ns is None else state.watchdog_ns
    _arm(ledger, name, WatchKind.WATCHDOG, period_ns or None)
    _arm(ledger, name, WatchKind.PROGRESS, service.progress_ns or None)


def end(ledger: Ledger, name: str) -> None:
    """Nothing is expected any more."""
    if ledger.state(name).watches:
        ledger.edit(name).watches = {}


def sign(ledger: Ledger, name: str, kind: WatchKind) -> None:
    """The process has shown that it lives, or works."""
    watch = ledger.state(name).watches.get(kind)
    if watch is not None:
        _arm(ledger, name, kind, watch.period_ns)


def was_unheard(ledger: Ledger) -> None:
    """For a while nobody has listened: whatever was said then is lost, and every watch begins anew."""
    for name in sorted(ledger.alive):
        for kind, watch in list(ledger.state(name).watches.items()):
            _arm(ledger, name, kind, watch.period_ns)


def set_period(ledger: Ledger, name: str, period_ns: int) -> None:
    """The process wants another pause between heartbeats (``WATCHDOG_USEC=``), for this life; 0 is none at all."""
    state = ledger.edit(name)
    state.watchdog_ns = period_ns
    if state.sub in WATCHED:
        _arm(ledger, name, WatchKind.WATCHDOG, period_ns or None)


def _arm(ledger: Ledger, name: str, kind: WatchKind, period_ns: int | None) -> None:
    state = ledger.edit(name)
    watches = {each: watch for each, watch in state.watches.items() if each is not kind}
    if period_ns is not None:
        now_ns = ledger.now.mono_ns
        watches[kind] = Watch(period_ns, now_ns, now_ns + period_ns - period_ns // _EARLY)
        ledger.arm_watch(name, kind, watches[kind].at_ns)
    state.watches = watches


def _change(ledger: Ledger, name: str, kind: WatchKind, watch: Watch) -> None:
    state = ledger.edit(name)
    state.watches = {**state.watches, kind: watch}
    ledger.arm_watch(name, kind, watch.at_ns)


def deadline(ledger: Ledger, name: str, kind: WatchKind) -> None:
    """It is time to look; if we are late ourselves, later."""
    watch = ledger.state(name).watches[kind]
    assert watch.at_ns is not None
    now_ns = ledger.now.mono_ns
    if _excused(ledger, name, kind, watch, now_ns - watch.at_ns):
        return
    look_id = ledger.new_look_id()
    asked = Watch(watch.period_ns, watch.from_ns, None, look_id, watch.stopped, watch.held_up, now_ns)
    _change(ledger, name, kind, asked)
    ledger.act(LookAtProcesses(look_id, name))


def _excused(ledger: Ledger, name: str, kind: WatchKind, watch: Watch, late_ns: int) -> bool:
    """Let a silence last longer, once, by as much as we were late ourselves, or the answer to our question was."""
    if late_ns <= watch.period_ns // _EARLY or watch.held_up:
        return False
    grace_ns = min(late_ns, watch.period_ns)
    at_ns, from_ns = ledger.now.mono_ns + grace_ns, watch.from_ns + late_ns + grace_ns
    _change(ledger, name, kind, Watch(watch.period_ns, from_ns, at_ns, None, watch.stopped, True))
    return True


def seen(ledger: Ledger, event: ProcessesSeen) -> None:
    """Somebody has looked: hold the silence against the unit, or not; an answer that nobody waits for means nothing."""
    name = event.unit
    for kind, watch in list(ledger.state(name).watches.items()):
        if watch.look_id == event.look_id:
            _judge(ledger, name, kind, watch, event.stopped)


def _judge(ledger: Ledger, name: str, kind: WatchKind, watch: Watch, stopped: bool) -> None:
    now_ns = ledger.now.mono_ns
    if stopped:
        _change(ledger, name, kind, Watch(watch.period_ns, now_ns, now_ns + watch.period_ns // _EARLY, stopped=stopped))
        if not watch.stopped:
            message = f"its processes are stopped: {_NAMES[kind]} waits until they run again"
            ledger.record("unit.excused", name, severity=Severity.WARNING, fields={"message": message}, chain=False)
    elif watch.stopped:
        _arm(ledger, name, kind, watch.period_ns)
    elif watch.asked_ns is not None and _excused(ledger, name, kind, watch, now_ns - watch.asked_ns):
        return
    elif now_ns >= watch.from_ns + watch.period_ns:
        span = format_timespan(watch.period_ns)
        if kind is WatchKind.WATCHDOG:
            stopping.enter_watchdog(ledger, name, f"it has given no sign of life for {span} (watchdog-sec)")
        else:
            message = f"it has done no work for {span} (progress-sec)"
            stopping.enter_watchdog(ledger, name, message, Result.PROGRESS)
    else:
        _change(ledger, name, kind, Watch(watch.period_ns, watch.from_ns, watch.from_ns + watch.period_ns))


_NAMES = {WatchKind.WATCHDOG: "watchdog-sec", WatchKind.PROGRESS: "progress-sec"}


def pending(ledger: Ledger, name: str) -> list[LookAtProcesses]:
    """Return what is being looked at: a new manager asks again."""
    watches = ledger.state(name).watches.values()
    return [LookAtProcesses(watch.look_id, name) for watch in watches if watch.look_id is not None]
