"""Making one process: by vfork where no code of ours need run in the child, else by fork and numbered steps.

vfork costs the same whatever the keeper's size, and its errors are in a kept, non-blocking pipe when the call returns.
It is ``_posixsubprocess.fork_exec``: private, so tried at start; where it is not as we know it, fork does all. What
such a child inherits is set on the keeper around the call, which is right only for limits that can be set back and do
not hurt the keeper in between, and for a cgroup from which the way back is known (``docs/adr/0008``). Everything else
(user, groups, other limits, niceness, what ``keeper.ops`` does, the process's own pid in its environment) needs
``fork``: the child runs ``_run_steps`` only, reports (step, errno) over a close-on-exec pipe and never returns.
"""

import contextlib
import ctypes
import errno
import fcntl
import gc
import importlib
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

from supervisord_py.keeper import ops
from supervisord_py.keeper.loop import say
from supervisord_py.keeper.protocol import TAG_BASE, TAG_INSTANCE_SHIFT

EXIT_CODES = {
    "fds": 202, "session": 220, "cgroup": 219, "limits": 205, "nice": 201, "group": 216, "user": 217, "chdir": 200,
    "signals": 207, "exec": 203, "fork": 203, "request": 203,
    "stdin": 208, "stdout": 209, "stderr": 222, "oom": 206, "affinity": 215, "scheduler": 214, "ioprio": 211,
    "timer-slack": 212,
    "secure-bits": 213, "capabilities": 218, "personality": 230, "keyring": 237, "chroot": 210, "network": 225,
    "namespace": 226, "no-new-privileges": 227, "seccomp": 228, "address-families": 232, "landlock": 226,
}  # fmt: skip
"""The steps and systemd's exit codes for them (systemd.exec(5), process exit codes); it has none for Landlock."""

LIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
LIMITS["locks"] = 10  # Python does not name it
SAFE_AROUND = {"core", "fsize", "memlock", "msgqueue", "nofile", "rttime", "sigpending"}
"""Limits that the keeper may carry for the moment of a vfork; the others could fail or kill the keeper itself."""
LATE = {"as", "data"}
"""Limits that could starve the steps after them: set last, just before exec, unless that needs privileges."""
DEGRADED = "~"
"""Before the step of a report that does not end the start."""
TOLD_MAX = 512
"""Bytes of a report [B]: no child fills the pipe before its exec, and none waits for the keeper to read."""
LAST = {"seccomp", "address-families"}
"""Steps after all others: they may forbid what those need."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PR_SET_PDEATHSIG = 1
ME = os.getpid()
EVERY_SIGNAL = signal.valid_signals()
_libc = ctypes.CDLL(None, use_errno=True)
FILES_KEPT = 32
"""Descriptors that no unit gets: with them the keeper looks into /proc and starts managers when all others are used."""


class SpawnError(Exception):
    def __init__(self, step: str, error: int, detail: str = "") -> None:
        super().__init__(step, error, detail)
        self.step, self.errno, self.detail = step, error, detail


class Made(NamedTuple):
    """A new process; with ``report`` its exec has not happened yet, and the pipe's end of file says that it has."""

    pid: int
    report: int | None
    tagged: bool


def lower(one: int, other: int) -> int:
    """Return the lower of two limits; -1 is infinity."""
    return min(one, other) if -1 not in (one, other) else max(one, other)


def set_limit(name: str, soft: int, hard: int, strict: bool) -> None:
    """Set a limit of this process and read it back; one not ``strict`` is clamped to the hard limit."""
    number = LIMITS[name]
    try:
        resource.setrlimit(number, (soft, hard))
    except (ValueError, OSError) as error:
        if strict:
            raise OSError(getattr(error, "errno", None) or errno.EPERM, f"{name}: {error}") from error
        hard = lower(hard, resource.getrlimit(number)[1])
        resource.setrlimit(number, (lower(soft, hard), hard))
    if strict and resource.getrlimit(number) != (soft, hard):
        raise OSError(errno.EPERM, f"{name}: the kernel did not keep the limit")


class Plan:
    """A spawn request made ready: nothing in it needs memory or may raise once the child runs."""

    def __init__(self, request: dict[str, Any], out: int, env: dict[str, str]) -> None:
        self.argv = [os.fsencode(word) for word in request["argv"]]
        self.env = {os.fsencode(name): os.fsencode(value) for name, value in {**request["env"], **env}.items()}
        name = os.fsencode(request.get("executable") or request["argv"][0])
        folders = os.fsencode(request["env"].get("PATH") or DEFAULT_PATH).split(b":")
        self.candidates = [name] if b"/" in name else [os.path.join(folder, name) for folder in folders]
        self.cwd, self.umask = request["cwd"], request["umask"]
        self.cwd_may_miss = bool(request.get("cwd_may_miss"))
        plain = bool(request.get("privileged"))
        self.uid, self.gid, self.groups = (None if plain else request.get(key) for key in ("uid", "gid", "groups"))
        self.limits: dict[str, tuple[int, int]] = {n: (s, h) for n, (s, h) in (request.get("rlimits") or {}).items()}
        self.strict = frozenset(request.get("strict") or ())
        self.loose = frozenset(request.get("loose") or ())
        self.nice, self.cgroups = request.get("nice"), list(request.get("cgroups") or ())
        self.home: str | None = request.get("home")
        self.sigpipe, self.pid_env = bool(request.get("sigpipe")), list(request.get("pid_env") or ())
        self.fds: list[int] = []
        """What it gets from descriptor 3 on."""
        self.out = out
        self.inherits = bool(request.get("inherit"))
        self.before, after = ops.prepare(request.get("before") or []), ops.prepare(request.get("after") or [])
        self.after = [op for op in after if op.step not in LAST]
        self.last = [op for op in after if op.step in LAST]
        if b"\0" in b"".join([*self.argv, *self.env, *self.env.values(), *self.candidates]):
            raise ValueError("embedded null byte")
        if unknown := {op.step for op in (*self.before, *after)} - EXIT_CODES.keys():
            raise ValueError(f"no such step: {', '.join(sorted(unknown))}")
        if unknown := self.limits.keys() - LIMITS.keys():
            raise ValueError(f"no such limit on this system: {', '.join(sorted(unknown))}")

    def needs_code(self) -> bool:
        """Say whether only code of ours in the child can do what is asked for."""
        return bool(
            self.pid_env
            or self.fds
            or self.nice is not None
            or self.before
            or self.after
            or self.last
            or self._changes_user()
        )

    def _changes_user(self) -> bool:
        return (
            self.uid not in (None, os.geteuid())
            or self.gid not in (None, os.getegid())
            or (self.groups is not None and set(self.groups) != set(os.getgroups()))
        )


class Spawner:
    """Knows what the keeper inherited and can do; makes processes by the cheapest way that is right."""

    def __init__(self, instance: int, way: str, given: dict[str, tuple[int, int]] | None = None) -> None:
        self.instance = instance
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._errors, self._errors_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The keeper's and the manager's own need; units get the soft limits back that the keeper was given.
        self.given = given or {name: resource.getrlimit(LIMITS[name]) for name in ("nofile", "fsize")}
        for name, (_, hard) in self.given.items():
            resource.setrlimit(LIMITS[name], (hard, hard))
        self._can_raise = _may_raise_limits()
        self._home: tuple[str, bytes] | None = None
        """The group that was seen to be our own, and all of our groups at that time."""
        self._can_return = True
        self._fork_exec: Any = getattr(importlib.import_module("_posixsubprocess"), "fork_exec", None)
        self._has_vfork = way != "fork" and self._try_vfork()

    def spawn(
        self, spawn_id: int, request: dict[str, Any], out: int, env: dict[str, str], fds: Sequence[int] = ()
    ) -> Made:
        """Make the process of ``request`` with ``out`` as output and error and ``fds`` from descriptor 3 on; raises
        SpawnError when nothing runs."""
        try:
            plan = Plan(request, out, env)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise SpawnError("request", errno.EINVAL, f"{type(error).__name__}: {error}") from error
        plan.fds = list(fds)
        if "LISTEN_FDS" in env:
            plan.pid_env.append("LISTEN_PID")
        tag = TAG_BASE + (self.instance << TAG_INSTANCE_SHIFT) + spawn_id
        hard = plan.limits.get("rttime", resource.getrlimit(resource.RLIMIT_RTTIME))[1]
        tagged = lower(tag, hard) == tag
        if tagged:
            plan.limits["rttime"] = (tag, hard)
        plan.limits = self.given | plan.limits
        around = self._limits_around(plan)
        if around is None:
            return Made(*self._fork(plan), tagged)
        with self._visit(plan):
            saved = {name: resource.getrlimit(LIMITS[name]) for name in around}
            try:
                try:
                    for name, (soft, hard) in around.items():
                        set_limit(name, soft, hard, name in plan.strict)
                except (OSError, ValueError) as error:
                    raise SpawnError("limits", getattr(error, "errno", None) or errno.EINVAL, str(error)) from error
                return Made(*self.execute(plan), tagged)
            finally:
                self._set_back(saved)

    def _set_back(self, saved: dict[str, tuple[int, int]]) -> None:
        """Take the keeper's own limits again; raises nothing, for the process is there and has to be booked."""
        for name, limits in saved.items():
            try:
                resource.setrlimit(LIMITS[name], limits)
            except (OSError, ValueError) as error:
                self._can_raise = False  # what this costs is not lost a second time
                say(f"cannot set the keeper's own limit {name} back to {limits}: {error}; later processes are forked")

    def check_room(self, *fds: int) -> None:
        """Raise OSError when the descriptors just opened for a unit are among the last ones."""
        if max(fds) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_KEPT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _may_visit(self, plan: Plan) -> bool:
        """Say whether we may be in the group of ``plan`` for a moment: if the way back is known, and if nothing that
        holds for the group (it is frozen, or killed when its memory is full) would then hold for us."""
        folder, home = plan.cgroups[0], plan.home
        if len(plan.cgroups) > 1 or home is None or not (self._has_vfork and self._can_return):
            return False
        try:
            own = _read("/proc/self/cgroup")
            if self._home != (home, own):
                self._home = None
                if b"%d" % ME not in _read(f"{home}/cgroup.procs").split():
                    return False
                self._home = (home, own)
            is_frozen = b"frozen 1" in _read(f"{folder}/cgroup.events")
            # Full of tasks, or without processor time, it would hold us up.
            limits = [_read(f"{folder}/{name}") for name in ("pids.max", "cpu.max")]
            is_bound = any(limit and not limit.startswith(b"max") for limit in limits)
            return not (is_frozen or is_bound or os.path.exists(f"{folder}/memory.oom.group"))
        except OSError:
            return False

    @contextlib.contextmanager
    def _visit(self, plan: Plan) -> Iterator[None]:
        """Be in the group of ``plan`` meanwhile: what is made is born there, and in no other for any instant."""
        if not plan.cgroups:
            yield
            return
        try:
            _join(plan.cgroups[0])
        except OSError as error:
            raise SpawnError("cgroup", error.errno or 0, _describe(error)) from error
        try:
            yield
        finally:  # raises nothing, for the process is there and has to be booked
            for folder in (plan.home or "", os.path.dirname(plan.cgroups[0])):
                try:
                    _join(folder, make=False)
                    break
                except OSError as error:
                    self._can_return = False
                    say(f"cannot go back into the group {folder}: {error.strerror}; later processes are forked")

    def _limits_around(self, plan: Plan) -> dict[str, tuple[int, int]] | None:
        """Return the soft limits to carry around a vfork, None when the plan needs a fork."""
        if plan.needs_code() or (plan.cgroups and not self._may_visit(plan)):
            return None
        around = {}
        for name, (soft, hard) in plan.limits.items():
            have = resource.getrlimit(LIMITS[name])[1]
            if name in plan.loose and lower(hard, have) != hard:
                return None  # only a child can tell what it got
            if name not in plan.strict and not self._can_raise:
                hard = lower(hard, have)
                soft = lower(soft, hard)
            if name not in SAFE_AROUND or (hard != have and not self._can_raise):
                return None
            around[name] = (soft, hard)
        return around

    def execute(self, plan: Plan) -> tuple[int, int | None]:
        """Make a process that needs no code of ours; ``plan.out`` -1 keeps our output. Raises SpawnError."""
        return (self._vfork(plan), None) if self._has_vfork else self._fork(plan)

    def _vfork(self, plan: Plan) -> int:
        try:
            pid: int = self._fork_exec(
                plan.argv, plan.candidates, False, (), plan.cwd, [k + b"=" + v for k, v in plan.env.items()],
                -1 if plan.inherits else self.null, -1, -1, plan.out, -1, plan.out, self._errors, self._errors_in,
                plan.sigpipe, True, -1, None, None, None, plan.umask, None, True,
            )  # fmt: skip
        except OSError as error:
            raise SpawnError("fork", error.errno or 0) from error
        try:
            report = os.read(self._errors, 4096)
        except BlockingIOError:
            return pid
        os.waitpid(pid, 0)
        _, number, what = report.split(b":", 2)
        step = "chdir" if what.startswith(b"noexec") else "exec"
        path = plan.cwd if step == "chdir" else plan.candidates[-1]
        raise SpawnError(step, int(number, 16), _describe(OSError(int(number, 16), os.strerror(int(number, 16)), path)))

    def _fork(self, plan: Plan) -> tuple[int, int]:
        try:
            report, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SpawnError("fds", error.errno or 0) from error
        try:
            return fork(partial(_run_steps, plan, self.null, write_end)), report
        except OSError as error:
            os.close(report)
            raise SpawnError("fork", error.errno or 0) from error
        finally:
            os.close(write_end)

    def _try_vfork(self) -> bool:
        """Try the private call on a program that is not there: the error must be in the pipe when it returns."""
        plan = Plan({"argv": ["/dev/null/none"], "env": {}, "cwd": ".", "umask": 0o022}, -1, {})
        try:
            self._vfork(plan)
        except SpawnError as error:
            return error.errno == errno.ENOTDIR
        except (TypeError, ValueError, ChildProcessError):
            pass
        return False


def _join(folder: str, make: bool = True) -> None:
    """Put this process into a cgroup."""
    if make:
        # A release on its way here may have removed it after the manager had made it.
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
    group = os.open(os.path.join(folder, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(group, b"0")
    finally:
        os.close(group)


def _read(path: str) -> bytes:
    """Return what a file says, nothing when there is none; raises OSError."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
        return file.readall() or b""
    return b""


def die_with_parent(signal_number: int) -> None:
    """Ask for this signal when our parent ends; 0 for none."""
    _libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def fork(run: Callable[[], None]) -> int:
    """Return the pid of a child that does ``run``, with no signal let through, and exits with 0 when that returns."""
    # Blocked until the child has dropped our handlers: one that ran there would write to our wake-up pipe.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, EVERY_SIGNAL)
    try:
        if (pid := os.fork()) == 0:
            try:
                run()
                os._exit(0)
            finally:
                os._exit(1)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def close_elsewhere(fds: list[int]) -> int:
    """Close descriptors that others made, in a child whose pid is returned; raises OSError and closes none.

    The last close of a lingering socket or of a file on a dead or hostile file system takes as long as that wants.
    """
    gate, hold = os.pipe2(os.O_CLOEXEC)

    def close_last() -> None:
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if fd not in (*fds, gate):
                    os.close(fd)
        os.read(gate, 1)  # until the keeper has closed its own: the last one is closed by this exit

    try:
        pid = fork(close_last)
        for fd in fds:
            os.close(fd)
        return pid
    finally:
        os.close(gate)
        os.close(hold)


def _may_raise_limits() -> bool:
    """Say whether a hard limit that was lowered can be raised again, by trying it in a child.

    The capability does not tell: in a user namespace root has it, and the kernel asks for that of the first namespace.
    """

    def try_it() -> None:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (1, 1))

    return os.waitpid(fork(try_it), 0)[1] == 0


def _first_that_runs(candidates: list[bytes], run: Callable[[bytes], int]) -> int:
    """Try each candidate as execvp(3) does; raises the error that says most."""
    refused: OSError | None = None
    for path in candidates:
        try:
            return run(path)
        except OSError as error:
            if refused is None or refused.errno in (errno.ENOENT, errno.ENOTDIR):
                refused = error
    assert refused is not None
    raise refused


def read_report(report: bytes) -> tuple[list[str], SpawnError | None]:
    """Return what a forked child could do without, in words, and its failed step; None: it runs its program."""
    degraded, failure = [], None
    for line in report.decode("utf-8", "replace").split("\0")[:-1]:
        step, number, detail = line.split(" ", 2)
        if step[:1] == DEGRADED:
            why = f": {os.strerror(int(number)).lower()}" if detail.startswith("/") else ""
            degraded.append(f"{step[1:]}: {detail}{why}")
        else:
            failure = SpawnError(step, int(number), detail)
    return degraded, failure


def _tell(report: int, step: str, number: int, detail: str) -> None:
    os.write(report, f"{step} {number} {detail}".replace("\0", " ").encode("utf-8", "replace")[: TOLD_MAX - 1] + b"\0")


def _set_and_tell(name: str, plan: Plan, report: int) -> None:
    """Set a limit of this process; of a loose one that was clamped tell what it is now."""
    set_limit(name, *plan.limits[name], name in plan.strict)
    has = resource.getrlimit(LIMITS[name])
    if name in plan.loose and has != plan.limits[name]:
        soft, hard = plan.limits[name]
        _tell(report, DEGRADED + name, 0, f"{soft}:{hard} is more than may be had, it has {has[0]}:{has[1]}")


class _Sandbox:
    """What a child does of its operations, and tells: each key that it does without once."""

    def __init__(self, report: int) -> None:
        self._report, self._registers, self._told = report, ops.Registers(), set[str]()

    def perform(self, op: ops.Op) -> None:
        number, why = 0, "what it needs is missing"
        try:
            if op.run(self._registers):
                return
        except OSError as error:
            if not op.may_fail:
                raise
            number, why = error.errno or 0, _describe(error)
        if op.key not in self._told:
            self._told.add(op.key)
            _tell(self._report, DEGRADED + op.key, number, why)


def _hand_over(fds: list[int], report: int) -> int:
    """Put ``fds`` where the program looks for them, and return where the report has gone to make room."""
    if not fds:
        return report
    above = 3 + len(fds)
    held = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, above)
    for place, fd in enumerate(held, 3):
        os.dup2(fd, place)
    return report


def _run_steps(plan: Plan, null: int, report: int) -> NoReturn:
    """Become the process of ``plan``. Runs in the forked child, ends in exec or in ``os._exit``."""
    step, key = "fds", ""
    try:
        gc.disable()
        # A killed keeper leaves nobody who has no tag yet and would run a program later.
        die_with_parent(signal.SIGKILL)
        if os.getppid() != ME:
            os._exit(EXIT_CODES["fork"])
        if not plan.inherits:
            os.dup2(null, 0)
        for fd in (1, 2) if plan.out >= 0 else ():
            os.dup2(plan.out, fd)
        report = _hand_over(plan.fds, report)
        step = "session"
        os.setsid()
        step = "cgroup"
        for folder in plan.cgroups:
            _join(folder)
        step = "limits"
        late = {name for name in LATE & plan.limits.keys() if _only_lowers(name, plan.limits[name][1])}
        for name in plan.limits.keys() - late:
            _set_and_tell(name, plan, report)
        step = "nice"
        if plan.nice is not None:
            os.setpriority(os.PRIO_PROCESS, 0, plan.nice)
        sandbox = _Sandbox(report)
        for op in plan.before:
            step, key = op.step, op.key
            sandbox.perform(op)
        key = ""
        step = "group"
        if plan.groups is not None:
            os.setgroups(plan.groups)
        elif plan.uid not in (None, os.geteuid()):
            os.setgroups([])
        if plan.gid is not None:
            os.setresgid(plan.gid, plan.gid, plan.gid)
        step = "user"
        if plan.uid is not None:
            os.setresuid(plan.uid, plan.uid, plan.uid)
        os.umask(plan.umask)
        step = "chdir"
        try:
            os.chdir(plan.cwd)
        except OSError:
            if not plan.cwd_may_miss:
                raise
            os.chdir("/")
        step = "signals"
        signal.set_wakeup_fd(-1)
        for sig in EVERY_SIGNAL - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(sig)):
                signal.signal(sig, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL if plan.sigpipe else signal.SIG_IGN)
        for name in plan.pid_env:
            plan.env[os.fsencode(name)] = b"%d" % os.getpid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for op in plan.after:
            step, key = op.step, op.key
            sandbox.perform(op)
        step, key = "limits", ""
        for name in late:
            _set_and_tell(name, plan, report)
        die_with_parent(0)
        for op in plan.last:
            step, key = op.step, op.key
            sandbox.perform(op)
        step, key = "exec", ""
        _first_that_runs(plan.candidates, lambda path: os.execve(path, plan.argv, plan.env))
    except BaseException as error:  # noqa: BLE001  nothing may return into the keeper's code in this process
        number = (error.errno or 0) if isinstance(error, OSError) else errno.ENOMEM
        _tell(report, step, number, f"{key}: {_explain(error)}" if key not in ("", step) else _describe(error))
    finally:
        os._exit(EXIT_CODES[step])


def _describe(error: BaseException) -> str:
    """Return what an error is about: the path when that is a whole one (the errno goes beside it), else words."""
    if not isinstance(error, OSError) or error.strerror is None:
        return f"{type(error).__name__}: {error}"
    path = os.fsdecode(error.filename or b"")
    return path if path.startswith("/") else ": ".join(filter(None, (path, error.strerror.lower())))


def _explain(error: BaseException) -> str:
    """Return what an error is about and why, all in words."""
    about = _describe(error)
    if isinstance(error, OSError) and about.startswith("/"):
        about += f": {os.strerror(error.errno or 0).lower()}"
    return about


def _only_lowers(name: str, hard: int) -> bool:
    return lower(hard, resource.getrlimit(LIMITS[name])[1]) == hard
