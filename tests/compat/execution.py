"""Systemd's own execution units as its test runs them: what each needs, what it is to come to, what became of it here.

They check themselves and end with 0 when all is as it should be. They come from ``systemd-execute`` of the fixtures, by
path; ``execution.toml``, which is reviewed, says of which lines we differ on purpose, and what a unit needs that not
every machine has: there it *cannot apply*, which is no pass. Needs are looked up: a unit that can be judged is.

What became of a unit is one of the columns of ``Verdict``. A unit that would pass if what it asks for were left out
is no evidence, unless ``status`` says of a process of the same text that it is applied.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.model.capabilities import CAPABILITIES
from tests.compat import isolate
from tests.convert.bench import FIXTURES

FOLDER = FIXTURES / "systemd-execute"
REVIEWED = Path(__file__).parent / "execution.toml"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Mode(StrEnum):
    """Whom the supervisor runs as."""

    ROOT = "root"
    USER = "user"


class Verdict(StrEnum):
    PASSED = "passed"
    REFUSED = "refused as systemd refuses it"
    """To an ordinary user: it ended with the status that systemd's test expects of his manager."""
    NO_EVIDENCE = "passed, which shows nothing"
    CANNOT_APPLY = "cannot apply here"
    FAILED = "failed"


class Unit(Struct, frozen=True):
    """One unit; ``data`` is what the manifest says of it."""

    name: str
    file: Path
    data: dict[str, Any]

    @property
    def is_vacuous(self) -> bool:
        """Whether it passes without what its directives of the sandbox do."""
        return bool(self.data.get("passes_if_sandbox_directives_ignored", True))

    @property
    def variables(self) -> dict[str, str]:
        """What it wants to find in the manager's environment."""
        return dict(self.data.get("manager_environment", {}))

    def expected(self, mode: Mode) -> list[tuple[Verdict, str]]:
        """What it may come to."""
        wanted = self.data.get("expected", {"code": "exited", "status": 0})
        found = [(Verdict.PASSED, ending(wanted))]
        if mode is Mode.USER:
            for test in self.data["tests"]:
                theirs = ending(test["expect"]["user_unprivileged"])
                found += [(Verdict.REFUSED, theirs)] if theirs != found[0][1] else []
        return found


def ending(told: dict[str, Any]) -> str:
    """How a main process ended, in a word; of a unit whose main process never is, its result."""
    return str(told["result"]) if "result" in told else f"{told['code']} {told['status']}"


class Need(Struct, frozen=True, forbid_unknown_fields=True):
    """What units need that not every machine has; ``fact`` is looked up (``FACTS``)."""

    fact: str
    units: list[str]
    reason: str
    needed: str


class Difference(Struct, frozen=True, forbid_unknown_fields=True):
    """Lines of a unit that are taken out because we do something else on purpose; the others must hold."""

    unit: str
    without: list[str]
    why: str


class NoEvidence(Struct, frozen=True, forbid_unknown_fields=True):
    """A unit that ends well whatever is done with its directives, as far as can be seen."""

    unit: str
    modes: list[Mode]
    why: str


class _Document(Struct, frozen=True, forbid_unknown_fields=True):
    need: list[Need]
    difference: list[Difference]
    no_evidence: list[NoEvidence]


@cache
def reviewed() -> _Document:
    """What a person has said of the units."""
    return msgspec.toml.decode(REVIEWED.read_bytes(), type=_Document)


@cache
def all_units() -> dict[str, Unit]:
    """Return the units by name, none where the fixtures are missing."""
    manifest = FOLDER / "manifest.json"
    if not manifest.exists():
        return {}
    found = {}
    for data in json.loads(manifest.read_text(encoding="utf-8"))["units"]:
        name = data["start_as"].removesuffix(".service")
        found[name] = Unit(name, FOLDER / data["file"], data)
    return found


@cache
def contents() -> dict[str, str]:
    """Return the texts of files that units read, by the key in their set-up."""
    return dict(json.loads((FOLDER / "setup-files.json").read_text(encoding="utf-8")))


# what a machine has


def _has_capability(name: str) -> bool:
    status = Path("/proc/self/status").read_text()
    permitted = int(re.findall(r"CapPrm:\s*([0-9a-f]+)", status)[0], 16)
    return bool(permitted >> CAPABILITIES.index(name) & 1)


@cache
def can_make_devices() -> bool:
    """Whether root can make a network device in a network of its own."""
    if shutil.which("ip", path=PATH) is None or os.geteuid() != 0:
        return False
    tries = " || ".join(f"ip link add probe0 type {kind}" for kind in isolate.DEVICE_KINDS)
    done = subprocess.run(["unshare", "--net", "sh", "-c", tries], capture_output=True, check=False, env={"PATH": PATH})
    return done.returncode == 0


@cache
def can_isolate() -> bool:
    """Whether a mount namespace can be made at all."""
    spec = {"empty": ["/tmp"], "keep": [], "over": {}, "write": {}, "shell": [], "devices": [], "uid": None}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(spec, file)
        file.flush()
        command = [sys.executable, isolate.__file__, file.name, "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


FACTS: dict[str, Callable[[Mode], bool]] = {
    "root": lambda mode: mode is Mode.ROOT,
    "three processors": lambda _: len(os.sched_getaffinity(0)) >= 3 and {0, 1, 2} <= os.sched_getaffinity(0),
    "CAP_SYS_RESOURCE": lambda mode: mode is Mode.ROOT and _has_capability("sys_resource"),
    "CAP_SYS_RAWIO": lambda mode: mode is Mode.ROOT and _has_capability("sys_rawio"),
    "an s390": lambda _: platform.machine().startswith("s390"),
    "network devices": lambda _: can_make_devices(),
    "/dev/kmsg": lambda _: os.path.exists("/dev/kmsg"),
    "bash": lambda _: shutil.which("bash", path=PATH) is not None,
    "capsh": lambda _: shutil.which("capsh", path=PATH) is not None,
    "unshare": lambda _: shutil.which("unshare", path=PATH) is not None,
    "ldd": lambda _: shutil.which("ldd", path=PATH) is not None,
    "/usr/bin/python3": lambda _: os.path.exists("/usr/bin/python3"),
}
"""What a need is about, and whether it is there: a machine that has it must pass the units that need it."""


def missing(unit: Unit, mode: Mode) -> Need | None:
    """Return what a unit needs that is not here."""
    for need in reviewed().need:
        if unit.name in need.units and not FACTS[need.fact](mode):
            return need
    return None


# how it came out

Outcome = tuple[str, str, str, str]
"""Mode, unit, verdict, and the reason where there is one."""


def ledger(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the ledger: a line of counts for each mode, then each unit that did not pass, with the reason."""
    lines: list[str] = []
    for mode in Mode:
        found = {unit: (Verdict(verdict), reason) for where, unit, verdict, reason in outcomes if where == mode}
        if not found:
            continue
        counts = {each: sum(verdict is each for verdict, _ in found.values()) for each in Verdict}
        told = ", ".join(
            f"{count} {verdict}" for verdict, count in counts.items() if count or verdict is Verdict.FAILED
        )
        lines.append(f"systemd's execution units as {mode}: {told}, of {len(found)}")
        for verdict in (Verdict.FAILED, Verdict.CANNOT_APPLY, Verdict.NO_EVIDENCE):
            by_reason: dict[str, list[str]] = {}
            for unit, (other, reason) in sorted(found.items()):
                if other is verdict:
                    by_reason.setdefault(reason, []).append(unit.removeprefix("exec-"))
            lines += [f"  {verdict}: {', '.join(units)}: {reason}" for reason, units in by_reason.items()]
    return lines
