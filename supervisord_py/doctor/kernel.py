"""What the kernel offers, each asked in earnest: a version says little where a container's seccomp list stands between.

A refusal by such a list is EPERM and not ENOSYS; both count as "not available", with another cure.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import socket

from supervisord_py.doctor.findings import Finding, degraded, ok, wrong
from supervisord_py.host.powers import SYS_ADMIN, own_powers
from supervisord_py.keeper.follow import read_status
from supervisord_py.keeper.inventory import HAS_CHILDREN
from supervisord_py.keeper.protocol import TAG_BASE

SO_PEERPIDFD = 77
SYS_LANDLOCK_CREATE_RULESET = 444
LANDLOCK_CREATE_RULESET_VERSION = 1
CLONE_NEWUSER = 0x10000000
SYS_MOUNT_SETATTR = 442
STA_UNSYNC = 0x40

LIMIT_RTTIME = "start it with LimitRTTIME=infinity (systemd) or ulimit -R unlimited"


def kernel_findings() -> list[Finding]:
    """Ask the kernel for everything that we use where it is there."""
    return [
        _version(),
        _pidfd(),
        _pidfd_info(),
        _peer_pidfd(),
        _children(),
        _tag(),
        _landlock(),
        _seccomp(),
        _user_namespaces(),
        _mounts(),
        _filters(),
        _hidden_processes(),
        _clock(),
    ]


def _version() -> Finding:
    return ok("kernel", f"{platform.system()} {platform.release()} on {platform.machine()}")


def _why(error: OSError) -> tuple[str, str]:
    """Return what an error says about a missing interface: the fact, and the cure."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return "refused", "let it through the container's seccomp profile"
    return "not in this kernel", "a newer kernel"


def _pidfd() -> Finding:
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError as error:
        reason, cure = _why(error)
        fact = f"{reason}: no MAINPID or pid file can be followed, and nothing of a killed keeper be taken over"
        return wrong("pidfd", fact, f"{cure} (pidfd_open, Linux 5.3)")
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except OSError as error:
        reason, cure = _why(error)
        return wrong("pidfd", f"pidfd_send_signal is {reason}: no signal is safe of a reused pid", cure)
    finally:
        os.close(pidfd)
    return ok("pidfd", "processes are held, not guessed by number")


def _pidfd_info() -> Finding:
    pid = os.fork()
    if pid == 0:
        os._exit(42)
    status = None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.waitpid(pid, 0)
    else:
        os.waitpid(pid, 0)
        status = read_status(pidfd)
        os.close(pidfd)
    if status is not None and os.waitstatus_to_exitcode(status) == 42:
        return ok("PIDFD_GET_INFO", "exit statuses of adopted processes are known")
    fact = "not here: the exit status of an adopted process may stay unknown, which counts as a failure"
    return degraded("PIDFD_GET_INFO", fact, "a newer kernel (Linux 6.15)")


def _peer_pidfd() -> Finding:
    here, there = socket.socketpair()
    with here, there:
        try:
            os.close(here.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError as error:
            reason, cure = _why(error)
            fact = f"{reason}: who is at the control socket is told by pid and start time"
            return degraded("SO_PEERPIDFD", fact, f"{cure} (Linux 6.5)")
    return ok("SO_PEERPIDFD", "the kernel holds who connects to the control socket")


def _children() -> Finding:
    if HAS_CHILDREN:
        return ok("process tree", "the kernel lists children")
    fact = "no /proc/PID/task/TID/children: each look at a tree reads all of /proc"
    return degraded("process tree", fact, "a kernel with CONFIG_PROC_CHILDREN")


def _tag() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    if hard == resource.RLIM_INFINITY or hard >= 2 * TAG_BASE:
        return ok("tag", "processes are marked by their soft RLIMIT_RTTIME")
    fact = (
        f"the hard RLIMIT_RTTIME is {hard}: processes cannot be marked, and what flees its parent is known by its "
        "environment or cgroup only; a killed keeper's processes cannot be taken over"
    )
    return degraded("tag", fact, LIMIT_RTTIME)


def _landlock() -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    if abi > 0:
        return ok("Landlock", f"ABI {abi}")
    number = ctypes.get_errno()
    if number == errno.EOPNOTSUPP:
        return degraded("Landlock", "switched off at boot", "add landlock to the lsm= of the kernel's command line")
    reason, cure = _why(OSError(number, ""))
    return degraded("Landlock", f"{reason}: no sandbox of files without root", f"{cure} (Linux 5.13)")


def _seccomp() -> Finding:
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii") as file:
            actions = file.read().split()
    except OSError:
        return degraded("seccomp", "not in this kernel: system calls cannot be filtered", "CONFIG_SECCOMP_FILTER")
    return ok("seccomp", f"filters with {' '.join(actions)}")


def _user_namespaces() -> Finding:
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(0 if libc.unshare(CLONE_NEWUSER) == 0 else min(ctypes.get_errno(), 255))
    _, status = os.waitpid(pid, 0)
    number = os.waitstatus_to_exitcode(status)
    if number == 0:
        return ok("user namespaces", "may be made")
    cure = "sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, or the container's seccomp profile"
    return degraded("user namespaces", f"refused ({os.strerror(abs(number))}): no private folders without root", cure)


def _mounts() -> Finding:
    """Ask whether a mount can be given flags with all below it, and how a unit gets mounts of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(SYS_MOUNT_SETATTR, -1, b"", 0, None, ctypes.c_size_t(0))
    if (number := ctypes.get_errno()) in (errno.ENOSYS, errno.EPERM):
        reason, cure = _why(OSError(number, ""))
        return degraded("mount_setattr", f"{reason}: units cannot have mounts of their own", f"{cure} (Linux 5.12)")
    if own_powers().has(SYS_ADMIN):
        return ok("private mounts", "units get mount namespaces directly")
    return ok("private mounts", "units get mount namespaces within user namespaces, where those may be made")


def _filters() -> Finding:
    powers = own_powers()
    if powers.machine is None:
        fact = f"the system calls of {platform.machine()} are not known: units cannot have filters"
        return degraded("system call filters", fact, "a machine of kind x86-64 or aarch64")
    implied = "" if powers.has(SYS_ADMIN) else "; they imply no-new-privileges"
    return ok("system call filters", f"for {powers.machine}{implied}")


def _hidden_processes() -> Finding:
    """With hidepid a user sees the own processes only: those of units with another user are invisible."""
    try:
        os.stat("/proc/1/stat")
        with open("/proc/1/stat", encoding="utf-8", errors="replace") as file:
            file.read()
    except FileNotFoundError:
        return wrong("/proc", "process 1 is not in it: no process can be looked at", "mount -t proc proc /proc")
    except OSError:
        fact = "processes of others are hidden (hidepid): what a unit runs as another user cannot be looked at"
        return degraded("/proc", fact, "mount -o remount,hidepid=0 /proc, or gid= of a group that this user is in")
    return ok("/proc", "shows all processes")


def _clock() -> Finding:
    # struct timex: modes, then four longs, then the status.
    buffer = ctypes.create_string_buffer(512)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(buffer) < 0:
        return degraded("clock", "whether it is synchronised cannot be asked", "nothing: records have their order")
    long = ctypes.sizeof(ctypes.c_long)
    status = ctypes.c_int.from_buffer(buffer, 5 * long).value
    if status & STA_UNSYNC:
        fact = "not synchronised: the times in records may be off; deadlines are not touched (they use the boot clock)"
        return degraded("clock", fact, "run chronyd, ntpd or systemd-timesyncd (a container has its host's clock)")
    return ok("clock", "synchronised")
