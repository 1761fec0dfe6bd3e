"""The manager's heart: one queue of events, one batch at a time through the core, one commit, then journal and replies.

Theory of operation
-------------------
Events come from the keeper (numbered facts), from clients (commands) and from the clock (the core's deadline). They
are queued and taken in batches; a batch runs without awaiting anything, so nothing interleaves. For each event the
core decides; records, changed state and actions of the whole batch go to the keeper as one commit
(``docs/adr/0001``), the records then go to the journal's writer, and replies are released when the group fsync covers
them.

Laws: facts are handled in their order and before any deadline is looked at; no decision is made twice; the timer is
armed for exactly ``Manager.deadline_ns()`` or not at all, so an idle supervisor never wakes.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any, Protocol

import msgspec

from supervisord_py.core.actions import (
    AnyAction,
    AwaitConnection,
    CheckConditions,
    CloseSockets,
    Effects,
    ExitSupervisor,
    FollowMain,
    FreezeUnit,
    KeepState,
    KillTree,
    LookAtConnections,
    LookAtProcesses,
    OpenSockets,
    Refusal,
    ReleaseUnit,
    Reply,
    RevertUnits,
    RunProbe,
    SignalProcesses,
    SpawnProcess,
    StopFollowing,
    ThawUnit,
)
from supervisord_py.core.events import (
    ClockChanged,
    CommandRequested,
    DeadlineReached,
    Event,
    MainFollowed,
    NotifyReceived,
    Now,
    ProcessExited,
    ProcessSpawned,
    RequesterGone,
    SocketsOpened,
    SpawnFailed,
)
from supervisord_py.core.manager import Manager
from supervisord_py.host.clock import Clock
from supervisord_py.host.journal_file import Journal
from supervisord_py.model.records import UNNUMBERED, Record
from supervisord_py.model.states import Severity

BATCH_MAX = 256
"""Events a batch: bounds the size of a commit and the time until the first reply of a burst."""

DEADLINES_MAX = 1000
"""Deadlines handled at one instant before the driver calls it a bug of the core."""


class Custody(Protocol):
    """What the driver needs of the keeper client."""

    def commit(
        self,
        *,
        ack: int,
        state: dict[str, str | None],
        lines: Sequence[tuple[int, str]],
        journalled: int,
        requests: Sequence[dict[str, Any]],
        on_sent: Callable[[], None],
        deadline_ns: int | None = None,
    ) -> None: ...


class Hands(Protocol):
    """What carries out actions on the host's side of the keeper: see ``host.hands``."""

    def spawn(self, action: SpawnProcess) -> dict[str, Any] | SpawnFailed: ...

    def process_spawned(self, event: ProcessSpawned) -> None: ...

    def spawn_failed(self, event: SpawnFailed) -> None: ...

    def process_exited(self, event: ProcessExited) -> ProcessExited: ...

    def batch_done(self) -> None: ...

    def main_pid_changed(self, event: NotifyReceived) -> None: ...

    def follow(self, action: FollowMain) -> None: ...

    def stop_following(self, spawn_id: int) -> None: ...

    def main_followed(self, event: MainFollowed) -> bool: ...

    def check(self, action: CheckConditions) -> None: ...

    def open_sockets(self, action: OpenSockets) -> dict[str, Any] | SocketsOpened: ...

    def look_at_connections(self, action: LookAtConnections) -> None: ...

    def freeze(self, action: FreezeUnit) -> None: ...

    def thaw(self, action: ThawUnit) -> None: ...

    def look(self, action: LookAtProcesses) -> None: ...

    def probe(self, action: RunProbe) -> None: ...

    def release(self, unit: str) -> None: ...


class Answer(msgspec.Struct, frozen=True):
    """A reply with what it promises."""

    reply: Reply
    durable: bool
    seq: int | None


class _Waiting(msgspec.Struct):
    future: "asyncio.Future[Answer]"
    seq: int | None = None


class _Queued(msgspec.Struct, frozen=True):
    event: Event
    fact: int = 0
    command: Record | None = None
    since_ns: int = 0
    records: tuple[Record, ...] = ()
    keep: Mapping[str, str] = {}


class Driver:
    """Feeds the core and carries out what it decides; owns the order of effects, and no policy."""

    def __init__(
        self,
        manager: Manager,
        custody: Custody,
        journal: Journal,
        hands: Hands,
        *,
        clock: Clock,
        on_exit: Callable[[int], None],
        on_revert: Callable[[RevertUnits], None],
        on_keep: Callable[[], None],
        on_batch: Callable[[], None],
    ) -> None:
        self.manager = manager
        self._custody = custody
        self._journal = journal
        self._hands = hands
        self._clock = clock
        self._on_exit = on_exit
        self._on_revert = on_revert
        self._on_keep = on_keep
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Queued] = deque()
        self._scheduled = False
        self._counted = (0, 0)
        """How many records of this batch were looked at, and how many of them have a number."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns: int | None = None
        self._acknowledged = 0
        self._requests = 0
        self._waiting: dict[int, _Waiting] = {}
        self._host_state: dict[str, str | None] = {}
        self._host_requests: list[dict[str, Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def facts(self, facts: Iterable[tuple[int, Event]]) -> None:
        """Queue numbered facts of the keeper, in their order."""
        for number, event in facts:
            self._queue.append(_Queued(event, fact=number))
        self._schedule()

    def submit(self, event: Event, *, records: Sequence[Record] = (), keep: Mapping[str, str] | None = None) -> None:
        """Queue an event that nobody waits for.

        Args:
            event: What happened.
            records: The host's own records about it; they stand before what the core decides.
            keep: State of the host (keys ``host/...``) that is true when the event is decided and not before: it goes
                into custody in the commit of that decision, so no manager is found that has the one without the other.
        """
        self._queue.append(_Queued(event, records=tuple(records), keep=keep or {}))
        self._schedule()

    async def request(self, event: CommandRequested, command: Record | None) -> Answer:
        """Queue a command with its ``command`` record and return the answer when what it promises holds.

        Cancelling the caller forgets the answer only; the jobs go on.
        """
        self._requests += 1
        request_id = self._requests
        waiting = _Waiting(self._loop.create_future())
        self._waiting[request_id] = waiting
        self._queue.append(
            _Queued(
                msgspec.structs.replace(event, request_id=request_id),
                command=command,
                since_ns=self._clock.now(0).mono_ns,
            )
        )
        self._schedule()
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if self._waiting.pop(request_id, None) is not None:
                self.submit(RequesterGone(request_id))
            raise

    def note(self, records: Sequence[Record], *, keep: Mapping[str, str] | None = None) -> int | None:
        """Put records of the host itself, and state that is true with them, into custody and journal; return the last
        one's number, None when it is lost."""
        lines = self.write(records, keep=keep)
        return lines[-1][0] if lines else None

    def write(self, records: Sequence[Record], *, keep: Mapping[str, str] | None = None) -> list[tuple[int, str]]:
        """As ``note``; return the numbers and lines, none when they are lost."""
        self._host_state |= keep or {}
        lines = self._journal.encode(records, self._clock.now(self._journal.next_seq))
        self._commit(lines, [])
        return lines

    def ask(self, request: dict[str, Any]) -> None:
        """Send the keeper a request of the host's own with the next commit."""
        self._host_requests.append(request)
        self._schedule()

    def clock_set(self, zone_of: Callable[[str], tzinfo] | None = None) -> None:
        """The clock was set, or the time zones are others (the local one is): calendars are looked up anew."""
        if zone_of is not None:
            self.manager.use_zones(zone_of)
        self.submit(ClockChanged())

    def ask_again(self) -> None:
        """Carry out again what the manager before asked of its own hands and never heard of; the clock may have been
        set while there was none."""
        self.clock_set()
        self._host_requests += self._carry_out(self.manager.pending_actions())[0]
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run_batch)

    def _run_batch(self) -> None:
        self._scheduled = False
        self._counted = (0, 0)
        records: list[Record] = []
        actions: list[AnyAction] = []
        replies: list[Reply] = []
        now = self._clock.now(self._journal.next_seq)
        if self._clock.jumped(now):
            self._queue.appendleft(_Queued(ClockChanged()))
        handled = 0
        while self._queue and handled < BATCH_MAX:
            handled += 1
            self._take(self._queue.popleft(), now, records, actions, replies)
        if not self._queue:
            self._take_deadlines(now, records, actions, replies)
        requests, failures = self._carry_out(actions)
        while failures:
            # What the host itself cannot prepare (a spawn, a socket) fails at once, inside the batch that asked for it.
            actions = []
            for failure in failures:
                self._take(_Queued(failure), now, records, actions, replies)
            more, failures = self._carry_out(actions)
            requests += more
        self._commit(self._encode(records, now), requests, replies)
        self._hands.batch_done()
        self._on_batch()
        if self._queue:
            self._schedule()
        else:
            self._arm()

    def _take(
        self, queued: _Queued, now: Now, records: list[Record], actions: list[AnyAction], replies: list[Reply]
    ) -> None:
        event = queued.event
        records += queued.records
        self._host_state |= queued.keep
        at = now.seq and now.seq + self._numbered(records)
        if queued.fact:
            self._acknowledged = queued.fact
        match event:
            case ProcessSpawned():
                self._hands.process_spawned(event)
            case SpawnFailed():
                self._hands.spawn_failed(event)
            case ProcessExited():
                event = self._hands.process_exited(event)
            case NotifyReceived():
                self._hands.main_pid_changed(event)
            case MainFollowed() if queued.fact and not self._hands.main_followed(event):
                return
            case CommandRequested() if queued.command is not None:
                event = msgspec.structs.replace(event, cause=at or None)
                if (waiting := self._waiting.get(event.request_id)) is not None:
                    waiting.seq = at or None
                records.append(queued.command)
                at = at and at + 1
        position = len(records) - 1
        effects: Effects = self.manager.handle(event, msgspec.structs.replace(now, seq=at))
        records += effects.records
        actions += effects.actions
        replies += effects.replies
        if queued.command is not None and isinstance(event, CommandRequested):
            duration_ms = (now.mono_ns - queued.since_ns) // 1_000_000
            records[position] = _with_result(queued.command, event.request_id, effects.replies, max(0, duration_ms))

    def _numbered(self, records: Sequence[Record]) -> int:
        """Count the records of this batch that have a number; only those that are new are looked at."""
        looked_at, numbered = self._counted
        numbered += sum(record.event not in UNNUMBERED for record in records[looked_at:])
        self._counted = (len(records), numbered)
        return numbered

    def _take_deadlines(self, now: Now, records: list[Record], actions: list[AnyAction], replies: list[Reply]) -> None:
        for _ in range(DEADLINES_MAX):
            deadline_ns = self.manager.deadline_ns()
            if deadline_ns is None or deadline_ns > now.mono_ns:
                return
            self._take(_Queued(DeadlineReached()), now, records, actions, replies)
        raise AssertionError(f"internal error: {DEADLINES_MAX} deadlines at one instant")

    def _carry_out(self, actions: Sequence[AnyAction]) -> tuple[list[dict[str, Any]], list[Event]]:
        requests: list[dict[str, Any]] = []
        failures: list[Event] = []
        for action in actions:
            match action:
                case SpawnProcess():
                    made = self._hands.spawn(action)
                    if isinstance(made, SpawnFailed):
                        failures.append(made)
                    else:
                        requests.append(made)
                case OpenSockets():
                    asked = self._hands.open_sockets(action)
                    if isinstance(asked, SocketsOpened):
                        failures.append(asked)
                    else:
                        requests.append(asked)
                case AwaitConnection():
                    requests.append({"do": "await", "unit": action.unit})
                case CloseSockets():
                    requests.append({"do": "close", "unit": action.unit, "connection": action.connection})
                case LookAtConnections():
                    self._hands.look_at_connections(action)
                case SignalProcesses():
                    requests.append(
                        {
                            "do": "signal",
                            "unit": action.unit,
                            "id": action.spawn_id,
                            "whom": action.whom.value,
                            "signal": action.signal,
                            "cont": action.then_continue,
                        }
                    )
                case KillTree():
                    requests.append({"do": "kill", "unit": action.unit, "signal": action.signal})
                case FollowMain():
                    self._hands.follow(action)
                case StopFollowing():
                    self._hands.stop_following(action.spawn_id)
                case CheckConditions():
                    self._hands.check(action)
                case FreezeUnit():
                    self._hands.freeze(action)
                case ThawUnit():
                    self._hands.thaw(action)
                case LookAtProcesses():
                    self._hands.look(action)
                case RunProbe():
                    self._hands.probe(action)
                case ReleaseUnit():
                    # Asked of the keeper by the hands, when the unit's last output is in its file.
                    self._hands.release(action.unit)
                case RevertUnits():
                    self._on_revert(action)
                case KeepState():
                    self._on_keep()
                case ExitSupervisor():
                    self._on_exit(action.code)
        return requests, failures

    def _encode(self, records: list[Record], now: Now) -> list[tuple[int, str]]:
        numbered = [record for record in records if record.event not in UNNUMBERED]
        for record in records:
            if record.event in UNNUMBERED:
                self._journal.beat(record, now)
        return self._journal.encode(numbered, now) if numbered else []

    def _commit(
        self, lines: list[tuple[int, str]], requests: list[dict[str, Any]], replies: Sequence[Reply] = ()
    ) -> None:
        state = self.manager.take_changes() | self._journal.take_changes() | self._host_state
        # The host's own first: a unit that is let go of and started in one turn is released, then started.
        requests = self._host_requests + requests
        self._host_state, self._host_requests = {}, []
        last_seq = self._journal.next_seq - 1

        def in_custody() -> None:
            # Not before: a line in the file whose commit never left would be decided again under another number.
            self._journal.append(lines)
            self._answer(replies, last_seq)

        try:
            self._custody.commit(
                ack=self._acknowledged,
                state=state,
                lines=lines,
                journalled=self._journal.journalled,
                requests=requests,
                on_sent=in_custody,
                deadline_ns=self.manager.deadline_ns(),
            )
        except Exception as error:  # raised again
            # What was decided is in nobody's custody now: whoever asked for it, this manager must not decide more.
            self._loop.call_exception_handler({"message": "internal error: a commit was not sent", "exception": error})
            raise

    def _answer(self, replies: Sequence[Reply], last_seq: int) -> None:
        for reply in replies:
            waiting = self._waiting.pop(reply.request_id, None)
            if waiting is None:
                continue
            task = self._loop.create_task(self._answer_when_durable(reply, waiting, last_seq))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_when_durable(self, reply: Reply, waiting: _Waiting, last_seq: int) -> None:
        durable = await self._journal.wait_durable(last_seq) if last_seq >= 0 else False
        if not waiting.future.done():
            waiting.future.set_result(Answer(reply, durable, waiting.seq))

    def _arm(self) -> None:
        deadline_ns = self.manager.deadline_ns()
        if deadline_ns == self._timer_ns and self._timer is not None and not self._timer.cancelled():
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ns = deadline_ns
        if deadline_ns is not None:
            # asyncio's clock is CLOCK_MONOTONIC too; waking a little early is harmless, the core looks at its own time.
            self._timer = self._loop.call_at(deadline_ns / 1e9, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._timer_ns = None
        self._schedule()


def _with_result(command: Record, request_id: int, replies: Sequence[Reply], duration_ms: int) -> Record:
    """Add what became of the command at once: refused, done, or queued as jobs (``job.finished`` tells the rest)."""
    result, severity = "queued", command.severity
    for reply in replies:
        if reply.request_id == request_id:
            if isinstance(reply.refusal, Refusal):
                result, severity = reply.refusal.error, Severity.WARNING
            else:
                results = {outcome.result for outcome in reply.outcomes}
                result = results.pop() if len(results) == 1 else "done"
    return msgspec.structs.replace(
        command, severity=severity, fields={**command.fields, "result": result, "duration_ms": duration_ms}
    )
