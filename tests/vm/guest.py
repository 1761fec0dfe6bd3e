"""Runs in the machine: takes the project from the second disk, and runs its tests."""

import os
import subprocess
import tarfile

WORK = "/run/spy"

os.makedirs(WORK, exist_ok=True)
with tarfile.open("/dev/vdb") as archive:
    archive.extractall(WORK)
environment = {
    **os.environ,
    "PYTHONPATH": f"{WORK}/project:/opt/spy/site",
    "PYTHONDONTWRITEBYTECODE": "1",
    "SUPERVISORD_PY_TEST_PATIENCE": "10",
    "LANG": "C.UTF-8",
}
with open(f"{WORK}/arguments") as file:
    arguments = file.read().split("\n")
options = ["-v", "--noconftest", "-p", "no:cacheprovider", "--tb=short", "--color=no"]
done = subprocess.run(
    ["/usr/bin/python3", "-m", "pytest", *options, *arguments], cwd=f"{WORK}/project", env=environment, check=False
)
print(f"TESTS-EXIT {done.returncode}", flush=True)
subprocess.run(["systemctl", "poweroff", "-ff"], check=False)
