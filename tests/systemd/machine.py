"""A small Debian with a real systemd, booted in a container of its own for each test, and the wheels to put into it.

Needs root, ``mmdebstrap`` and ``systemd-nspawn`` (package systemd-container). The root and the wheels of what we need
are kept in ``$SUPERVISORD_PY_TEST_CACHE`` (default: ``~/.cache/supervisord-py-tests``); what a test changes is gone
with its container. Nothing of this machine's systemd, if it has one, is touched: the container has its own control
groups, mounts, processes and network.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("SUPERVISORD_PY_TEST_CACHE", "~/.cache/supervisord-py-tests")).expanduser()
SUITE = os.environ.get("SUPERVISORD_PY_TEST_SUITE", "trixie")
PACKAGES = "systemd,systemd-sysv,libpam-systemd,dbus,dbus-user-session,python3,python3-venv,procps"
PYTHON_OF = {"bookworm": "3.11", "trixie": "3.13"}
SERVICE = "supervisord-py.service"
HIERARCHIES = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")
DEADLINE_S = 60.0
BOOT_S = 120.0


def until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``condition``."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came: {what}"
        select.select([], [], [], 0.1)
    return value


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


def debian_root() -> Path:
    """Return a folder with a minimal Debian, made once."""
    assert os.geteuid() == 0, "only root can boot a container"
    missing = [program for program in ("mmdebstrap", "systemd-nspawn", "nsenter") if shutil.which(program) is None]
    assert not missing, f"missing: {missing}; apt-get install --no-install-recommends mmdebstrap systemd-container"
    root = CACHE / SUITE
    if not root.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = CACHE / f"{SUITE}.new"
        shutil.rmtree(new, ignore_errors=True)
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, new)
        new.rename(root)
    return root


def wheels(folder: Path, versions: Mapping[str, str | None]) -> Path:
    """Build our wheel under these versions into ``folder``, with the wheels of all that it needs.

    Args:
        folder: Is made.
        versions: By number, the commit that it is built from; None: this tree.
    """
    needed = CACHE / f"wheels-{SUITE}"
    if not needed.is_dir():
        new = CACHE / f"wheels-{SUITE}.new"
        shutil.rmtree(new, ignore_errors=True)
        platforms = [f"--platform={name}_x86_64" for name in ("manylinux2014", "manylinux_2_17", "manylinux_2_28")]
        names = re.findall(r'^  "(.*?)",$', _section("dependencies"), re.MULTILINE)
        pure = [name for name in names if name.startswith("sdnotify")]
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        run(*pip, "wheel", "--no-deps", "--wheel-dir", new, *pure)
        python = f"--python-version={PYTHON_OF[SUITE]}"
        others = [name for name in names if name not in pure]
        run(*pip, "download", "--only-binary=:all:", *platforms, python, "--dest", new, *others)
        new.rename(needed)
    shutil.copytree(needed, folder)
    for version, commit in versions.items():
        source = folder / f"source-{version}"
        if commit is None:
            left_out = shutil.ignore_patterns(".*", "tests", "bench", "__pycache__", "build", "dist")
            shutil.copytree(ROOT, source, ignore=left_out)
        else:
            source.mkdir()
            run("sh", "-c", 'git -C "$1" archive "$2" | tar -x -C "$3"', "sh", ROOT, commit, source)
        for path, name in (("pyproject.toml", "version"), ("supervisord_py/__init__.py", "__version__")):
            text = (source / path).read_text()
            line = f'{name} = "{version}"'
            text, count = re.subn(rf'^{name} = ".*"$', line, text, count=1, flags=re.MULTILINE)
            assert count == 1, path
            (source / path).write_text(text)
        run(sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", folder, source)
        shutil.rmtree(source)
    return folder


def _section(name: str) -> str:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(rf"^{name} = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


class Machine:
    """A booted container; commands run in all its namespaces, as root or as ``user``."""

    def __init__(self, leader: int, user: str | None = None) -> None:
        self.leader, self.user = leader, user

    def as_user(self, name: str) -> "Machine":
        return Machine(self.leader, name)

    def call(self, *command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a command; any exit code is good."""
        enter = [
            "nsenter",
            "-t",
            str(self.leader),
            "-a",
            "env",
            "-i",
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
        ]
        if self.user is not None:
            uid = self._uid()
            places = [f"HOME=/home/{self.user}", f"XDG_RUNTIME_DIR=/run/user/{uid}"]
            enter = [*enter, *places, "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return subprocess.run(
            [*enter, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False,
            **options,
        )  # fmt: skip

    def _uid(self) -> int:
        for line in (self.path("/etc/passwd")).read_text().splitlines():
            name, _, uid, *_ = line.split(":")
            if name == self.user:
                return int(uid)
        raise AssertionError(f"no user {self.user}")

    def do(self, *command: str) -> str:
        """Run a command that must succeed; returns what it printed."""
        done = self.call(*command)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def path(self, path: str) -> Path:
        """Where a file of the container is for us."""
        return Path(f"/proc/{self.leader}/root{path}")

    def systemctl(self, *arguments: str) -> str:
        return self.do("systemctl", *(["--user"] if self.user else []), *arguments)

    def show(self, name: str) -> str:
        return self.systemctl("show", "-P", name, SERVICE)

    def is_active(self) -> bool:
        """Whether the service is up; also asked before the user's systemd is."""
        user = ["--user"] if self.user else []
        return self.call("systemctl", *user, "is-active", SERVICE).stdout.strip() == "active"

    def log(self) -> str:
        """The journal of the service, for messages."""
        return self.call("journalctl", "--no-pager", "-n", "60").stdout


@contextmanager
def copied_root(work: Path) -> Iterator[Path]:
    """Make a root whose changes outlive its container, and remove it at the end."""
    root = work / "root"
    try:
        run("cp", "-a", "--reflink=auto", debian_root(), root)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def machine(wheels: Path, work: Path, *, root: Path | None = None, power_cut: bool = False) -> Iterator[Machine]:
    """Boot a container with the wheels in ``/wheels``.

    Args:
        wheels: What is to be installed.
        work: For its console.
        root: A root that keeps what is changed; by default nothing is left of the container afterwards.
        power_cut: It ends without a word in place of in order.
    """
    name = f"spy-{os.getpid()}"
    groups = [Path(hierarchy, name) for hierarchy in HIERARCHIES if os.path.isdir(hierarchy)]
    for group in groups:
        group.mkdir()
    console = (work / "console").open("w")
    # In control groups of its own, before anything else; with a /run of its own, where nspawn keeps what it knows.
    script = (
        'for group in $GROUPS_OF; do echo $$ > "$group/cgroup.procs"; done; '
        'exec unshare -m --propagation private sh -c \'mount -t tmpfs tmpfs /run && exec "$@"\' sh "$@"'
    )
    process = subprocess.Popen(
        [
            *("sh", "-c", script, "sh", "systemd-nspawn", "--quiet", "--boot", f"--directory={root or debian_root()}"),
            *("--register=no", "--keep-unit", "--private-network", f"--machine={name}", f"--hostname={name}"),
            *("--console=pipe", "--link-journal=no", f"--bind-ro={wheels}:/wheels"),
            *(() if root else ("--volatile=overlay",)),
        ],
        env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "GROUPS_OF": " ".join(map(str, groups))},
        stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
    )  # fmt: skip
    leader = 0
    try:

        def up() -> Machine | None:
            assert process.poll() is None, (work / "console").read_text()
            # The first child is not the last: nspawn makes the container's first process in steps.
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                booted = Machine(int(child))
                if booted.call("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"):
                    return booted
            return None

        booted = until(up, "a booted system", BOOT_S)
        leader = booted.leader
        yield booted
    finally:
        if leader:
            with suppress(ProcessLookupError):
                os.kill(leader, signal.SIGKILL if power_cut else signal.SIGRTMIN + 4)  # systemd: power off
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.kill(leader or process.pid, signal.SIGKILL)
            process.wait(30)
        console.close()
        for group in groups:
            until(lambda group=group: _remove(group), f"the end of {group}")


def _remove(group: Path) -> bool:
    for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):
            folder.rmdir()
    with suppress(OSError):
        group.rmdir()
    return not group.exists()
