"""``supctl status``, ``list`` and the ``is-*`` questions against a fake supervisor: words, tables, exit codes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_py.ctl.render import Style
from supervisord_py.ctl.replies import unit_from_wire
from supervisord_py.ctl.status import overview
from tests.integration.supctl_fake import FakeSupervisor, Raise, not_there, unit
from tests.integration.supctl_run import ROOT, Supctl

CONTRACT_FIELDS = [
    "name", "description", "load_state", "active_state", "sub_state", "result", "pid", "invocation", "since",
    "restarts", "failures", "exit", "memory_bytes", "cpu_ns", "tasks", "status_text", "path", "enabled", "why",
]  # fmt: skip


@pytest.fixture
def supctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Supctl]:
    fake = FakeSupervisor(tmp_path / "control.sock")
    yield Supctl(fake, capsys)
    fake.close()


def test_status_json_has_exactly_the_fields_of_the_contract(supctl: Supctl) -> None:
    """What Varlink says beyond them (exec, lines, groups) does not leak into ``status --json``; what was added stands
    behind the contract's.
    """
    supctl.fake.on("List", {"units": [unit("web", exec="/bin/web", lines=["x"], groups=["g"])]})
    ran = supctl("status", "--json")
    assert ran.code == 0
    added = [
        "needs_restart",
        "needs_reload",
        "refused",
        "condition_result",
        "condition_at",
        "condition_unmet",
        "health",
    ]
    added += ["next_elapse", "last_elapse"]
    added += ["has_run", "lowered_limits", "applied", "degraded", "sockets", "accepted", "connections", "stored"]
    added += ["dropped_lines"]
    added += ["transient"]
    assert [list(found) for found in ran.document["units"]] == [[*CONTRACT_FIELDS, *added]]


def test_words_have_hyphens_again(supctl: Supctl) -> None:
    """The wire writes ``auto_restart``; people and ``--json`` get the contract's ``auto-restart``."""
    waiting = unit("web", "activating", "auto_restart", result="exit_code", exit={"code": 1, "signal": None})
    supctl.fake.on("List", {"units": [waiting]})
    found = supctl("status", "--json").document["units"][0]
    assert (found["sub_state"], found["result"], found["exit"]) == ("auto-restart", "exit-code", {"code": 1})
    assert "activating (auto-restart)" in supctl("status").out


def test_a_unit_whose_text_is_another_says_what_to_do(supctl: Supctl) -> None:
    """A file that changed since it was loaded, and a life that was started by an older text, are told everywhere."""
    keys = [f"service.key-{number}" for number in range(7)]
    stale = unit("web", needs_reload=True, needs_restart=True, restart_keys=keys)
    supctl.fake.on("List", {"units": [stale, unit("db", needs_restart=True)]})
    supctl.fake.on("Status", {"units": [stale]})
    shown = supctl("status").out
    assert "its file has changed since, or is gone: supctl daemon-reload" in shown
    assert "it has a new text: supctl restart db" in shown
    detail = supctl("status", "web").out
    assert "service.key-4 and 2 more since it was started: supctl restart web" in detail
    assert "its file has changed since, or is gone: supctl daemon-reload" in detail
    assert "its file has changed since" in supctl("list").out


def test_what_is_on_disk_and_in_no_unit_is_told_below(supctl: Supctl) -> None:
    """New unit files and changed settings stand under all units, with what to type."""
    supctl.fake.on("List", {"units": [unit("web")], "unloaded": {"units": ["new", "w@"], "settings": True}})
    for verb in ("status", "list"):
        assert supctl(verb).lines[-2:] == [
            "not loaded: new w@; next: supctl daemon-reload",
            "supervisord.toml has changed since it was loaded; next: supctl daemon-reload",
        ]
        assert supctl(verb, "--json").document["unloaded"] == {"units": ["new", "w@"], "settings": True}


def test_a_unit_that_lives_on_without_a_file_is_what_its_state_says(supctl: Supctl) -> None:
    """not-found and active is 0, not-found and at rest is 4."""
    supctl.fake.on("Status", {"units": [unit("web", load_state="not_found")]})
    assert supctl("status", "web").code == 0
    supctl.fake.on("Status", {"units": [unit("web", "inactive", "dead", load_state="not_found")]})
    assert supctl("status", "web").code == 4


def test_problems_come_first(supctl: Supctl) -> None:
    """A failed unit stands above the healthy ones, whatever its name, with its reason and the next command."""
    failed = unit("zeta", "failed", "failed", result="exit_code", exit={"code": 3}, why="it exited with 3 five times")
    supctl.fake.on("List", {"units": [unit("alpha"), failed, unit("beta")]})
    ran = supctl("status")
    assert [line.split()[1] for line in ran.lines[1:4]] == ["zeta", "alpha", "beta"]
    assert "exit 3" in ran.lines[1]
    assert "it exited with 3 five times" in ran.lines[1]
    assert ran.lines[-1] == "3 units: 2 active, 1 failed; next: supctl why zeta"
    assert ran.code == 0


def test_a_narrow_terminal_gets_the_reasons_whole() -> None:
    """Where they do not fit beside the rest, reasons stand below their units and nothing of them is lost."""
    why = "main process exited with 203 five times in 2min: the program /srv/nope could not be run"
    units = [unit_from_wire(unit("web")), unit_from_wire(unit("crashy", "failed", "failed", why=why))]
    wide = overview(Style(width=200), units, 0.0)
    assert wide[1].endswith(why)
    narrow = overview(Style(width=60), units, 0.0)
    assert [line.split()[1] for line in narrow] == ["STATE", "crashy", "main", "web"]
    assert narrow[2].endswith(why)


@pytest.mark.parametrize(
    ("state", "sub", "load", "code"),
    [
        ("active", "running", "loaded", 0),
        ("reloading", "reload", "loaded", 0),
        ("inactive", "dead", "loaded", 3),
        ("activating", "start", "loaded", 3),
        ("failed", "failed", "loaded", 3),
        ("quarantined", "stub", "loaded", 3),
        ("inactive", "dead", "bad_setting", 3),
        ("inactive", "dead", "not_found", 4),
    ],
)
def test_exit_codes_of_status(supctl: Supctl, state: str, sub: str, load: str, code: int) -> None:
    """0 for active and reloading, 3 for everything else that exists (quarantined with a stub too), 4 for what does
    not.
    """
    supctl.fake.on("Status", {"units": [unit("web", state, sub, load_state=load)]})
    supctl.fake.on("List", {"units": [unit("web", state, sub, load_state=load)]})
    assert supctl("status", "web").code == code
    assert supctl("status", "web", "--json").code == code


def test_no_such_unit_beats_not_running_and_hides_nothing(supctl: Supctl) -> None:
    """Of three names one is unknown and one is down: exit 4, and the two that exist are still shown."""

    def answer(parameters: dict[str, object]) -> list[object]:
        names = parameters["units"]
        assert isinstance(names, list)
        if "nope" in names:
            return [not_there("nope", "node")]
        return [{"units": [unit(name, *(() if name == "web" else ("failed", "failed"))) for name in names]}]

    supctl.fake.on("List", answer)
    ran = supctl("status", "web", "nope", "db")
    assert ran.code == 4
    assert "web" in ran.out
    assert "db" in ran.out
    assert "did you mean node?" in ran.err
    document = supctl("status", "web", "nope", "db", "--json").document
    assert document["error"]["code"] == "no-such-unit"
    assert [found["name"] for found in document["units"]] == ["web", "db"]


def test_status_of_one_unit_shows_its_last_output(supctl: Supctl) -> None:
    """One named unit is shown in detail: state, cause, decoded exit, path, the last ten lines."""
    crashed = unit(
        "web", "failed", "failed", result="exit_code", exit={"code": 203}, exec="/srv/web --port 80",
        lines=["boom", "bye"], why="the program could not be run", restarts=4, failures=5,
    )  # fmt: skip
    supctl.fake.on("Status", {"units": [crashed]})
    ran = supctl("status", "web")
    assert supctl.fake.called("Status") == [{"units": ["web"], "lines": 10}]
    for part in (
        "web - the unit web",
        "failed (failed) (result: exit-code) since 2026-11-20",
        "Why: the program could not be run",
        "code 203 (EXEC: the program could not be run)",
        "/etc/supervisord-py/units/web.toml; enabled",
        "4, 5 failures counted",
        "Command: /srv/web --port 80",
    ):
        assert part in ran.out
    assert ran.lines[-4:] == ["boom", "bye", "", "next: supctl why web"]


def test_output_of_units_cannot_drive_the_terminal(supctl: Supctl) -> None:
    """A unit that prints escape sequences does not move the operator's cursor or title."""
    supctl.fake.on("Status", {"units": [unit("web", lines=["\x1b]0;owned\x07"], status_text="a\x1b[2Jb")]})
    out = supctl("status", "web").out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_failed_asks_for_problems_only(supctl: Supctl) -> None:
    """``status --failed`` leaves the choice to the supervisor and says so when there is none."""
    supctl.fake.on("List", {"units": []})
    ran = supctl("status", "--failed")
    assert (ran.code, ran.out) == (0, "nothing is wrong\n")
    assert supctl.fake.called("List") == [{"units": [], "failed": True}]


@pytest.mark.parametrize("word", ["list", "ps", "ls", "list-units"])
def test_list_and_its_aliases(supctl: Supctl, word: str) -> None:
    """``list`` sorts by name and shows load states; its other names are the same command."""
    supctl.fake.on("List", {"units": [unit("b"), unit("a", "inactive", "dead", load_state="bad_setting")]})
    ran = supctl(word)
    assert [line.split()[:2] for line in ran.lines[1:]] == [["a", "bad-setting"], ["b", "loaded"]]
    assert ran.code == 0


def test_the_is_questions(supctl: Supctl) -> None:
    """``is-active``, ``is-failed``, ``is-enabled`` answer with a word and an exit code, with -q with the code alone."""
    units = {"web": unit("web"), "db": unit("db", "failed", "failed", enabled=False)}

    def answer(parameters: dict[str, list[str]]) -> list[object]:
        missing = [name for name in parameters["units"] if name not in units]
        return [not_there(missing[0])] if missing else [{"units": [units[name] for name in parameters["units"]]}]

    supctl.fake.on("List", answer)
    assert (supctl("is-active", "web").code, supctl("is-active", "db").code) == (0, 3)
    assert supctl("is-active", "web", "db").code == 0, "one that is active is enough, as for systemctl"
    assert supctl("is-active", "nope").code == 4
    assert (supctl("is-failed", "web").code, supctl("is-failed", "web", "db").code) == (1, 0)
    assert (supctl("is-enabled", "web").code, supctl("is-enabled", "db").code) == (0, 1)
    assert supctl("is-active", "db").out == "failed\n"
    quiet = supctl("is-active", "-q", "db")
    assert (quiet.code, quiet.out) == (3, "")


def test_not_permitted_is_5(supctl: Supctl) -> None:
    """A refusal of the supervisor exits 5 and its message is passed on."""
    refusal = {"command": "status", "unit": None, "message": "not permitted: uid 5 may not status"}
    supctl.fake.on("List", Raise("NotPermitted", refusal))
    ran = supctl("status", "--json")
    assert ran.code == 5
    assert ran.document["error"] == {
        "code": "not-permitted",
        "message": refusal["message"],
        "command": "status",
        "unit": None,
    }
    assert "uid 5 may not status" in ran.err


def test_status_imports_only_what_it_needs() -> None:
    """The most frequent command loads no event loop, no TOML, no psutil, no other verb, no subprocess."""
    code = (
        "import sys\n"
        "from supervisord_py.ctl.cli import run\n"
        "from supervisord_py.ctl.session import Session\n"
        "assert run(['--socket', '/none', 'status'], Session({})) == 7\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env={"PATH": ""}
    )
    loaded = set(done.stdout.split())
    assert "supervisord_py.ctl.status" in loaded
    for unwanted in ("asyncio", "psutil", "tomli", "subprocess", "zmq", "logging", "difflib", "importlib.metadata"):
        assert unwanted not in loaded
    ours = {name for name in loaded if name.startswith("supervisord_py.ctl.")}
    assert ours == {
        f"supervisord_py.ctl.{name}"
        for name in ("address", "cli", "client", "client_errors", "options", "render", "replies", "session", "status")
    }


def test_a_unit_that_was_skipped_says_which_condition_did_not_hold(supctl: Supctl) -> None:
    """``status UNIT`` has a line for the conditions of a unit that has any."""
    moment = "2026-11-20T14:03:08.259549Z"
    unmet = 'condition-path-exists = "/srv/web"'
    skipped = unit("web", condition_result=False, condition_at=moment, condition_unmet=unmet)
    supctl.fake.on("Status", {"units": [skipped]})
    assert f"Condition: does not hold: {unmet} (looked at " in supctl("status", "web").out


def test_a_unit_that_runs_and_is_not_well_says_so(supctl: Supctl) -> None:
    """``list`` and ``status`` mark it; ``status UNIT`` has a line for each health check."""
    moment = "2026-11-20T14:03:08.259549Z"
    checks = [
        {
            "name": "up",
            "kind": "readiness",
            "check": "http",
            "good": False,
            "detail": "503\x1b[2J",
            "checked_at": moment,
        },
        {"name": "old", "kind": "liveness", "check": "exec", "good": True, "detail": "", "checked_at": moment},
        {"name": "new", "kind": "startup", "check": "log", "good": None, "detail": "", "checked_at": None},
    ]
    units = [unit("web", health=checks), unit("db", health=checks[1:]), unit("dead", "failed", "failed", health=checks)]
    supctl.fake.on("List", {"units": units})
    supctl.fake.on("Status", {"units": units[:1]})
    rows = {line.split()[0]: line for line in supctl("list").lines}
    assert "running (not ready)" in rows["web"]
    assert "(" not in rows["db"] + rows["dead"], "what does not run has no health"
    assert "active (not ready)" in supctl("status").out
    shown = supctl("status", "web").lines
    first = next(place for place, line in enumerate(shown) if "Health: " in line)
    assert "up: failing (503\\x1b[2J), readiness by http, " in shown[first]
    assert shown[first + 1].strip().startswith("old: good, liveness by exec, ")
    assert shown[first + 2].strip() == "new: unknown, startup by log"
