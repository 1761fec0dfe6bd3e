"""Conditions looked at: each kind on a machine made of files, lists with their marks, and systemd as the judge."""

import asyncio
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from supervisord_py.host.conditions import Checked, Host, check, check_bounded, holds
from supervisord_py.host.unit_files import key_table
from supervisord_py.host.virtualization import Machine, find_container, find_machine
from supervisord_py.model.conditions import KINDS, parse_condition
from supervisord_py.model.unit import Condition

OWN = os.geteuid()


def read(kind: str, text: str) -> Condition:
    return parse_condition(kind, text, str)


def machine(root: Path, files: dict[str, str]) -> Machine:
    """A machine that tells what these files say."""
    for path, text in files.items():
        file = root / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Machine(str(root))


MACHINE = {
    "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu sse4_2 pclmulqdq fma hypervisor\n",
    "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet 'a=b c'\n",
    "/proc/self/status": "Name:\tx\nCapBnd:\t0000000000000005\n",
    "/proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /a\\040b rw - tmpfs tmpfs rw\n",
    "/proc/pressure/memory": "some avg10=30.00 avg60=2.00 avg300=1.50 total=1\n"
    "full avg10=20.00 avg60=1.00 avg300=0.51 total=1\n",
    "/proc/pressure/cpu": "some avg10=12.34 avg60=2.00 avg300=1.50 total=1\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n# NAME=x\nPRETTY_NAME='Debian 12'\n",
    "/sys/class/dmi/id/sys_vendor": "QEMU\n",
    "/sys/class/power_supply/AC/type": "Mains\n",
    "/sys/class/power_supply/AC/online": "0\n",
    "/sys/class/power_supply/BAT0/type": "Battery\n",
    "/sys/class/power_supply/BAT0/status": "Discharging\n",
    "/sys/fs/cgroup/cgroup.controllers": "cpu io memory hugetlb\n",
    "/sys/fs/cgroup/memory.max": "1048576\n",
    "/sys/module/apparmor/parameters/enabled": "Y\n",
    "/sys/class/tpmrm/tpmrm0/x": "",
    "/proc/device-tree/compatible": "vendor,board\0vendor,soc\0",
    "/sys/firmware/efi/x": "",
}


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("kernel-command-line", "quiet", True),
        ("kernel-command-line", "root", True),
        ("kernel-command-line", "root=/dev/sda1", True),
        ("kernel-command-line", "root=/dev/sda", False),
        ("kernel-command-line", "qui", False),
        ("kernel-command-line", "a=b c", True),
        ("capability", "CAP_CHOWN", True),
        ("capability", "cap_dac_override", False),
        ("capability", "2", True),
        ("memory-pressure", "0.5%", False),
        ("memory-pressure", "0.51%", True),
        ("memory-pressure", "19.99%/10s", False),
        ("cpu-pressure", "12.34%/10s", True),
        ("cpu-pressure", "12.33%/10s", False),
        ("io-pressure", "0%", True),
        ("host", "01234567-89ab-cdef-0123-456789abcdef", True),
        ("host", "11234567-89ab-cdef-0123-456789abcdef", False),
        ("host", socket.gethostname().upper(), True),
        ("os-release", "ID=debian VERSION_ID>=12", True),
        ("os-release", "ID=debian VERSION_ID>12", False),
        ("os-release", "'PRETTY_NAME=Debian 12'", True),
        ("os-release", "NAME=x", False),
        ("virtualization", "qemu", True),
        ("virtualization", "vm", True),
        ("virtualization", "container", False),
        ("virtualization", "yes", True),
        ("cpu-feature", "pclmul", True),
        ("cpu-feature", "FMA3", True),
        ("cpu-feature", "avx2", False),
        ("ac-power", "true", False),
        ("ac-power", "no", True),
        ("control-group-controller", "cpu memory", True),
        ("control-group-controller", "hugetlb", None),
        ("control-group-controller", "cpu pids", False),
        ("control-group-controller", "v2", True),
        ("control-group-controller", "v1", False),
        ("memory", "<=1M", True),
        ("memory", "1025K", False),
        ("security", "apparmor", True),
        ("security", "selinux", False),
        ("security", "tpm2", True),
        ("firmware", "uefi", True),
        ("firmware", "device-tree", False),
        ("firmware", "device-tree-compatible(vendor,soc)", True),
        ("firmware", "device-tree-compatible(vendor)", False),
        ("firmware", "smbios-field(sys_vendor = QEMU)", True),
        ("firmware", "smbios-field(sys_vendor $= 'Q*')", True),
        ("firmware", "smbios-field(board_vendor != QEMU)", False),
        ("first-boot", "no", True),
        ("environment", "A", True),
        ("environment", "A=1", True),
        ("environment", "A=", False),
        ("environment", "B", False),
        ("credential", "token", False),
        ("user", str(OWN), True),
        ("user", str(OWN + 1), False),
        ("user", "no-such-user", False),
        ("group", str(os.getegid()), True),
        ("group", "no-such-group", False),
        ("cpus", f"={len(os.sched_getaffinity(0))}", True),
        ("cpus", "100000", False),
        ("architecture", "native", True),
        ("architecture", "cris", False),
        ("kernel-version", f"={os.uname().release}", True),
        ("kernel-version", "<1", False),
    ],
)
def test_what_the_machine_tells(kind: str, text: str, expected: bool | None, tmp_path: Path) -> None:
    """Each kind reads what it must; an absent measure of pressure bounds nothing."""
    host = Host(machine(tmp_path, MACHINE), {"A": "1"})
    if expected is None:
        with pytest.raises(ValueError, match="no cgroup controller"):
            read(kind, text)
        return
    assert holds(read(kind, text), host) is expected
    assert holds(read(kind, f"!{text}"), host) is not expected


def test_credentials_and_first_boot_are_told_by_files(tmp_path: Path) -> None:
    """A credential is a file in the folder that the supervisor was given; the first boot has a mark, or a switch."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "token").touch()
    host = Host(machine(tmp_path, {"/run/systemd/first-boot": ""}), {"CREDENTIALS_DIRECTORY": str(tmp_path / "c")})
    assert holds(read("credential", "token"), host)
    assert holds(read("first-boot", "yes"), host)
    machine(tmp_path, {"/proc/cmdline": "systemd.condition-first-boot=no"})
    assert not holds(read("first-boot", "yes"), host)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Paths of every sort."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").touch()
    (tmp_path / "program").write_text("x")
    (tmp_path / "program").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    return tmp_path


PATHS = {
    "path-exists": {"full", "empty", "nothing", "program", "link", "full/file"},
    "path-is-directory": {"full", "empty", "link"},
    "path-is-symbolic-link": {"link", "dangling"},
    "path-is-mount-point": set[str](),
    "path-is-read-write": {"full", "empty", "nothing", "program", "link", "full/file"},
    "directory-not-empty": {"full", "link"},
    "file-not-empty": {"program", "full/file"},
    "file-is-executable": {"program"},
}
"""For each kind the paths of ``tree`` for which it holds."""


@pytest.mark.parametrize("kind", PATHS)
def test_kinds_of_paths(kind: str, tree: Path) -> None:
    """Links are followed but for the question whether it is one; what lies behind a file is nothing."""
    names = ["full", "empty", "nothing", "program", "link", "dangling", "nowhere", "full/file", "nothing/below"]
    assert {name for name in names if holds(read(kind, f"{tree}/{name}"), Host())} == PATHS[kind]


def test_globs_and_mount_points(tree: Path) -> None:
    """Patterns may hold braces; mount points are told through links."""
    assert holds(read("path-exists-glob", f"{tree}/{{nowhere,f*l}}"), Host())
    assert not holds(read("path-exists-glob", f"{tree}/{{nowhere,x*}}"), Host())
    (tree / "proc").symlink_to("/proc")
    assert holds(read("path-is-mount-point", f"{tree}/proc"), Host())
    assert holds(read("path-is-mount-point", "/"), Host())


def test_a_folder_that_is_due_for_an_update(tmp_path: Path) -> None:
    """/usr is newer than its mark, or there is none; the kernel's command line may decide it."""
    host = Host(Machine(str(tmp_path)))
    due = read("needs-update", str(tmp_path))
    assert holds(due, host)
    mark = tmp_path / ".updated"
    usr = os.lstat("/usr").st_mtime_ns
    mark.touch()
    os.utime(mark, ns=(usr, usr))
    assert not holds(due, host)
    os.utime(mark, ns=(usr - 2_000_000_000,) * 2)
    assert holds(due, host)
    machine(tmp_path, {"/proc/cmdline": "systemd.condition-needs-update=0"})
    assert not holds(due, host)


@pytest.mark.parametrize(
    ("files", "container", "virtual"),
    [
        ({}, None, None),
        ({"/.dockerenv": ""}, "docker", None),
        ({"/run/.containerenv": ""}, "podman", None),
        ({"/run/host/container-manager": "systemd-nspawn\n"}, "systemd-nspawn", None),
        ({"/run/systemd/container": "lxc\n"}, "lxc", None),
        ({"/run/systemd/container": "novel\n"}, "container-other", None),
        ({"/proc/1/environ": "A=1\0container=oci\0", "/.dockerenv": ""}, "docker", None),
        ({"/proc/1/environ": "container=\0"}, None, None),
        ({"/proc/vz/x": ""}, "openvz", None),
        ({"/proc/sys/kernel/osrelease": "5.15-microsoft-WSL2"}, "wsl", None),
        ({"/sys/class/dmi/id/product_name": "VMware Virtual Platform"}, None, "vmware"),
        ({"/sys/class/dmi/id/bios_vendor": "innotek GmbH"}, None, "oracle"),
        ({"/sys/class/dmi/id/sys_vendor": "Amazon EC2"}, None, "amazon"),
        ({"/sys/class/dmi/id/sys_vendor": "LENOVO"}, None, None),
        ({"/sys/hypervisor/type": "xen\n"}, None, "xen"),
        ({"/sys/hypervisor/type": "xen\n", "/proc/xen/capabilities": "control_d\n"}, None, None),
        ({"/proc/device-tree/hypervisor/compatible": "linux,kvm\0"}, None, "kvm"),
        ({"/proc/cpuinfo": "flags : fpu hypervisor lahf"}, None, "vm-other"),
        (
            {
                "/proc/cpuinfo": "flags : fpu hypervisor lahf",
                "/sys/devices/system/clocksource/clocksource0/available_clocksource": "kvm-clock tsc acpi_pm \n",
            },
            None,
            "kvm",
        ),
        ({"/proc/cpuinfo": "vendor_id : User Mode Linux"}, None, "uml"),
    ],
)
def test_what_says_that_this_is_virtual(
    files: dict[str, str], container: str | None, virtual: str | None, tmp_path: Path
) -> None:
    """Container managers leave files, hypervisors tables."""
    made = machine(tmp_path, files)
    assert (find_container(made), find_machine(made)) == (container, virtual)


@pytest.mark.parametrize(
    ("conditions", "broken"),
    [
        ([], None),
        (["/etc"], None),
        (["/etc", "/nope", "!/etc"], "/nope"),
        (["|/nope", "|/etc"], None),
        (["|/nope", "|/nowhere"], "|/nope"),
        (["|/etc", "/nope"], "/nope"),
        (["/etc", "|!/etc"], "|!/etc"),
    ],
)
def test_plain_ones_must_all_hold_and_one_of_the_marked(conditions: list[str], broken: str | None) -> None:
    """The first that decides is told as it is written, for conditions and asserts alike."""
    listed = [read("path-exists", text) for text in conditions]
    told = None if broken is None else f'"{broken}"'
    found = check(listed, [], Host()).condition
    assert (found and found.partition(" = ")[2]) == told
    assertion = check([], listed, Host()).assertion
    assert (assertion and assertion.partition(" = ")[2]) == told


def test_what_cannot_be_looked_at_does_not_hold_even_negated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path behind a closed folder is unknown, which is no reason to start."""

    def closed(path: str) -> os.stat_result:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("supervisord_py.host.conditions._status", closed)
    for mark in ("", "!"):
        found = check([read("path-exists", f"{mark}/closed/x")], [], Host()).condition
        assert found == f'condition-path-exists = "{mark}/closed/x" (cannot be looked at: permission denied)'


def test_a_look_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead file server does not stop the event loop: the condition does not hold, and the path is named; asserts are
    looked at all the same."""
    back = threading.Event()
    real = os.stat

    def hanging(path: str) -> os.stat_result:
        if path == "/net/x":
            back.wait()
        return real(path)

    monkeypatch.setattr("supervisord_py.host.conditions._status", hanging)

    async def main() -> Checked:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        try:
            conditions = [read("cpus", "1"), read("path-exists", "/net/x")]
            return await check_bounded(conditions, [read("path-exists", "!/etc")], Host(), timeout_s=0.05)
        finally:
            ticking.cancel()
            assert ticks > 10

    try:
        found = asyncio.run(main())
    finally:
        back.set()
    assert found.condition == 'condition-path-exists = "/net/x" (cannot be looked at: no answer within 0.05 s)'
    assert found.assertion == 'assert-path-exists = "!/etc"'


ORACLE = {
    "architecture": ["x86-64", "arm64", "native"],
    "firmware": ["uefi", "device-tree", "smbios-field(board_vendor $= *)"],
    "virtualization": ["yes", "vm", "container", "docker", "kvm", "podman", "private-users"],
    "host": ["*", "no-such-host"],
    "kernel-command-line": ["quiet", "root"],
    "kernel-version": [">=5", "> 5", "6*", "!=5.0", ">=5 <100"],
    "credential": ["x"],
    "environment": ["HOME", "HOME=/x"],
    "security": ["selinux", "apparmor", "tomoyo", "smack", "ima", "audit", "uefi-secureboot", "tpm2"],
    "capability": ["CAP_SYS_ADMIN", "cap_sys_resource", "40"],
    "ac-power": ["true"],
    "needs-update": ["/etc", "/nope"],
    "first-boot": ["yes"],
    "path-exists": ["/etc", "/nope", "/etc/passwd/x"],
    "path-exists-glob": ["/et*", "/{nope,etc}", "/nope*"],
    "path-is-directory": ["/etc", "/etc/passwd"],
    "path-is-symbolic-link": ["/proc/self", "/etc"],
    "path-is-mount-point": ["/proc", "/etc", "/nope"],
    "path-is-read-write": ["/", "/proc", "/nope"],
    "path-is-encrypted": ["/", "/nope"],
    "directory-not-empty": ["/etc", "/etc/passwd", "/nope"],
    "file-not-empty": ["/etc/passwd", "/etc"],
    "file-is-executable": ["/bin/sh", "/etc/passwd"],
    "user": ["root", "0", "@system", "nobody"],
    "group": ["root", "1"],
    "control-group-controller": ["v2", "cpu", "memory", "cpu memory", "io", "cpuset", "devices"],
    "memory": ["1G", "<1G", "!=5"],
    "cpus": ["1", ">1", "=2"],
    "cpu-feature": ["fpu", "avx2", "pclmul", "osxsave", "nosuch"],
    "os-release": ["ID=debian", "VERSION_ID>=12", "ID!$=d*", "NOPE=x"],
    "memory-pressure": ["50%", "10.5%/1min"],
    "cpu-pressure": ["100%"],
    "io-pressure": ["100%"],
}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there to ask")
@pytest.mark.parametrize("kind", ORACLE)
def test_systemd_says_the_same_of_this_machine(kind: str) -> None:
    """``systemd-analyze condition`` is asked about every kind, plainly and negated."""
    table = key_table().find("unit", "unit")
    assert table is not None and ORACLE.keys() == KINDS
    directive = table.keys[f"condition-{kind}"].systemd
    for text in (mark + text for text in ORACLE[kind] for mark in ("", "!")):
        asked = subprocess.run(
            ["systemd-analyze", "condition", f"{directive}={text}"], capture_output=True, check=False
        )
        found = check([read(kind, text)], [], Host(environment=os.environ)).condition
        assert (found is None) == (asked.returncode == 0), (text, found, asked.stderr)
