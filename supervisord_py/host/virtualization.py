"""In which container and which virtual machine this runs, by systemd's names, from files alone.

A container is asked for first, as systemd does: what says so are the container manager's own files and the environment
of process 1. A virtual machine is known by its firmware's tables (DMI), the hypervisor's folder and, where these are
silent, by the clocks that hypervisors offer; systemd asks the CPU, which takes an instruction that Python has not. So a
machine whose hypervisor shows itself in the CPU alone is ``vm-other`` here.

Source: systemd src/basic/virt.c.
"""

import os
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from supervisord_py.model.conditions import CONTAINERS

_DMI: Final = (
    ("KVM", "kvm"), ("OpenStack", "kvm"), ("KubeVirt", "kvm"), ("Amazon EC2", "amazon"), ("QEMU", "qemu"),
    ("VMware", "vmware"), ("VMW", "vmware"), ("innotek GmbH", "oracle"), ("VirtualBox", "oracle"), ("Xen", "xen"),
    ("Bochs", "bochs"), ("Parallels", "parallels"), ("BHYVE", "bhyve"), ("Hyper-V", "microsoft"),
    ("Apple Virtualization", "apple"), ("Google Compute Engine", "google"),
)  # fmt: skip
_DMI_FILES: Final = ("product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version")
_CLOCKS: Final = (("kvm-clock", "kvm"), ("hyperv_clocksource", "microsoft"), ("xen", "xen"))


class Machine(Struct, frozen=True):
    """Where the kernel and the system tell about themselves; ``root`` stands before every path."""

    root: str = ""

    def read(self, path: str) -> bytes | None:
        """The content of a small file; None when there is none, or none that may be read."""
        try:
            with open(f"{self.root}{path}", "rb") as file:
                return file.read(1 << 20)
        except OSError:
            return None

    def text(self, path: str) -> str:
        """The same as text, "" without one."""
        return (self.read(path) or b"").decode(errors="replace")

    def has(self, path: str) -> bool:
        return os.path.exists(f"{self.root}{path}")

    def can_write(self, path: str) -> bool:
        return os.access(f"{self.root}{path}", os.W_OK)

    def list(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(f"{self.root}{path}"))
        except OSError:
            return []


def find_container(machine: Machine) -> str | None:
    """The container this runs in (``docker``, ``podman``, ``container-other``, ...); None outside of any."""
    if machine.has("/proc/vz") and not machine.has("/proc/bc"):
        return "openvz"
    release = machine.text("/proc/sys/kernel/osrelease")
    if "Microsoft" in release or "WSL" in release:
        return "wsl"
    for path in ("/run/host/container-manager", "/run/systemd/container"):
        name = machine.text(path).split("\n", 1)[0].strip()
        if name:
            return _container_name(machine, name)
    for variable in (machine.read("/proc/1/environ") or b"").split(b"\0"):
        if variable.startswith(b"container=") and variable != b"container=":
            return _container_name(machine, variable[len(b"container=") :].decode(errors="replace"))
    return _container_by_files(machine)


def find_machine(machine: Machine) -> str | None:
    """The virtual machine this runs in (``kvm``, ``vmware``, ``vm-other``, ...); None on bare metal."""
    cpu = machine.text("/proc/cpuinfo")
    if "User Mode Linux" in cpu:
        return "uml"
    if "control_d" in machine.text("/proc/xen/capabilities"):
        # The first domain of Xen owns the machine.
        return None
    by_firmware = _by_words((machine.text(f"/sys/class/dmi/id/{name}") for name in _DMI_FILES), _DMI)
    if by_firmware is not None:
        return by_firmware
    kind = machine.text("/sys/hypervisor/type").strip()
    if kind:
        return "xen" if kind == "xen" else "vm-other"
    tree = machine.text("/proc/device-tree/hypervisor/compatible")
    for word, name in (("linux,kvm", "kvm"), ("xen", "xen"), ("vmware", "vmware")):
        if word in tree:
            return name
    if machine.has("/proc/device-tree/ibm,partition-name") and machine.has("/proc/device-tree/hmc-managed?"):
        return None if machine.has("/proc/device-tree/chosen/qemu,graphic-width") else "powervm"
    system = machine.text("/proc/sysinfo")
    if "VM00 Control Program:" in system:
        return "zvm" if "z/VM" in system else "kvm"
    if any(line.startswith("flags") and " hypervisor" in line for line in cpu.splitlines()):
        clocks = machine.text("/sys/devices/system/clocksource/clocksource0/available_clocksource")
        return _by_words([clocks], _CLOCKS) or "vm-other"
    return None


def has_private_users(machine: Machine) -> bool:
    """Whether the user ids here are not those of the machine."""
    for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
        lines = machine.text(path).splitlines()
        if len(lines) > 1 or (lines and lines[0].split() != ["0", "0", "4294967295"]):
            return True
    return machine.text("/proc/self/setgroups").strip() == "deny"


def _container_name(machine: Machine, name: str) -> str:
    if name == "oci":
        return _container_by_files(machine) or "container-other"
    return name if name in CONTAINERS else "container-other"


def _container_by_files(machine: Machine) -> str | None:
    if machine.has("/run/.containerenv"):
        return "podman"
    return "docker" if machine.has("/.dockerenv") else None


def _by_words(texts: Iterable[str], words: Iterable[tuple[str, str]]) -> str | None:
    known = tuple(words)
    return next((name for text in texts for word, name in known if text.startswith(word) or word in text.split()), None)
