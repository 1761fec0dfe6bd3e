"""The manager's mind: one event and the moment in, everything that follows from it out.

``Manager`` touches nothing: no clock, no process, no file. It may be driven by the host, by the simulated world, or by
a recording, and decides the same; its whole memory can be taken out as text after every event (``take_changes``) and
put into another one (``restore``).

How the parts fit: ``ledger`` holds the state, ``service``, ``life`` and ``stopping`` know one unit, ``transaction``
turns a wish into jobs, ``engine`` runs them and carries consequences from unit to unit, ``requests`` owes the replies,
``shutdown`` ends everything, ``loading`` takes over unit files, ``view`` shows it all.
"""

from collections.abc import Callable, Mapping
from datetime import tzinfo

from supervisord_py.core import (
    beside,
    engine,
    health,
    hooks,
    installing,
    life,
    listening,
    loading,
    pause,
    pool,
    probation,
    quarantine,
    requests,
    rollout,
    service,
    shutdown,
    snapshot,
    timed,
    watchdog,
)
from supervisord_py.core.actions import AnyAction, Effects, FollowMain, ReleaseUnit
from supervisord_py.core.consequences import give_up_start
from supervisord_py.core.events import (
    ClockChanged,
    CommandRequested,
    ConditionsChecked,
    ConnectionCame,
    ConnectionsSeen,
    DeadlineReached,
    DescriptorsStored,
    Event,
    KeeperLost,
    KeeperReplaced,
    LimitExceeded,
    MainFollowed,
    NotifyReceived,
    Now,
    ProbeFinished,
    ProcessesSeen,
    ProcessExited,
    ProcessSpawned,
    RequesterGone,
    ShutdownForced,
    ShutdownRequested,
    SocketsOpened,
    SpawnFailed,
    StrayAppeared,
    StrayExited,
    TreeEmptied,
    UnitFrozen,
    UnitsLoaded,
)
from supervisord_py.core.installing import start_automatically
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.notify import notify_received
from supervisord_py.core.processes import waits_for_pid_file
from supervisord_py.core.service import Input
from supervisord_py.core.state import ACTIVE_STATES, ARMED, REST, UP, Ending, JobOrigin, WatchKind
from supervisord_py.core.steps import Ended
from supervisord_py.core.stopping import forget_failures
from supervisord_py.core.timers import DeadlineKind
from supervisord_py.core.transaction import Goal, RefusedError, Transaction, build
from supervisord_py.model.names import is_aux_owner, spawn_of
from supervisord_py.model.states import JobType, Result, Role, Severity
from supervisord_py.model.unit import UnitSet
from supervisord_py.model.values import format_signal

_UP_STATES = frozenset(ACTIVE_STATES[sub] for sub in UP)


class Manager:
    """Decides. Give it every event in order, and carry out what it returns."""

    def __init__(self, seed: int) -> None:
        """Begin with no units and no memory; ``seed`` makes jitter and invocation ids."""
        self._ledger = Ledger(seed)
        self._requests = requests.Requests(self._ledger)
        self._told: dict[str, str] = {}
        self._ledger.edit_globals()

    @property
    def ledger(self) -> Ledger:
        """The state, to be read by ``core.view`` only."""
        return self._ledger

    @classmethod
    def restore(cls, state: Mapping[str, str], units: UnitSet, *, shift_ns: int = 0) -> "Manager":
        """Go on from a snapshot of the same boot with the unit set that it knew.

        Args:
            state: A snapshot, or the folded changes; keys that are not the core's are ignored.
            units: The unit set of the last ``UnitsLoaded``.
            shift_ns: Added to every time in it, for a snapshot of another boot's clock [ns].
        """
        manager = cls(0)
        snapshot.load(manager._ledger, state, units, shift_ns)
        manager._requests.index()
        manager._told = {key: state[key] for key in state if _is_own(key)}
        # Whatever differs from what was handed in is told with the next changes.
        manager._ledger.touched = dict.fromkeys((*manager._told, *snapshot.keys(manager._ledger)))
        return manager

    def restore_counters(self, state: Mapping[str, str]) -> None:
        """Take over, before the first ``UnitsLoaded`` of a cold start, what survives the supervisor: counters,
        failed states, last lives, numbers.
        """
        snapshot.load_counters(self._ledger, state)

    def use_zones(self, zone_of: Callable[[str], tzinfo]) -> None:
        """Read calendars in these time zones, the local one by the empty name (else: UTC); this is not in the state."""
        self._ledger.zone_of = zone_of

    def skip_spawns(self, last_id: int) -> None:
        """Number the next spawn above ``last_id``: processes of a lost keeper carry what is up to it."""
        if last_id >= self._ledger.globals.next_spawn:
            self._ledger.edit_globals().next_spawn = last_id + 1

    def handle(self, event: Event, now: Now) -> Effects:
        """Decide what follows from one event."""
        ledger = self._ledger
        ledger.begin(now)
        answer: Callable[[], None] | None = None
        match event:
            case ProcessSpawned() if event.spawn_id in ledger.beside:
                beside.spawned(ledger, event)
            case SpawnFailed() if event.spawn_id in ledger.beside:
                self._beside_ended(beside.spawn_failed(ledger, event))
            case ProcessExited() if event.spawn_id in ledger.beside:
                self._beside_ended(beside.exited(ledger, event))
            case TreeEmptied() if is_aux_owner(event.unit):
                beside.emptied(ledger, spawn_of(event.unit))
            case ProcessSpawned():
                service.process_spawned(ledger, event)
            case SpawnFailed():
                service.spawn_failed(ledger, event)
            case ProcessExited():
                service.process_exited(ledger, event)
            case LimitExceeded():
                service.limit_exceeded(ledger, event)
            case MainFollowed():
                service.main_followed(ledger, event)
            case ConditionsChecked():
                engine.conditions_checked(ledger, event)
            case SocketsOpened():
                engine.sockets_opened(ledger, event)
            case ConnectionCame():
                self._connection_came(event)
            case ConnectionsSeen():
                if listening.is_unused(ledger, event.unit, event.look_id, event.connections):
                    service.feed(ledger, event.unit, Input.UNUSED, Ended(Result.SUCCESS, "nothing has come to it"))
            case DescriptorsStored():
                listening.stored(ledger, event)
            case UnitFrozen():
                pause.frozen(ledger, event)
            case ProbeFinished():
                if health.probe_finished(ledger, event):
                    life.health_changed(ledger, event.unit)
            case ProcessesSeen():
                watchdog.seen(ledger, event)
                if (accused := health.seen(ledger, event)) is not None:
                    service.found_unhealthy(ledger, event.unit, *accused)
            case TreeEmptied():
                service.tree_emptied(ledger, event)
            case NotifyReceived():
                notify_received(ledger, event)
            case CommandRequested():
                answer = self._requests.handle(event)
            case RequesterGone():
                self._requests.gone(event.request_id)
            case UnitsLoaded():
                self._load(event)
            case DeadlineReached():
                self._fire()
            case ShutdownRequested():
                shutdown.request(ledger, event)
            case ShutdownForced():
                shutdown.force(ledger, "a second interrupt")
            case StrayAppeared():
                fields = {"pid": event.pid, "command": event.command}
                severity = Severity.INFO if event.is_expected else Severity.WARNING
                ledger.record("stray.appeared", severity=severity, fields=fields)
            case StrayExited():
                ledger.record("stray.exited", fields=_stray_fields(event))
            case KeeperLost():
                ledger.record("keeper.lost", severity=Severity.ERROR, fields=event.fields)
                watchdog.was_unheard(ledger)
                for name in listening.keeper_lost(ledger):
                    why = "its connection was lost with the keeper"
                    if not give_up_start(ledger, name, why):
                        service.order_stop(ledger, name, Ending.ORDER, why)
            case KeeperReplaced() if event.refused is None:
                ledger.record("keeper.reexecuted", fields={"old": event.old, "new": event.new})
            case KeeperReplaced():
                fields = {"version": event.old, "reason": event.refused}
                ledger.record("keeper.reexec-failed", severity=Severity.ERROR, fields=fields)
            case ClockChanged():
                timed.clock_changed(ledger)
            case _:
                raise AssertionError(f"internal error: no event {type(event).__name__}")
        engine.work(ledger)
        while rollout.advance(ledger):
            engine.work(ledger)
        self._settle()
        if shutdown.end_if_empty(ledger):
            engine.work(ledger)
            self._settle()
        hooks.call(ledger, ledger.effects.records, now.seq)
        shutdown.exit_if_done(ledger)
        if answer is not None:
            answer()
        self._requests.settle()
        return ledger.end()

    def pending_actions(self) -> list[AnyAction]:
        """Return what the manager before asked of the host itself and never heard of: a restored one asks it again."""
        ledger = self._ledger
        pending: list[AnyAction] = []
        for name, state in sorted(ledger.states.items()):
            service = ledger.service(name)
            if state.following is not None and service is not None:
                waits = waits_for_pid_file(ledger, name)
                pending.append(FollowMain(name, state.following, service.pid_file, waits))
            pending += watchdog.pending(ledger, name)
            pending += pause.pending(ledger, name)
            pending += health.pending(ledger, name)
            pending += listening.pending(ledger, name)
        for job in ledger.jobs.values():
            if (check := engine.pending_check(ledger, job)) is not None:
                pending.append(check)
        if (revert := rollout.pending_action(ledger)) is not None:
            pending.append(revert)
        return pending

    def deadline_ns(self) -> int | None:
        """Return when ``DeadlineReached`` is due at the latest, None when nothing is scheduled [CLOCK_MONOTONIC ns]."""
        return self._ledger.timers.first_ns()

    def take_changes(self) -> dict[str, str | None]:
        """Return the state that changed since the last call: text by key, None for a key that is gone."""
        changes: dict[str, str | None] = {}
        for key in self._ledger.touched:
            text = snapshot.encode(self._ledger, key)
            if text is None:
                if self._told.pop(key, None) is not None:
                    changes[key] = None
            elif self._told.get(key) != text:
                changes[key] = self._told[key] = text
        self._ledger.touched.clear()
        return changes

    def snapshot(self) -> dict[str, str]:
        """Return the whole state: what folding all changes gives."""
        texts = {key: snapshot.encode(self._ledger, key) for key in snapshot.keys(self._ledger)}
        return {key: text for key, text in texts.items() if text is not None}

    def _load(self, event: UnitsLoaded) -> None:
        ledger = self._ledger
        if ledger.globals.shutdown_timeout_ns != event.shutdown_timeout_ns:
            ledger.edit_globals().shutdown_timeout_ns = event.shutdown_timeout_ns
        if ledger.globals.until_empty is not event.until_empty:
            ledger.edit_globals().until_empty = event.until_empty
        begins = ledger.globals.began_ns is None
        if begins:
            ledger.edit_globals().began_ns = ledger.now.mono_ns
        if ledger.globals.is_init is not event.is_init:
            ledger.edit_globals().is_init = event.is_init
        pool.set_limits(ledger, event.limits)
        hooks.set_hooks(ledger, event.hooks)
        first = not ledger.set.units and not ledger.set.bad
        before = ledger.set
        loading.take_limits(ledger, event.units, event.limited)
        names = loading.take_over(ledger, event.units, event.cause)
        if begins:
            quarantine.arm_retries(ledger)
        engine.units_loaded(ledger, before)
        if event.reverts:
            rollout.reverted(ledger)
        if not event.start_enabled or ledger.globals.shutdown is not None:
            return
        if names:
            anchors = tuple((name, JobType.START) for name in names)
            origin = JobOrigin.BOOT if first else JobOrigin.COMMAND
            goal = Goal(anchors, origin, optional=True, cause=event.cause)
            try:
                transaction = build(ledger, goal)
            except RefusedError as error:
                # Jobs that are queued already contradict each other in the new order; nobody asked who could be told.
                transaction = Transaction(goal, [], dict.fromkeys(names, error.refusal))
            installing.apply(ledger, transaction)

    def _fire(self) -> None:
        """Fire every deadline that has passed, before anything follows from them: what is due together is ordered."""
        ledger = self._ledger
        while (due := ledger.timers.pop_due(ledger.now.mono_ns)) is not None:
            _, name, kind = due
            match kind:
                case DeadlineKind.PHASE:
                    ledger.edit(name).timeout_at_ns = None
                    service.feed(ledger, name, Input.DEADLINE)
                case DeadlineKind.HEALTHY:
                    forget_failures(ledger, name)
                case DeadlineKind.ROLLOUT:
                    probation.deadline(ledger, name)
                case DeadlineKind.JOB:
                    engine.job_timed_out(ledger, name)
                case DeadlineKind.WATCHDOG | DeadlineKind.PROGRESS:
                    watchdog.deadline(ledger, name, WatchKind(kind.value))
                case DeadlineKind.PROBE:
                    unit, _, probe = name.partition("!")
                    health.deadline(ledger, unit, probe)
                case DeadlineKind.BESIDE:
                    self._beside_ended(beside.deadline(ledger, int(name)))
                case DeadlineKind.TIMER:
                    timed.deadline(ledger, name)
                case DeadlineKind.LISTEN:
                    listening.resume(ledger, name)
                case DeadlineKind.UNUSED:
                    listening.use_deadline(ledger, name)
                case DeadlineKind.RETRY:
                    quarantine.retry(ledger, name)
                case DeadlineKind.UPHOLD:
                    ledger.arm_uphold(name, None)
                    ledger.intents.append(Task(Intent.UPHOLD, name, "", ledger.state(name).cause))
                case DeadlineKind.SHUTDOWN:
                    shutdown.deadline(ledger)

    def _connection_came(self, event: ConnectionCame) -> None:
        instance = listening.came(self._ledger, event)
        if instance is not None:
            start_automatically(self._ledger, instance.name, self._ledger.state(event.unit).cause)

    def _beside_ended(self, result: beside.Ended | None) -> None:
        if result is None:
            return
        if result.role is Role.PROBE:
            health.command_ended(self._ledger, result)
            life.health_changed(self._ledger, result.unit)
        else:
            hooks.ended(self._ledger, result)

    def _settle(self) -> None:
        """Settle what is derived from the units that were touched: releases, texts that are not needed any more, the
        shown state.
        """
        ledger = self._ledger
        for name in ledger.touched_units():
            state = ledger.states.get(name)
            if state is not None and state.sub in REST | ARMED:
                if state.held and not state.leftover:
                    ledger.edit(name).held = False
                    ledger.act(ReleaseUnit(name))
                listening.close_if_at_rest(ledger, name)
                if state.sub in REST and name in ledger.set.units and name not in ledger.job_of:
                    ledger.drop_text(name)
            if name in ledger.globals.pending_texts:
                loading.take_live(ledger, name)
            if ledger.globals.vanished:
                loading.forget_if_vanished(ledger, name)
            shown = ledger.shown_active(name)
            if shown is not ledger.state(name).active:
                changed = ledger.edit(name)
                # A unit that reloads is active all the while.
                if not (shown in _UP_STATES and changed.active in _UP_STATES):
                    changed.since_wall_ns = ledger.now.wall_ns
                changed.active = shown


def _is_own(key: str) -> bool:
    return key in ("global", "rollout") or key.partition("/")[0] in ("unit", "text", "job", "token", "end", "beside")


def _stray_fields(event: StrayExited) -> dict[str, object]:
    status = event.status
    end = {"signal": format_signal(status.signal)} if status.signal is not None else {"code": status.code}
    return {"pid": event.pid, **end, "core": status.core_dumped}
