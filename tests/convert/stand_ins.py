"""Programs that are not on this machine, replaced by one that says how it was called.

A *stand-in* writes its words, folder, umask and environment into a file named after its unit, and stays (or ends, for a
oneshot). Of a command that is executed directly the program's path is replaced; of one that a shell runs, the name is
found in PATH, or at the path beside the configuration that it names. Everything else of the unit is what the converter
wrote, but for what another machine would be needed for: accounts, folders that are not there, conditions, the
sandbox, and relations to units that are not taken along (``LEFT_OUT``).
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisord_py.convert.draft import Draft
from supervisord_py.convert.toml_text import unit_text
from tests.convert.bench import KEYS

LEFT_OUT = {
    "unit": ("requires", "wants", "requisite", "binds-to", "part-of", "conflicts", "after", "before", "upholds",
             "on-failure", "on-success", "enabled", "propagates-stop-to", "groups", "exit-supervisor-on",
             "on-dependency-failure"),
    "service": ("user", "group", "supplementary-groups", "dynamic-user", "pid-file", "environment-file",
                "load-credential", "runtime-directory", "state-directory", "cache-directory", "logs-directory",
                "configuration-directory", "standard-input", "standard-output", "standard-error", "activation",
                "exec-condition", "pass-environment"),
    "limits": ("nproc",),
}  # fmt: skip
"""Keys that are not put to the test here, by table. ``nproc`` counts all processes of whoever runs the tests."""
TABLES_LEFT_OUT = ("sandbox", "socket", "timer", "health", "instances")
_PHASES = ("exec-start-pre", "exec-start-post", "exec-reload", "exec-stop", "exec-stop-post")
_WITNESS = """#!/bin/sh
said="{folder}/${{SUPERVISORD_PY_UNIT:-$WITNESS}}"
for word in "$@"; do printf '%s\\0' "$word"; done > "$said.words"
env -0 > "$said.env"
umask > "$said.umask"
pwd > "$said.cwd"
mv "$said.words" "$said.said"
test -z "$WITNESS" || exit 0
{then}
"""


@dataclass
class Stage:
    """Where stand-ins are, and what they said."""

    folder: Path
    units: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir(parents=True)
        (self.folder / "said").mkdir()
        for name, then in (("stay", "exec sleep 1000"), ("end", "exit 0")):
            path = self.folder / name
            path.write_text(_WITNESS.format(folder=self.folder / "said", then=then))
            path.chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.folder}/bin:/usr/bin:/bin"

    def program(self, name: str, base: Path) -> None:
        """Put a stand-in where a shell finds this program."""
        place = base / name if "/" in name else self.folder / "bin" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(self.folder / "stay")

    def said(self, unit: str) -> Path:
        return self.folder / "said" / f"{unit}.said"

    def words(self, unit: str) -> list[str]:
        return self.said(unit).read_text().split("\0")[:-1]

    def environment(self, unit: str) -> dict[str, str]:
        lines = (self.folder / "said" / f"{unit}.env").read_text().split("\0")[:-1]
        return dict(line.partition("=")[::2] for line in lines)

    def umask(self, unit: str) -> int:
        return int((self.folder / "said" / f"{unit}.umask").read_text(), 8)

    def cwd(self, unit: str) -> str:
        return (self.folder / "said" / f"{unit}.cwd").read_text().rstrip("\n")

    def add(self, name: str, draft: Draft) -> bool:
        """Take a draft as the unit ``name``; returns whether it can be."""
        tables = {table: dict(values) for table, values in draft.tables.items() if table[0] not in TABLES_LEFT_OUT}
        service = tables.get(("service",))
        kind = None if service is None else service.get("type", "simple")
        if service is None or kind not in ("simple", "exec", "idle", "oneshot") or "exec-start" not in service:
            return False
        for table, keys in LEFT_OUT.items():
            for key in keys:
                tables.get((table,), {}).pop(key, None)
        unit = tables.setdefault(("unit",), {})
        for key in [key for key in unit if key.startswith(("condition-", "assert-"))]:
            del unit[key]
        directory = str(service.get("working-directory", "/")).removeprefix("-")
        if not Path(directory).is_dir():
            service.pop("working-directory", None)
        for phase in _PHASES:
            service.pop(phase, None)
        start = self._with_stand_in(service["exec-start"], "end" if kind == "oneshot" else "stay")
        if start is None:
            return False
        service["exec-start"] = start
        if kind == "oneshot":
            service["remain-after-exit"] = True
        self.units[name] = unit_text(Draft(name, tables=tables), KEYS, "made for a test")
        return True

    def _with_stand_in(self, command: Any, which: str) -> Any:
        """The command with its program replaced; None for one that this is too simple for."""
        if isinstance(command, list):
            if isinstance(command[0], str) and command[:2] in (["/bin/sh", "-c"], ["/bin/bash", "-c"]):
                return command
            return [str(self.folder / which), *command[1:]] if isinstance(command[0], str) else None
        if "\n" in command or ";" in command or not command or command[0] in "-@:+!":
            return None
        _, blank, rest = command.partition(" ")
        return f"{self.folder / which}{blank}{rest}"


def is_one_program(line: str) -> bool:
    """Whether a line for the shell is a program and its words, with nothing that only a shell does but variables."""
    if any(mark in line for mark in "|&;<>()`~*?[]{}!#%\n"):
        return False
    try:
        words = shlex.split(line)
    except ValueError:
        return False
    first = words[0] if words else ""
    return bool(first) and "=" not in first and "$" not in first and not first.startswith("/")


BUILTINS = frozenset({"echo", "exit", "test", "true", "false", "cd", "exec", "sleep", "env", "sh", "bash", "kill", "."})
"""Words that a shell knows itself, or that are on every machine."""
