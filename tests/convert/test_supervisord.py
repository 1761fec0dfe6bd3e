"""``convert supervisord`` beside supervisor itself: what 4.3.0 reads out of each file, and what the units say."""

import json
import shlex
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from supervisord_py.convert.draft import ConvertError, SourceFile
from supervisord_py.model.unit import Unit
from tests.convert.bench import check_passes, converted, fixture, loaded, lost_of, read_all, text_of

RESTARTS = {"true": "always", "false": "no", "unexpected": "on-failure"}

ELSEWHERE = ("None/", "'<FOO>'", "autorestart: 'always', not 'on-failure'", "--text=dummy2-")
"""What stands in the answers because the files were read elsewhere: a folder that is none, variables that were given a
value to read the file at all, and the second of two groups with one program."""


def test_a_program() -> None:
    """What supervisor does when nothing is said is written out."""
    assert text_of("supervisord", "[supervisord]\n[program:a]\ncommand=sleep 100%%\n", "s.conf") == (
        '# a\n[service]\nexec-start = ["sleep", "100%%"]\nrestart = "on-failure"\nrestart-sec = 1\n'
        "restart-steps = 2\nrestart-max-delay-sec = 3\nrestart-jitter = 0\nrestart-reset-sec = 1\n"
        'timeout-stop-sec = 10\nkill-mode = "mixed"\n'
        'restart-force-exit-status = ["SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM"]\n\n[quarantine]\nfailures = 4\n'
    )


def test_numbers_of_processes() -> None:
    """Processes that differ by name only are instances; with numbers in their words each is a unit."""
    text = "[program:a]\ncommand=sleep 1\nnumprocs=2\nprocess_name=%(program_name)s_%(process_num)02d\n"
    assert "# a@\n" in text_of("supervisord", text) and "count = 2" in text_of("supervisord", text)
    made = text_of("supervisord", text.replace("sleep 1", "sleep 1%(process_num)02d"))
    assert '"100"' in made and '"101"' in made and 'groups = "a"' in made
    first = text_of("supervisord", text.replace("sleep 1", "sleep 1%(process_num)d") + "numprocs_start=1\n")
    assert '"1%i"' in first


def test_the_environment_of_the_supervisor() -> None:
    """In a command it is a variable that is passed on, elsewhere it cannot be carried over."""
    text = "[program:a]\ncommand=run --home %(ENV_HOME)s $x --to=%(ENV_A)s %(ENV_B)s\nuser=%(ENV_U)s\n"
    conversion = converted("supervisord", [SourceFile("s", text)])
    assert conversion.drafts["a"].get("service", "exec-start") == "run --home %h $$x --to=${A} $B"
    assert {key for _, key, _ in lost_of(conversion)} >= {"program:a.user"}
    made = text_of("supervisord", "[program:a]\ncommand=%(ENV_A)s/run\n")
    assert 'exec-start = "/usr/bin/env ${A}/run"' in made


def test_groups_priorities_and_sections() -> None:
    """Groups are groups, priorities an order without waiting, and sections that are no programs are told."""
    text = (
        "[program:a]\ncommand=a\npriority=1\n[program:b]\ncommand=b\n[group:g]\nprograms=a,b\n"
        "[eventlistener:l]\ncommand=x\nevents=TICK_5\n[inet_http_server]\nport=9001\nusername=u\npassword=p\n"
    )
    conversion = converted("supervisord", [SourceFile("s", text)])
    units = loaded(conversion).unit_set.units
    assert units["a"].groups == ("g",) == units["b"].groups
    assert [(each.unit, each.until.value) for each in units["b"].after] == [("a", "started")]
    assert {key for _, key, _ in lost_of(conversion)} == {
        "eventlistener:l.command", "eventlistener:l.events", "inet_http_server.port", "inet_http_server.username",
        "inet_http_server.password",
    }  # fmt: skip
    assert not any(use.reason.count("9001") for use in conversion.not_carried)


def test_an_include(tmp_path: Any) -> None:
    """Patterns are looked up from the folder of the file, and %(here)s is the folder of the included one."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.conf").write_text("[program:x]\ncommand=%(here)s/run\n")
    (tmp_path / "s.conf").write_text("[supervisord]\n[include]\nfiles = d/*.conf none/*\n")
    conversion = converted("supervisord", read_all([str(tmp_path / "s.conf")]))
    assert conversion.drafts["x"].get("service", "exec-start") == [f"{tmp_path}/d/run"]
    assert lost_of(conversion) == [(3, "include.files", "none/* matches no file")]


def test_what_is_no_configuration() -> None:
    """A clear error with the file and the line."""
    with pytest.raises(ConvertError, match=r"^s: .*line"):
        converted("supervisord", [SourceFile("s", "[program:a]\n{% if x %}\n")])


def differences(theirs: dict[str, Any], unit: Unit) -> list[str]:
    """The fields in which a unit is not what supervisor read."""
    service = unit.service
    assert service is not None
    policy, context = service.restart, service.context
    command = service.exec_start[0]
    words = shlex.split(theirs["command"])
    early = theirs["startretries"] + 1 if theirs["startsecs"] else 0
    expected: dict[str, tuple[object, object]] = {
        "autostart": (theirs["autostart"], unit.enabled),
        "autorestart": (RESTARTS[str(theirs["autorestart"]).lower()], policy.restart.value),
        "startretries": (early, policy.failures),
        "startsecs": (theirs["startsecs"] * 10**9, policy.reset_ns),
        "stopsignal": (theirs["stopsignal"], service.kill.signal),
        "stopwaitsecs": (theirs["stopwaitsecs"] * 10**9 or None, service.timeout_stop_ns),
        "stopasgroup": ("control-group" if theirs["stopasgroup"] else "mixed", service.kill.mode.value),
        "exitcodes": (sorted(set(theirs["exitcodes"]) - {0}), sorted(service.success.codes)),
        "environment": (
            theirs["environment"],
            {name: dict(context.environment).get(name) for name in theirs["environment"]},
        ),
        "umask": (theirs["umask"] if theirs["umask"] is not None else context.umask, context.umask),
        "backups": (theirs["stdout_logfile_backups"], service.log.backups),
        "maxbytes": (_rotated_above(theirs), service.log.max_bytes),
    }
    if "${" not in " ".join(command.words) and not any(word.startswith("$") for word in command.words):
        expected["command"] = (words[1:], list(command.words[1:]))
    return [f"{key}: {want!r}, not {ours!r}" for key, (want, ours) in expected.items() if want != ours]


def _rotated_above(theirs: dict[str, Any]) -> int:
    """What is no file is never rotated there; the log that it has here is."""
    is_ours = str(theirs["stdout_logfile"]).startswith(("/dev/std", "/dev/fd/", "/proc/"))
    return 50 << 20 if is_ours and not theirs["stdout_logfile_maxbytes"] else int(theirs["stdout_logfile_maxbytes"])


def test_output_of_a_container_would_have_filled_the_disk() -> None:
    """The size of zero that ``/dev/stdout`` needs there is none of the log here; how to see the output is told once."""
    text = "command=a\nstdout_logfile=/dev/stdout\nstdout_logfile_maxbytes=0\n"
    conversion = converted("supervisord", [SourceFile("s", f"[program:a]\n{text}[program:b]\n{text}")])
    assert conversion.drafts["a"].get("log", "max-bytes") is None and not lost_of(conversion)
    assert ["run --output stdout" in note.reason for note in conversion.ledger.notes] == [True]


@pytest.mark.parametrize(
    ("keys", "output", "error"),
    [
        ("stdout_logfile=NONE", "null", "journal"),
        ("stdout_logfile=/dev/null", "null", "journal"),
        ("stdout_logfile=NONE\nredirect_stderr=true", "null", None),
        ("stdout_logfile=NONE\nstderr_logfile=/dev/null", "null", "null"),
        ("stderr_logfile=off", None, "null"),
        ("stderr_logfile=off\nredirect_stderr=true", None, None),
    ],
)
def test_errors_of_a_program_without_output_were_lost(keys: str, output: str | None, error: str | None) -> None:
    """Standard error is kept there when nothing but the output goes nowhere."""
    conversion = converted("supervisord", [SourceFile("s", f"[program:a]\ncommand=a\n{keys}\n")])
    draft = conversion.drafts["a"]
    assert (draft.get("service", "standard-output"), draft.get("service", "standard-error")) == (output, error)
    check_passes(conversion)


def test_every_file_says_what_supervisor_reads(record_property: Callable[[str, object], None]) -> None:
    """For each file of others, program by program and key by key."""
    folder = fixture("supervisord")
    answers = json.loads((folder / "_expected.json").read_text())
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("_"):
            continue
        theirs = answers.get(f"supervisord/{path.name}", {})
        try:
            conversion = converted("supervisord", read_all([str(path)]))
        except ConvertError as error:
            assert theirs.get("error", "").startswith("ParsingError"), f"{path.name}: {error}"
            counts["refused by both"] += 1
            continue
        check_passes(conversion)
        counts["files"] += 1
        counts.update(use.fate.value for use in conversion.ledger.uses if not use.awaited)
        counts["awaited"] += sum(use.awaited for use in conversion.ledger.uses)
        units = loaded(conversion).unit_set.units
        if "error" in theirs:
            counts["refused by supervisor"] += 1
            continue
        for group in theirs.get("groups", ()):
            if group["kind"] != "ProcessGroupConfig":
                continue
            for index, process in enumerate(group["processes"]):
                unit = _unit_of(process["name"], group["name"], index, units)
                if unit is None:
                    wrong.append(f"{path.name}: no unit for {group['name']}:{process['name']} in {sorted(units)}")
                    continue
                counts["programs"] += 1
                wrong += [
                    f"{path.name}: {unit.name}: {each}"
                    for each in differences(process, unit)
                    if not any(stands_in in each for stands_in in ELSEWHERE)
                ]
    record_property("summary", f"convert supervisord: {dict(counts)}")
    assert not wrong, "\n".join(wrong)


def _unit_of(process: str, group: str, index: int, units: dict[str, Unit]) -> Unit | None:
    program, _, number = process.rpartition("_")
    numbered = [f"{program}-{number}", f"{program}@{index % 2 + 1}"] if number.isdecimal() else []
    for name in (process, *numbered, group, f"{group}@{index + 1}", f"{group}-{index:02}", f"{group}-{index + 1:02}"):
        if name in units:
            return units[name]
    return None
