"""From ``[sandbox]`` to the operations of ``keeper.ops``: privileges and system calls, and all topics put together.

Order, as in systemd (src/core/execute.c, exec_child): namespaces and mounts, then the bounding set, with the keeper's
privileges; then the user; then what capabilities are left, secure bits, no-new-privileges, Landlock, and the filters of
system calls at the very end.

A filter can be loaded by who has CAP_SYS_ADMIN, or by who can gain no privileges any more. So no-new-privileges is
implied where the supervisor has not got that capability, and only there; a unit with ``user`` under a privileged
supervisor keeps it over the change of the user, until exec takes it away. (exec gives an ordinary user what is ambient
and nothing else.)
"""

import base64
import struct
from functools import lru_cache
from typing import Any, Literal

from msgspec import Struct

from supervisord_py.host.accounts import Account
from supervisord_py.host.powers import SETPCAP, SYS_ADMIN, Powers
from supervisord_py.model.capabilities import ALL_CAPABILITIES, CAPABILITIES
from supervisord_py.model.sandbox import NAMESPACES, Sandbox
from supervisord_py.wire.seccomp import Filter, Machine, build_filters

PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION = 0x20080522
_KEYCTL_JOIN, _KEYCTL_LINK = 1, 8
_USER_KEYRING, _SESSION_KEYRING = -4, -3
_SYS_KEYCTL = {"x86-64": 250, "arm64": 219}

_DROPPED = {
    "protect_clock": ("sys_time", "wake_alarm"),
    "protect_kernel_modules": ("sys_module",),
    "protect_kernel_logs": ("syslog",),
    "private_devices": ("mknod", "sys_rawio"),
}
"""Capabilities that these keys take from the bounding set."""

Op = dict[str, Any]


class Confinement:
    """The operations of one process, as they are gathered, and what is left out."""

    def __init__(self, enforce: Literal["strict", "best-effort"]) -> None:
        self.before: list[Op] = []
        self.after: list[Op] = []
        self.degraded: list[str] = []
        self._may_fail = enforce == "best-effort"

    @property
    def is_strict(self) -> bool:
        return not self._may_fail

    def add(self, where: list[Op], step: str, key: str, do: str, **given: Any) -> None:
        """Append an operation to ``before`` or ``after``."""
        op = {"step": step, "key": key, "do": do, **given}
        where.append({**op, "may_fail": True} if self._may_fail else op)

    def call(self, where: list[Op], step: str, key: str, name: str, *args: Any, **given: Any) -> None:
        """Append a call of libc."""
        self.add(where, step, key, "call", name=name, args=list(args), **given)


class CannotConfine(Exception):
    """A strict unit asks for what cannot be here; ``step`` is that of ``keeper.child``."""

    def __init__(self, step: str, detail: str, number: int = 0) -> None:
        super().__init__(detail)
        self.step, self.detail, self.errno = step, detail, number


class Privileges(Struct, frozen=True):
    """What of the privileges of a process is decided before it is made."""

    filters: list[Filter]
    no_new_privileges: bool
    is_implied: bool
    bounding: int


def confine_privileges(
    sandbox: Sandbox, account: Account, powers: Powers, into: Confinement, *, has_namespace: bool
) -> Privileges:
    """Gather capabilities, no-new-privileges and the keyring, and return what is decided about the filters.

    Args:
        sandbox: What the unit says.
        account: Whom it runs as.
        powers: Of the supervisor.
        into: What is gathered.
        has_namespace: The process has a user namespace of its own, and in there every capability.

    Raises:
        CannotConfine: A strict unit asks for a filter on a machine whose calls are not known.
    """
    decided = decide_privileges(sandbox, powers, into)
    if sandbox.protect_hostname and (has_namespace or powers.has(SYS_ADMIN)):
        into.call(into.before, "namespace", "protect-hostname", "unshare", NAMESPACES["uts"])
    inner = ALL_CAPABILITIES if has_namespace else powers.permitted
    changes_user = account.uid is not None and account.uid != 0 and inner != 0
    _drop_bounding(sandbox, decided, powers, into, has_namespace)
    confines_itself = bool(decided.filters or sandbox.landlock)
    needed = SYS_ADMIN if confines_itself and not decided.no_new_privileges else 0
    if sandbox.secure_bits:
        needed |= SETPCAP
    if (needed or sandbox.ambient_capabilities) and changes_user:
        key = _key_of_capabilities(sandbox, decided)
        into.call(into.before, "capabilities", key, "prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
        _set_capabilities((needed | sandbox.ambient_capabilities) & inner, sandbox.ambient_capabilities, key, into)
    elif sandbox.ambient_capabilities:
        _set_capabilities(inner, sandbox.ambient_capabilities, "ambient-capabilities", into)
    for number in range(len(CAPABILITIES)):
        if sandbox.ambient_capabilities >> number & 1:
            into.call(
                into.after, "capabilities", "ambient-capabilities", "prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE,
                number, 0, 0,
            )  # fmt: skip
    if sandbox.secure_bits:
        into.call(into.after, "secure-bits", "secure-bits", "prctl", PR_SET_SECUREBITS, sandbox.secure_bits, 0, 0, 0)
    _keyring(sandbox, powers, into)
    if decided.no_new_privileges:
        into.call(into.after, "no-new-privileges", "no-new-privileges", "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return decided


def confine_calls(decided: Privileges, into: Confinement) -> None:
    """Gather the filters: the last of all."""
    for one in decided.filters:
        program = base64.b64encode(one.program).decode()
        into.add(into.after, one.step, one.key, "seccomp", filter=program)


def decide_privileges(sandbox: Sandbox, powers: Powers, into: Confinement) -> Privileges:
    """Return the filters of a unit and whether no-new-privileges holds; raises CannotConfine."""
    filters: list[Filter] = []
    if powers.machine is not None:
        filters = _filters(sandbox, powers.machine, powers.personality)
    else:
        for one in build_filters(sandbox, "x86-64", powers.personality):
            reason = "the system calls of this kind of machine are not known"
            if into.is_strict:
                raise CannotConfine(one.step, f"{one.key}: {reason}")
            into.degraded.append(f"{one.key}: {reason}")
    is_implied = bool(filters or sandbox.landlock) and not powers.has(SYS_ADMIN)
    bounding = ALL_CAPABILITIES if sandbox.capability_bounding_set is None else sandbox.capability_bounding_set
    return Privileges(filters, sandbox.no_new_privileges or is_implied, is_implied, bounding)


@lru_cache(maxsize=256)
def _filters(sandbox: Sandbox, machine: Machine, personality: int) -> list[Filter]:
    return build_filters(sandbox, machine, personality)


def _drop_bounding(
    sandbox: Sandbox, decided: Privileges, powers: Powers, into: Confinement, has_namespace: bool
) -> None:
    """Take capabilities from the bounding set: what the key leaves out, and what other keys imply.

    What is only implied is not asked of an unprivileged supervisor: its processes have no capabilities, and with the
    filters comes no-new-privileges, so they get none.
    """
    have = ALL_CAPABILITIES if has_namespace else powers.bounding
    can_drop = has_namespace or powers.has(SETPCAP)
    dropped: dict[int, str] = {}
    for field, names in _DROPPED.items():
        if getattr(sandbox, field) and can_drop:
            dropped |= {CAPABILITIES.index(name): field.replace("_", "-") for name in names}
    dropped |= {
        number: "capability-bounding-set" for number in range(len(CAPABILITIES)) if not decided.bounding >> number & 1
    }
    for number, key in sorted(dropped.items()):
        if have >> number & 1:
            into.call(into.before, "capabilities", key, "prctl", PR_CAPBSET_DROP, number, 0, 0, 0)


def _key_of_capabilities(sandbox: Sandbox, decided: Privileges) -> str:
    """Return for which key capabilities are kept over the change of the user."""
    if sandbox.ambient_capabilities:
        return "ambient-capabilities"
    if sandbox.secure_bits:
        return "secure-bits"
    return decided.filters[0].key if decided.filters else "landlock"


def _set_capabilities(permitted: int, inheritable: int, key: str, into: Confinement) -> None:
    """Take all capabilities but these; what is to be ambient must be permitted and inheritable."""
    words = (0xFFFFFFFF & permitted, permitted >> 32), (0xFFFFFFFF & inheritable, inheritable >> 32)
    data = b"".join(struct.pack("=III", words[0][half], words[0][half], words[1][half]) for half in (0, 1))
    header = {"bytes": base64.b64encode(struct.pack("=Ii", _CAPABILITY_VERSION, 0)).decode()}
    into.call(into.after, "capabilities", key, "capset", header, {"bytes": base64.b64encode(data).decode()})


def _keyring(sandbox: Sandbox, powers: Powers, into: Confinement) -> None:
    if sandbox.keyring_mode == "inherit" or powers.machine is None:
        return
    call = _SYS_KEYCTL[powers.machine]
    into.call(into.after, "keyring", "keyring-mode", "syscall", call, _KEYCTL_JOIN, None)
    if sandbox.keyring_mode == "shared":
        into.call(into.after, "keyring", "keyring-mode", "syscall", call, _KEYCTL_LINK, _USER_KEYRING, _SESSION_KEYRING)
