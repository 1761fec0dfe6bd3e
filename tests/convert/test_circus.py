"""``convert circus`` beside circus itself: what 0.19 reads out of each file, and what the units say."""

import json
import shlex
from collections import Counter
from collections.abc import Callable
from typing import Any

from supervisord_py.convert.draft import ConvertError, SourceFile
from supervisord_py.model.unit import Unit
from tests.convert.bench import check_passes, converted, fixture, loaded, lost_of, read_all, text_of


def test_a_watcher() -> None:
    """What circus does when nothing is said is written out; several processes are a template."""
    text = (
        "[watcher:a]\ncmd = python\nargs = -u x.py $(circus.wid) $(circus.env.who)\nnumprocesses = 2\n"
        "[env:a]\nWHO = me\n"
    )
    assert text_of("circus", text) == (
        '# a@\n[service]\nexec-start = ["python", "-u", "x.py", "%i", "me"]\nrestart = "always"\nrestart-sec = 1\n'
        'restart-steps = 0\nrestart-jitter = 0\ntimeout-stop-sec = 30\nkill-mode = "mixed"\n\n'
        '[service.environment]\nWHO = "me"\n\n[instances]\ncount = 2\n\n[quarantine]\nfailures = 0\n'
    )


def test_the_first_of_two_keys_wins() -> None:
    """circus does not override, and comments behind values begin with a semicolon after a blank."""
    conversion = converted("circus", [SourceFile("c", "[watcher:a]\ncmd = x y ; z\ncmd = other\nshell = true\n")])
    assert conversion.drafts["a"].get("service", "exec-start") == ["/bin/sh", "-c", "x y"]


def test_what_is_lost_is_told() -> None:
    """Hooks, plugins, streams and variables that only circus has are told with their lines."""
    text = (
        "[circus]\nhttpd = 1\n[watcher:a]\ncmd = x\nhooks.before_start = m.f\nuid = $(circus.env.nobody_knows)\n"
        "stdout_stream.class = my.Stream\ncopy_env = true\n[plugin:p]\nuse = q\n"
    )
    conversion = converted("circus", [SourceFile("c", text)])
    assert {(line, key) for line, key, _ in lost_of(conversion)} == {
        (2, "circus.httpd"), (5, "watcher:a.hooks.before_start"), (6, "watcher:a.uid"),
        (7, "watcher:a.stdout_stream.class"), (8, "watcher:a.copy_env"), (10, "plugin:p.use"),
    }  # fmt: skip
    check_passes(conversion)


def differences(theirs: dict[str, Any], unit: Unit) -> list[str]:
    """The fields in which a unit is not what circus read."""
    service = unit.service
    assert service is not None
    words = list(service.exec_start[0].words)
    line = f"{theirs['cmd']} {theirs['args'] or ''}".strip()
    hard = {name: limit.hard for name, limit in service.context.rlimits}
    expected: dict[str, tuple[object, object]] = {
        "autostart": (theirs["autostart"] and theirs["numprocesses"] > 0, unit.enabled),
        "respawn": ("always" if theirs["respawn"] else "no", service.restart.restart.value),
        "stop_signal": (theirs["stop_signal"], service.kill.signal),
        "graceful_timeout": (round(theirs["graceful_timeout"] * 1000), (service.timeout_stop_ns or 0) // 10**6),
        "stop_children": ("control-group" if theirs["stop_children"] else "mixed", service.kill.mode.value),
        "send_hup": (theirs["send_hup"], bool(service.exec_reload)),
        "rlimits": (
            theirs["rlimits"],
            {n: hard.get(n) for n in theirs["rlimits"]},
        ),
    }
    if theirs["shell"]:
        expected["cmd"] = (["/bin/sh", "-c", line], words)
    elif "$(" not in line and "((" not in line and "$WID" not in line:
        expected["cmd"] = (shlex.split(line)[1:], words[1:])
    return [f"{key}: {want!r}, not {ours!r}" for key, (want, ours) in expected.items() if want != ours]


def test_every_file_says_what_circus_reads(record_property: Callable[[str, object], None]) -> None:
    """For each file of others, watcher by watcher and key by key."""
    folder = fixture("circus")
    answers = json.loads((folder / "_expected.json").read_text())
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("_"):
            continue
        theirs = answers.get(f"circus/{path.name}", {})
        try:
            conversion = converted("circus", read_all([str(path)]))
        except ConvertError as error:
            raise AssertionError(f"{path.name}: {error}") from None
        check_passes(conversion)
        counts["files"] += 1
        counts.update("awaited" if use.awaited else use.fate.value for use in conversion.ledger.uses)
        units = loaded(conversion).unit_set.units
        by_name = {watcher["name"]: watcher for watcher in theirs.get("watchers", ())}
        for name, watcher in by_name.items():
            unit = units.get(name) or units.get(f"{name}@1")
            if unit is None:
                # What only a running circus can put in is told.
                said = [key for _, key, reason in lost_of(conversion) if "circus" in reason]
                if watcher["cmd"] and f"watcher:{name}.cmd" not in said:
                    wrong.append(f"{path.name}: no unit for {name} in {sorted(units)}: {lost_of(conversion)}")
                continue
            counts["watchers"] += 1
            wrong += [f"{path.name}: {name}: {each}" for each in differences(watcher, unit)]
    record_property("summary", f"convert circus: {dict(counts)}")
    assert not wrong, "\n".join(wrong)


def test_a_limit_that_does_not_exist() -> None:
    """Found by the fuzzer: rlimit_ with any name was taken for a key."""
    conversion = converted("circus", [SourceFile("c", "[watcher:a]\ncmd = x\nrlimit_nprog = 3\nrlimit_nofile = 9\n")])
    assert lost_of(conversion) == [(3, "watcher:a.rlimit_nprog", "there is no such limit")]
    assert conversion.drafts["a"].get("limits", "nofile") == 9
