"""Whether the conditions of a unit hold, here and now: each kind is one small look at the machine.

``check`` judges a whole list: every plain condition must hold, and at least one of those marked ``|``. What cannot be
looked at (no permission, an unreadable file) does not hold, negated or not, and the answer says why. ``check_bounded``
does it in a thread and gives up on a look that hangs, because a path may be on a file server that is gone.

Differences from systemd: of a virtual machine less is known (``host.virtualization``); ``credential`` and
``environment`` are those that the supervisor was started with; ``cpu-feature`` is what /proc/cpuinfo calls it
(systemd's names are understood too).

Source: systemd.unit(5), "Conditions and Asserts"; systemd src/shared/condition.c.
"""

import glob
import grp
import itertools
import os
import pwd
import re
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal

from msgspec import Struct

from supervisord_py.host.bounded import HangsError, call_bounded
from supervisord_py.host.virtualization import Machine, find_container, find_machine, has_private_users
from supervisord_py.model.command import extract_word, split_words
from supervisord_py.model.conditions import (
    CONTAINERS,
    MACHINES,
    format_condition,
    holds_order,
    holds_version,
    parse_amount,
    parse_boolean_word,
    parse_capability,
    parse_device_tree,
    parse_fields,
    parse_pressure,
    parse_smbios,
    parse_versions,
)
from supervisord_py.model.unit import Condition

CHECK_S = 5.0
"""How long the look at the conditions of one start may take."""

SYSTEM_UID_MAX: Final = 999
_EFI = "/sys/firmware/efi/efivars"
_SECURE_BOOT = f"{_EFI}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_STUB_PCR = f"{_EFI}/StubPcrKernelImage-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ARCHITECTURES: Final = {
    "x86_64": "x86-64", "i386": "x86", "i486": "x86", "i586": "x86", "i686": "x86", "aarch64": "arm64",
    "aarch64_be": "arm64-be", "armv4l": "arm", "armv4tl": "arm", "armv5tl": "arm", "armv5tejl": "arm", "armv6l": "arm",
    "armv7l": "arm", "armv8l": "arm", "armv4b": "arm-be", "armv7b": "arm-be", "ppc64le": "ppc64-le", "ppcle": "ppc-le",
    "sh5": "sh64", "sh2": "sh", "sh3": "sh", "sh4": "sh", "sh4a": "sh", "crisv32": "cris", "arceb": "arc-be",
}  # fmt: skip
"""What uname calls the architectures whose names differ."""

_UNIFIED: Final = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
_SEPARATE: Final = frozenset({"cpu", "cpuacct", "blkio", "memory", "devices", "pids"})
"""The controllers that systemd knows in a unified hierarchy, and in hierarchies of their own."""

_FEATURES: Final = {"pclmul": "pclmulqdq", "fma3": "fma", "rdt": "rdt_a", "osxsave": "xsave"}
"""systemd's names of CPU features that the kernel has others for."""


class Host(Struct, frozen=True):
    """What conditions look at besides paths: the machine, and what this process is and was given."""

    machine: Machine = Machine()
    environment: Mapping[str, str] = {}


class Checked(Struct, frozen=True):
    """The first condition and the first assertion that do not hold, as written; None where all do."""

    condition: str | None = None
    assertion: str | None = None


def check(conditions: Sequence[Condition], asserts: Sequence[Condition], host: Host) -> Checked:
    """Look at everything; both lists are judged, each for itself."""
    return Checked(_first_broken("condition", conditions, host), _first_broken("assert", asserts, host))


async def check_bounded(
    conditions: Sequence[Condition], asserts: Sequence[Condition], host: Host, timeout_s: float = CHECK_S
) -> Checked:
    """The same beside the event loop; a look that hangs makes its list one that does not hold."""

    async def look(prefix: Literal["condition", "assert"], listed: Sequence[Condition]) -> str | None:
        if not listed:
            return None
        try:
            return await call_bounded(lambda: _first_broken(prefix, listed, host), timeout_s)
        except HangsError as error:
            return f"{format_condition(prefix, _suspect(listed))} (cannot be looked at: {error})"

    return Checked(await look("condition", conditions), await look("assert", asserts))


def holds(condition: Condition, host: Host) -> bool:
    """Look at one condition, with its negation.

    Raises:
        OSError: It cannot be looked at.
    """
    return _LOOKS[condition.kind](condition.parameter, host) is not condition.negate


def _first_broken(prefix: Literal["condition", "assert"], listed: Sequence[Condition], host: Host) -> str | None:
    failed_trigger: str | None = None
    has_trigger = False
    for condition in listed:
        told = ""
        try:
            good = holds(condition, host)
        except (OSError, ValueError) as error:
            good, told = False, f" (cannot be looked at: {_reason(error)})"
        text = f"{format_condition(prefix, condition)}{told}"
        if not condition.trigger and not good:
            return text
        if condition.trigger:
            has_trigger = has_trigger or good
            failed_trigger = failed_trigger or text
    return None if has_trigger else failed_trigger


def _suspect(listed: Sequence[Condition]) -> Condition:
    """Which one hangs: the first about a path, as nothing else can."""
    return next((each for each in listed if each.parameter.startswith("/")), listed[0])


def _reason(error: Exception) -> str:
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)


# The machine


def own_architecture() -> str:
    """Return systemd's name for the machine's architecture."""
    name = os.uname().machine
    return _ARCHITECTURES.get(name, name)


def _architecture(wanted: str, host: Host) -> bool:
    return wanted in ("native", own_architecture())


def _firmware(wanted: str, host: Host) -> bool:
    machine = host.machine
    if wanted == "uefi":
        return machine.has("/sys/firmware/efi") and find_container(machine) is None
    if wanted == "device-tree":
        return machine.has("/sys/firmware/devicetree/base") or machine.has("/sys/firmware/device-tree")
    board = parse_device_tree(wanted)
    if board is not None:
        return board.encode() in (machine.read("/proc/device-tree/compatible") or b"").split(b"\0")
    comparison = parse_smbios(wanted)
    assert comparison is not None, "the model has let through what is no firmware"
    value = machine.read(f"/sys/class/dmi/id/{comparison.field}")
    return value is not None and holds_version(comparison, value.decode(errors="replace").strip())


def _virtualization(wanted: str, host: Host) -> bool:
    if wanted == "private-users":
        return has_private_users(host.machine)
    found = find_container(host.machine) or find_machine(host.machine)
    word = parse_boolean_word(wanted)
    if word is not None:
        return word is (found is not None)
    if wanted in ("vm", "container"):
        return found in (MACHINES if wanted == "vm" else CONTAINERS)
    return found == wanted


def _host(wanted: str, host: Host) -> bool:
    bare = wanted.replace("-", "").lower()
    if re.fullmatch(r"[0-9a-f]{32}", bare):
        return host.machine.text("/etc/machine-id").strip() == bare
    return fnmatchcase(socket.gethostname().lower(), wanted.lower())


def _kernel_command_line(wanted: str, host: Host) -> bool:
    if find_container(host.machine) is None:
        words = split_words(host.machine.text("/proc/cmdline"))
    else:
        # In a container the kernel's is the machine's business: what process 1 was started with counts.
        words = (host.machine.text("/proc/1/cmdline")).rstrip("\0").split("\0")
    if "=" in wanted:
        return wanted in words
    return any(word.partition("=")[0] == wanted for word in words)


def _kernel_version(wanted: str, host: Host) -> bool:
    release = os.uname().release
    return all(holds_version(comparison, release) for comparison in parse_versions(wanted))


def _os_release(wanted: str, host: Host) -> bool:
    text = host.machine.text("/etc/os-release") or host.machine.text("/usr/lib/os-release")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            word = extract_word(value, 0, unescape=False, relaxed=True)
            fields[name] = "" if word is None else word[0]
    return all(holds_version(comparison, fields.get(comparison.field, "")) for comparison in parse_fields(wanted))


def _memory(wanted: str, host: Host) -> bool:
    operator, amount = parse_amount(wanted, is_size=True)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Of a container: what it was given, where it sees that at the root of its groups.
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = host.machine.text(path).strip()
        if limit.isdigit():
            total = min(total, int(limit))
    return holds_order(operator, total - amount)


def _cpus(wanted: str, host: Host) -> bool:
    operator, amount = parse_amount(wanted, is_size=False)
    return holds_order(operator, len(os.sched_getaffinity(0)) - amount)


def _cpu_feature(wanted: str, host: Host) -> bool:
    name = wanted.lower()
    for line in host.machine.text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            features = value.split()
            return name in features or _FEATURES.get(name) in features
    return False


def _controller(wanted: str, host: Host) -> bool:
    machine = host.machine
    unified = machine.has("/sys/fs/cgroup/cgroup.controllers")
    if wanted in ("v1", "v2"):
        return (wanted == "v2") is unified
    if unified:
        found = _UNIFIED & set(machine.text("/sys/fs/cgroup/cgroup.controllers").split())
    else:
        rows = (line.split() for line in machine.text("/proc/cgroups").splitlines())
        known = _SEPARATE & {row[0] for row in rows if len(row) == 4 and row[3] == "1"}
        # As in systemd, only where it could be used: beside the group of process 1, which is root's.
        lines = (line.partition(":name=systemd:") for line in machine.text("/proc/1/cgroup").splitlines())
        above = next((path.removesuffix("/init.scope").rstrip("/") for _, name, path in lines if name), "")
        found = frozenset(each for each in known if machine.can_write(f"/sys/fs/cgroup/{each}{above}/cgroup.procs"))
    return set(wanted.split()) <= found


def _pressure(resource: str) -> Callable[[str, Host], bool]:
    def look(wanted: str, host: Host) -> bool:
        pressure = parse_pressure(wanted)
        text = host.machine.text(f"/proc/pressure/{resource}")
        lines = {line.split(" ", 1)[0]: line for line in text.splitlines()}
        # A CPU never stalls everybody: its share is that of some.
        line = lines.get("some" if resource == "cpu" else "full")
        match = re.search(rf"\b{pressure.window}=(\d+)\.(\d\d)\b", line or "")
        # A kernel that does not measure it is told nothing by the bound.
        return match is None or int(match[1]) * 100 + int(match[2]) <= pressure.limit

    return look


def _ac_power(wanted: str, host: Host) -> bool:
    machine, base = host.machine, "/sys/class/power_supply"
    online = offline = discharging = False
    for name in machine.list(base):
        if machine.text(f"{base}/{name}/scope").strip() == "Device":
            continue
        if machine.text(f"{base}/{name}/type").strip() == "Battery":
            discharging |= machine.text(f"{base}/{name}/status").strip() == "Discharging"
        else:
            state = machine.text(f"{base}/{name}/online").strip()
            online |= state not in ("", "0")
            offline |= state == "0"
    return parse_boolean_word(wanted) is (online or not (offline or discharging))


def _first_boot(wanted: str, host: Host) -> bool:
    forced = _kernel_switch(host, "systemd.condition-first-boot")
    is_first = host.machine.has("/run/systemd/first-boot") if forced is None else forced
    return parse_boolean_word(wanted) is is_first


def _needs_update(path: str, host: Host) -> bool:
    forced = _kernel_switch(host, "systemd.condition-needs-update")
    if forced is not None:
        return forced
    try:
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return False
        updated = os.lstat(f"{path}/.updated").st_mtime_ns
    except OSError:
        return True
    usr = os.lstat("/usr").st_mtime_ns
    if updated % 1_000_000_000 == 0 and usr // 1_000_000_000 == updated // 1_000_000_000:
        # A file system without fractions: what was written into the file is exact.
        match = re.search(r"^TIMESTAMP_NSEC=(\d+)", _small_text(f"{path}/.updated"), re.MULTILINE)
        updated = int(match[1]) if match is not None else updated
    return usr > updated


def _kernel_switch(host: Host, name: str) -> bool | None:
    """A boolean of the kernel's command line; its name alone is true."""
    for word in split_words(host.machine.text("/proc/cmdline")):
        key, equals, value = word.partition("=")
        if key == name:
            return parse_boolean_word(value) if equals else True
    return None


def _small_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


# Security


def _security(wanted: str, host: Host) -> bool:
    machine = host.machine
    match wanted:
        case "selinux":
            return machine.has("/sys/fs/selinux/enforce")
        case "apparmor":
            return machine.text("/sys/module/apparmor/parameters/enabled").startswith("Y")
        case "tomoyo":
            return machine.has("/sys/kernel/security/tomoyo/version")
        case "smack":
            return machine.has("/sys/fs/smackfs")
        case "ima":
            return machine.has("/sys/kernel/security/ima/")
        case "audit":
            return _has_audit()
        case "uefi-secureboot":
            # Four bytes of attributes, then the value.
            return (machine.read(_SECURE_BOOT) or b"")[4:5] == b"\1"
        case "tpm2":
            return bool(machine.list("/sys/class/tpmrm"))
        case "cvm":
            return any(
                flag in machine.text("/proc/cpuinfo").split() for flag in ("sev_snp_guest", "tdx_guest")
            ) or machine.has("/sys/devices/virtual/misc/tdx_guest")
        case _:
            return machine.has(_STUB_PCR)


def _has_audit() -> bool:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9).close()  # NETLINK_AUDIT
    except OSError:
        return False
    return True


def _capability(wanted: str, host: Host) -> bool:
    number = parse_capability(wanted)
    assert number is not None, "the model has let through what is no capability"
    match = re.search(r"^CapBnd:\s*([0-9a-f]+)", host.machine.text("/proc/self/status"), re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> number & 1)


def _credential(wanted: str, host: Host) -> bool:
    folders = (host.environment.get(name) for name in ("CREDENTIALS_DIRECTORY", "ENCRYPTED_CREDENTIALS_DIRECTORY"))
    return any(folder is not None and os.path.exists(os.path.join(folder, wanted)) for folder in folders)


def _environment(wanted: str, host: Host) -> bool:
    name, equals, value = wanted.partition("=")
    return name in host.environment and (not equals or host.environment[name] == value)


def _user(wanted: str, host: Host) -> bool:
    own = {os.getuid(), os.geteuid()}
    if wanted == "@system":
        return any(uid <= SYSTEM_UID_MAX for uid in own)
    if wanted.isascii() and wanted.isdigit():
        return int(wanted) in own
    try:
        return pwd.getpwnam(wanted).pw_uid in own
    except KeyError:
        return False


def _group(wanted: str, host: Host) -> bool:
    own = {os.getgid(), os.getegid(), *os.getgroups()}
    if wanted.isascii() and wanted.isdigit():
        return int(wanted) in own
    try:
        return grp.getgrnam(wanted).gr_gid in own
    except KeyError:
        return False


# Paths


def _status(path: str) -> os.stat_result | None:
    """What the path leads to; None when there is nothing. Raises OSError when that cannot be seen."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _exists(path: str, host: Host) -> bool:
    return _status(path) is not None


def _exists_glob(pattern: str, host: Host) -> bool:
    return any(next(glob.iglob(each), None) is not None for each in _braces(pattern))


def _braces(pattern: str) -> list[str]:
    """Expand ``{a,b}`` of a pattern, as the shell does."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    choices = (pattern[: match.start()] + choice + pattern[match.end() :] for choice in match[1].split(","))
    return list(itertools.chain.from_iterable(map(_braces, choices)))


def _is_directory(path: str, host: Host) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _is_symbolic_link(path: str, host: Host) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_mount_point(path: str, host: Host) -> bool:
    if _status(path) is None:
        return False
    real = os.path.realpath(path)
    points = (line.split(" ")[4] for line in host.machine.text("/proc/self/mountinfo").splitlines())
    return real == "/" or real in {_unescaped(point) for point in points}


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is_read_write(path: str, host: Host) -> bool:
    return _status(path) is not None and not os.statvfs(path).f_flag & os.ST_RDONLY


def _is_encrypted(path: str, host: Host) -> bool:
    status = _status(path)
    if status is None:
        return False
    return _device_encrypted(host.machine, f"/sys/dev/block/{os.major(status.st_dev)}:{os.minor(status.st_dev)}", 8)


def _device_encrypted(machine: Machine, folder: str, depth: int) -> bool:
    """Whether a block device, or all that it is made of, is dm-crypt."""
    if machine.text(f"{folder}/dm/uuid").startswith("CRYPT-"):
        return True
    slaves = machine.list(f"{folder}/slaves")
    return depth > 0 and bool(slaves) and all(
        _device_encrypted(machine, f"{folder}/slaves/{slave}", depth - 1) for slave in slaves
    )  # fmt: skip


def _directory_not_empty(path: str, host: Host) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def _file_not_empty(path: str, host: Host) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISREG(status.st_mode) and status.st_size > 0


def _file_is_executable(path: str, host: Host) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)


_LOOKS: Final[Mapping[str, Callable[[str, Host], bool]]] = {
    "architecture": _architecture,
    "firmware": _firmware,
    "virtualization": _virtualization,
    "host": _host,
    "kernel-command-line": _kernel_command_line,
    "kernel-version": _kernel_version,
    "credential": _credential,
    "environment": _environment,
    "security": _security,
    "capability": _capability,
    "ac-power": _ac_power,
    "needs-update": _needs_update,
    "first-boot": _first_boot,
    "path-exists": _exists,
    "path-exists-glob": _exists_glob,
    "path-is-directory": _is_directory,
    "path-is-symbolic-link": _is_symbolic_link,
    "path-is-mount-point": _is_mount_point,
    "path-is-read-write": _is_read_write,
    "path-is-encrypted": _is_encrypted,
    "directory-not-empty": _directory_not_empty,
    "file-not-empty": _file_not_empty,
    "file-is-executable": _file_is_executable,
    "user": _user,
    "group": _group,
    "control-group-controller": _controller,
    "memory": _memory,
    "cpus": _cpus,
    "cpu-feature": _cpu_feature,
    "os-release": _os_release,
    "memory-pressure": _pressure("memory"),
    "cpu-pressure": _pressure("cpu"),
    "io-pressure": _pressure("io"),
}
