"""What the manager has prepared for the child to do between fork and exec, as data: a small machine for system calls.

Which call is made for which key of a unit is decided by the manager (``host.sandbox`` and its neighbours); here is only
what carries it out, so that the keeper stays small and need not change with what it is asked for. An operation is

    {"step": STEP, "do": KIND, ..., "key": TEXT, "needs": REGISTER, "may_fail": BOOL, "if_missing": BOOL}

with ``STEP`` of ``EXIT_CODES`` in ``keeper.child``; ``key`` is what the unit calls it, for whoever is told. One that
``may_fail`` and does is told and the rest goes on; with ``if_missing`` only a missing file is let pass, and silently.
One whose registers (``needs`` is one more) are empty is not done: what it builds upon has failed or is missing, and
without a mount namespace of its own a mount would be everybody's. Kinds:

    {"do": "call", "name": NAME, "args": [ARG..], "as": REGISTER}     a function of libc, ``syscall`` among them, that
        returns -1 and errno when it fails. An ARG is an integer, a string (a path, in UTF-8), null (a null pointer),
        {"bytes": BASE64} (a pointer to these bytes), or {"fd": REGISTER} (what an earlier one returned).
    {"do": "open", "path": PATH, "flags": INT, "mode": INT, "as": REGISTER, "safe": BOOL}     if ``safe`` it is not
        for others to choose which file that is: no link is followed that is neither root's nor ours, and a file with
        several names is not taken from a folder that others may write
    {"do": "connect", "path": PATH, "text": TEXT, "as": REGISTER}     a Unix stream, to which TEXT is sent
    {"do": "data", "bytes": BASE64, "as": REGISTER}     a descriptor from which these bytes are read
    {"do": "dup", "fd": REGISTER, "to": INT}            not closed on exec
    {"do": "write", "path": PATH, "text": TEXT}
    {"do": "mkdir", "path": PATH, "mode": INT}          one that is there already is left as it is; ``safe`` as above
    {"do": "touch", "path": PATH, "mode": INT}          an empty file to mount over; the same
    {"do": "landlock-path", "ruleset": REGISTER, "fd": REGISTER, "access": INT}     a rule for a path that is open
    {"do": "affinity", "cpus": [INT..]}, {"do": "scheduler", "policy": INT, "priority": INT}
    {"do": "seccomp", "filter": BASE64}                 an array of ``struct sock_filter``; without no-new-privileges
        this needs CAP_SYS_ADMIN
    {"do": "join", "pid": PID, "start": TICKS, "flags": INT}     namespaces of that process, if it is still that one
    {"do": "user-namespace", "uids": TEXT, "gids": TEXT}
        A new one with these maps (lines of ``/proc/PID/uid_map``), written from outside of it, by a child of ours.

Everything is looked up and converted in ``prepare``, before the fork; unknown kinds and arguments raise there.
"""

import base64
import contextlib
import ctypes
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
SYS_LANDLOCK_ADD_RULE = 445
PR_SET_SECCOMP = 22
ABSENT = -1
"""In a register whose file is missing, and may be."""
SECCOMP_MODE_FILTER = 2
LINKS_MAX = 40
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

Registers = dict[str, int]
Work = Callable[[Registers], None]


class Op:
    """One prepared operation."""

    def __init__(self, given: dict[str, Any], work: Work) -> None:
        self.step: str = given["step"]
        self.key: str = given.get("key") or given["step"]
        self.may_fail, self.if_missing = bool(given.get("may_fail")), bool(given.get("if_missing"))
        used = [given.get("needs"), given.get("fd"), given.get("ruleset")]
        used += [one["fd"] for one in given.get("args") or () if isinstance(one, dict) and "fd" in one]
        self._needs = {str(one) for one in used if one is not None}
        self._gives: str | None = given.get("as")
        self._work = work

    def run(self, registers: Registers) -> bool:
        """Do it, and say whether it was done as far as it can be: not when what it needs has failed. Raises OSError."""
        if not self._needs <= registers.keys():
            return False
        if all(registers[one] != ABSENT for one in self._needs):
            try:
                self._work(registers)
                return True
            except OSError as error:
                if not (self.if_missing and error.errno in (errno.ENOENT, errno.ENOTDIR)):
                    raise
        if self._gives is not None:
            registers[self._gives] = ABSENT
        return True


def prepare(given: list[dict[str, Any]]) -> list[Op]:
    """Return what a request asks for, ready to run; raises KeyError, TypeError, ValueError or AttributeError."""
    return [Op(one, _KINDS[one["do"]](one)) for one in given]


def _call(given: dict[str, Any]) -> Work:
    function = getattr(_libc, given["name"])
    arguments = [_argument(one) for one in given["args"]]
    about = next((one for one in given["args"] if isinstance(one, str)), None)
    register = given.get("as")

    def work(registers: Registers) -> None:
        values = [ctypes.c_long(registers[one]) if isinstance(one, str) else one for one in arguments]
        result = function(*values)
        if result == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), about or given["name"])
        if register is not None:
            registers[register] = result

    return work


def _argument(given: Any) -> Any:
    """Return a value that ctypes takes, or the name of a register."""
    if given is None:
        return ctypes.c_void_p(None)
    if isinstance(given, str):
        return ctypes.c_char_p(os.fsencode(given))
    if isinstance(given, int):
        return ctypes.c_ulong(given & 0xFFFFFFFFFFFFFFFF)
    if "fd" in given:
        return str(given["fd"])
    return ctypes.create_string_buffer(base64.b64decode(given["bytes"], validate=True))


def _open(given: dict[str, Any]) -> Work:
    path, flags, mode, register = given["path"], given["flags"] | os.O_CLOEXEC, given.get("mode", 0), given["as"]
    opens: Callable[[str, int, int], int] = _open_safely if given.get("safe") else os.open

    def work(registers: Registers) -> None:
        registers[register] = opens(path, flags, mode)

    return work


def _locate(path: str, *, follow: bool) -> tuple[int, str, int]:
    """Return the folder of a path, its name there and how that is opened, links that root or we made followed, the last
    one if ``follow``; of what leads into /proc, whose links are the kernel's, the rest. Exec closes what is opened."""
    parts, links, trusted = path.split("/"), 0, (0, os.geteuid())
    root = folder = os.open("/", _FOLDER)
    proc = os.stat("/proc").st_dev
    while True:
        name, parts = parts[0] or ".", parts[1:]
        if os.fstat(folder).st_dev == proc:
            return folder, "/".join((name, *parts)), 0
        try:
            here = os.open(name, _FOLDER & ~os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError as error:
            if any(parts):
                raise FileNotFoundError(error.errno, error.strerror, path) from None
            return folder, name, os.O_NOFOLLOW
        found = os.fstat(here)
        if stat.S_ISLNK(found.st_mode) and (follow or any(parts)):
            links += 1
            if links > LINKS_MAX or found.st_uid not in trusted:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), f"{name}, a link of another user, in {path}")
            target = os.readlink("", dir_fd=here)
            folder, parts = root if target.startswith("/") else folder, target.split("/") + parts
        elif any(parts):
            folder = here
        else:
            return folder, name, os.O_NOFOLLOW


def _open_safely(path: str, flags: int, mode: int) -> int:
    folder, name, how = _locate(path, follow=True)
    try:
        fd = os.open(name, flags & ~os.O_TRUNC | how, mode, dir_fd=folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    above, found = os.fstat(folder), os.fstat(fd)
    if stat.S_ISREG(found.st_mode):
        if found.st_nlink > 1 and (above.st_uid not in (0, os.geteuid()) or above.st_mode & 0o022):
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK), f"{path}, in a folder that others may write")
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    return fd


def _connect(given: dict[str, Any]) -> Work:
    path, text, register = given["path"], given["text"].encode(), given["as"]

    def work(registers: Registers) -> None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            stream.connect(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        stream.sendall(text)
        registers[register] = stream.detach()

    return work


def _data(given: dict[str, Any]) -> Work:
    content, register = base64.b64decode(given["bytes"], validate=True), given["as"]

    def work(registers: Registers) -> None:
        fd = os.memfd_create("data", os.MFD_CLOEXEC)
        os.pwrite(fd, content, 0)
        registers[register] = fd

    return work


def _dup(given: dict[str, Any]) -> Work:
    register, target = given["fd"], given["to"]
    return lambda registers: os.set_inheritable(os.dup2(registers[register], target), True)


def _write(given: dict[str, Any]) -> Work:
    path, content = given["path"], given["text"].encode()

    def work(_: Registers) -> None:
        os.write(os.open(path, os.O_WRONLY | os.O_CLOEXEC), content)  # exec closes it

    return work


def _mkdir(given: dict[str, Any]) -> Work:
    def work(_: Registers) -> None:
        folder, name = _locate(given["path"], follow=False)[:2]
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, given["mode"], dir_fd=folder)

    return work


def _touch(given: dict[str, Any]) -> Work:
    def work(_: Registers) -> None:
        folder, name = _locate(given["path"], follow=False)[:2]
        with contextlib.suppress(FileExistsError):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, given["mode"], dir_fd=folder))

    return work


def _landlock_path(given: dict[str, Any]) -> Work:
    number, ruleset, opened, access = SYS_LANDLOCK_ADD_RULE, given["ruleset"], given["fd"], int(given["access"])

    def work(registers: Registers) -> None:
        rule = struct.pack("=Qi", access, registers[opened])
        if _libc.syscall(number, ctypes.c_long(registers[ruleset]), 1, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), given.get("path"))

    return work


def _join(given: dict[str, Any]) -> Work:
    pid, start, flags = int(given["pid"]), int(given["start"]), int(given["flags"])

    def work(_: Registers) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[19]) != start:
                    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), "main process")
            if _libc.setns(pidfd, flags) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "setns")
        finally:
            os.close(pidfd)

    return work


def _affinity(given: dict[str, Any]) -> Work:
    cpus = [int(cpu) for cpu in given["cpus"]]
    return lambda _: os.sched_setaffinity(0, cpus)


def _scheduler(given: dict[str, Any]) -> Work:
    parameters = os.sched_param(given["priority"])
    return lambda _: os.sched_setscheduler(0, given["policy"], parameters)


class _Program(ctypes.Structure):
    """``struct sock_fprog``. Source: linux/filter.h"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _seccomp(given: dict[str, Any]) -> Work:
    code = base64.b64decode(given["filter"], validate=True)
    if not code or len(code) % 8:
        raise ValueError("a filter is an array of 8 bytes each")
    kept = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(kept))

    def work(_: Registers, kept: Any = kept) -> None:
        if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "seccomp filter")

    return work


def _user_namespace(given: dict[str, Any]) -> Work:
    maps = [("setgroups", "deny")] if given.get("deny_setgroups") else []
    maps += [("uid_map", given["uids"]), ("gid_map", given["gids"])]

    def work(_: Registers) -> None:
        ready, tell = os.pipe2(os.O_CLOEXEC)
        me = os.getpid()
        helper = os.fork()
        if helper == 0:
            number = errno.EPERM
            try:
                os.close(tell)
                os.read(ready, 1)
                for name, text in maps:
                    fd = os.open(f"/proc/{me}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                    os.write(fd, text.encode())
                number = 0
            except OSError as error:
                number = error.errno or errno.EPERM
            finally:
                os._exit(number & 0x7F)
        try:
            os.close(ready)
            result = _libc.unshare(CLONE_NEWUSER)
            number = ctypes.get_errno()
        finally:
            os.close(tell)
            code = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
        if result != 0 or code != 0:
            number = number if result != 0 else code
            raise OSError(number, os.strerror(number), "user namespace")

    return work


_KINDS: dict[str, Callable[[dict[str, Any]], Work]] = {
    "call": _call, "open": _open, "connect": _connect, "data": _data, "dup": _dup, "write": _write, "mkdir": _mkdir,
    "touch": _touch, "affinity": _affinity, "scheduler": _scheduler, "seccomp": _seccomp,
    "user-namespace": _user_namespace, "landlock-path": _landlock_path, "join": _join,
}  # fmt: skip
