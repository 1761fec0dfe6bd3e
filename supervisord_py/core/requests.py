"""What people ask for: commands become transactions, and every request gets exactly one reply.

Theory of operation
-------------------
A command is refused whole, or its jobs are installed whole; then the request waits until each of its jobs has ended. A
*token* makes a request repeatable: the jobs of the last ``TOKENS_MAX`` tokens are remembered, in the state, so the same
token after a lost connection (or a new manager) attaches to them instead of asking again. Requests themselves are
connections of one manager and are not in the state.
"""

from collections.abc import Callable
from difflib import get_close_matches

from msgspec import Struct

from supervisord_py.core import pause, quarantine, rollout, service, timed
from supervisord_py.core.actions import Refusal, Reply, SignalProcesses, UnitOutcome, Whom
from supervisord_py.core.demand import upholder
from supervisord_py.core.engine import is_armed_by_start
from supervisord_py.core.events import CommandRequested
from supervisord_py.core.installing import apply, finish
from supervisord_py.core.jobs import is_redundant
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.orders import who
from supervisord_py.core.processes import can_reload
from supervisord_py.core.service import Input
from supervisord_py.core.state import REST, THERE, UP, JobEnd, JobOrigin, Outcome, TokenEntry, UnitState
from supervisord_py.core.steps import Ended
from supervisord_py.core.transaction import Goal, Node, RefusedError, build
from supervisord_py.model.states import JobMode, JobResult, JobType, Overrun, Result, SubState
from supervisord_py.model.values import format_signal, parse_signal

TOKENS_MAX = 1024
QUEUED = "queued"

_STARTING_VERBS = frozenset({"start", "trigger", "release", "restart", "try-restart", "reload", "reload-or-restart"})


class Request(Struct):
    """A reply that is owed; ``open`` jobs of it have not ended, ``ends`` tells how the others did."""

    id: int
    outcomes: list[Outcome]
    open: int
    ends: dict[int, JobEnd]


class Requests:
    """The replies that are owed, and the tokens that are remembered."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._requests: dict[int, Request] = {}
        self._waiting: dict[int, list[int]] = {}
        """Requests by open job."""
        self._slots: dict[int, list[int]] = {}
        """Slots of tokens that are not complete, by job."""
        self._open: dict[int, int] = {}
        """How many jobs of such a token have not ended; of any other it means nothing."""
        self._slot_of: dict[str, int] = {}

    def index(self) -> None:
        """Build the look-up tables anew from the remembered tokens."""
        for slot in sorted(self._ledger.tokens):
            entry = self._ledger.tokens[slot]
            self._slot_of[entry.token] = slot
            self._watch(slot, entry)

    # asking

    def handle(self, event: CommandRequested) -> Callable[[], None]:
        """Carry out a command; returns what answers it once its consequences are worked off."""
        if event.token and not event.plan and (slot := self._slot_of.get(event.token)) is not None:
            outcomes = [_with_end(each, self._ledger.ends) for each in self._ledger.tokens[slot].outcomes]
            return lambda: self._owe(event, outcomes)
        try:
            outcomes = self._decide(event)
        except RefusedError as error:
            refusal = error.refusal
            return lambda: self._ledger.reply(Reply(event.request_id, refusal=refusal))
        if event.plan:
            return lambda: self._owe(event, outcomes)
        slot = self._remember(event.token, outcomes) if event.token else None
        return lambda: self._owe(event, outcomes, slot)

    def gone(self, request_id: int) -> None:
        """Nobody waits for the reply any more."""
        self._requests.pop(request_id, None)

    def _decide(self, event: CommandRequested) -> list[Outcome]:
        if rollout.is_rollout(event):
            if event.verb != "apply":
                # What is applied may be that its file is gone, and the unit with it.
                self._refuse_unknown(event)
            return rollout.request(self._ledger, event)
        match event.verb:
            case "start" | "trigger" | "release" | "stop" | "restart" | "try-restart" | "reload" | "reload-or-restart":
                return self._change(event)
            case "pause" | "resume":
                self._refuse_unknown(event)
                return [pause.ask(self._ledger, event, unit) for unit in dict.fromkeys(event.units)]
            case "kill":
                return self._kill(event)
            case "reset-failed":
                return self._reset_failed(event)
            case "cancel":
                return self._cancel(event)
            case _:
                raise AssertionError(f"internal error: no verb {event.verb}")

    def _change(self, event: CommandRequested) -> list[Outcome]:
        ledger = self._ledger
        shutdown = ledger.globals.shutdown
        # After the exit is decided nothing ends any more: whoever waited for a stop would never be answered.
        if shutdown is not None and (event.verb in _STARTING_VERBS or shutdown.exited):
            raise RefusedError(
                Refusal("ShuttingDown", f"cannot {event.verb}: the supervisor is shutting down; wait for the next one")
            )
        self._refuse_unknown(event)
        names = tuple(dict.fromkeys(event.units))
        if event.verb == "trigger":
            self._refuse_trigger(names)
        outcomes = [outcome for name in names if (outcome := self._without_job(event, name)) is not None]
        done = {outcome.unit: None for outcome in outcomes}
        anchors = tuple((unit, self._job_type(event.verb, unit)) for unit in names if unit not in done)
        if event.mode in (JobMode.ISOLATE, JobMode.RESTART_DEPENDENCIES) and event.verb != "start":
            mode = event.mode.value
            raise RefusedError(Refusal("TransactionConflict", f"mode {mode} is for start, not for {event.verb}"))
        goal = Goal(
            anchors,
            JobOrigin.COMMAND,
            event.mode,
            runs=event.verb == "trigger",
            by=who(event.origin),
            note=event.reason,
            cause=event.cause,
        )
        transaction = build(ledger, goal)
        if event.plan:
            return outcomes + [self._planned(node, runs=goal.runs) for node in transaction.nodes]
        if event.verb == "release":
            for name in names:
                # One that is at rest, or stood in for, is released by its start; for one that lives there is none.
                if ledger.state(name).sub not in REST and not ledger.state(name).quarantined:
                    self._forget(event, name)
        made = apply(ledger, transaction)
        return outcomes + [Outcome(job.unit, job.id, job.type.value) for job in made.values()]

    def _refuse_trigger(self, names: tuple[str, ...]) -> None:
        """Refuse to run what has no timer, and what has failed too often."""
        for name in names:
            unit, state = self._ledger.set.units.get(name), self._ledger.state(name)
            if unit is not None and not is_armed_by_start(self._ledger, name):
                message = f"cannot trigger {name}: it has neither timer nor sockets; supctl start {name}"
            elif state.quarantined:
                message = f"cannot trigger {name}: it is quarantined; supctl release {name}"
            else:
                continue
            raise RefusedError(Refusal("JobFailed", message, {"unit": name}))

    def _without_job(self, event: CommandRequested, name: str) -> Outcome | None:
        """Answer at once what is asked of a unit with a timer in a run: that run is not what is asked for."""
        ledger = self._ledger
        job = ledger.job_of.get(name)
        if event.verb == "start" and job is not None and job.runs and ledger.state(name).is_armed:
            return Outcome(name, 0, JobType.START.value, JobResult.DONE.value, "it is armed")
        if event.verb != "trigger" or not timed.is_run(ledger, name):
            return None
        unit = ledger.unit(name)
        if unit is not None and (unit.timer is None or unit.timer.overrun is Overrun.SKIP):
            message = f"{name} is run at the moment; this run goes on"
            return Outcome(name, 0, JobType.START.value, JobResult.SKIPPED.value, message)
        if event.plan or timed.run_once_more(ledger, name):
            message = f"{name} is run at the moment; one more run follows"
            return Outcome(name, 0, JobType.START.value, QUEUED, message)
        message = f"{name} is run at the moment, and is not armed: no run follows"
        return Outcome(name, 0, JobType.START.value, JobResult.SKIPPED.value, message)

    def _planned(self, node: Node, *, runs: bool) -> Outcome:
        """Say what would become of one unit; an anchor that asks for what is so already is ``nop``."""
        if not node.anchor:
            return Outcome(node.unit, 0, node.type.value, QUEUED, "because of its relations")
        sub = self._ledger.state(node.unit).sub
        if node.unit in self._ledger.job_of or runs or not is_redundant(node.type, sub):
            return Outcome(node.unit, 0, node.type.value, QUEUED)
        return Outcome(node.unit, 0, JobType.NOP.value, QUEUED, "it is up" if sub in THERE else "it is down")

    def _job_type(self, verb: str, unit: str) -> JobType:
        sub, own = self._ledger.state(unit).sub, self._ledger.service(unit)
        match verb:
            case "start" | "trigger" | "release":
                return JobType.START
            case "stop":
                return JobType.STOP
            case "restart":
                return JobType.RESTART
            case "try-restart":
                return JobType.RESTART if sub not in REST else JobType.NOP
            case "reload":
                return JobType.RELOAD
            case _:
                if sub in REST:
                    return JobType.START
                return JobType.RELOAD if sub in UP and own is not None and can_reload(own) else JobType.RESTART

    def _kill(self, event: CommandRequested) -> list[Outcome]:
        self._refuse_unknown(event)
        try:
            number = parse_signal(event.arguments.get("signal", 15))
            whom = Whom(event.arguments.get("whom", Whom.ALL.value))
        except ValueError as error:
            raise RefusedError(Refusal("InvalidRequest", f"cannot kill: {error}")) from error
        return [self._kill_one(unit, number, whom, event.plan) for unit in dict.fromkeys(event.units)]

    def _kill_one(self, unit: str, number: int, whom: Whom, plan: bool) -> Outcome:
        state = self._ledger.state(unit)
        if whom is Whom.MAIN and state.main is None:
            return Outcome(unit, 0, "kill", JobResult.INVALID.value, f"{unit} has no main process")
        if state.main is None and state.control is None and not state.leftover:
            return Outcome(unit, 0, "kill", JobResult.INVALID.value, f"{unit} has no process")
        if plan:
            return Outcome(unit, 0, "kill", QUEUED, f"{format_signal(number)} to {whom.value}")
        spawn_id = state.main.spawn_id if whom is Whom.MAIN and state.main is not None else None
        self._ledger.act(SignalProcesses(unit, number, whom, spawn_id))
        return Outcome(unit, 0, "kill", JobResult.DONE.value)

    def _reset_failed(self, event: CommandRequested) -> list[Outcome]:
        ledger = self._ledger
        self._refuse_unknown(event)
        outcomes = []
        for unit in dict.fromkeys(event.units) or sorted(ledger.states):
            known = ledger.state(unit)
            has_failed = known.sub is SubState.FAILED or known.quarantined or bool(known.starts_ns)
            has_failed = has_failed or bool(known.failures or known.backoff or known.restarts or known.left_alone)
            message = "" if has_failed else "it has no failure to forget"
            outcomes.append(Outcome(unit, 0, "reset-failed", QUEUED if event.plan else JobResult.DONE.value, message))
            if not has_failed or event.plan:
                continue
            state = self._forget(event, unit)
            if state.sub is SubState.STUB:
                service.feed(ledger, unit, Input.STOP, Ended(Result.SUCCESS, "its failures are forgotten", 0))
            if state.sub is SubState.FAILED:
                ledger.set_sub(unit, SubState.DEAD)
                state.result, state.message = Result.SUCCESS, None
            # What is to be up whenever that is possible, and waits for this one, may start it now.
            for other in ledger.graph[unit].required_by:
                if upholder(ledger, other) is not None:
                    ledger.intents.append(Task(Intent.RECOVER, other, unit, state.cause))
        ledger.refused_changed = True
        return outcomes

    def _forget(self, event: CommandRequested, unit: str) -> UnitState:
        """Begin every count of a unit anew."""
        ledger = self._ledger
        quarantine.release(ledger, unit, by=who(event.origin), reason=event.reason, cause=event.cause)
        state = ledger.edit(unit)
        state.failures = state.backoff = state.restarts = 0
        state.starts_ns = []
        state.chain = state.left_alone = None
        ledger.arm_healthy(unit, None)
        return state

    def _cancel(self, event: CommandRequested) -> list[Outcome]:
        ledger = self._ledger
        number = event.arguments.get("job")
        job = ledger.jobs.get(number) if isinstance(number, int) else None
        if job is None and ledger.rollout is not None:
            units = {each.job: name for name, each in ledger.rollout.units.items()}
            if number in units:
                outcome = Outcome(units[number], number, JobType.RESTART.value, JobResult.CANCELED.value)
                if not event.plan:
                    rollout.end_where_it_is(ledger, "the rollout was cancelled")
                return [outcome]
        if job is None:
            raise RefusedError(
                Refusal("NoSuchJob", f"there is no job {number}; it may have ended already", {"job": number})
            )
        if event.plan:
            return [Outcome(job.unit, job.id, job.type.value, QUEUED)]
        finish(ledger, job, JobResult.CANCELED, f"job {job.id} was cancelled")
        if ledger.state(job.unit).sub is SubState.DEPENDENCY:
            # It would be started again as soon as the dependency is back, which is what was just called off.
            ledger.edit(job.unit).stopped = True
            service.feed(ledger, job.unit, Input.STOP)
        if ledger.state(job.unit).sub is SubState.DEAD:
            ledger.edit(job.unit).message = f"its {job.type.value} was cancelled"
        return [Outcome(job.unit, job.id, job.type.value, JobResult.CANCELED.value)]

    def _refuse_unknown(self, event: CommandRequested) -> None:
        """Refuse the whole request if one of its units does not exist."""
        ledger = self._ledger
        for unit in event.units:
            if unit in ledger.set.units or unit in ledger.set.bad or unit in ledger.texts or unit in ledger.set.masked:
                continue
            near = get_close_matches(unit, sorted(ledger.set.units), n=3)
            hint = f"did you mean {near[0]}?" if near else "see supctl list"
            raise RefusedError(
                Refusal(
                    "NoSuchUnit",
                    f"cannot {event.verb} {unit}: no such unit; {hint}",
                    {"unit": unit, "suggestions": near},
                )
            )

    # answering

    def _owe(self, event: CommandRequested, outcomes: list[Outcome], slot: int | None = None) -> None:
        """Note the reply that is owed; called when the consequences of the event are known."""
        ended = {job.id: JobEnd(result, message) for job, result, message in self._ledger.finished}
        known = [_with_end(each, ended) for each in outcomes]
        if slot is not None:
            entry = self._ledger.tokens[slot]
            entry.outcomes = known
            self._watch(slot, entry)
        open_jobs = dict.fromkeys(each.job for each in known if each.result is None)
        if event.wait and open_jobs:
            self._requests[event.request_id] = Request(event.request_id, known, len(open_jobs), {})
            for job in open_jobs:
                self._waiting.setdefault(job, []).append(event.request_id)
            return
        self._answer(event.request_id, known)

    def settle(self) -> None:
        """Answer the requests whose last job has ended in this event."""
        for job, result, message in self._ledger.finished:
            end = JobEnd(result, message)
            if job.id in self._slots:
                self._note_end(job.id, end)
            for request_id in self._waiting.pop(job.id, ()):
                request = self._requests.get(request_id)
                if request is None:
                    continue
                request.ends[job.id] = end
                request.open -= 1
                if not request.open:
                    del self._requests[request_id]
                    self._answer(request_id, [_with_end(each, request.ends) for each in request.outcomes])
        self._ledger.finished.clear()

    def _answer(self, request_id: int, outcomes: list[Outcome]) -> None:
        self._ledger.reply(
            Reply(
                request_id,
                outcomes=tuple(
                    UnitOutcome(each.unit, each.job, each.job_type, each.result or QUEUED, each.message)
                    for each in outcomes
                ),
            )
        )

    # tokens

    def _remember(self, token: str, outcomes: list[Outcome]) -> int:
        state = self._ledger.edit_globals()
        slot = state.next_token % TOKENS_MAX
        state.next_token += 1
        old = self._ledger.tokens.get(slot)
        if old is not None:
            self._slot_of.pop(old.token, None)
            self._unwatch(slot, old)
        self._ledger.tokens[slot] = TokenEntry(token, outcomes)
        self._ledger.touched[f"token/{slot}"] = None
        self._slot_of[token] = slot
        return slot

    def _watch(self, slot: int, entry: TokenEntry) -> None:
        """Keep the ends of a token's jobs until all of them have come."""
        jobs = dict.fromkeys(each.job for each in entry.outcomes if each.result is None)
        for job in jobs:
            self._slots.setdefault(job, []).append(slot)
        if jobs:
            self._open[slot] = sum(job not in self._ledger.ends for job in jobs)

    def _note_end(self, job: int, end: JobEnd) -> None:
        ledger = self._ledger
        ledger.ends[job] = end
        ledger.touched[f"end/{job}"] = None
        for slot in list(self._slots[job]):
            self._open[slot] -= 1
            if not self._open[slot]:
                entry = ledger.tokens[slot]
                self._unwatch(slot, entry, ledger.ends.copy())

    def _unwatch(self, slot: int, entry: TokenEntry, ends: dict[int, JobEnd] | None = None) -> None:
        """Let go of a token's jobs, with ``ends`` after writing them into its entry."""
        ledger = self._ledger
        for job in dict.fromkeys(each.job for each in entry.outcomes if each.result is None):
            self._slots[job].remove(slot)
            if not self._slots[job]:
                del self._slots[job]
                if ledger.ends.pop(job, None) is not None:
                    ledger.touched[f"end/{job}"] = None
        if ends is not None:
            entry.outcomes = [_with_end(each, ends) for each in entry.outcomes]
            ledger.touched[f"token/{slot}"] = None


def _with_end(outcome: Outcome, ends: dict[int, JobEnd]) -> Outcome:
    end = ends.get(outcome.job) if outcome.result is None else None
    if end is None:
        return outcome
    return Outcome(outcome.unit, outcome.job, outcome.job_type, end.result, end.message)
