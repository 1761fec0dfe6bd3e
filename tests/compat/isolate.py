"""Runs a command on a machine whose folders, users and network are its own: ``isolate.py SPEC COMMAND...``.

Systemd's execution units write into ``/tmp``, ``/run`` and ``/var`` by name, name users of other distributions and look
for network devices. In here those are of a mount and a network namespace: nothing of what is done in them is seen
outside, and it is gone with the last process. SPEC is a JSON file with the fields of ``Spec``.

An ordinary user makes a user namespace first, in which he is himself; he gets no network of his own.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
ASIDE = "/mnt"
"""A folder that every machine has, and that nothing here is kept in."""

DEVICE_KINDS = ("dummy", "bridge", "ifb")
"""Network devices that need no others, the first one is systemd's choice; kernels do not all have it."""

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, about: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()), target)


def enter_namespaces(*, with_network: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | (CLONE_NEWNET if with_network else 0)
    check(_libc.unshare(flags | (0 if uid == 0 else CLONE_NEWUSER)), "unshare")
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    mount("none", "/", "none", MS_REC | MS_PRIVATE)


def hide(empty: list[str], keep: list[str], files: dict[str, str]) -> None:
    """Lay empty folders, and folders with these files, over those of the machine, and what is kept over those again."""
    mount("tmpfs", ASIDE, "tmpfs", MS_NOSUID | MS_NODEV)
    kept: dict[str, str] = {}
    for path in keep:
        kept[path] = f"{ASIDE}/{len(kept)}"
        os.mkdir(kept[path])
        mount(path, kept[path], "none", MS_BIND | MS_REC)
    for folder in empty:
        if folder == "/sys":
            mount("sysfs", folder, "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        else:
            mode = "1777" if folder.endswith("tmp") else "0755"
            mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")
    for path, aside in sorted(kept.items()):
        os.makedirs(path, exist_ok=True)
        mount(aside, path, "none", MS_BIND | MS_REC)
        check(_libc.umount2(aside.encode(), MNT_DETACH), aside)
    for number, folder in enumerate(sorted({os.path.dirname(path) for path in files})):
        # The whole folder: what is laid over a file goes when somebody puts another file in its place.
        new = f"{ASIDE}/folder-{number}"
        subprocess.run(["cp", "-a", folder, new], check=True)
        for path, text in files.items():
            if os.path.dirname(path) == folder:
                Path(new, os.path.basename(path)).write_text(text)
        mount(new, folder, "none", MS_BIND)
    check(_libc.umount2(ASIDE.encode(), MNT_DETACH), ASIDE)


def add_device(name: str, *ip: str) -> bool:
    """Make a network device of some kind."""
    return any(
        subprocess.run(["ip", *ip, "link", "add", name, "type", kind], capture_output=True, check=False).returncode == 0
        for kind in DEVICE_KINDS
    )


def main() -> None:
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    devices = spec["devices"] and os.geteuid() == 0
    enter_namespaces(with_network=devices)
    hide([*spec["empty"], *(["/sys"] if devices else [])], spec["keep"], spec["over"])
    for path, text in spec["write"].items():
        Path(path).write_text(text)
    if devices:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for space, name in spec["devices"]:
            if space:
                subprocess.run(["ip", "netns", "add", space], check=True)
            assert add_device(name, *(["-n", space] if space else [])), f"no kind of device can be {name}"
    for line in spec["shell"]:
        subprocess.run(["/bin/sh", "-c", line], check=True)
    if spec["uid"] is not None:
        os.setgroups([])
        os.setgid(spec["uid"])
        os.setuid(spec["uid"])
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
