"""Conditions and asserts as text: what each kind takes, how it is written, and the comparisons they are made of.

``condition-path-exists = "|!/run/x"`` is a kind, a trigger mark, a negation and a parameter. What can never hold is
refused here, when the file is read; ``host.conditions`` looks whether the rest does.

Differences from systemd: a word that systemd does not know (an architecture, a capability) is an error and not merely
never true; the pressure of one slice cannot be asked for, because there are none; true, false and whole numbers may be
written without quotes where they are meant.

Source: systemd.unit(5), "Conditions and Asserts"; systemd src/shared/condition.c, compare-operator.c and
src/basic/string-util.c (strverscmp_improved; UAPI group, "Version Format Specification").
"""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final, Literal

from msgspec import Struct

from supervisord_py.model.command import extract_word
from supervisord_py.model.problems import BadValue
from supervisord_py.model.unit import SECOND_NS, Condition
from supervisord_py.model.values import parse_size, parse_timespan, shown

_BLANKS = " \t\n\r"

PATH_KINDS: Final = frozenset(
    {
        "path-exists", "path-exists-glob", "path-is-directory", "path-is-symbolic-link", "path-is-mount-point",
        "path-is-read-write", "path-is-encrypted", "directory-not-empty", "file-not-empty", "file-is-executable",
        "needs-update",
    }
)  # fmt: skip
"""The kinds whose parameter is an absolute path."""

BOOLEAN_KINDS: Final = frozenset({"ac-power", "first-boot"})

ARCHITECTURES: Final = frozenset(
    {
        "x86", "x86-64", "ppc", "ppc-le", "ppc64", "ppc64-le", "ia64", "parisc", "parisc64", "s390", "s390x", "sparc",
        "sparc64", "mips", "mips-le", "mips64", "mips64-le", "alpha", "arm", "arm-be", "arm64", "arm64-be", "sh",
        "sh64", "m68k", "tilegx", "cris", "arc", "arc-be", "loongarch64", "nios2", "riscv32", "riscv64", "native",
    }
)  # fmt: skip

MACHINES: Final = frozenset(
    {
        "qemu", "kvm", "amazon", "zvm", "vmware", "microsoft", "oracle", "powervm", "xen", "bochs", "uml", "parallels",
        "bhyve", "qnx", "acrn", "apple", "sre", "google", "vm-other",
    }
)  # fmt: skip
"""Virtual machines that ``virtualization`` can name."""

CONTAINERS: Final = frozenset(
    {
        "openvz", "lxc", "lxc-libvirt", "systemd-nspawn", "docker", "podman", "rkt", "wsl", "proot", "pouch",
        "container-other",
    }
)  # fmt: skip
"""Containers that ``virtualization`` can name."""

SECURITY: Final = frozenset(
    {
        "selinux", "apparmor", "tomoyo", "smack", "ima", "audit", "uefi-secureboot", "tpm2", "cvm", "measured-uki",
    }
)  # fmt: skip

CAPABILITIES: Final = (
    "cap_chown", "cap_dac_override", "cap_dac_read_search", "cap_fowner", "cap_fsetid", "cap_kill", "cap_setgid",
    "cap_setuid", "cap_setpcap", "cap_linux_immutable", "cap_net_bind_service", "cap_net_broadcast", "cap_net_admin",
    "cap_net_raw", "cap_ipc_lock", "cap_ipc_owner", "cap_sys_module", "cap_sys_rawio", "cap_sys_chroot",
    "cap_sys_ptrace", "cap_sys_pacct", "cap_sys_admin", "cap_sys_boot", "cap_sys_nice", "cap_sys_resource",
    "cap_sys_time", "cap_sys_tty_config", "cap_mknod", "cap_lease", "cap_audit_write", "cap_audit_control",
    "cap_setfcap", "cap_mac_override", "cap_mac_admin", "cap_syslog", "cap_wake_alarm", "cap_block_suspend",
    "cap_audit_read", "cap_perfmon", "cap_bpf", "cap_checkpoint_restore",
)  # fmt: skip
"""Names of capabilities by number. Source: linux/capability.h."""

CONTROLLERS: Final = frozenset({"v1", "v2", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids"})

TRUE_WORDS: Final = frozenset({"1", "yes", "y", "true", "t", "on"})
FALSE_WORDS: Final = frozenset({"0", "no", "n", "false", "f", "off"})

Operator = Literal["$=", "!$=", "<>", "<=", ">=", "<", ">", "==", "=", "!="]
_OPERATORS: Final[tuple[Operator, ...]] = ("$=", "!$=", "<>", "<=", ">=", "<", ">", "==", "=", "!=")
_FIELD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*(.*)", re.ASCII | re.DOTALL)
_SMBIOS_FIELD = re.compile(r"smbios-field\(\s*([a-z0-9_]+)\s*(.*)\)", re.ASCII | re.DOTALL)
_TREE_FIELD = re.compile(r"device-tree-compatible\((.+)\)", re.DOTALL)
_PRESSURE = re.compile(r"([0-9]+)(?:\.([0-9]{1,2}))?%(?:/(.+))?", re.ASCII)
_WINDOWS: Final = {10: "avg10", 60: "avg60", 300: "avg300"}


class Comparison(Struct, frozen=True):
    """``OPERATOR VALUE``; ``field`` is what is compared, where the text names it."""

    operator: Operator
    value: str
    field: str = ""


class Pressure(Struct, frozen=True):
    """An upper bound in hundredths of a percent for one of the kernel's averages (``avg10``, ``avg60``, ``avg300``)."""

    limit: int
    window: str


def parse_condition(kind: str, value: object, expand: Callable[[str], str]) -> Condition:
    """Read one entry of ``condition-KIND`` or ``assert-KIND``.

    Args:
        kind: ``path-exists``, ``memory``, ...
        value: As TOML has it.
        expand: Replaces specifiers; raises ``BadValue``.

    Raises:
        BadValue: What it says can never be looked for.
    """
    if isinstance(value, bool) and kind in (*BOOLEAN_KINDS, "virtualization"):
        return Condition(kind, "true" if value else "false")
    if isinstance(value, int) and not isinstance(value, bool) and kind in ("memory", "cpus", "user", "group"):
        value = str(value)
    if not isinstance(value, str):
        raise BadValue(f"{shown(value)} is not a string", "write the condition as text, in quotes")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
        raise BadValue("a condition with a line break or a control character", "write one line")
    rest = value.strip(_BLANKS)
    trigger = rest.startswith("|")
    rest = rest[trigger:].lstrip(_BLANKS)
    # Of "!=5" too: what is left is "=5", and the negation of that is what was meant.
    negate = rest.startswith("!")
    parameter = expand(rest[negate:].lstrip(_BLANKS))
    if not parameter:
        raise BadValue("an empty condition", "to take back what is below write []")
    if kind in PATH_KINDS:
        if not parameter.startswith("/"):
            raise BadValue(f"{parameter!r} is a relative path", "write an absolute path")
        parameter = _simplify(parameter)
    else:
        _CHECKS[kind](parameter)
    return Condition(kind, parameter, trigger, negate)


def format_condition(prefix: Literal["condition", "assert"], condition: Condition) -> str:
    """Write it as a file could have it: ``condition-path-exists = "!/run/x"``."""
    marks = ("|" if condition.trigger else "") + ("!" if condition.negate else "")
    return f'{prefix}-{condition.kind} = "{marks}{condition.parameter}"'


def parse_boolean_word(text: str) -> bool | None:
    """systemd's words for yes and no, None for any other."""
    word = text.lower()
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else None


def parse_capability(text: str) -> int | None:
    """The number of a capability, by name in any case or by number."""
    if text.isascii() and text.isdigit() and len(text) < 3:
        return int(text) if int(text) <= 62 else None
    name = text.lower()
    return CAPABILITIES.index(name) if name in CAPABILITIES else None


def parse_amount(text: str, *, is_size: bool) -> tuple[Operator, int]:
    """Read ``>= 512M`` or ``4``; without an operator the amount is the least."""
    operator, rest = _take_operator(text)
    if operator in ("$=", "!$="):
        raise BadValue(f"{text!r}: {operator} compares text", "write one of < <= = != >= >")
    rest = rest.strip(_BLANKS)
    if is_size:
        amount = parse_size(rest)
    elif rest.isascii() and rest.isdigit() and len(rest) < 10:
        amount = int(rest)
    else:
        raise BadValue(f"{rest!r} is not a count", "write a whole number, with < <= = != >= or > before it if need be")
    return operator or ">=", amount


def parse_versions(text: str) -> list[Comparison]:
    """Read the expressions of ``kernel-version``: all must hold; one without an operator is a pattern."""
    words = _words(text)
    comparisons: list[Comparison] = []
    while words:
        operator, value = _take_operator(words.pop(0).strip(_BLANKS))
        value = value.lstrip(_BLANKS)
        if not value and operator and not comparisons and words:
            # A blank between the first operator and its value is allowed without quotes.
            value = words.pop(0)
        if not value:
            raise BadValue(f"{text!r}: an operator without a version", "write it together with the version: >=5.10")
        comparisons.append(Comparison(operator or "$=", value))
    return comparisons


def parse_fields(text: str) -> list[Comparison]:
    """Read the expressions of ``os-release``, ``ID=debian`` ``VERSION_ID>=12``: all must hold."""
    return [_parse_field(word) for word in _words(text)]


def parse_smbios(text: str) -> Comparison | None:
    """Read ``smbios-field(sys_vendor = ...)`` of ``firmware``; None when it is something else."""
    match = _SMBIOS_FIELD.fullmatch(text)
    if match is None:
        return None
    operator, value = _take_operator(match[2])
    value = value.strip(_BLANKS)
    if value[:1] in ("'", '"'):
        value = " ".join(_words(value))
    if operator is None or not value:
        raise BadValue(f"{text!r}: no comparison", "write smbios-field(sys_vendor = NAME)")
    return Comparison(operator, value, match[1])


def parse_device_tree(text: str) -> str | None:
    """The board of ``device-tree-compatible(BOARD)`` of ``firmware``; None when it is something else."""
    match = _TREE_FIELD.fullmatch(text)
    return None if match is None else match[1].strip(_BLANKS)


def parse_pressure(text: str) -> Pressure:
    """Read ``50%`` or ``50%/10s``: the bound, and over which time (10s, 1min or 5min; 5min unless written)."""
    if ":" in text:
        raise BadValue(f"{text!r}: the pressure of a slice", "there are no slices here: write the bound alone, as 50%")
    match = _PRESSURE.fullmatch(text)
    if match is None or len(match[1]) > 3:
        raise BadValue(f"{text!r} is no bound for pressure", 'write a percentage, as "50%" or "50%/10s"')
    limit = int(match[1]) * 100 + int((match[2] or "0").ljust(2, "0"))
    if limit > 10_000:
        raise BadValue(f"{text!r} is above 100%", "no pressure is")
    span = 300 * SECOND_NS if match[3] is None else parse_timespan(match[3].strip(_BLANKS))
    window = None if span is None or span % SECOND_NS else _WINDOWS.get(span // SECOND_NS)
    if window is None:
        raise BadValue(f"{text!r}: the kernel has no average over that time", "write 10s, 1min or 5min")
    return Pressure(limit, window)


def holds_order(operator: Operator, difference: int) -> bool:
    """Whether ``difference`` (negative, 0 or positive) is what the operator wants."""
    match operator:
        case "<":
            return difference < 0
        case "<=":
            return difference <= 0
        case ">=":
            return difference >= 0
        case ">":
            return difference > 0
        case "=" | "==" | "$=":
            return difference == 0
        case "!=" | "<>" | "!$=":
            return difference != 0


def holds_version(comparison: Comparison, actual: str) -> bool:
    """Compare text: ``=`` and ``!=`` as it stands, ``$=`` and ``!$=`` as a pattern, the others as versions."""
    match comparison.operator:
        case "=":
            return actual == comparison.value
        case "!=":
            return actual != comparison.value
        case "$=":
            return matches(comparison.value, actual)
        case "!$=":
            return not matches(comparison.value, actual)
        case operator:
            return holds_order(operator, compare_versions(actual, comparison.value))


def matches(pattern: str, text: str) -> bool:
    """Whether a shell pattern fits the whole text; ``[^a]`` is ``[!a]``."""
    return fnmatchcase(text, pattern.replace("[^", "[!"))


_SEPARATORS = re.compile(r"[^A-Za-z0-9~\-^.]+", re.ASCII)
_DIGITS = re.compile(r"[0-9]*", re.ASCII)
_LETTERS = re.compile(r"[A-Za-z]*", re.ASCII)


def compare_versions(one: str, other: str) -> int:
    """Compare two versions: -1, 0 or 1.

    Digits compare as numbers and letters as text, part by part; ``~`` makes a version older than without it, ``^``
    and ``-`` begin a patch and a release, and a longer version is newer.

    Source: UAPI group, "Version Format Specification".
    """
    one_at = other_at = 0
    while True:
        one_at, other_at = _skip(one, one_at), _skip(other, other_at)
        for mark in "~-^.":
            marks = one.startswith(mark, one_at), other.startswith(mark, other_at)
            if marks[0] != marks[1]:
                return -1 if marks[0] else 1
            one_at, other_at = one_at + marks[0], other_at + marks[1]
            if mark == "~" and (one_at == len(one) or other_at == len(other)):
                return (one_at < len(one)) - (other_at < len(other))
        is_number = one[one_at : one_at + 1].isdigit() or other[other_at : other_at + 1].isdigit()
        pattern = _DIGITS if is_number else _LETTERS
        one_part, other_part = _part(pattern, one, one_at), _part(pattern, other, other_at)
        one_at, other_at = one_at + len(one_part), other_at + len(other_part)
        if is_number:
            if not one_part or not other_part:
                # A number is newer than letters or nothing.
                return bool(one_part) - bool(other_part)
            one_part, other_part = one_part.lstrip("0"), other_part.lstrip("0")
            if len(one_part) != len(other_part):
                return 1 if len(one_part) > len(other_part) else -1
        if one_part != other_part:
            return 1 if one_part > other_part else -1


def _skip(text: str, at: int) -> int:
    match = _SEPARATORS.match(text, at)
    return at if match is None else match.end()


def _part(pattern: re.Pattern[str], text: str, at: int) -> str:
    match = pattern.match(text, at)
    return "" if match is None else match[0]


def _take_operator(text: str) -> tuple[Operator | None, str]:
    for operator in _OPERATORS:
        if text.startswith(operator):
            return operator, text[len(operator) :]
    return None, text


def _parse_field(word: str) -> Comparison:
    match = _FIELD.fullmatch(word)
    operator, value = _take_operator(match[2]) if match is not None else (None, "")
    if match is None or operator is None or not value or value[0] in _BLANKS:
        raise BadValue(f"{word!r} is no comparison of a field", "write FIELD=VALUE without blanks, as ID=debian")
    return Comparison(operator, value, match[1])


def _words(text: str) -> list[str]:
    words: list[str] = []
    position = 0
    while (extracted := extract_word(text, position, unescape=False)) is not None:
        words.append(extracted[0])
        position = extracted[1]
    return words


def _simplify(path: str) -> str:
    """Drop empty and ``.`` parts; ``..`` stays (it may cross a link)."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _one_of(words: frozenset[str], what: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        if text not in words:
            near = get_close_matches(text, sorted(words), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"possible are {', '.join(sorted(words))}"
            raise BadValue(f"{text!r} is {what}", hint)

    return check


def _check_boolean(text: str) -> None:
    if parse_boolean_word(text) is None:
        raise BadValue(f"{text!r} is neither true nor false", "write true or false")


_check_virtualization_name = _one_of(
    frozenset({"vm", "container", "private-users"}) | MACHINES | CONTAINERS,
    "no virtual machine or container known here",
)


def _check_virtualization(text: str) -> None:
    if parse_boolean_word(text) is None:
        _check_virtualization_name(text)


def _check_firmware(text: str) -> None:
    if text not in ("uefi", "device-tree") and not parse_device_tree(text) and parse_smbios(text) is None:
        hint = "possible are uefi, device-tree, device-tree-compatible(BOARD) and smbios-field(FIELD = VALUE)"
        raise BadValue(f"{text!r} is no firmware", hint)


def _check_capability(text: str) -> None:
    if parse_capability(text) is None:
        near = get_close_matches(text.lower(), CAPABILITIES, 1)
        raise BadValue(f"there is no capability {text!r}", f"did you mean {near[0].upper()!r}?" if near else "")


def _check_controllers(text: str) -> None:
    for name in text.split():
        _one_of(CONTROLLERS, "no cgroup controller")(name)


def _check_credential(text: str) -> None:
    if "/" in text or text in (".", "..") or len(text) > 255:
        raise BadValue(f"{text!r} is not the name of a credential", "write the name alone")


def _check_environment(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(=.*)?", text, re.ASCII | re.DOTALL):
        raise BadValue(f"{text!r} is neither a variable's name nor NAME=VALUE")


def _any(text: str) -> None:
    """Any text can be looked for."""


_CHECKS: Final[Mapping[str, Callable[[str], object]]] = {
    "architecture": _one_of(ARCHITECTURES, "no architecture known here"),
    "firmware": _check_firmware,
    "virtualization": _check_virtualization,
    "host": _any,
    "kernel-command-line": _any,
    "kernel-version": parse_versions,
    "credential": _check_credential,
    "environment": _check_environment,
    "security": _one_of(SECURITY, "no security technology known here"),
    "capability": _check_capability,
    "ac-power": _check_boolean,
    "first-boot": _check_boolean,
    "user": _any,
    "group": _any,
    "control-group-controller": _check_controllers,
    "memory": lambda text: parse_amount(text, is_size=True),
    "cpus": lambda text: parse_amount(text, is_size=False),
    "cpu-feature": _any,
    "os-release": parse_fields,
    "memory-pressure": parse_pressure,
    "cpu-pressure": parse_pressure,
    "io-pressure": parse_pressure,
}

KINDS: Final = frozenset({*_CHECKS, *PATH_KINDS})
"""Every kind there is."""
