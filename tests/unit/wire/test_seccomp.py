"""Filters of system calls: what the programs say, asked through an interpreter of BPF that the tests have."""

import errno
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.model.sandbox import NAMESPACES, NEW_TIME, Families, Sandbox
from supervisord_py.model.system_calls import call_names, groups, members, numbers, parse_call_filter
from supervisord_py.wire.bpf import (
    ALLOW,
    AUDIT_ARCHITECTURES,
    KILL_PROCESS,
    X32_BIT,
    Clause,
    Look,
    Part,
    Rule,
    assemble_filter,
    errno_action,
)
from supervisord_py.wire.seccomp import Machine, build_filters

PERM, NOSYS = errno_action(errno.EPERM), errno_action(errno.ENOSYS)


def run(program: bytes, architecture: str, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Do what the kernel does with a program: ``struct seccomp_data`` in, an action out. Source: linux/bpf_common.h."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, AUDIT_ARCHITECTURES[architecture], 0, *padded)
    code = list(struct.iter_unpack("<HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x15:
                at += yes if accumulator == k else no
            case 0x35:
                at += yes if accumulator >= k else no
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")


def verdict(sandbox: Sandbox, name: str, *arguments: int, machine: Machine = "x86-64", of: str | None = None) -> int:
    """What the filters of a unit together say of a call: the worst, as in the kernel."""
    architecture = of or machine
    found = [
        run(one.program, architecture, numbers()[architecture][name], arguments)
        for one in build_filters(sandbox, machine, 0)
    ]
    return min(found, key=lambda action: struct.unpack("<i", struct.pack("<I", action & 0xFFFF0000))[0])


def calls(*lines: str, **more: Any) -> Sandbox:
    found, _ = parse_call_filter(lines)
    return Sandbox(system_call_filter=found, **more)


INET = Families(True, (2, 10))
TABLE = [
    (calls("@system-service"), "read", (), ALLOW),
    (calls("@system-service"), "mount", (), KILL_PROCESS),
    (calls("@system-service", system_call_error_number=1), "mount", (), PERM),
    (calls("read"), "execve", (), ALLOW),
    (calls("read"), "write", (), KILL_PROCESS),
    (calls("read", "write:EPERM"), "write", (), PERM),
    (calls("@system-service", "~@setuid"), "setuid", (), KILL_PROCESS),
    (calls("@system-service", "~@setuid:EPERM"), "setuid", (), PERM),
    (calls("~uname:EILSEQ"), "uname", (), errno_action(errno.EILSEQ)),
    (calls("~uname:kill", system_call_error_number=1), "uname", (), KILL_PROCESS),
    (calls("~uname"), "read", (), ALLOW),
    (calls("~@clock", "clock_settime"), "clock_settime", (), ALLOW),
    (calls("~@clock", "clock_settime"), "settimeofday", (), KILL_PROCESS),
    (Sandbox(restrict_address_families=INET), "socket", (2, 1), ALLOW),
    (Sandbox(restrict_address_families=INET), "socket", (1, 1), errno_action(errno.EAFNOSUPPORT)),
    (Sandbox(restrict_address_families=INET), "socket", ((1 << 32) + 16,), errno_action(errno.EAFNOSUPPORT)),
    (Sandbox(restrict_address_families=Families(False, (17,))), "socket", (17,), errno_action(errno.EAFNOSUPPORT)),
    (Sandbox(restrict_address_families=Families(False, (17,))), "socket", (2,), ALLOW),
    (Sandbox(restrict_address_families=Families(True, ())), "socket", (2,), errno_action(errno.EAFNOSUPPORT)),
    (Sandbox(memory_deny_write_execute=True), "mmap", (0, 1, 6), PERM),
    (Sandbox(memory_deny_write_execute=True), "mmap", (0, 1, 5), ALLOW),
    (Sandbox(memory_deny_write_execute=True), "mprotect", (0, 1, 4), PERM),
    (Sandbox(memory_deny_write_execute=True), "mprotect", (0, 1, 3), ALLOW),
    (Sandbox(memory_deny_write_execute=True), "shmat", (0, 0, 0o100000), PERM),
    (Sandbox(restrict_realtime=True), "sched_setscheduler", (0, 1), PERM),
    (Sandbox(restrict_realtime=True), "sched_setscheduler", (0, 2 | 0x40000000), PERM),
    (Sandbox(restrict_realtime=True), "sched_setscheduler", (0, 3 | 0x40000000), ALLOW),
    (Sandbox(restrict_realtime=True), "sched_setscheduler", (0, 6), PERM),
    (Sandbox(restrict_suid_sgid=True), "chmod", (0, 0o4755), PERM),
    (Sandbox(restrict_suid_sgid=True), "chmod", (0, 0o1777), ALLOW),
    (Sandbox(restrict_suid_sgid=True), "openat", (0, 0, 0o100, 0o2755), PERM),
    (Sandbox(restrict_suid_sgid=True), "openat", (0, 0, 0, 0o2755), ALLOW),
    (Sandbox(restrict_suid_sgid=True), "openat2", (), NOSYS),
    (Sandbox(restrict_namespaces=NAMESPACES["user"] | NEW_TIME), "unshare", (NAMESPACES["user"],), PERM),
    (Sandbox(restrict_namespaces=NAMESPACES["user"] | NEW_TIME), "unshare", (NAMESPACES["net"],), ALLOW),
    (Sandbox(restrict_namespaces=NAMESPACES["user"]), "clone", (0x11,), ALLOW),
    (Sandbox(restrict_namespaces=NAMESPACES["user"]), "clone", (0x10000011,), PERM),
    (Sandbox(restrict_namespaces=NAMESPACES["user"]), "setns", (3, 0), PERM),
    (Sandbox(restrict_namespaces=NAMESPACES["user"]), "clone3", (), NOSYS),
    (Sandbox(lock_personality=True), "personality", (0xFFFFFFFF,), ALLOW),
    (Sandbox(lock_personality=True), "personality", (0,), ALLOW),
    (Sandbox(lock_personality=True), "personality", (8,), PERM),
    (Sandbox(protect_clock=True), "clock_settime", (), PERM),
    (Sandbox(protect_hostname=True), "sethostname", (), PERM),
    (Sandbox(protect_kernel_modules=True), "finit_module", (), PERM),
    (Sandbox(protect_kernel_logs=True), "syslog", (), PERM),
]


@pytest.mark.parametrize(("sandbox", "name", "arguments", "expected"), TABLE)
def test_what_a_filter_says(sandbox: Sandbox, name: str, arguments: tuple[int, ...], expected: int) -> None:
    """On both kinds of machine, where they have the call; and of x86 programs on x86-64."""
    machines: tuple[Machine, ...] = ("x86-64", "arm64")
    for machine in machines:
        if name in numbers()[machine]:
            assert verdict(sandbox, name, *arguments, machine=machine) == expected
    if name in numbers()["x86"] and name not in ("mmap", "shmat"):
        assert verdict(sandbox, name, *arguments, of="x86") == expected


def test_calls_of_x86_that_hold_others_are_refused() -> None:
    """Their arguments are in memory: no filter sees them."""
    assert verdict(Sandbox(memory_deny_write_execute=True), "mmap", 0, 1, 6, of="x86") == PERM
    assert verdict(Sandbox(memory_deny_write_execute=True), "mmap2", 0, 1, 6, of="x86") == PERM
    assert verdict(Sandbox(memory_deny_write_execute=True), "ipc", of="x86") == NOSYS
    assert verdict(Sandbox(restrict_address_families=INET), "socketcall", of="x86") == NOSYS


def test_programs_of_unknown_abis_find_no_calls() -> None:
    """x32 has the architecture of x86-64 and another bit: a filter that forgot it could be walked around."""
    (one,) = build_filters(calls("~uname"), "x86-64", 0)
    assert run(one.program, "x86-64", 0 | X32_BIT) == NOSYS
    assert run(one.program, "arm", 1) == NOSYS


def test_architectures() -> None:
    """Others than the native one are to be named, or kill."""
    (one,) = build_filters(Sandbox(system_call_architectures=()), "x86-64", 0)
    said = [run(one.program, name, 1) for name in ("x86-64", "x86", "arm64")]
    assert said == [ALLOW, KILL_PROCESS, KILL_PROCESS]
    assert run(one.program, "x86-64", 1 | X32_BIT) == KILL_PROCESS
    (one,) = build_filters(Sandbox(system_call_architectures=("x86", "x32")), "x86-64", 0)
    assert [run(one.program, "x86", 1), run(one.program, "x86-64", 1 | X32_BIT)] == [ALLOW, ALLOW]


ACTIONS = st.sampled_from([ALLOW, KILL_PROCESS, PERM, NOSYS])
TESTS = st.builds(Look, st.integers(0, 5), st.sampled_from([0xFFFFFFFF, 6, 1]), st.integers(0, 7), st.booleans())
CLAUSES = st.builds(Clause, st.lists(TESTS, max_size=3).map(tuple), ACTIONS)
RULES = st.builds(Rule, ACTIONS, st.lists(CLAUSES, max_size=4).map(tuple))
PARTS = st.builds(Part, st.dictionaries(st.integers(0, 500), RULES, max_size=60), st.builds(Rule, ACTIONS), ACTIONS)


def meaning(part: Part, number: int, arguments: tuple[int, ...]) -> int:
    if number >= X32_BIT and part.x32 != ALLOW:
        return part.x32
    rule = part.rules.get(number, part.default)
    for clause in rule.clauses:
        if all(((arguments[look.argument] & look.mask) == look.value) is not look.differs for look in clause.looks):
            return clause.action
    return rule.action


@given(
    parts=st.dictionaries(st.sampled_from(["x86-64", "x86", "arm64"]), PARTS, min_size=1),
    other=ACTIONS,
    number=st.integers(0, 501) | st.sampled_from([X32_BIT, X32_BIT + 3, 0xFFFFFFFF]),
    arguments=st.tuples(*[st.integers(0, 7)] * 6),
)
def test_a_program_means_its_rules(parts: dict[str, Part], other: int, number: int, arguments: tuple[int, ...]) -> None:
    """The assembler against its own definition, for any rules, calls and architectures."""
    program = assemble_filter(parts, other)
    for architecture in AUDIT_ARCHITECTURES:
        expected = meaning(parts[architecture], number, arguments) if architecture in parts else other
        assert run(program, architecture, number, arguments) == expected


def test_every_group_is_whole() -> None:
    """Each group resolves to calls that there are; the largest filter fits the kernel."""
    for group in groups():
        found = members(group)
        assert found, group
        # The table is of three architectures; the groups name calls of others too.
        assert set(found) & call_names(), group
    everything = calls(*(f"{name}:{number}" for number, name in enumerate(sorted(call_names()))))
    assert all(len(one.program) // 8 <= 4096 for one in build_filters(everything, "x86-64", 0))
