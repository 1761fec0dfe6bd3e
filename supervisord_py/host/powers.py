"""What the supervisor itself may do: its capabilities, and what it is on; the keeper's children begin with the same."""

import os
from functools import lru_cache

from msgspec import Struct

from supervisord_py.model.capabilities import CAPABILITIES
from supervisord_py.wire.seccomp import Machine

SYS_ADMIN = 1 << CAPABILITIES.index("sys_admin")
SETPCAP = 1 << CAPABILITIES.index("setpcap")
_MACHINES: dict[str, Machine] = {"x86_64": "x86-64", "aarch64": "arm64"}


class Powers(Struct, frozen=True):
    """``permitted`` and ``bounding`` are sets of capabilities, a bit each; ``machine`` is None where filters of system
    calls cannot be made; ``personality`` is the execution domain."""

    permitted: int
    bounding: int
    machine: Machine | None
    personality: int = 0

    def has(self, capabilities: int) -> bool:
        return self.permitted & capabilities == capabilities


@lru_cache(maxsize=1)
def own_powers() -> Powers:
    """Return ours, read once."""
    found = {}
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            found[name] = value.strip()
    try:
        with open("/proc/self/personality", encoding="ascii") as file:
            personality = int(file.read(), 16)
    except OSError:
        personality = 0
    machine = _MACHINES.get(os.uname().machine)
    return Powers(int(found.get("CapPrm", "0"), 16), int(found.get("CapBnd", "0"), 16), machine, personality)
