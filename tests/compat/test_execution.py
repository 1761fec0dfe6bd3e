"""Systemd's own self-checking execution units, converted, and run by real supervisors: as root and as a user.

One supervisor has nearly all of them, one those that want variables in its environment. They are run one after the
other, in the order of their names, on a machine whose folders are its own (``isolate``).
"""

import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from supervisord_py.convert.draft import Draft, Fate, SourceFile
from supervisord_py.convert.reading import read_file
from supervisord_py.convert.toml_text import unit_text
from supervisord_py.ctl.client import Client, ControlError
from supervisord_py.model.values import parse_signal
from tests.compat import isolate
from tests.compat.execution import (
    FACTS,
    FOLDER,
    PATH,
    Mode,
    Unit,
    Verdict,
    all_units,
    can_isolate,
    can_make_devices,
    contents,
    ledger,
    missing,
    reviewed,
)
from tests.convert.bench import KEYS, converted, lost_of
from tests.integration.supervisor_rig import ROOT, RunningSupervisor, supervisor, until

pytestmark = [pytest.mark.xdist_group("systemd-units"), pytest.mark.slow]

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = 65534
SETTINGS = '[journal]\nsync = "never"\n'
EMPTY = ("/tmp", "/run", "/var/tmp", "/var/lib", "/var/cache", "/var/log")
DEVICES = (("", "dummy-test-exec"), ("test-execute-netns", "dummy-test-ns"))
"""Network devices of systemd's test, each in its network namespace."""

WITNESS = "w-"
"""Begins the name of a unit with the same text but for its commands: it stays, so that its status can be looked at."""

COMMANDS = ("condition", "start", "start-pre", "start-post", "stop", "stop-post", "reload")


def accounts() -> dict[str, str]:
    """Return the lists of accounts with names that other distributions have: there ``adm`` is a user and a group."""
    texts = {path: Path(path).read_text() for path in ("/etc/passwd", "/etc/group")}
    groups = {line.split(":")[0]: line.split(":")[2] for line in texts["/etc/group"].splitlines()}
    adm = groups.get("adm", "64991")
    texts["/etc/passwd"] += f"nfsnobody:x:64990:64990::/:/usr/sbin/nologin\nadm:x:64991:{adm}::/:/usr/sbin/nologin\n"
    names = {"nfsnobody": "64990", "adm": adm, "nobody": "64992", "nogroup": str(NOBODY)}
    texts["/etc/group"] += "".join(f"{name}:x:{gid}:\n" for name, gid in names.items() if name not in groups)
    return texts


def drop_in(unit: Unit) -> list[SourceFile]:
    """Return what systemd's test adds to a unit before it runs it."""
    if unit.name != "exec-mount-apivfs-no":
        return []
    programs = [str(shutil.which(name, path=PATH)) for name in ("touch", "test")]
    told = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    libraries = dict.fromkeys(re.findall(r"(/\S+) \(0x", told))
    lines = [f"ExecStart={programs[0]} /aaa", f"ExecStart={programs[1]} -f /aaa"]
    lines += [f"BindReadOnlyPaths={path}" for path in (*programs, *libraries)]
    return [SourceFile(f"{unit.name}.service.d/10-bind-mount.conf", "\n".join(["[Service]", *lines]))]


def convert(unit: Unit) -> tuple[Draft | None, list[str]]:
    """Return a unit in our words, and the directives that could not be carried over."""
    text = read_file(str(unit.file)).text
    for difference in reviewed().difference:
        for line in difference.without if difference.unit == unit.name else ():
            assert f"{line}\n" in text, f"{unit.name} has no line {line}"
            text = text.replace(f"{line}\n", "")
    conversion = converted("systemd", [SourceFile(f"{unit.name}.service", text), *drop_in(unit)])
    kept = {use.place.key for use in conversion.ledger.uses if use.fate is Fate.CARRIED}
    lost = sorted({key for _, key, _ in lost_of(conversion)} - kept)
    return conversion.drafts.get(unit.name), lost


def witness(draft: Draft) -> Draft:
    made = copy.deepcopy(draft)
    service = made.table("service")
    for command in COMMANDS:
        service.pop(f"exec-{command}", None)
    service |= {"type": "simple", "exec-start": ["/bin/sleep", "1000"]}
    return made


def confining(draft: Draft) -> set[str]:
    """Return the keys of the sandbox by which a unit asks for something that it would not have anyway."""
    table = draft.tables.get(("sandbox",), {})
    return {key for key, value in table.items() if value is not False and key not in ("enforce", "keyring-mode")}


class Season:
    """What became of the units of one mode, run when the first of them is asked for."""

    def __init__(self, mode: Mode, wanted: Sequence[Unit]) -> None:
        self._mode = mode
        self._wanted = [unit for unit in wanted if missing(unit, mode) is None]
        self._results: dict[str, Result] = {}
        self._has_run = False

    def result(self, unit: Unit) -> "Result":
        if not self._has_run:
            self._has_run = True
            for needs_variables in (False, True):
                units = [each for each in self._wanted if bool(each.variables) is needs_variables]
                if units:
                    self._run(units)
        return self._results[unit.name]

    def _run(self, units: Sequence[Unit]) -> None:
        drafts: dict[str, Draft] = {}
        lost: dict[str, list[str]] = {}
        for unit in units:
            draft, lost[unit.name] = convert(unit)
            assert draft is not None, f"{unit.name} is not converted: {lost[unit.name]}"
            drafts[unit.name] = draft
        texts = {name: unit_text(draft, KEYS, "converted") for name, draft in drafts.items()}
        watched = [unit.name for unit in units if unit.is_vacuous and confining(drafts[unit.name])]
        texts |= {f"{WITNESS}{name}": unit_text(witness(drafts[name]), KEYS, "converted") for name in watched}
        with isolated_supervisor(self._mode, units, texts) as running, running.client(timeout_s=120) as client:
            for unit in units:
                status = act(running, client, unit.name)
                shown = look_at(running, client, f"{WITNESS}{unit.name}") if unit.name in watched else ()
                unseen = sorted(confining(drafts[unit.name]) - set(shown)) if unit.name in watched else []
                self._results[unit.name] = Result(ended(status), texts[unit.name], lost[unit.name], unseen, status)


class Result(Struct, frozen=True):
    """``ending`` is how it ended, ``lost`` what could not be carried over, ``unseen`` what may be without effect."""

    ending: str
    text: str
    lost: list[str]
    unseen: list[str]
    status: dict[str, Any]

    def told(self) -> str:
        without = "".join(f"; without {line}" for line in self.status["degraded"])
        return f"{self.ending}: {self.status['why']}{without}\n{self.status['lines']}\n{self.text}"


@contextmanager
def isolated_supervisor(mode: Mode, units: Sequence[Unit], texts: dict[str, str]) -> Iterator[RunningSupervisor]:
    """Run a supervisor of units on a machine of its own."""
    uid = NOBODY if mode is Mode.USER and os.geteuid() == 0 else None
    variables = {name: value for unit in units for name, value in unit.variables.items()}
    with tempfile.TemporaryDirectory(prefix="spy-x-") as name:
        spec = Path(name) / "spec.json"

        def prepare(folder: Path) -> None:
            seen = [folder, ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(msgspec.__file__).parents[1]]
            spec.write_text(json.dumps(make_spec(units, seen, uid)))

        prefix = [sys.executable, isolate.__file__, str(spec)]
        prefix += ["/usr/bin/env", *(f"{name}={value}" for name, value in variables.items())] if variables else []
        with supervisor(
            texts, settings=SETTINGS, uid=uid, prefix=tuple(prefix), prefix_becomes_user=True, prepare=prepare
        ) as running:
            yield running


def make_spec(units: Sequence[Unit], seen: Sequence[Path], uid: int | None) -> dict[str, Any]:
    """Return what ``isolate`` is to do: what must be seen of the machine, and the set-up of the units."""
    write: dict[str, str] = {}
    shell: list[str] = [
        "mkdir -p /tmp/test-exec-mount-apivfs-no/root && chmod 1777 /tmp/test-exec-mount-apivfs-no/root"
    ]
    for unit in units:
        for line in unit.data.get("setup", ()):
            if line.startswith("@write "):
                _, path, key = line.split(" ", 2)
                write[path] = contents()[key]
            else:
                shell.append(line)
    keep = [str(path.resolve()) for path in seen] + ([str(path) for path in seen])
    hidden = [path for path in keep if any(path.startswith(f"{folder}/") for folder in EMPTY)]
    outer = [path for path in hidden if not any(path.startswith(f"{other}/") for other in hidden)]
    is_root = os.geteuid() == 0
    devices = DEVICES if can_make_devices() else ()
    return {
        "empty": EMPTY,
        "keep": sorted({*outer, *(["/sys/fs/cgroup"] if devices else [])}),
        "over": accounts() if is_root else {},
        "write": write,
        "shell": shell,
        "devices": devices,
        "uid": uid,
    }


def act(running: RunningSupervisor, client: Client, unit: str) -> dict[str, Any]:
    """Start a unit; returns its status when it has ended."""
    with contextlib.suppress(ControlError):
        client.call("Start", units=[unit], plan=False, wait=True)

    def over() -> dict[str, Any] | None:
        (status,) = client.call("Status", units=[unit], lines=10)["units"]
        assert status["load_state"] == "loaded", status["why"]
        return dict(status) if status["active_state"] in ("inactive", "failed") else None

    found: dict[str, Any] = until(over, f"the end of {unit}")
    return found


def ended(status: dict[str, Any]) -> str:
    exit_ = status["exit"] or {}
    if exit_.get("signal") is not None:
        return f"killed {int(parse_signal(exit_['signal']))}"
    if exit_.get("code") is not None:
        return f"exited {exit_['code']}"
    return str(status["result"]).replace("_", "-")


def look_at(running: RunningSupervisor, client: Client, unit: str) -> list[str]:
    """Return the keys that status says are applied to a unit that runs."""
    with contextlib.suppress(ControlError):
        client.call("Start", units=[unit], plan=False, wait=True)
    (status,) = client.call("Status", units=[unit], lines=0)["units"]
    client.call("Stop", units=[unit], plan=False, wait=True)
    return [line.partition(":")[0] for line in status["applied"]]


MODES = [pytest.param(Mode.ROOT, marks=[pytest.mark.root, AS_ROOT]), Mode.USER]


@pytest.fixture(scope="module")
def seasons(request: pytest.FixtureRequest) -> dict[Mode, Season]:
    wanted = {item.callspec.params["name"] for item in request.session.items if "seasons" in item.fixturenames}
    units = [unit for name, unit in sorted(all_units().items()) if name in wanted]
    return {mode: Season(mode, units) for mode in Mode}


@pytest.mark.skipif(not all_units(), reason=f"{FOLDER} is missing: set SUPERVISORD_PY_FIXTURES")
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_nothing_was_left_out_where_a_unit_passed(mode: Mode) -> None:
    """With ``enforce = "strict"``, where what cannot be applied fails the start, those that end with 0 end with 0."""
    if not can_isolate():
        pytest.skip("no mount namespace can be made")
    units = [unit for _, unit in sorted(all_units().items()) if missing(unit, mode) is None and not unit.variables]
    drafts = {unit.name: draft for unit in units if (draft := convert(unit)[0]) is not None}
    drafts = {name: draft for name, draft in drafts.items() if confining(draft) or ("limits",) in draft.tables}
    units = [unit for unit in units if unit.name in drafts]
    for draft in drafts.values():
        for table in ("limits", "sandbox"):
            if (table,) in draft.tables:
                draft.table(table)["enforce"] = "strict"
    texts = {name: unit_text(draft, KEYS, "converted") for name, draft in drafts.items()}
    wrong = []
    with isolated_supervisor(mode, units, texts) as running, running.client(timeout_s=120) as client:
        for unit in units:
            wanted = [told for verdict, told in unit.expected(mode) if verdict is Verdict.PASSED]
            status = act(running, client, unit.name)
            is_refused = len(unit.expected(mode)) > 1 and ended(status) != "exited 0"
            if ended(status) not in wanted and not is_refused:
                wrong.append(f"{unit.name}: {ended(status)}: {status['why']}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_seen_outside(tmp_path: Path) -> None:
    """What is done where the machine's folders are a command's own is not done to the machine."""
    if not can_isolate():
        pytest.skip("no mount namespace can be made")
    (tmp_path / "kept").mkdir()
    spec = tmp_path / "spec.json"
    mark = f"supervisord-py-test-{os.getpid()}"
    write = {f"{folder}/{mark}": "x" for folder in EMPTY}
    spec.write_text(json.dumps(make_spec([], [tmp_path / "kept"], None) | {"write": write}))
    command = f"ls {' '.join(EMPTY)}; touch {tmp_path}/kept/done"
    done = subprocess.run(
        [sys.executable, isolate.__file__, str(spec), "sh", "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.count(mark) == len(EMPTY)
    assert not any(os.path.exists(path) for path in write)
    assert (tmp_path / "kept" / "done").exists()


def test_what_is_reviewed_is_about_units() -> None:
    """Every unit that is named is one, and every fact is looked up; a unit with a need of its machine is no failure."""
    listed = reviewed()
    assert {need.fact for need in listed.need} <= FACTS.keys()
    named = [unit for need in listed.need for unit in need.units]
    named += [each.unit for each in (*listed.difference, *listed.no_evidence)]
    assert not all_units() or set(named) <= all_units().keys()
    tools = {need.fact: need.units for need in listed.need}
    for unit in all_units().values():
        for word in unit.data["needs"]:
            kind, _, tool = word.partition(":")
            if kind == "tool" and tool not in ("ip", "python3"):
                assert unit.name in tools[tool], f"{unit.name} needs {tool}"


def test_the_ledger_counts_each_unit_once() -> None:
    """By mode and verdict, with the reason of each that did not pass."""
    outcomes = [
        ("root", "exec-a", "passed", ""),
        ("root", "exec-b", "cannot apply here", "no luck"),
        ("root", "exec-c", "cannot apply here", "no luck"),
        ("root", "exec-d", "failed", "exited 1"),
        ("user", "exec-a", "refused as systemd refuses it", ""),
        ("user", "exec-b", "passed, which shows nothing", "it is vain"),
    ]
    assert ledger(outcomes) == [
        "systemd's execution units as root: 1 passed, 2 cannot apply here, 1 failed, of 4",
        "  failed: d: exited 1",
        "  cannot apply here: b, c: no luck",
        "systemd's execution units as user: 1 refused as systemd refuses it, 1 passed, which shows nothing, "
        "0 failed, of 2",
        "  passed, which shows nothing: b: it is vain",
    ]
    assert ledger([]) == []


@pytest.mark.skipif(not all_units(), reason=f"{FOLDER} is missing: set SUPERVISORD_PY_FIXTURES")
@pytest.mark.parametrize("name", sorted(all_units()))
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_unit_finds_what_it_wants(
    name: str, mode: Mode, seasons: dict[Mode, Season], record_property: Callable[[str, object], None]
) -> None:
    """It ends as it does under systemd; what it cannot show here is told, and is no pass."""
    unit = all_units()[name]

    def tell(verdict: Verdict, reason: str = "") -> None:
        record_property("execution", [mode.value, name, verdict.value, reason])

    if not can_isolate():
        tell(Verdict.CANNOT_APPLY, "no mount namespace can be made")
        pytest.skip("no mount namespace can be made")
    need = missing(unit, mode)
    if need is not None:
        tell(Verdict.CANNOT_APPLY, need.reason)
        pytest.skip(need.reason)
    result = seasons[mode].result(unit)
    verdict = next((each for each, told in unit.expected(mode) if told == result.ending), Verdict.FAILED)
    listed = [each.why for each in reviewed().no_evidence if each.unit == name and mode in each.modes]
    if verdict is Verdict.PASSED and result.ending == "exited 0" and result.status["result"] != "success":
        verdict = Verdict.FAILED
    if verdict is Verdict.FAILED:
        tell(verdict, result.ending)
        pytest.fail(f"{name} as {mode}: {result.told()}")
    shows_nothing = [f"{key} is not carried over" for key in result.lost]
    shows_nothing += [f"{key} is not applied" for key in result.unseen]
    if verdict is Verdict.PASSED and (listed or shows_nothing):
        tell(Verdict.NO_EVIDENCE, "; ".join(listed or shows_nothing))
        assert listed, f"{name} as {mode} shows nothing ({'; '.join(shows_nothing)}), and is not listed as such"
    else:
        tell(verdict)
