"""The machine that is booted: Debian's kernel, a small Debian with systemd, and what our tests need, made once.

Kept in ``$SUPERVISORD_PY_TEST_CACHE`` (default: ``~/.cache/supervisord-py-tests``), in a folder whose name says what it
was made from. The packages come from where ``mmdebstrap`` gets them, the wheels from where pip does. Needs root.
"""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CACHE = Path(os.environ.get("SUPERVISORD_PY_TEST_CACHE", "~/.cache/supervisord-py-tests")).expanduser()
SUITE = "bookworm"
PYTHON = "3.11"
KERNEL = "linux-image-cloud-amd64"
PACKAGES = "systemd,systemd-sysv,libpam-systemd,dbus,dbus-user-session,python3,procps,util-linux,e2fsprogs"
MODULES = ("virtio_pci", "virtio_blk", "virtio_rng")
TEST_WHEELS = ("pytest>=8.3",)
PROGRAMS = {
    "mmdebstrap": "mmdebstrap", "qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static",
    "modprobe": "kmod", "cpio": "cpio", "mke2fs": "e2fsprogs",
}  # fmt: skip
"""What is run here, and the packages it is in."""
OFF = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "dpkg-db-backup.timer", "fstrim.timer")
NO_TERMINALS = ("serial-getty@ttyS0.service", "getty@tty1.service", "systemd-modules-load.service")
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs d /dev
while read module; do /bin/busybox insmod /lib/$module; done < /lib/order
n=0; while [ ! -b /dev/vda ] && [ $n -lt 200 ]; do /bin/busybox sleep 0.05; n=$((n+1)); done
/bin/busybox mount -t ext4 -o rw /dev/vda /newroot || { echo "no root file system"; /bin/busybox poweroff -f; }
/bin/busybox mount --move /dev /newroot/dev
exec /bin/busybox switch_root /newroot /sbin/init
"""


class NotPossible(Exception):
    """The machine cannot be made here; says why, and what to do."""


def missing() -> str | None:
    """Return what this machine lacks, in words, None when nothing."""
    if os.uname().machine != "x86_64":
        return f"this machine is {os.uname().machine}; the recipe is for x86_64"
    if os.geteuid() != 0:
        return "only root can make the image (mmdebstrap, chroot)"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = sorted({package for name, package in PROGRAMS.items() if shutil.which(name, path=path) is None})
    if packages:
        return f"missing: apt-get install --no-install-recommends {' '.join(packages)}"
    return None


def run(*command: str | Path, **options: Any) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}, **options,
    )  # fmt: skip
    if done.returncode != 0:
        raise NotPossible(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return str(done.stdout)


def wheels_wanted() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *TEST_WHEELS]


def image() -> Path:
    """Return the folder of the image (``vmlinuz``, ``initrd.img``, ``root.ext4``, ``root``), made once."""
    recipe = Path(__file__).read_text() + (HERE / "guest.py").read_text() + "".join(wheels_wanted())
    folder = CACHE / f"vm-{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        new = CACHE / f"{folder.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        print(f"making {folder}: about a minute, once", flush=True)
        _make_root(new / "root")
        _make_kernel(new)
        # No journal and no tables to be written later: the file is sparse, and each boot begins with it as it is.
        with open(new / "root.ext4", "wb") as file:
            file.truncate(1 << 30)
        options = ("-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0")
        run("mke2fs", "-q", "-t", "ext4", *options, "-d", new / "root", new / "root.ext4")
        new.rename(folder)
    return folder


def _make_root(root: Path) -> None:
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, root)
    (root / "etc/hostname").write_text("spy\n")
    (root / "etc/machine-id").write_text("")
    units = root / "etc/systemd/system"
    for name in (*OFF, *NO_TERMINALS):
        (units / name).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (units / "spy-tests.service").write_text((HERE / "guest.service").read_text())
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/spy-tests.service").symlink_to("/etc/systemd/system/spy-tests.service")
    (root / "opt/spy").mkdir(parents=True)
    shutil.copy(HERE / "guest.py", root / "opt/spy/guest.py")
    run("chroot", root, "useradd", "--create-home", "--uid", "1000", "someone")
    (root / "var/lib/systemd/linger").mkdir(exist_ok=True)
    (root / "var/lib/systemd/linger/someone").touch()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    pure = [name for name in wheels_wanted() if name.startswith("sdnotify")]
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux2014", "manylinux_2_17", "manylinux_2_28")]
    site = root / "opt/spy/site"
    wheels = root.parent / "wheels"
    # It is no wheel where it comes from.
    run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, *pure)
    others = [name for name in wheels_wanted() if name not in pure]
    target = ("--only-binary=:all:", *platforms, f"--python-version={PYTHON}", "--target", site, "--upgrade")
    run(*pip, "install", *target, "--find-links", wheels, *others, *(str(path) for path in wheels.glob("*.whl")))
    run("chroot", root, "python3", "-m", "compileall", "-q", "/opt/spy/site")


def _make_kernel(folder: Path) -> None:
    tree = folder / "kernel"
    run("mmdebstrap", "--quiet", "--variant=extract", f"--include={KERNEL}", SUITE, tree)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    shutil.copy(kernel, folder / "vmlinuz")
    start = folder / "initrd"
    for name in ("bin", "lib", "proc", "sys", "dev", "newroot"):
        (start / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", start / "bin/busybox")
    run("depmod", "-b", tree, version)
    order: list[str] = []
    for module in MODULES:
        text = run("modprobe", "-d", tree, "-S", version, "--show-depends", module)
        order += [path for path in re.findall(r"^insmod (\S+)", text, re.MULTILINE) if path not in order]
    names = []
    for path in order:
        data = Path(path).read_bytes()
        names.append(Path(path).name.removesuffix(".xz"))
        (start / "lib" / names[-1]).write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
    (start / "lib/order").write_text("".join(f"{name}\n" for name in names))
    (start / "init").write_text(INIT)
    (start / "init").chmod(0o755)
    run("sh", "-c", 'cd "$1" && find . | cpio -o -H newc --quiet > "$2"', "sh", start, folder / "initrd.img")
    shutil.rmtree(tree)
    shutil.rmtree(start)
