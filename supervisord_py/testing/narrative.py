"""Events and effects in words: one line each, for failure reports and golden scripts.

The words are for people who review a diff of a story: names instead of numbers where there is a name, and only what
matters.
"""

import traceback
from collections.abc import Sequence
from typing import Any

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
    ReleaseUnit,
    Reply,
    RevertUnits,
    RunProbe,
    SignalProcesses,
    SpawnProcess,
    StopFollowing,
    ThawUnit,
    Whom,
)
from supervisord_py.core.events import (
    ClockChanged,
    CommandRequested,
    ConditionsChecked,
    ConnectionCame,
    ConnectionsSeen,
    DeadlineReached,
    DescriptorsStored,
    Event,
    ExitStatus,
    KeeperLost,
    LimitExceeded,
    MainFollowed,
    NotifyReceived,
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
from supervisord_py.model.records import Record
from supervisord_py.model.states import Severity
from supervisord_py.model.values import format_signal
from supervisord_py.testing.clock import SECOND_NS

_TOLD = ("MONITOR_UNIT", "MONITOR_SERVICE_RESULT", "MONITOR_EXIT_CODE", "MONITOR_EXIT_STATUS")
"""What a process is told about another unit: a trace shows it, the rest of an environment is the same for all."""


def status_words(status: ExitStatus) -> str:
    if status.signal is not None:
        return f"{format_signal(status.signal)}{' (core dumped)' if status.core_dumped else ''}"
    return "unknown status" if status.code is None else f"code {status.code}"


def event_line(event: Event) -> str:
    """Say an event in one line."""
    match event:
        case ProcessSpawned():
            return f"spawned #{event.spawn_id} (pid {event.pid})"
        case SpawnFailed():
            return f"spawn-failed #{event.spawn_id}: {event.step} (errno {event.errno})"
        case ProcessExited():
            former = "" if event.main else " (a former main process)"
            left = "" if event.tree_empty else ", processes left"
            return f"exited #{event.spawn_id}{former}: {status_words(event.status)}{left}"
        case LimitExceeded():
            return f"{event.unit} has {event.breach.value} of {event.breach.limit} = {event.breach.most}"
        case MainFollowed():
            found = f"pid {event.pid}" if event.pid is not None else f"nothing: {event.refused}"
            return f"followed #{event.spawn_id} {event.unit}: {found}"
        case ConditionsChecked():
            broken = [text for text in (event.condition, event.assertion) if text is not None]
            return f"conditions of {event.unit}: {'does not hold: ' + ', '.join(broken) if broken else 'hold'}"
        case ProbeFinished():
            found = "good" if event.ok else f"bad: {event.detail}"
            return f"checked {event.name} of {event.unit}: {found}"
        case ProcessesSeen():
            return f"seen {event.unit}: {'stopped' if event.stopped else 'it can run'}"
        case SocketsOpened():
            return f"listening {event.unit}" if event.failed is None else f"not listening {event.unit}: {event.failed}"
        case ConnectionCame():
            number = "" if event.connection is None else f" (number {event.connection})"
            return f"connection to {event.socket} of {event.unit}{number}"
        case ConnectionsSeen():
            return f"connections of {event.unit}: {event.connections}"
        case DescriptorsStored():
            return f"stored of {event.unit}: {' '.join(event.names) or 'nothing'}"
        case UnitFrozen():
            why = f": {event.detail}" if event.detail else ""
            return f"{'frozen' if event.frozen else 'thawed'} {event.unit}{why}"
        case KeeperLost():
            return "keeper lost"
        case TreeEmptied():
            return f"tree-empty {event.unit}"
        case NotifyReceived():
            sender = "a descendant" if event.spawn_id is None else f"#{event.spawn_id}"
            return f"notify {event.unit} from {sender}: {' '.join(f'{k}={v}' for k, v in event.fields.items())}"
        case StrayAppeared() | StrayExited():
            return f"{'stray' if isinstance(event, StrayAppeared) else 'stray-exited'} pid {event.pid}"
        case CommandRequested():
            flags = [word for word, is_on in (("plan", event.plan), ("no-wait", not event.wait)) if is_on]
            flags += [event.mode.value] if event.mode.value != "replace" else []
            flags += [event.token] if event.token else []
            flags += [f"{key}={value}" for key, value in event.arguments.items()]
            return " ".join(
                [f"request {event.request_id}:", event.verb, *event.units, *(f"[{flag}]" for flag in flags)]
            )
        case RequesterGone():
            return f"request {event.request_id}: the client is gone"
        case UnitsLoaded():
            return f"units loaded: {' '.join(event.units.units)}"
        case ShutdownRequested():
            return f"shutdown within {event.timeout_ns / 1e9:g} s"
        case ShutdownForced():
            return "shutdown forced"
        case DeadlineReached():
            return "deadline"
        case ClockChanged():
            return "clock changed"
        case _:
            raise AssertionError(f"internal error: no words for {type(event).__name__}")


def action_line(action: AnyAction) -> str:
    """Say an action in one line."""
    match action:
        case KeepState():
            return "keep the state"
        case RevertUnits():
            return f"revert {' '.join(action.units)}: {action.message}"
        case SpawnProcess():
            told = "".join(f" {key}={value}" for key, value in action.environment if key in _TOLD)
            return f"spawn #{action.spawn_id} {action.unit} {action.role.value}: {' '.join(action.command.words)}{told}"
        case FollowMain():
            how = f"of {action.pid_file}" if action.pid_file is not None else "by guess"
            return f"follow {action.unit} as #{action.spawn_id}, the main process {how}"
        case StopFollowing():
            return f"stop following {action.unit} as #{action.spawn_id}"
        case CheckConditions():
            return f"check the conditions of {action.unit}"
        case RunProbe():
            return f"check {action.name} of {action.unit}"
        case LookAtProcesses():
            return f"look at the processes of {action.unit}"
        case OpenSockets():
            addresses = [str(listen.address) for each in action.sockets for listen in each.listens]
            return f"listen for {action.unit} on {' '.join(addresses) or 'nothing'}"
        case AwaitConnection():
            return f"await a connection to {action.unit}"
        case CloseSockets():
            which = "all sockets" if action.connection is None else f"connection {action.connection}"
            return f"close {which} of {action.unit}"
        case LookAtConnections():
            return f"look at the connections of {action.unit}"
        case FreezeUnit():
            return f"freeze {action.unit}"
        case ThawUnit():
            return f"thaw {action.unit}"
        case SignalProcesses():
            whom = "all of it" if action.whom is Whom.ALL else f"#{action.spawn_id}"
            then = ", then SIGCONT" if action.then_continue else ""
            return f"signal {action.unit}: {format_signal(action.signal)} to {whom}{then}"
        case KillTree():
            return f"kill {action.unit}: {format_signal(action.signal)} until nothing is left"
        case ReleaseUnit():
            return f"release {action.unit}"
        case ExitSupervisor():
            return f"exit the supervisor with {action.code}"


def record_line(record: Record) -> str:
    """Say a record in one line: its event, its unit, and those of its fields that are not noise in a story."""
    words = [record.event, *([record.unit] if record.unit else [])]
    words += [f"{key}={_field(value)}" for key, value in record.fields.items() if not _is_noise(key, value)]
    return " ".join(words)


def _is_noise(key: str, value: Any) -> bool:
    """What tells nothing in a story: numbers that differ in every run, what is not set, what is as always."""
    return key in _NOISE or value is False or value in (None, "", {}, []) or (key, value) == ("origin", "command")


_NOISE = frozenset({"rusage", "runtime_ms", "pid", "core", "invocation", "program", "job"})


def _field(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"\u201c{text}\u201d" if " " in text else text


def reply_line(reply: Reply) -> str:
    """Say an answer in one line."""
    if reply.refusal is not None:
        return f"reply {reply.request_id}: refused, {reply.refusal.error}: {reply.refusal.message}"
    outcomes = [
        f"{outcome.unit} {outcome.job_type} {outcome.result}{f' ({outcome.message})' if outcome.message else ''}"
        for outcome in reply.outcomes
    ]
    return f"reply {reply.request_id}: {'; '.join(outcomes) if outcomes else 'nothing to do'}"


_MARKS = {Severity.INFO: "-", Severity.WARNING: "!", Severity.ERROR: "!!"}
"""How a record begins that people should look at."""


def effect_lines(effects: Effects, causes: Sequence[str] = ()) -> list[str]:
    """Say what one event decided, in the order in which the shell carries it out; ``causes`` are words for each record
    on what it follows from.
    """
    because = [f" <- {cause}" if cause else "" for cause in causes] or [""] * len(effects.records)
    return [
        *(
            f"{_MARKS[record.severity]} {record_line(record)}{why}"
            for record, why in zip(effects.records, because, strict=True)
        ),
        *(f"> {action_line(action)}" for action in effects.actions),
        *(f"< {reply_line(reply)}" for reply in effects.replies),
    ]


def entry_lines(entry: str | tuple[int, Event] | Effects) -> list[str]:
    """Say one entry of the tail in words: only what somebody will read is put into words."""
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, tuple):
        at_ns, event = entry
        return [f"{at_ns / SECOND_NS:.3f} {event_line(event)}"]
    return [f"    {line}" for line in effect_lines(entry)]


def where_raised(bug: BaseException) -> str:
    """Name the frames in which it was raised, the innermost first."""
    frames = traceback.extract_tb(bug.__traceback__)
    return " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
