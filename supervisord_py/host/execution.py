"""From the core's ``SpawnProcess`` and the unit's text to the keeper's spawn request: who, where, with what
environment, under which limits.

Everything that can be known before the fork is decided here, so that the child has nothing to look up; what fails
here fails the spawn with the step and the exit code that systemd has for it, before anything is made.

Environment, later ones win: ``PATH LANG HOME USER LOGNAME SHELL`` of the user the process runs as; what the settings'
``pass-environment`` lets through; ``PATH`` of ``exec-search-path``; what the unit's ``pass-environment`` lets through;
its folders and credentials; the unit's own; that of its files, read anew for each command; then what the supervisor
says (``INVOCATION_ID``, ``MAINPID``, ...), which a unit cannot forge. (In systemd a unit's ``Environment=`` wins over
those too; a process that lies to itself about its own invocation helps nobody.) ``unset-environment`` comes last. A
variable ``$NAME`` of a command is expanded from exactly that.

A privileged command (``+``) runs as the supervisor, without limits. Source: systemd src/core/execute.c,
build_environment, exec_child; systemd.exec(5), "Environment variables in spawned processes".
"""

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core.actions import SpawnProcess
from supervisord_py.core.events import SpawnFailed
from supervisord_py.host.accounts import Account, Accounts, NoAccount
from supervisord_py.host.belongings import CannotProvideError, Keeping, OwnFolder, read_environment_files
from supervisord_py.host.cgroups import UnitGroups
from supervisord_py.host.confine import CannotConfine
from supervisord_py.host.domains import domain_operations, personality_of
from supervisord_py.host.dynamic_users import DynamicUsers, NoFreeUser, dynamic_name
from supervisord_py.host.limits import INFINITY, RLIMIT_NUMBERS
from supervisord_py.host.priorities import priority_operations
from supervisord_py.host.private_folders import PrivateFolders
from supervisord_py.host.resources import UnitResources
from supervisord_py.host.sandbox import Place, confine
from supervisord_py.host.streams import stream_operations
from supervisord_py.host.terminal import terminal_operations
from supervisord_py.model.command import expand_words
from supervisord_py.model.names import base_unit
from supervisord_py.model.states import NotifyAccess, OomPolicy, Role, ServiceType
from supervisord_py.model.unit import ExecContext, Limit, Service, Unit, UnitKind

EXIT_CHDIR = 200
EXIT_EXEC = 203
EXIT_STATE_DIRECTORY = 238
EXIT_LIMITS = 205
EXIT_CGROUP = 219
EXIT_NAMESPACE = 226
EXIT_SECCOMP = 228
EXIT_PERSONALITY = 230

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_LANG = "C.UTF-8"
DEFAULT_LIMITS: dict[str, Limit] = {"nofile": Limit(1024, 524288)}
"""Limits of a unit that does not write them; clamped to what is allowed, never a reason to fail."""

BESIDE = frozenset({Role.PROBE, Role.HOOK})
"""Processes beside the life of a unit, each under an owner's name of its own."""

NOTIFYING = frozenset({ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD})


class SpawnRuntime(Struct, frozen=True):
    """What all spawns of one manager have in common.

    ``passed`` holds the variables of the supervisor's own environment that ``pass-environment`` lets through.
    """

    control_socket: str
    accounts: Accounts
    groups: UnitGroups | None = None
    resources: UnitResources | None = None
    bus: str | None = None
    agents: str | None = None
    """The folder with a state folder for each agent."""
    keeping: Keeping | None = None
    private: PrivateFolders | None = None
    dynamic: DynamicUsers | None = None
    passed: tuple[tuple[str, str], ...] = ()
    own_environment: tuple[tuple[str, str], ...] = ()
    """The supervisor's own, of which a unit may ask for variables (``pass-environment``)."""
    direct: str | None = None
    """The unit that is given the supervisor's own standard input, output and error (``exec``)."""

    @property
    def is_user_instance(self) -> bool:
        return self.accounts.own.uid != 0


class _Refused(Exception):
    """Preparing has failed; becomes the ``SpawnFailed`` of the request."""

    def __init__(self, step: str, code: int, errno: int, detail: str) -> None:
        super().__init__(detail)
        self.step = step
        self.code = code
        self.errno = errno
        self.detail = detail


def passed_environment(wanted: Sequence[str] | str, own: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Choose from our ``own`` environment what ``pass-environment`` names.

    ``"all"`` is everything that is not addressed to us alone. A value that is not UTF-8 is left out: requests are JSON.
    """
    names = [name for name in own if name not in OURS_ALONE] if wanted == "all" else list(wanted)
    return tuple((name, own[name]) for name in names if name in own and _is_utf8(name + own[name]))


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


OURS_ALONE = frozenset(
    {
        "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "INVOCATION_ID",
        "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MAINPID", "MANAGERPID", "CREDENTIALS_DIRECTORY", "FDSTORE", "PIDFILE",
        "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "SUPERVISORD_PY_KEEPER_FD", "SUPERVISORD_PY_UNIT",
        "SUPERVISORD_PY_RESTARTS", "SUPERVISORD_PY_LAST_LIFE", "SUPERVISORD_PY_STUB", "SUPERVISORD_PY_BUS",
    }
)  # fmt: skip
"""Variables that a service manager above us wrote for us; handed on, they would be lies."""


def build_spawn(
    action: SpawnProcess,
    unit: Unit | None,
    runtime: SpawnRuntime,
    *,
    main_pid: int | None = None,
    beside: int | None = None,
) -> dict[str, Any] | SpawnFailed:
    """Return the keeper's request for ``action``, or why no process can be made.

    Args:
        action: What the core asked for.
        unit: The text that the unit runs by, a service; of a process beside its life (``core.beside``) that of the
            unit that it is about, or None: then it runs as the supervisor does, without limits of its own.
        runtime: What all spawns share.
        main_pid: Process id of ``action.main_spawn``, when it lives.
        beside: The main process whose network and IPC it is to share, where that is not ``main_pid``.
    """
    is_beside = action.role in BESIDE
    service = None if unit is None else unit.service
    assert service is not None or is_beside, "only services have processes"
    context = ExecContext() if service is None else service.context
    identity = None if unit is None or unit.transient is None else unit.transient.identity
    privileged = action.command.privileged and identity is None
    degraded: list[str] = []
    before: list[dict[str, Any]] = []
    try:
        try:
            if identity is not None:
                account = owner = runtime.accounts.exactly(identity.uid, identity.gid, identity.groups)
            else:
                # Whoever runs the command, what the unit has is its user's.
                account = owner = account_of(base_unit(action.unit), context, runtime)
                if privileged or action.command.keeps_user:
                    account = runtime.accounts.find(None, None)
        except NoAccount as error:
            raise _Refused(error.step, error.code, 0, error.detail) from None
        pid_file = None if service is None else service.pid_file
        if identity is not None:
            runtime = replace(runtime, bus=None)
        environment = build_environment(action, context, account, runtime, main_pid, pid_file, degraded)
        own: tuple[OwnFolder, ...] = ()
        if runtime.keeping is not None:
            own = runtime.keeping.own_folders(context.belongings, is_dynamic=context.dynamic_user)
        if unit is not None and unit.kind is UnitKind.AGENT and runtime.agents is not None:
            own = (*own, OwnFolder("agent", _state_folder(runtime.agents, unit.name, owner)))
            environment.setdefault("STATE_DIRECTORY", own[-1].path)
        if not is_beside and runtime.keeping is not None:
            degraded += runtime.keeping.provide(
                action.unit, action.invocation, context.belongings, owner, is_dynamic=context.dynamic_user
            )
        request: dict[str, Any] = {
            "do": "spawn",
            "id": action.spawn_id,
            "unit": action.unit,
            "role": action.role.value,
            "argv": expand_words(action.command, environment),
            "executable": _executable(action, context, environment),
            "env": environment,
            "cwd": _directory(context, account, runtime),
            "umask": context.umask,
            "uid": account.uid,
            "gid": account.gid,
            "groups": None if account.groups is None else list(account.groups),
            "rlimits": {} if privileged else _rlimits(context),
            "strict": [] if privileged or context.enforce != "strict" else sorted(name for name, _ in context.rlimits),
            "nice": context.nice if privileged or context.enforce == "strict" else None,
            "cgroups": [],
            "sigpipe": not context.ignore_sigpipe,
            "notify": (NotifyAccess.NONE if service is None or is_beside else effective_notify_access(service)).value,
            "privileged": privileged,
            "pid_env": ["WATCHDOG_PID"] if "WATCHDOG_USEC" in environment else [],
        }
        if not is_beside:
            identifier = os.path.basename(action.command.words[0])
            is_connected = action.handed is not None and action.handed.connection is not None
            is_connected = is_connected and context.streams.input == "socket"
            before += stream_operations(action.unit, identifier, context.streams, is_connected, context.umask)
        after: list[dict[str, Any]] = []
        terminal = None if unit is None or unit.transient is None else unit.transient.terminal
        if terminal is not None and action.role is Role.MAIN:
            # By the rights of who may be anybody only where that is an operator.
            opened = terminal_operations(terminal, uid=None if identity is not None else account.uid)
            (before if identity is None else after).extend(opened)
        if not privileged:
            before += priority_operations(context, may_fail=context.enforce != "strict")
            before += _domain(context)
        wanted = context.working_directory
        if (runtime.is_user_instance and wanted is None) or (wanted or "").startswith("-"):
            # What is there is known in its namespace only; without one it was looked at.
            request["cwd_may_miss"] = True
        if not privileged and context.enforce != "strict" and context.rlimits:
            request["loose"] = sorted(name for name, _ in context.rlimits)
        for name, operations in (("before", before), ("after", after)):
            if operations:
                request[name] = operations
        if degraded:
            request["degraded"] = degraded
        if runtime.direct == action.unit:
            request["inherit"] = True
        if action.role is Role.PROBE:
            request["discard"] = True
        if action.handed is not None:
            request["sockets"] = {"of": action.handed.unit, "connection": action.handed.connection}
            if action.handed.connection is not None and context.streams.input == "socket":
                request["sockets"]["standard"] = True
        if service is not None and not is_beside and service.store_max:
            request["store"] = service.store_max
        if not privileged:
            _confine(request, action, context, account, runtime, main_pid if beside is None else beside, own)
        _check_strings(request["argv"], environment)
        if runtime.groups is not None:
            request["cgroups"] = list(runtime.groups.create(action.unit))
            request["home"] = runtime.groups.home
        if runtime.resources is not None and not is_beside:
            together = service is not None and service.oom_policy is OomPolicy.KILL
            request["cgroups"] += _bound(runtime.resources, action.unit, context, degraded, together=together)
            if degraded:
                request["degraded"] = degraded
    except (_Refused, CannotProvideError) as error:
        if runtime.groups is not None:
            # The keeper hears nothing of this unit, and so would not remove it.
            runtime.groups.remove(action.unit)
        return SpawnFailed(action.spawn_id, error.step, error.code, error.errno, error.detail)
    return request


def account_of(unit: str, context: ExecContext, runtime: SpawnRuntime) -> Account:
    """Return whom the processes of a unit run as; raises NoAccount."""
    if not context.dynamic_user:
        return runtime.accounts.find(context.user, context.group, context.supplementary_groups)
    users, groups = runtime.dynamic, context.supplementary_groups

    def provide(name: str) -> int:
        try:
            if users is None:
                raise NoFreeUser("this supervisor has no folder to write down who is given which id")
            return users.provide(unit, name)
        except (NoFreeUser, OSError) as error:
            raise NoAccount("user", f"dynamic-user: {error}") from None

    return runtime.accounts.dynamic(dynamic_name(context.user, unit), context.group, groups, provide)


def _domain(context: ExecContext) -> list[dict[str, Any]]:
    try:
        return domain_operations(context)
    except LookupError:
        detail = f"personality: this machine ({os.uname().machine}) is never {context.personality}"
        raise _Refused("personality", EXIT_PERSONALITY, errno.EINVAL, detail) from None


def _confine(
    request: dict[str, Any],
    action: SpawnProcess,
    context: ExecContext,
    account: Account,
    runtime: SpawnRuntime,
    beside: int | None,
    own: tuple[OwnFolder, ...],
) -> None:
    """Add what ``[sandbox]`` asks for to the request."""
    unit, folder = base_unit(action.unit), "" if runtime.private is None else runtime.private.runtime
    bus = () if runtime.bus is None else (runtime.bus.removeprefix("ipc://"),)
    reached = (f"{folder}/n", f"{folder}/credentials/{unit}", runtime.control_socket, *bus)
    place = Place(
        private=runtime.private,
        unit=unit,
        life=None if action.role in BESIDE else action.invocation,
        reached=reached,
        root=context.root_directory,
        own=own,
        beside=None if action.role is Role.MAIN else beside,
        personality=personality_of(context.personality),
    )
    try:
        into = confine(context.sandbox, account, place)
    except CannotConfine as error:
        code = EXIT_SECCOMP if error.step in ("seccomp", "address-families") else EXIT_NAMESPACE
        raise _Refused(error.step, code, error.errno, error.detail) from None
    if context.sandbox.remove_ipc and context.user is None and not context.dynamic_user:
        into.degraded.append("remove-ipc: the unit has no user of its own, whose objects they would be")
    for name, found in (("before", into.before), ("after", into.after), ("degraded", into.degraded)):
        if found:
            request[name] = [*request.get(name, ()), *found]


def _bound(
    resources: UnitResources, unit: str, context: ExecContext, degraded: list[str], *, together: bool
) -> tuple[str, ...]:
    """Write the bounds of a unit; returns the groups that its processes join for them."""
    plan = resources.plan(context.resources)
    if not plan.writes and not plan.impossible and not resources.is_bound(unit):
        return ()
    resources.count_from_here(unit)
    problems = plan.impossible | resources.apply(unit, plan, together=together)
    if problems and context.enforce == "strict":
        key, reason = next(iter(problems.items()))
        raise _Refused("cgroup", EXIT_CGROUP, 0, f"{key} cannot be enforced here: {reason}")
    degraded += [f"{key}: {reason}" for key, reason in problems.items()]
    return resources.folders(unit, plan)


def effective_notify_access(service: Service) -> NotifyAccess:
    """Return whose datagrams count: a unit that notifies listens to its main process at least."""
    if service.notify_access is NotifyAccess.NONE and service.type in NOTIFYING:
        return NotifyAccess.MAIN
    return service.notify_access


def build_environment(
    action: SpawnProcess,
    context: ExecContext,
    account: Account,
    runtime: SpawnRuntime,
    main_pid: int | None,
    pid_file: str | None,
    degraded: list[str],
) -> dict[str, str]:
    """Return the environment of a process but for what only the keeper knows (``NOTIFY_SOCKET``, its own pid); what had
    to be left out is added to ``degraded``."""
    environment = {"PATH": DEFAULT_PATH, "LANG": DEFAULT_LANG}
    if account.home is not None:
        environment["HOME"] = account.home
    if account.name is not None:
        environment["USER"] = environment["LOGNAME"] = account.name
    if account.shell is not None:
        environment["SHELL"] = account.shell
    environment.update(runtime.passed)
    if context.search_path:
        environment["PATH"] = ":".join(context.search_path)
    belongings = context.belongings
    wanted = belongings.pass_environment
    environment.update((name, value) for name, value in runtime.own_environment if name in wanted)
    if runtime.keeping is not None:
        environment.update(runtime.keeping.variables(base_unit(action.unit), belongings))
    environment.update(context.environment)
    if belongings.environment_files:
        found, odd = read_environment_files(belongings.environment_files)
        environment.update(found)
        degraded += odd
    environment["SUPERVISORD_PY_UNIT"] = action.unit
    environment["SUPERVISORD_PY_SOCKET"] = runtime.control_socket
    if runtime.bus is not None:
        environment["SUPERVISORD_PY_BUS"] = runtime.bus
    environment["INVOCATION_ID"] = action.invocation
    if main_pid is not None:
        environment["MAINPID"] = str(main_pid)
    if pid_file is not None:
        environment["PIDFILE"] = pid_file
    environment.update(action.environment)
    for unset in belongings.unset_environment:
        name, equals, value = unset.partition("=")
        if name in environment and (not equals or environment[name] == value):
            del environment[name]
    return environment


def _executable(action: SpawnProcess, context: ExecContext, environment: Mapping[str, str]) -> str | None:
    """Return the program's path; None leaves the search in PATH to the keeper, which looks for ``argv[0]``."""
    program = action.command.words[0]
    root = "" if context.root_directory is None or action.command.privileged else context.root_directory
    # In another root the search is the child's, unless it is to look elsewhere than in PATH.
    if "/" in program or (root and not context.search_path):
        return program
    if action.command.argv0 is None and not context.search_path:
        return None
    where = "exec-search-path" if context.search_path else "PATH"
    for folder in context.search_path or environment.get("PATH", DEFAULT_PATH).split(":"):
        path = os.path.join(folder, program)
        if os.path.isfile(root + path) and os.access(root + path, os.X_OK):
            return path
    raise _Refused("exec", EXIT_EXEC, 2, f"no program {program} in {where}")


def _directory(context: ExecContext, account: Account, runtime: SpawnRuntime) -> str:
    wanted = context.working_directory
    if wanted is None:
        if not runtime.is_user_instance:
            return "/"
        wanted = "-~"
    may_miss = wanted.startswith("-")
    wanted = wanted.removeprefix("-")
    if wanted == "~":
        if account.home is None and not may_miss:
            raise _Refused(
                "chdir", EXIT_CHDIR, 2, f"working-directory is ~, and {account.name or 'the user'} has no home"
            )
        wanted = account.home or "/"
    if not wanted.startswith("/"):
        raise _Refused("chdir", EXIT_CHDIR, 22, f"working-directory {wanted} is not absolute")
    if may_miss and not os.path.isdir(f"{context.root_directory or ''}{wanted}"):
        return "/"
    return wanted


def _state_folder(parent: str, name: str, account: Account) -> str:
    """Make the folder in which an agent keeps what outlives it; only its user may enter."""
    folder = f"{parent}/{name}"
    try:
        os.makedirs(parent, mode=0o711, exist_ok=True)
        try:
            os.mkdir(folder, mode=0o700)
        except FileExistsError:
            pass
        is_folder = stat.S_ISDIR(os.lstat(folder).st_mode)
        if is_folder and account.uid is not None and os.lstat(folder).st_uid != account.uid:
            gid = -1 if account.gid is None else account.gid
            os.chown(folder, account.uid, gid, follow_symlinks=False)
    except OSError as error:
        detail = f"cannot make the state folder {folder}: {os.strerror(error.errno or 0).lower()}"
        raise _Refused("state-directory", EXIT_STATE_DIRECTORY, error.errno or 0, detail) from None
    return folder


def _rlimits(context: ExecContext) -> dict[str, list[int]]:
    limits: dict[str, list[int]] = {}
    for name, limit in {**DEFAULT_LIMITS, **dict(context.rlimits)}.items():
        if name not in RLIMIT_NUMBERS:
            raise _Refused("limits", EXIT_LIMITS, 22, f"no limit is called {name}")
        soft = limit.hard if name == "rttime" else limit.soft  # the soft one belongs to the keeper
        limits[name] = [INFINITY if value is None else value for value in (soft, limit.hard)]
    return limits


def _check_strings(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """A NUL ends a string for the kernel: what is behind it would be lost silently."""
    for text in (*argv, *environment, *environment.values()):
        if "\0" in text:
            raise _Refused("exec", EXIT_EXEC, 22, "an argument or a variable holds a NUL character")
