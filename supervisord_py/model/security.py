"""How much a unit is exposed, as a number from 0 to 10, and what to write to tighten it: ``check --security``.

Each line of the table is something that a service rarely needs and an intruder likes, with a weight; what is not
restricted adds its weight, and the number is their share of the whole. The weights are ours (compare
``systemd-analyze security``, which gave the idea): they say how far an intruder gets with it, from 1 (a nuisance) to 10
(everything). A unit of an ordinary user's supervisor cannot run as root, so its user is not counted against it.
"""

from collections.abc import Callable

from msgspec import Struct

from supervisord_py.model.capabilities import ALL_CAPABILITIES, capability
from supervisord_py.model.sandbox import ADDRESS_FAMILIES, Sandbox
from supervisord_py.model.system_calls import members
from supervisord_py.model.unit import ExecContext, Unit

_SPANS = ((2.0, "tight"), (5.0, "moderate"), (7.5, "exposed"), (10.0, "open"))


class Aspect(Struct, frozen=True):
    """``is_closed`` asks a context; ``sentence`` says what follows when it is not, ``cure`` what to write."""

    key: str
    weight: int
    is_closed: Callable[[ExecContext], bool]
    sentence: str
    cure: str


class Assessment(Struct, frozen=True):
    """``exposure`` is from 0.0 to 10.0; ``open`` are the aspects that are not closed, the heaviest first."""

    unit: str
    exposure: float
    open: tuple[Aspect, ...]

    @property
    def word(self) -> str:
        return next(word for limit, word in _SPANS if self.exposure <= limit)


def _is_not_root(context: ExecContext) -> bool:
    return context.dynamic_user or context.user not in (None, "root", "0") or context.sandbox.private_users


def _lacks(*names: str) -> Callable[[ExecContext], bool]:
    wanted = 0
    for name in names:
        wanted |= capability(name)

    def is_closed(context: ExecContext) -> bool:
        bounding = context.sandbox.capability_bounding_set
        have = ALL_CAPABILITIES if bounding is None else bounding
        if (context.dynamic_user or context.user not in (None, "root", "0")) and context.sandbox.no_new_privileges:
            have = context.sandbox.ambient_capabilities
        return not have & wanted

    return is_closed


def _filters(group: str) -> Callable[[ExecContext], bool]:
    def is_closed(context: ExecContext) -> bool:
        found = context.sandbox.system_call_filter
        if found is None:
            return False
        listed = {name for name, number in found.calls if not (found.allows and number is not None)}
        calls = set(members(group)) - set(members("@default"))
        return not calls & listed if found.allows else calls <= listed

    return is_closed


def _family(*names: str) -> Callable[[ExecContext], bool]:
    numbers = {ADDRESS_FAMILIES[name] for name in names}

    def is_closed(context: ExecContext) -> bool:
        found = context.sandbox.restrict_address_families
        if context.sandbox.private_network and "AF_PACKET" in names:
            return True
        if found is None:
            return False
        listed = set(found.families)
        return not numbers & listed if found.allows else numbers <= listed

    return is_closed


def _says(test: Callable[[Sandbox], object]) -> Callable[[ExecContext], bool]:
    return lambda context: bool(test(context.sandbox))


def _hides_files(sandbox: Sandbox) -> bool:
    return any(not one.port for one in sandbox.landlock)


ASPECTS: tuple[Aspect, ...] = (
    Aspect("user", 10, _is_not_root, "it runs as root", 'user = "..." in [service]'),
    Aspect(
        "no-new-privileges", 6, _says(lambda own: own.no_new_privileges),
        "programs that it starts may gain privileges (set-user-ID)", "no-new-privileges = true",
    ),
    Aspect(
        "protect-system", 6, _says(lambda own: own.protect_system in ("full", "strict") or _hides_files(own)),
        "it may be able to change programs and configuration of the system", 'protect-system = "strict"',
    ),
    Aspect(
        "protect-home", 5, _says(lambda own: own.protect_home in ("yes", "tmpfs") or _hides_files(own)),
        "it sees the homes of people", "protect-home = true",
    ),
    Aspect("private-tmp", 3, _says(lambda own: own.private_tmp), "it shares /tmp with everybody", "private-tmp = true"),
    Aspect(
        "private-devices", 4, _says(lambda own: own.private_devices), "it sees the devices of the machine",
        "private-devices = true",
    ),
    Aspect(
        "private-network", 4, _says(lambda own: own.private_network), "it has the network of the machine",
        "private-network = true, if it needs none",
    ),
    Aspect(
        "private-users", 2, _says(lambda own: own.private_users), "it sees the users of the machine",
        "private-users = true",
    ),
    Aspect(
        "protect-kernel-tunables", 4, _says(lambda own: own.protect_kernel_tunables),
        "it may change /proc/sys and /sys", "protect-kernel-tunables = true",
    ),
    Aspect(
        "protect-kernel-modules", 4, _says(lambda own: own.protect_kernel_modules), "it may load kernel modules",
        "protect-kernel-modules = true",
    ),
    Aspect(
        "protect-kernel-logs", 2, _says(lambda own: own.protect_kernel_logs), "it may read the log of the kernel",
        "protect-kernel-logs = true",
    ),
    Aspect(
        "protect-control-groups", 3, _says(lambda own: own.protect_control_groups), "it may change control groups",
        "protect-control-groups = true",
    ),
    Aspect("protect-clock", 2, _says(lambda own: own.protect_clock), "it may set the clock", "protect-clock = true"),
    Aspect(
        "protect-hostname", 1, _says(lambda own: own.protect_hostname), "it may change the host's name",
        "protect-hostname = true",
    ),
    Aspect(
        "protect-proc", 2, _says(lambda own: own.protect_proc in ("invisible", "noaccess")),
        "it sees the processes of others", 'protect-proc = "invisible"',
    ),
    Aspect(
        "restrict-namespaces", 3, _says(lambda own: own.restrict_namespaces & 0x10000000),
        "it may make user namespaces, a way to many bugs of the kernel", "restrict-namespaces = true",
    ),
    Aspect(
        "restrict-realtime", 1, _says(lambda own: own.restrict_realtime), "it may take a processor for itself",
        "restrict-realtime = true",
    ),
    Aspect(
        "restrict-suid-sgid", 2, _says(lambda own: own.restrict_suid_sgid), "it may make set-user-ID files",
        "restrict-suid-sgid = true",
    ),
    Aspect(
        "lock-personality", 1, _says(lambda own: own.lock_personality), "it may change its execution domain",
        "lock-personality = true",
    ),
    Aspect(
        "memory-deny-write-execute", 2, _says(lambda own: own.memory_deny_write_execute),
        "it may make code in memory and run it", "memory-deny-write-execute = true, if it compiles nothing",
    ),
    Aspect(
        "system-call-architectures", 2, _says(lambda own: own.system_call_architectures is not None),
        "it may use system calls of other architectures", 'system-call-architectures = "native"',
    ),
    Aspect(
        "restrict-address-families", 3, _family("AF_PACKET", "AF_NETLINK"),
        "it may open sockets that see all traffic, or configure the network",
        'restrict-address-families = ["AF_UNIX", "AF_INET", "AF_INET6"]',
    ),
    Aspect("capabilities", 5, _lacks("sys_admin"), "it may have CAP_SYS_ADMIN", 'capability-bounding-set = ""'),
    Aspect(
        "capabilities", 3, _lacks("sys_ptrace", "dac_override", "dac_read_search", "sys_module", "sys_rawio"),
        "it may look into other processes, or past the permissions of files", 'capability-bounding-set = ""',
    ),
    Aspect(
        "capabilities", 2, _lacks("net_admin", "net_raw", "setuid", "setgid", "setpcap"),
        "it may configure the network, or become another user", 'capability-bounding-set = ""',
    ),
    *(
        Aspect(
            f"system-call-filter ({group})", weight, _filters(group), f"it may make system calls {reason}",
            'system-call-filter = ["@system-service", "~@privileged @resources"]',
        )
        for group, weight, reason in (
            ("@mount", 2, "that mount file systems"),
            ("@module", 2, "that load modules"),
            ("@raw-io", 1, "to hardware"),
            ("@reboot", 1, "that reboot"),
            ("@swap", 1, "about swap"),
            ("@debug", 2, "that trace other processes"),
            ("@privileged", 2, "that need privileges"),
            ("@obsolete", 1, "that nobody needs any more"),
            ("@clock", 1, "that set the clock"),
        )
    ),
)  # fmt: skip
"""The table, in the order in which it is shown where weights are equal."""


def assess(unit: Unit, *, is_user: bool) -> Assessment | None:
    """Return how a unit is exposed under a supervisor of root, or of an ordinary user (``is_user``); None: it has no
    processes."""
    if unit.service is None:
        return None
    aspects = [aspect for aspect in ASPECTS if not (is_user and aspect.key in ("user", "capabilities"))]
    left = [aspect for aspect in aspects if not aspect.is_closed(unit.service.context)]
    share = sum(aspect.weight for aspect in left) / sum(aspect.weight for aspect in aspects)
    return Assessment(unit.name, round(10 * share, 1), tuple(sorted(left, key=lambda aspect: -aspect.weight)))
