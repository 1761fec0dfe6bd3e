"""``make test-vm``: tests of ours in a virtual machine whose kernel has cgroup v2 with all controllers.

Where the tests run there are often none: a container, or a hybrid layout. The machine is emulated (no /dev/kvm is
needed), so everything takes ten times as long, and ``SUPERVISORD_PY_TEST_PATIENCE`` says so to the tests. It has no
network and shares no file with us: the project goes in as a raw tar, what is seen comes out of its console. Arguments
are pytest's.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

from tests.vm.image import ROOT, NotPossible, image, missing, run

LIMIT_S = float(os.environ.get("SUPERVISORD_PY_VM_LIMIT_SEC", "900"))
MEMORY_MIB = "1024"
NOT_TAKEN = (".*", "__pycache__", "build", "dist", "bench", "run")
EXIT_WORD = "TESTS-EXIT "
KERNEL_COMMAND = (
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check random.trust_cpu=on "
    "systemd.show_status=0 systemd.unified_cgroup_hierarchy=1"
)
# QEMU 7.2 has cmpxchg16b wrong: newer kernels crash at random with it.
CPU = "max,cx16=off"


def make_payload(folder: Path, arguments: list[str], archive: Path) -> None:
    """Put the project, compiled by the Python of the machine, into ``archive``."""
    inside = folder / "root/var/tmp/spy"
    shutil.rmtree(inside, ignore_errors=True)
    shutil.copytree(ROOT, inside / "project", ignore=shutil.ignore_patterns(*NOT_TAKEN), symlinks=True)
    try:
        (inside / "arguments").write_text("\n".join(arguments))
        compiled = ("python3", "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash", "/var/tmp/spy/project")
        run("chroot", folder / "root", *compiled)
        with tarfile.open(archive, "w") as tar:
            for path in sorted(inside.iterdir()):
                tar.add(path, arcname=path.name)
    finally:
        shutil.rmtree(inside)
    os.truncate(archive, (archive.stat().st_size + 4095) // 4096 * 4096)


def boot(folder: Path, payload: Path) -> int:
    """Run the machine until it is off; returns the exit code of the tests, 99 when they did not end."""
    disks = [(folder / "root.ext4", "snapshot=on,cache=unsafe"), (payload, "readonly=on")]
    command = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU, "-smp", "2", "-m", MEMORY_MIB),
        *("-M", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-net", "none", "-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.img")),
        *("-append", KERNEL_COMMAND, "-device", "virtio-rng-pci"),
    ]
    for number, (path, options) in enumerate(disks):
        command += ["-drive", f"if=none,id=d{number},file={path},format=raw,{options}"]
        command += ["-device", f"virtio-blk-pci,drive=d{number}"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ended = 99
    killer = threading.Timer(LIMIT_S, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip()
            print(f"[{time.monotonic() - began:6.1f}] {text}", flush=True)
            if EXIT_WORD in text:
                ended = int(text.partition(EXIT_WORD)[2].split()[0])
    finally:
        killer.cancel()
        process.kill()
        process.wait()
    if ended == 99:
        print(f"the machine ended without a word ({LIMIT_S:.0f} s are its limit, $SUPERVISORD_PY_VM_LIMIT_SEC)")
    return ended


def main(arguments: list[str]) -> int:
    if (why := missing()) is not None:
        print(f"make test-vm: {why}", file=sys.stderr)
        return 2
    work = Path(tempfile.mkdtemp(prefix="spy-vm-"))
    try:
        folder = image()
        payload = work / "payload.tar"
        make_payload(folder, arguments or ["tests/vm/check_limits.py"], payload)
        return boot(folder, payload)
    except NotPossible as error:
        print(f"make test-vm: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
