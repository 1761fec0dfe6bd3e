"""``[sandbox]``: what the processes of a unit may see and do, as ``model.assemble_sandbox`` decodes it."""

import errno
from typing import Literal

from msgspec import Struct

from supervisord_py.model.capabilities import capability_names
from supervisord_py.model.system_calls import CallFilter

NAMESPACES = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "user": 0x10000000,
    "uts": 0x04000000,
}
"""Kinds of namespaces and their flags. Source: linux/sched.h; CLONE_NEWTIME is refused with any of them."""

NEW_TIME = 0x00000080
ADDRESS_FAMILIES = {
    "AF_UNSPEC": 0, "AF_UNIX": 1, "AF_LOCAL": 1, "AF_INET": 2, "AF_AX25": 3, "AF_IPX": 4, "AF_APPLETALK": 5,
    "AF_NETROM": 6, "AF_BRIDGE": 7, "AF_ATMPVC": 8, "AF_X25": 9, "AF_INET6": 10, "AF_ROSE": 11, "AF_DECnet": 12,
    "AF_NETBEUI": 13, "AF_SECURITY": 14, "AF_KEY": 15, "AF_NETLINK": 16, "AF_ROUTE": 16, "AF_PACKET": 17, "AF_ASH": 18,
    "AF_ECONET": 19, "AF_ATMSVC": 20, "AF_RDS": 21, "AF_SNA": 22, "AF_IRDA": 23, "AF_PPPOX": 24, "AF_WANPIPE": 25,
    "AF_LLC": 26, "AF_IB": 27, "AF_MPLS": 28, "AF_CAN": 29, "AF_TIPC": 30, "AF_BLUETOOTH": 31, "AF_IUCV": 32,
    "AF_RXRPC": 33, "AF_ISDN": 34, "AF_PHONET": 35, "AF_IEEE802154": 36, "AF_CAIF": 37, "AF_ALG": 38, "AF_NFC": 39,
    "AF_VSOCK": 40, "AF_KCM": 41, "AF_QIPCRTR": 42, "AF_SMC": 43, "AF_XDP": 44, "AF_MCTP": 45,
}  # fmt: skip
"""Source: linux/socket.h."""

Architecture = Literal["x86-64", "x86", "x32", "arm64", "arm"]


class Families(Struct, frozen=True):
    """``restrict-address-families``: with ``allows`` these only, else all but these."""

    allows: bool
    families: tuple[int, ...]


class Access(Struct, frozen=True):
    """One entry of ``landlock``: a path and the letters of ``rwx`` that hold for it and below, or a TCP port and one
    of ``bind`` and ``connect``."""

    path: str = ""
    access: str = ""
    port: int | None = None
    may_miss: bool = False


class Bind(Struct, frozen=True):
    """``bind-paths``: ``source`` of the machine is seen at ``target``, with what is mounted below it or without."""

    source: str
    target: str
    may_miss: bool = False
    recursive: bool = True


Level = Literal["no", "yes", "full", "strict"]
Homes = Literal["no", "yes", "read-only", "tmpfs"]


class Sandbox(Struct, frozen=True):
    """Fields are the keys in snake case. Sets of capabilities have a bit each; None: not written."""

    enforce: Literal["strict", "best-effort"] = "strict"
    no_new_privileges: bool = False
    capability_bounding_set: int | None = None
    ambient_capabilities: int = 0
    secure_bits: int = 0
    keyring_mode: Literal["inherit", "private", "shared"] = "inherit"
    system_call_filter: CallFilter | None = None
    system_call_error_number: int | None = None
    """An errno, or None: the process dies."""
    system_call_architectures: tuple[Architecture, ...] | None = None
    restrict_address_families: Families | None = None
    restrict_namespaces: int = 0
    """Flags of those that are refused."""
    restrict_realtime: bool = False
    restrict_suid_sgid: bool = False
    lock_personality: bool = False
    memory_deny_write_execute: bool = False
    protect_hostname: bool = False
    protect_clock: bool = False
    protect_kernel_modules: bool = False
    protect_kernel_logs: bool = False
    protect_kernel_tunables: bool = False
    protect_control_groups: bool = False
    landlock: tuple[Access, ...] = ()
    private_tmp: bool = False
    private_devices: bool = False
    private_network: bool = False
    private_ipc: bool = False
    private_users: bool = False
    mount_apivfs: bool = False
    private_mounts: bool | None = None
    """None: where another key needs it; ``/sys`` follows the network unless it is False."""
    network_namespace_path: str | None = None
    protect_system: Level = "no"
    protect_home: Homes = "no"
    protect_proc: Literal["default", "noaccess", "invisible", "ptraceable"] = "default"
    proc_subset: Literal["all", "pid"] = "all"
    read_only_paths: tuple[str, ...] = ()
    read_write_paths: tuple[str, ...] = ()
    inaccessible_paths: tuple[str, ...] = ()
    exec_paths: tuple[str, ...] = ()
    no_exec_paths: tuple[str, ...] = ()
    bind_paths: tuple[Bind, ...] = ()
    bind_read_only_paths: tuple[Bind, ...] = ()
    temporary_file_system: tuple[tuple[str, str], ...] = ()
    """Paths, each with the options of its tmpfs."""
    remove_ipc: bool = False


def _words(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case Access():
            place = value.path if value.port is None else f"tcp:{value.port}"
            return f"{'-' * value.may_miss}{place}:{value.access}"
        case Bind():
            options = "" if value.recursive else ":norbind"
            return f"{'-' * value.may_miss}{value.source}:{value.target}{options}"
        case Families():
            return ("" if value.allows else "~") + " ".join(map(str, value.families))
        case CallFilter():
            calls = (name if number is None else f"{name}:{number}" for name, number in value.calls)
            return ("" if value.allows else "~") + " ".join(calls)
        case tuple():
            return " ".join(map(_words, value))
        case _:
            return str(value)


_NOTHING = Sandbox()


def sandbox_text(sandbox: Sandbox, key: str) -> str | None:
    """Return the value of a key as text, None when it says nothing; of what is a set its members or its bits."""
    field = key.replace("-", "_")
    value = getattr(sandbox, field)
    if value == getattr(_NOTHING, field) and not isinstance(value, bool):
        return None
    if field in ("capability_bounding_set", "ambient_capabilities"):
        return " ".join(capability_names(value)) or "none"
    if field == "restrict_namespaces":
        return " ".join(name for name, flag in NAMESPACES.items() if value & flag)
    if field == "system_call_error_number":
        return errno.errorcode.get(value, str(value))
    return _words(value) or "none"


SANDBOX_KEYS = tuple(field.replace("_", "-") for field in Sandbox.__struct_fields__)
