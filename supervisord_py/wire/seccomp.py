"""From the keys of ``[sandbox]`` to filters of system calls, one for each key, in the order in which they are loaded.

The kernel asks all of them and does what is worst. Each knows the calls of the machine's own architecture and, on
x86-64, of x86; a program of any other ABI that the kernel runs (x32, 32-bit ARM) finds none of its calls there
(ENOSYS), for a filter that does not know a call cannot judge it. What has its flags in memory, where no filter
looks, is refused as if the kernel did not know it (``clone3``, ``openat2``: programs then use the older calls).

Source: systemd src/shared/seccomp-util.c; systemd.exec(5), "System Call Filtering" and "Sandboxing".
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from supervisord_py.model.sandbox import Families, Sandbox
from supervisord_py.model.system_calls import KILL, CallFilter, members, numbers
from supervisord_py.wire.bpf import (
    ALLOW,
    FULL,
    KILL_PROCESS,
    Clause,
    Look,
    Part,
    Rule,
    assemble_filter,
    errno_action,
)

Machine = Literal["x86-64", "arm64"]
_KNOWN: Mapping[Machine, tuple[str, ...]] = {"x86-64": ("x86-64", "x86"), "arm64": ("arm64",)}
"""The architectures whose calls are known, of each kind of machine."""

_PERMISSION = errno_action(errno.EPERM)
_UNKNOWN = errno_action(errno.ENOSYS)
_FAMILY = errno_action(errno.EAFNOSUPPORT)
_WRITE_AND_EXECUTE = 0x2 | 0x4
_EXECUTE = 0x4
_SHM_EXECUTE = 0o100000
_CREATE = 0o100
_SUID_SGID = 0o6000
_POLICY_IDLE = 5
_RESET_ON_FORK = 0x40000000

Rules = dict[str, Rule]


class Filter(Struct, frozen=True):
    """A program, the key that it is for, and the step that fails with it."""

    key: str
    step: str
    program: bytes


def _any_bit(argument: int, bits: int, action: int = _PERMISSION) -> Clause:
    return Clause((Look(argument, bits, 0, differs=True),), action)


def _refuse(names: Sequence[str], action: int = _PERMISSION) -> Rules:
    return dict.fromkeys(names, Rule(action))


def _families(families: Families) -> Rules:
    listed = ALLOW if families.allows else _FAMILY
    others = _FAMILY if families.allows else ALLOW
    clauses = tuple(Clause((Look(0, FULL, number),), listed) for number in families.families)
    # The call that holds all others of sockets, on x86, has its arguments in memory.
    return {"socket": Rule(others, clauses), "socketcall": Rule(_UNKNOWN)}


def _namespaces(refused: int) -> Rules:
    clauses = (_any_bit(0, refused),)
    join = (Clause((Look(1, FULL, 0),), _PERMISSION), _any_bit(1, refused))
    return {
        "unshare": Rule(ALLOW, clauses), "clone": Rule(ALLOW, clauses), "setns": Rule(ALLOW, join),
        "clone3": Rule(_UNKNOWN),
    }  # fmt: skip


def _realtime() -> Rules:
    # Policies above idle are not there yet: what nobody knows is refused.
    fine = tuple(Clause((Look(1, FULL & ~_RESET_ON_FORK, policy),), ALLOW) for policy in (0, 3, _POLICY_IDLE))
    return {"sched_setscheduler": Rule(_PERMISSION, fine), "sched_setattr": Rule(_PERMISSION)}


def _suid_sgid() -> Rules:
    rules: Rules = {}
    for name, mode in (
        ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("mkdir", 1), ("mkdirat", 2), ("mknod", 1),
        ("mknodat", 2), ("creat", 1),
    ):  # fmt: skip
        rules[name] = Rule(ALLOW, (_any_bit(mode, _SUID_SGID),))
    for name, flags in (("open", 1), ("openat", 2)):
        creates = Look(flags, _CREATE, _CREATE)
        rules[name] = Rule(ALLOW, (Clause((creates, Look(flags + 1, _SUID_SGID, 0, differs=True)), _PERMISSION),))
    return {**rules, "openat2": Rule(_UNKNOWN)}


def _write_execute() -> Rules:
    mapped = Rule(ALLOW, (Clause((Look(2, _WRITE_AND_EXECUTE, _WRITE_AND_EXECUTE),), _PERMISSION),))
    protected = Rule(ALLOW, (_any_bit(2, _EXECUTE),))
    return {
        "mmap": mapped, "mmap2": mapped, "mprotect": protected, "pkey_mprotect": protected,
        "shmat": Rule(ALLOW, (_any_bit(2, _SHM_EXECUTE),)),
    }  # fmt: skip


def _write_execute_x86() -> Rules:
    # There mmap has its arguments in memory, and ipc holds shmat.
    return {**_write_execute(), "mmap": Rule(_PERMISSION), "ipc": Rule(_UNKNOWN)}


def _personality(now: int) -> Rules:
    asks = Clause((Look(0, FULL, FULL),), ALLOW)
    return {"personality": Rule(_PERMISSION, (asks, Clause((Look(0, FULL, now),), ALLOW)))}


def _calls(listed: CallFilter, number: int | None) -> tuple[Rules, int]:
    """Return the rules of a filter of calls, and what holds for all others."""
    refusal = KILL_PROCESS if number is None else errno_action(number)

    def action(own: int | None) -> int:
        if own is None:
            return ALLOW if listed.allows else refusal
        return KILL_PROCESS if own == KILL else errno_action(own)

    return {name: Rule(action(own)) for name, own in listed.calls}, refusal if listed.allows else ALLOW


class _Builder:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.filters: list[Filter] = []

    def add(
        self, key: str, rules: Callable[[], Rules], *, x86: Callable[[], Rules] | None = None, default: int = ALLOW,
        step: str = "seccomp",
    ) -> None:  # fmt: skip
        parts = {}
        for architecture in _KNOWN[self._machine]:
            named = (x86 or rules)() if architecture == "x86" else rules()
            table = numbers()[architecture]
            by_number = {table[name]: rule for name, rule in named.items() if name in table}
            x32 = _UNKNOWN if architecture == "x86-64" else ALLOW
            parts[architecture] = Part(by_number, Rule(default), x32)
        self.filters.append(Filter(key, step, assemble_filter(parts, _UNKNOWN)))

    def add_architectures(self, allowed: Sequence[str]) -> None:
        fine = {self._machine, *allowed}
        parts: dict[str, Part] = {
            name: Part({}, Rule(ALLOW), KILL_PROCESS if name == "x86-64" and "x32" not in fine else ALLOW)
            for name in ("x86-64", "x86", "arm64", "arm")
            if name in fine
        }
        self.filters.append(Filter("system-call-architectures", "seccomp", assemble_filter(parts, KILL_PROCESS)))


def build_filters(sandbox: Sandbox, machine: Machine, personality: int) -> list[Filter]:
    """Return the filters of a unit.

    Args:
        sandbox: What the unit says.
        machine: The machine's own architecture.
        personality: The execution domain that ``lock-personality`` keeps.

    Raises:
        ValueError: A filter is too long for the kernel.
    """
    builder = _Builder(machine)
    if sandbox.restrict_address_families is not None:
        families = sandbox.restrict_address_families
        builder.add("restrict-address-families", lambda: _families(families), step="address-families")
    if sandbox.memory_deny_write_execute:
        builder.add("memory-deny-write-execute", _write_execute, x86=_write_execute_x86)
    if sandbox.restrict_realtime:
        builder.add("restrict-realtime", _realtime)
    if sandbox.restrict_suid_sgid:
        builder.add("restrict-suid-sgid", _suid_sgid)
    if sandbox.restrict_namespaces:
        builder.add("restrict-namespaces", lambda: _namespaces(sandbox.restrict_namespaces))
    for key, wanted, names in (
        ("protect-hostname", sandbox.protect_hostname, ["sethostname", "setdomainname"]),
        ("protect-kernel-tunables", sandbox.protect_kernel_tunables, ["_sysctl"]),
        ("protect-kernel-modules", sandbox.protect_kernel_modules, members("@module")),
        ("protect-kernel-logs", sandbox.protect_kernel_logs, ["syslog"]),
        ("protect-clock", sandbox.protect_clock, members("@clock")),
        ("private-devices", sandbox.private_devices, members("@raw-io")),
    ):
        if wanted:
            builder.add(key, lambda names=names: _refuse(names))  # type: ignore[misc]
    if sandbox.system_call_architectures is not None:
        builder.add_architectures(sandbox.system_call_architectures)
    if sandbox.lock_personality:
        builder.add("lock-personality", lambda: _personality(personality))
    if sandbox.system_call_filter is not None:
        rules, default = _calls(sandbox.system_call_filter, sandbox.system_call_error_number)
        builder.add("system-call-filter", lambda: rules, default=default)
    return builder.filters
