"""Processes beside the life of a unit: health checks that are commands, and hooks.

Theory of operation
-------------------
Each is held under an owner of its own (``web!17``, ``model.names``): its tree can be killed, and emptied, without
anything of the unit being touched. Its result is told once, as soon as its main process has ended; what is left of its
tree is killed then, and only when nothing is left is it forgotten.

Its time counts from its start. When that is over it is killed, and its end says what became of it: had it ended before,
and we have not heard of it because the keeper was held up, that is its result; had the keeper not even made it, nobody
knows. Only of one that does not die of a kill (``KILL_NS``) is no end waited for.

Laws: every process beside a life is forgotten in the end, and the supervisor does not exit before; none outlives its
time-out by more than a kill takes; none has failed for having been late because we were.
"""

from msgspec import Struct

from supervisord_py.core.actions import KillTree, ReleaseUnit, SpawnProcess
from supervisord_py.core.events import ExitStatus, ProcessExited, ProcessSpawned, SpawnFailed
from supervisord_py.core.failed_spawn import describe
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.processes import describe_exit
from supervisord_py.core.state import Beside
from supervisord_py.model.names import aux_owner
from supervisord_py.model.states import Role
from supervisord_py.model.unit import Command
from supervisord_py.model.values import SECOND_NS, format_timespan

KILL_NS = 10 * SECOND_NS


def run(
    ledger: Ledger,
    unit: str,
    name: str,
    role: Role,
    command: Command,
    timeout_ns: int,
    environment: tuple[tuple[str, str], ...] = (),
) -> int:
    """Ask for a process beside the life of ``unit``; returns its spawn id. ``name`` tells its owner what it is."""
    spawn_id = ledger.new_spawn_id()
    invocation = ledger.new_invocation()
    at_ns = ledger.now.mono_ns + timeout_ns
    ledger.set_beside(spawn_id, Beside(unit, name, role, invocation, ledger.now.mono_ns, timeout_ns, at_ns))
    action = SpawnProcess(
        spawn_id=spawn_id,
        unit=aux_owner(unit, spawn_id),
        role=role,
        command=command,
        invocation=invocation,
        environment=(("INVOCATION_ID", invocation), ("SUPERVISORD_PY_UNIT", unit), *environment),
        main_spawn=_main_spawn(ledger, unit),
    )
    ledger.act(action)
    return spawn_id


def _main_spawn(ledger: Ledger, unit: str) -> int | None:
    main = ledger.state(unit).main
    return main.spawn_id if main is not None else None


class Ended(Struct, frozen=True):
    """How a process beside a life ended: ``ok`` None where nobody knows, ``status`` None while it is being killed."""

    spawn_id: int
    unit: str
    name: str
    role: Role
    invocation: str
    pid: int | None
    ok: bool | None
    detail: str
    status: ExitStatus | None = None
    was_told: bool = False
    """It has been told already that it was killed."""


def _ended(ledger: Ledger, spawn_id: int, ok: bool | None, detail: str, status: ExitStatus | None = None) -> Ended:
    own = ledger.beside[spawn_id]
    return Ended(spawn_id, own.unit, own.name, own.role, own.invocation, own.pid, ok, detail, status, own.told)


def spawned(ledger: Ledger, event: ProcessSpawned) -> None:
    beside = ledger.edit_beside(event.spawn_id)
    if beside.pid is None and not beside.told and not beside.overdue:
        ledger.arm_beside(event.spawn_id, ledger.now.mono_ns + beside.timeout_ns)
    beside.pid = event.pid


def spawn_failed(ledger: Ledger, event: SpawnFailed) -> Ended | None:
    """No program runs, and none ever will."""
    beside = ledger.beside[event.spawn_id]
    status = ExitStatus(code=event.code or None)
    # That a hook which was killed never ran its program is written all the same.
    is_told = beside.told and beside.role is not Role.HOOK
    ended = None if is_told else _ended(ledger, event.spawn_id, False, describe(beside.role, event), status)
    _forget(ledger, event.spawn_id)
    return ended


def exited(ledger: Ledger, event: ProcessExited) -> Ended | None:
    """Its main process has ended: what is left of it is killed."""
    beside = ledger.edit_beside(event.spawn_id)
    status, ended = event.status, None
    # How a check ended that nobody waits for any more is of no interest; of a hook it is written all the same.
    if not beside.told or beside.role is Role.HOOK:
        ok, detail = _result(beside, status)
        ended = _ended(ledger, event.spawn_id, ok, detail, status)
    beside.told = beside.ended = True
    if event.tree_empty:
        _forget(ledger, event.spawn_id)
    else:
        ledger.arm_beside(event.spawn_id, None)
        ledger.act(KillTree(aux_owner(beside.unit, event.spawn_id)))
    return ended


def _result(beside: Beside, status: ExitStatus) -> tuple[bool | None, str]:
    if beside.overdue and status.code is None:
        return None if beside.held_up or status.signal is None else False, _overdue(beside)
    is_known = status.code is not None or status.signal is not None
    ok = status.code == 0 if is_known else None
    return ok, describe_exit(status.code, status.signal, status.core_dumped)


def _overdue(beside: Beside) -> str:
    return f"it did not end within {format_timespan(beside.timeout_ns)}, and was killed"


def emptied(ledger: Ledger, spawn_id: int) -> None:
    """Nothing is left of its tree."""
    beside = ledger.beside.get(spawn_id)
    if beside is not None and beside.ended:
        _forget(ledger, spawn_id)


def deadline(ledger: Ledger, spawn_id: int) -> Ended | None:
    """Its time is over, and it is killed as a tree; or that was so ``KILL_NS`` ago."""
    beside = ledger.edit_beside(spawn_id)
    ledger.arm_beside(spawn_id, None)
    if beside.overdue:
        ended = _ended(ledger, spawn_id, None if beside.held_up else False, _overdue(beside))
        beside.told = True
        return ended
    beside.overdue, beside.held_up = True, beside.pid is None
    ledger.arm_beside(spawn_id, ledger.now.mono_ns + KILL_NS)
    ledger.act(KillTree(aux_owner(beside.unit, spawn_id)))
    return None


def kill(ledger: Ledger, spawn_id: int) -> None:
    """It is not wanted any more; its result is told to nobody."""
    beside = ledger.edit_beside(spawn_id)
    if not beside.told:
        beside.told = True
        ledger.arm_beside(spawn_id, None)
        ledger.act(KillTree(aux_owner(beside.unit, spawn_id)))


def _forget(ledger: Ledger, spawn_id: int) -> None:
    beside = ledger.beside[spawn_id]
    ledger.set_beside(spawn_id, None)
    ledger.act(ReleaseUnit(aux_owner(beside.unit, spawn_id)))
