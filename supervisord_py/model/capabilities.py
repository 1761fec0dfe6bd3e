"""Capabilities and secure bits by name: sets of them as integers with one bit each. Source: linux/capability.h,
linux/securebits.h; systemd.exec(5), CapabilityBoundingSet, SecureBits."""

from collections.abc import Iterable
from difflib import get_close_matches

from supervisord_py.model.problems import BadValue

CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
"""In the order of their numbers, without ``CAP_``."""

ALL_CAPABILITIES = (1 << len(CAPABILITIES)) - 1

SECURE_BITS = {
    "noroot": 1 << 0,
    "noroot-locked": 1 << 1,
    "no-setuid-fixup": 1 << 2,
    "no-setuid-fixup-locked": 1 << 3,
    "keep-caps": 1 << 4,
    "keep-caps-locked": 1 << 5,
}


def capability(name: str) -> int:
    """Return the set of one capability, written ``CAP_NET_RAW`` or ``net_raw``; raises BadValue."""
    plain = name.lower().removeprefix("cap_")
    if plain not in CAPABILITIES:
        near = [name for name in CAPABILITIES if plain and name.startswith(plain)]
        near = near or get_close_matches(plain, CAPABILITIES, 1)
        hint = f"did you mean CAP_{near[0].upper()}?" if near else "capabilities(7) lists them"
        raise BadValue(f"there is no capability {name!r}", hint)
    return 1 << CAPABILITIES.index(plain)


def parse_capabilities(lines: Iterable[str], initial: int) -> int:
    """Read a set of capabilities as systemd does: each line adds its words, or with ``~`` in front takes them away.

    Args:
        lines: Words divided by blanks; an empty one is the empty set.
        initial: What there is before the first line: a line that adds takes its place.
    """
    found = initial
    for line in lines:
        words = line.removeprefix("~").split()
        named = 0
        for word in words:
            named |= capability(word)
        if line.startswith("~"):
            found &= ~named
        else:
            found = named if found == initial else found | named
    return found


def capability_names(found: int) -> list[str]:
    """Return the capabilities of a set as people write them."""
    return [f"CAP_{name.upper()}" for number, name in enumerate(CAPABILITIES) if found >> number & 1]
