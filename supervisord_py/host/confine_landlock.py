"""From ``landlock`` to operations: a ruleset that the process takes upon itself, which needs no privileges.

Everything of the file system that the kernel can govern is refused but for what is listed; TCP ports are governed as
soon as one is listed. An older kernel governs less: before ABI 2 nothing is moved between folders, before 3 a file can
be truncated by its path, before 5 devices obey ioctl, before 4 there are no ports. That is said where it is applied.

Source: Documentation/userspace-api/landlock.rst; linux/landlock.h.
"""

import base64
import ctypes
import os
import struct
from functools import lru_cache

from supervisord_py.host.confine import CannotConfine, Confinement
from supervisord_py.model.sandbox import Access, Sandbox

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PORT = 2
_PORTS_SINCE = 4

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_LETTERS = {
    "r": _READ_FILE | _READ_FOLDER,
    "w": _WRITE_FILE | _CHANGE_FOLDER | _REFER | _TRUNCATE | _IOCTL_DEVICE,
    "x": _EXECUTE,
}
_PORT_RIGHTS = {"bind": 1 << 0, "connect": 1 << 1}


@lru_cache(maxsize=1)
def landlock_abi() -> int:
    """Return the version of Landlock that the kernel has, 0 for none."""
    found = ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return max(0, int(found))


def governed(abi: int) -> int:
    """Return the rights of the file system that a kernel knows."""
    known = (1 << 13) - 1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEVICE)):
        known |= right if abi >= since else 0
    return known


def confine_landlock(sandbox: Sandbox, abi: int, into: Confinement) -> None:
    """Gather the ruleset and what it allows.

    Raises:
        CannotConfine: A strict unit on a kernel without it.
    """
    if not sandbox.landlock:
        return
    paths = [one for one in sandbox.landlock if one.port is None]
    ports = [one for one in sandbox.landlock if one.port is not None]
    reason = "" if abi else "this kernel has no Landlock (Linux 5.13), or it is not enabled"
    if abi and ports and abi < _PORTS_SINCE:
        reason = "this kernel's Landlock governs no ports (Linux 6.7)"
    if reason:
        if into.is_strict:
            raise CannotConfine("landlock", f"landlock: {reason}")
        into.degraded.append(f"landlock: {reason}")
        if not abi:
            return
        ports = []
    rights = governed(abi) if paths else 0
    net = sum(_PORT_RIGHTS.values()) if ports else 0
    attributes = struct.pack("=QQ", rights, net)[: 16 if net else 8]
    into.call(
        into.after, "landlock", "landlock", "syscall", _CREATE_RULESET, _bytes(attributes), len(attributes), 0,
        **{"as": "landlock"},
    )  # fmt: skip
    for number, one in enumerate(paths):
        _allow_path(one, rights, f"landlock-{number}", into)
    for one in ports:
        rule = struct.pack("=QQ", _PORT_RIGHTS[one.access], one.port)
        into.call(
            into.after, "landlock", "landlock", "syscall", _ADD_RULE, {"fd": "landlock"}, _RULE_PORT, _bytes(rule), 0
        )
    into.call(into.after, "landlock", "landlock", "syscall", _RESTRICT_SELF, {"fd": "landlock"}, 0)


def _allow_path(one: Access, rights: int, register: str, into: Confinement) -> None:
    allowed = 0
    for letter in one.access:
        allowed |= _LETTERS[letter]
    allowed &= rights
    if not os.path.isdir(one.path):
        allowed &= _OF_FILES
    into.add(
        into.after, "landlock", "landlock", "open", path=one.path, flags=os.O_PATH, if_missing=one.may_miss,
        **{"as": register},
    )  # fmt: skip
    into.add(
        into.after, "landlock", "landlock", "landlock-path", ruleset="landlock", fd=register, access=allowed,
        path=one.path,
    )  # fmt: skip


def _bytes(content: bytes) -> dict[str, str]:
    return {"bytes": base64.b64encode(content).decode()}
