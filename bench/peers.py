"""The supervisors that are compared: how each is told to run N copies of a program, and how its state is asked.

All defaults are kept but what N units need (descriptors) and where files go. Logging stays at each one's default:
supervisor and ours capture output to files, circus does not.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ("supervisor==4.3.0", "circus==0.19.0", "setuptools<81")


class Peer(Protocol):
    """One supervisor."""

    name: str

    def version(self) -> str: ...

    def prepare(self, folder: Path, count: int, program: list[str]) -> None:
        """Write its configuration; not measured."""

    def command(self, folder: Path, count: int, program: list[str]) -> list[str]: ...

    def environment(self, folder: Path) -> dict[str, str]: ...

    def status_command(self, folder: Path) -> list[str] | None: ...

    def running_in(self, text: str) -> int:
        """Count the units that the status text calls running."""


class Ours:
    name = "supervisord-py"

    def __init__(self) -> None:
        self._runtime: dict[Path, tempfile.TemporaryDirectory[str]] = {}

    def version(self) -> str:
        sys.path.insert(0, str(ROOT))
        from supervisord_py import __version__

        return __version__

    def prepare(self, folder: Path, count: int, program: list[str]) -> None:
        units = folder / "units"
        units.mkdir()
        words = ", ".join(f'"{word}"' for word in program)
        for number in range(count):
            (units / f"unit{number:04d}.toml").write_text(f"[service]\nexec-start = [{words}]\n")
        # The kernel allows 107 bytes for a socket's path, so the runtime folder is elsewhere and short.
        self._runtime[folder] = tempfile.TemporaryDirectory(prefix="spy-")

    def command(self, folder: Path, count: int, program: list[str]) -> list[str]:
        places = [
            f"--state-dir={folder}/state",
            f"--log-dir={folder}/log",
            f"--runtime-dir={self._runtime[folder].name}",
        ]
        return [sys.executable, "-m", "supervisord_py", "run", *places, f"{folder}/units"]

    def environment(self, folder: Path) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def status_command(self, folder: Path) -> list[str]:
        installed = Path(sys.executable).parent / "supctl"
        program = [str(installed)] if installed.exists() else [sys.executable, "-m", "supervisord_py.ctl"]
        return [*program, f"--socket={self._runtime[folder].name}/control.sock", "status"]

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

    def prepare(self, folder: Path, count: int, program: list[str]) -> None:
        (folder / "log").mkdir()
        text = (
            f"[supervisord]\nnodaemon=true\nlogfile={folder}/supervisord.log\npidfile={folder}/pid\n"
            f"childlogdir={folder}/log\nminfds={4 * count + 1000}\nuser=root\n"
            f"[unix_http_server]\nfile={folder}/sock\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{folder}/sock\n"
        )
        if os.geteuid() != 0:
            text = text.replace("user=root\n", "")
        text += "".join(f"[program:unit{number:04d}]\ncommand={' '.join(program)}\n" for number in range(count))
        (folder / "conf").write_text(text)

    def command(self, folder: Path, count: int, program: list[str]) -> list[str]:
        return [str(self.bin / "supervisord"), "-c", f"{folder}/conf"]

    def status_command(self, folder: Path) -> list[str]:
        return [str(self.bin / "supervisorctl"), "-c", f"{folder}/conf", "status"]

    def running_in(self, text: str) -> int:
        return text.count(" RUNNING ")


class Circus(_FromPip):
    name = "circus"
    distribution = "circus"

    def prepare(self, folder: Path, count: int, program: list[str]) -> None:
        text = f"[circus]\nendpoint = ipc://{folder}/ctl\npubsub_endpoint = ipc://{folder}/pub\n"
        text += "".join(
            f"[watcher:unit{number:04d}]\ncmd = {program[0]}\nargs = {' '.join(program[1:])}\n"
            for number in range(count)
        )
        (folder / "conf.ini").write_text(text)

    def command(self, folder: Path, count: int, program: list[str]) -> list[str]:
        return [str(self.bin / "circusd"), f"{folder}/conf.ini"]

    def status_command(self, folder: Path) -> list[str]:
        return [str(self.bin / "circusctl"), "--endpoint", f"ipc://{folder}/ctl", "status"]

    def running_in(self, text: str) -> int:
        return len(re.findall(r"^unit\d{4}: active$", text, re.MULTILINE))


class Loop:
    """The C loop: what the machine can do at all."""

    name = "C loop"

    def __init__(self, program: Path) -> None:
        self.program = program

    def version(self) -> str:
        return "bench/loop.c"

    def prepare(self, folder: Path, count: int, program: list[str]) -> None:
        """It has no configuration."""

    def command(self, folder: Path, count: int, program: list[str]) -> list[str]:
        return [str(self.program), str(count), *program]

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
