"""Converted units really run: twenty of each format under one supervisor, and each says what it was called with."""

import json
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

from supervisord_py.convert.draft import ConvertError, SourceFile
from supervisord_py.convert.toml_text import unit_text
from supervisord_py.convert.yaml_text import load_yaml
from tests.convert.bench import KEYS, converted, debian_sets, fixture, read_all
from tests.convert.stand_ins import BUILTINS, Stage, is_one_program
from tests.integration.supervisor_rig import supervisor, until

pytestmark = pytest.mark.slow

OF_EACH = 20
STARTED_S = 120.0

Expected = dict[str, dict[str, Any]]
"""What each unit is to say, by its name: words, and what of environment, umask and folder is known."""


@pytest.fixture
def stage() -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="spy-c-"))
    try:
        yield Stage(folder / "s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def from_systemd(stage: Stage) -> Expected:
    """Words, variables and umask are those that booted systemd told."""
    found: Expected = {}
    folder = fixture("debian-units") / "_expected"
    for name, paths in debian_sets():
        package, scope = name.split("/")
        answers = folder / f"{package}.json"
        if scope != "system" or not answers.exists() or len(found) >= OF_EACH:
            continue
        theirs = json.loads(answers.read_text())
        drafts = converted("systemd", read_all(paths)).drafts
        for unit, draft in drafts.items():
            service = theirs.get(f"{unit}.service", {}).get("Service", {})
            starts = service.get("ExecStartEx", [])
            if len(starts) != 1 or any("$" in word for word in starts[0][1]) or len(found) >= OF_EACH:
                continue
            if stage.add(f"systemd-{len(found)}", draft):
                found[f"systemd-{len(found)}"] = {
                    "words": starts[0][1][1:],
                    "environment": dict(line.partition("=")[::2] for line in service.get("Environment", [])),
                    "umask": service.get("UMask", 0o022),
                }
    return found


def from_supervisord(stage: Stage) -> Expected:
    """Words, variables and umask are those that supervisor read."""
    found: Expected = {}
    folder = fixture("supervisord")
    answers = json.loads((folder / "_expected.json").read_text())
    for path in sorted(folder.iterdir()):
        theirs = answers.get(f"supervisord/{path.name}", {})
        if "groups" not in theirs or "ENV_" in path.read_text() or len(found) >= OF_EACH:
            continue
        drafts = converted("supervisord", read_all([str(path)])).drafts
        processes = {process["name"]: process for group in theirs["groups"] for process in group["processes"]}
        for unit, draft in drafts.items():
            process = processes.get(unit)
            if process is None or "None" in process["command"] or len(found) >= OF_EACH:
                continue
            if stage.add(f"supervisord-{len(found)}", draft):
                found[f"supervisord-{len(found)}"] = {
                    "words": shlex.split(process["command"])[1:],
                    "environment": process["environment"],
                    "umask": 0o022 if process["umask"] is None else process["umask"],
                }
    return found


def from_circus(stage: Stage) -> Expected:
    """Words and variables are those that circus read; what a shell runs is left to the Procfiles."""
    found: Expected = {}
    folder = fixture("circus")
    answers = json.loads((folder / "_expected.json").read_text())
    for path in sorted(folder.iterdir()):
        theirs = {each["name"]: each for each in answers.get(f"circus/{path.name}", {}).get("watchers", ())}
        if path.name.startswith("_") or len(found) >= OF_EACH:
            continue
        for unit, draft in converted("circus", read_all([str(path)])).drafts.items():
            watcher = theirs.get(unit.removesuffix("@"))
            if watcher is None or watcher["shell"] or len(found) >= OF_EACH:
                continue
            line = f"{watcher['cmd']} {watcher['args'] or ''}"
            if "$(" not in line and stage.add(f"circus-{len(found)}", draft):
                own = {name: value for name, value in watcher["env"].items() if not watcher["copy_env"]}
                found[f"circus-{len(found)}"] = {
                    "words": shlex.split(line)[1:],
                    "environment": {n: v for n, v in own.items() if n != "__name__" and "$" not in v},
                }
    return found


def from_procfiles(stage: Stage) -> Expected:
    """A shell is asked what it makes of the command line that honcho read."""
    found: Expected = {}
    folder = fixture("procfile")
    answers = json.loads((folder / "_expected.json").read_text())
    for index, path in enumerate(sorted(folder.iterdir())):
        base = stage.folder / f"p{index}"
        theirs = answers.get(f"procfile/{path.name}", {}).get("processes", {})
        if not theirs:
            continue
        base.mkdir()
        files = [SourceFile(path.name, path.read_text(), str(base))]
        _shell_lines(stage, "procfile", converted("procfile", files).drafts, theirs, base, found)
    return found


def from_process_compose(stage: Stage) -> Expected:
    """The same of the commands that stand in the YAML."""
    found: Expected = {}
    for index, path in enumerate(sorted(fixture("process-compose").iterdir())):
        base = stage.folder / f"c{index}"
        base.mkdir()
        try:
            document, _ = load_yaml(path.read_text(), path.name)
            drafts = converted("process-compose", [SourceFile(path.name, path.read_text(), str(base))]).drafts
        except ConvertError:
            continue
        for draft in drafts.values():
            draft.table("service").setdefault("working-directory", str(base))
        processes = document.get("processes") or {}
        theirs = {
            name: str(each["command"]).strip()
            for name, each in processes.items()
            if isinstance(each, dict) and "command" in each and "working_dir" not in each
        }
        _shell_lines(stage, "process-compose", drafts, theirs, base, found)
    return found


def _shell_lines(
    stage: Stage, label: str, drafts: dict[str, Any], theirs: dict[str, str], base: Path, found: Expected
) -> None:
    for unit, draft in drafts.items():
        line = theirs.get(unit)
        if line is None or len(found) >= OF_EACH:
            continue
        first = shlex.split(line)[0] if is_one_program(line) else ""
        is_simple = draft.get("service", "type") is None
        if not first or (label == "procfile" and first in BUILTINS) or not is_simple:
            continue
        if first in BUILTINS:
            # What every machine has runs as it is; what it prints and how it ends says that it ran.
            if first == "echo" and stage.add(f"{label}-{len(found)}", draft):
                found[f"{label}-{len(found)}"] = {"prints": shlex.split(line)[1:]}
            continue
        stage.program(first, base)
        if stage.add(f"{label}-{len(found)}", draft):
            found[f"{label}-{len(found)}"] = {"words": _asked(stage, line, base), "cwd": str(base)}


def _asked(stage: Stage, line: str, base: Path) -> list[str]:
    """What a shell calls the program of a line with."""
    name = "asked"
    stage.said(name).unlink(missing_ok=True)
    environment = {"PATH": stage.path, "WITNESS": name}
    subprocess.run(["/bin/sh", "-c", line], env=environment, cwd=base, check=True, timeout=STARTED_S)
    return stage.words(name)


def from_horust(stage: Stage) -> Expected:
    """Words are those that the command splits into."""
    found: Expected = {}
    for path in sorted(fixture("horust").iterdir()):
        document = tomli.loads(path.read_text())
        command = document.get("command")
        if not isinstance(command, str) or "$" in command or len(found) >= OF_EACH:
            continue
        variables = document.get("environment", {}).get("additional", {})
        for draft in converted("horust", read_all([str(path)])).drafts.values():
            words = shlex.split(command)
            is_shell = words[:2] in (["/bin/bash", "-c"], ["/bin/sh", "-c"])
            if not stage.add(f"horust-{len(found)}", draft):
                continue
            if is_shell and words[2].startswith("echo "):
                found[f"horust-{len(found)}"] = {"prints": shlex.split(words[2])[1:]}
            elif not is_shell:
                found[f"horust-{len(found)}"] = {"words": words[1:], "environment": variables}
            else:
                del stage.units[f"horust-{len(found)}"]
    return found


def from_pm2(stage: Stage) -> Expected:
    """Twenty apps: words are interpreter's options, the script, and its arguments."""
    apps = [
        {
            "name": f"app-{index}",
            "script": script,
            "args": ["--n", str(index), "a b%", "$HOME"] if index % 2 else "--x 'y z'",
            "cwd": "/tmp",
            "env": {"N": index, "TEXT": "50% of it"},
            **({"interpreter": "/opt/own/python", "interpreter_args": "-u -O"} if index % 5 == 0 else {}),
        }
        for index, script in enumerate(["app.js", "./tools/job.py", "/opt/x/run.sh", "web.rb"] * 5)
    ]
    text = f"module.exports = {{ apps: {json.dumps(apps)} }}"
    found: Expected = {}
    for app, draft in zip(apps, converted("pm2", [SourceFile("e.config.js", text)]).drafts.values(), strict=True):
        assert stage.add(f"pm2-{len(found)}", draft)
        script = str(app["script"])
        path = script if script.startswith("/") else f"/tmp/{script.removeprefix('./')}"
        args = app["args"] if isinstance(app["args"], list) else shlex.split(str(app["args"]))
        options = shlex.split(str(app.get("interpreter_args", "")))
        found[f"pm2-{len(found)}"] = {
            "words": [*options, path, *args],
            "environment": {"N": str(app["env"]["N"]), "TEXT": "50% of it"},  # type: ignore[index]
            "cwd": "/tmp",
        }
    return found


SOURCES: dict[str, Callable[[Stage], Expected]] = {
    "systemd": from_systemd, "supervisord": from_supervisord, "procfile": from_procfiles, "pm2": from_pm2,
    "circus": from_circus, "horust": from_horust, "process-compose": from_process_compose,
}  # fmt: skip


ENDS = """
[program:early]
command=sh -c "exit 1"
startretries=1
[program:late]
command=sh -c "sleep 1.2; exit 1"
startretries=1
[fcgi-program:fcgi]
command=sh -c "test -S /proc/self/fd/0 && echo a socket is the input; exec sleep 1000"
socket=unix://%(here)s/fcgi.sock
"""
"""An end within startsecs counts there, a later one does not; a FastCGI program has its socket as standard input."""


@pytest.mark.timeout(600)
def test_twenty_of_each_format_run(stage: Stage, record_property: Callable[[str, object], None]) -> None:
    """Each unit is up (or has done what it had to), and its program was called as the other supervisor calls it."""
    expected: Expected = {}
    counts: Counter[str] = Counter()
    for name, source in SOURCES.items():
        made = source(stage)
        counts[name] = len(made)
        expected |= made
    defaults = f'[service.environment]\nPATH = "{stage.path}"\n'

    def prepare(folder: Path) -> None:
        (folder / "units" / "defaults.toml").write_text(defaults)

    wrong: list[str] = []
    ends = converted("supervisord", [SourceFile("s.conf", ENDS, str(stage.folder))]).drafts
    units = {name: stage.units[name] for name in expected} | {
        name: unit_text(draft, KEYS, "made for a test") for name, draft in ends.items()
    }
    with supervisor(units, prepare=prepare) as running:
        witnesses = [name for name, each in expected.items() if "words" in each]
        missing = [name for name in expected if name not in stage.units]
        assert not missing
        until(lambda: all(stage.said(name).exists() for name in witnesses), "every stand-in", STARTED_S)
        for name, each in expected.items():
            wrong += [f"{name}: {line}\n{stage.units[name]}" for line in _judged(stage, running, name, each)]
        log = running.log_folder / "fcgi.log"
        until(lambda: log.exists() and "a socket is the input" in log.read_text(), "a socket as standard input")
        assert running.wait_state("early", "quarantined")["failures"] == 2
        until(lambda: running.status("late")["restarts"] >= 3, "restarts without an end of late ends", STARTED_S)
    record_property("summary", f"convert, units that really ran: {dict(counts)}")
    assert not wrong, "\n".join(wrong)
    assert all(count >= OF_EACH for count in counts.values()), dict(counts)


def _judged(stage: Stage, running: Any, name: str, each: dict[str, Any]) -> list[str]:
    status = running.status(name)
    if "prints" in each:
        text = " ".join(each["prints"])
        log = running.log_folder / f"{name}.log"
        until(lambda: log.exists() and text in log.read_text(), f"{name} prints {text}")
        return []
    found: list[str] = []
    if status["active_state"] != "active":
        found.append(f"is {status['active_state']} ({status['result']})")
    if stage.words(name) != each["words"]:
        found.append(f"was called with {stage.words(name)}, not with {each['words']}")
    seen = stage.environment(name)
    other = {key: seen.get(key) for key, value in each.get("environment", {}).items() if seen.get(key) != value}
    if other and set(other) != {"PATH"}:
        found.append(f"has {other} in its environment, not {each['environment']}")
    if "umask" in each and stage.umask(name) != each["umask"]:
        found.append(f"has the umask {stage.umask(name):04o}")
    if "cwd" in each and stage.cwd(name) != each["cwd"]:
        found.append(f"runs in {stage.cwd(name)}, not in {each['cwd']}")
    return found
