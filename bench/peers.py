"""The supervisors that are compared: how each is told to run N copies of a program, and how its state is asked.

All defaults are kept but what N units need (descriptors), where files go, and what a ``Load`` asks for. Logging stays
at each one's default otherwise: supervisor and ours capture output to files, circus does not.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
PM2 = "pm2@7.0.4"
REQUIREMENTS = ("supervisor==4.3.0", "circus==0.19.0", "setuptools<81")


@dataclass(frozen=True, slots=True)
class Load:
    """What a supervisor has to do: ``count`` times ``program``.

    ``quick`` asks for the shortest delay before a restart that it can be told, ``logged`` for a log file a unit.
    """

    count: int
    program: tuple[str, ...]
    quick: bool = False
    logged: bool = False


class Peer(Protocol):
    """One supervisor; ``default_delay`` and ``quick_delay`` say in words how long it waits before a restart."""

    name: str
    default_delay: str
    quick_delay: str | None

    def version(self) -> str: ...

    def prepare(self, folder: Path, load: Load) -> None:
        """Write its configuration; not measured."""

    def command(self, folder: Path, load: Load) -> list[str]: ...

    def environment(self, folder: Path) -> dict[str, str]: ...

    def status_command(self, folder: Path) -> list[str] | None: ...

    def running_in(self, text: str) -> int:
        """Count the units that the status text calls running."""


class Ours:
    name = "supervisord-py"
    default_delay = "restart-sec = 100ms, up to 10 % longer"
    quick_delay: str | None = "restart-sec = 0"

    def __init__(self) -> None:
        self._runtime: dict[Path, tempfile.TemporaryDirectory[str]] = {}

    def version(self) -> str:
        sys.path.insert(0, str(ROOT))
        from supervisord_py import __version__

        return __version__

    def prepare(self, folder: Path, load: Load) -> None:
        units = folder / "units"
        units.mkdir()
        words = ", ".join(f'"{word}"' for word in load.program)
        text = f"[service]\nexec-start = [{words}]\n" + ("restart-sec = 0\n" if load.quick else "")
        for number in range(load.count):
            (units / f"unit{number:04d}.toml").write_text(text)
        # The kernel allows 107 bytes for a socket's path, so the runtime folder is elsewhere and short.
        self._runtime[folder] = tempfile.TemporaryDirectory(prefix="spy-")

    def command(self, folder: Path, load: Load) -> list[str]:
        places = [
            f"--state-dir={folder}/state",
            f"--log-dir={folder}/log",
            f"--runtime-dir={self._runtime[folder].name}",
        ]
        return [sys.executable, "-m", "supervisord_py", "run", *places, f"{folder}/units"]

    def environment(self, folder: Path) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def runtime(self, folder: Path) -> Path:
        return Path(self._runtime[folder].name)

    def control(self, folder: Path, *arguments: str) -> list[str]:
        """Return the command line of ``supctl`` with these arguments."""
        installed = Path(sys.executable).parent / "supctl"
        program = [str(installed)] if installed.exists() else [sys.executable, "-m", "supervisord_py.ctl.cli"]
        return [*program, f"--socket={self.runtime(folder)}/control.sock", *arguments]

    def status_command(self, folder: Path) -> list[str]:
        return self.control(folder, "status")

    def running_in(self, text: str) -> int:
        return len(re.findall(r"\bunit\d{4} +active\b", text))


class _FromPip:
    """A peer that lives in a virtual environment of the bench."""

    distribution: str

    def __init__(self, venv: Path) -> None:
        self.bin = venv / "bin"

    def version(self) -> str:
        code = f"import importlib.metadata as m; print(m.version('{self.distribution}'))"
        return subprocess.run(
            [str(self.bin / "python"), "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()

    def environment(self, folder: Path) -> dict[str, str]:
        return dict(os.environ)


class Supervisor(_FromPip):
    name = "supervisor"
    distribution = "supervisor"
    default_delay = "none that could be set; it looks once a second"
    quick_delay: str | None = "startsecs = 0"

    def prepare(self, folder: Path, load: Load) -> None:
        (folder / "log").mkdir()
        text = (
            f"[supervisord]\nnodaemon=true\nlogfile={folder}/supervisord.log\npidfile={folder}/pid\n"
            f"childlogdir={folder}/log\nminfds={4 * load.count + 1000}\nuser=root\n"
            f"[unix_http_server]\nfile={folder}/sock\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{folder}/sock\n"
        )
        if os.geteuid() != 0:
            text = text.replace("user=root\n", "")
        more = "startsecs=0\n" if load.quick else ""
        text += "".join(
            f"[program:unit{number:04d}]\ncommand={' '.join(load.program)}\n{more}" for number in range(load.count)
        )
        (folder / "conf").write_text(text)

    def command(self, folder: Path, load: Load) -> list[str]:
        return [str(self.bin / "supervisord"), "-c", f"{folder}/conf"]

    def status_command(self, folder: Path) -> list[str]:
        return [str(self.bin / "supervisorctl"), "-c", f"{folder}/conf", "status"]

    def running_in(self, text: str) -> int:
        return text.count(" RUNNING ")


class Circus(_FromPip):
    name = "circus"
    distribution = "circus"
    default_delay = "check_delay = 5 s"
    quick_delay: str | None = "check_delay = 0.1 s"

    def prepare(self, folder: Path, load: Load) -> None:
        text = f"[circus]\nendpoint = ipc://{folder}/ctl\npubsub_endpoint = ipc://{folder}/pub\n"
        text += "check_delay = 0.1\n" if load.quick else ""
        program, log = load.program, folder / "log"
        if load.logged:
            log.mkdir()
        for number in range(load.count):
            text += f"[watcher:unit{number:04d}]\ncmd = {program[0]}\nargs = {' '.join(program[1:])}\n"
            if load.logged:
                text += f"stdout_stream.class = FileStream\nstdout_stream.filename = {log}/unit{number:04d}.log\n"
        (folder / "conf.ini").write_text(text)

    def command(self, folder: Path, load: Load) -> list[str]:
        return [str(self.bin / "circusd"), f"{folder}/conf.ini"]

    def status_command(self, folder: Path) -> list[str]:
        return [str(self.bin / "circusctl"), "--endpoint", f"ipc://{folder}/ctl", "status"]

    def running_in(self, text: str) -> int:
        return len(re.findall(r"^unit\d{4}: active$", text, re.MULTILINE))


class Flapping(Circus):
    """Circus with the plugin that is to end crash loops."""

    name = "circus with Flapping"

    def prepare(self, folder: Path, load: Load) -> None:
        super().prepare(folder, load)
        with (folder / "conf.ini").open("a") as file:
            file.write("[plugin:flapping]\nuse = circus.plugins.flapping.Flapping\nretry_in = 3\nmax_retry = 2\n")


class Pm2:
    """pm2, from npm, in a folder of its own."""

    name = "pm2"
    default_delay = "none"
    quick_delay: str | None = None

    def __init__(self, prefix: Path) -> None:
        self.program = prefix / "node_modules" / ".bin" / "pm2"

    def version(self) -> str:
        package = json.loads((self.program.parent.parent / "pm2" / "package.json").read_text())
        return str(package["version"])

    def prepare(self, folder: Path, load: Load) -> None:
        program, *words = load.program
        apps = [
            {"name": f"unit{number:04d}", "script": program, "args": words, "interpreter": "none"}
            for number in range(load.count)
        ]
        (folder / "apps.json").write_text(json.dumps({"apps": apps}))

    def command(self, folder: Path, load: Load) -> list[str]:
        return [str(self.program), "start", "--no-daemon", f"{folder}/apps.json"]

    def environment(self, folder: Path) -> dict[str, str]:
        return {**os.environ, "PM2_HOME": f"{folder}/pm2", "NO_COLOR": "1"}

    def status_command(self, folder: Path) -> list[str]:
        return [str(self.program), "status"]

    def running_in(self, text: str) -> int:
        return text.count(" online ")


class Loop:
    """The C loop: what the machine can do at all."""

    name = "C loop"
    default_delay = "none"
    quick_delay: str | None = None

    def __init__(self, program: Path) -> None:
        self.program = program

    def version(self) -> str:
        return "bench/loop.c"

    def prepare(self, folder: Path, load: Load) -> None:
        """It has no configuration, and captures nothing: a program that is to be logged writes into a file itself."""
        if load.logged:
            (folder / "log").mkdir()

    def command(self, folder: Path, load: Load) -> list[str]:
        own = [f"{folder}/log/"] if load.logged else []
        return [str(self.program), str(load.count), *load.program, *own]

    def environment(self, folder: Path) -> dict[str, str]:
        return dict(os.environ)

    def status_command(self, folder: Path) -> None:
        return None

    def running_in(self, text: str) -> int:
        return 0


def build(folder: Path, name: str) -> Path:
    """Compile ``name.c`` into ``folder``; static where possible, so that the loader is not part of the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    source, program = Path(__file__).parent / f"{name}.c", folder / name
    for static in (["-static"], []):
        done = subprocess.run(
            ["gcc", "-O2", "-Wall", *static, "-o", str(program), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return program
    raise SystemExit(f"cannot compile {source}: {done.stderr}")


def install_peers(venv: Path) -> None:
    """Make the virtual environment of the peers, once."""
    mark = venv / "installed"
    wanted = "\n".join(REQUIREMENTS)
    if mark.exists() and mark.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
    subprocess.run(pip, check=True)
    mark.write_text(wanted)


def install_pm2(prefix: Path) -> str | None:
    """Fetch pm2 with npm, once; return why it is not there."""
    mark = prefix / "installed"
    if mark.exists() and mark.read_text() == PM2:
        return None
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "pm2: there is no node or no npm"
    prefix.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(prefix), PM2]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return "pm2: npm did not fetch it in five minutes"
    if done.returncode != 0:
        return f"pm2: npm could not fetch it: {done.stderr.strip()[-200:]}"
    mark.write_text(PM2)
    return None
