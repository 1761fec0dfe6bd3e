"""enable, disable, mask, unmask, apply and edit against a fake supervisor: what is sent, printed, asked and written."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supctl_fake import FakeSupervisor, Raise, done, outcome, unit
from tests.integration.supctl_run import ROOT, Supctl

OLD = '[service]\nexec-start = ["work", "1"]\n'
WRONG = {
    "file": "/x/web.toml", "line": 2, "column": 1, "key": "service.exec-strat", "message": "unknown key",
    "hint": "did you mean exec-start?", "severity": "error",
}  # fmt: skip


@pytest.fixture
def supctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Supctl]:
    fake = FakeSupervisor(tmp_path / "control.sock")
    yield Supctl(fake, capsys)
    fake.close()


def applied(*outcomes: dict[str, Any], restarts: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return done(*outcomes) | {"restarts": list(restarts), "changes": [], "settings": []} | more


def changed(name: str, effect: str, change: str = "changed") -> dict[str, Any]:
    key = {"key": "service.exec-start", "old": "a", "new": "b", "effect": effect}
    keys = [key] if change == "changed" else []
    return {"unit": name, "change": change, "effect": effect, "keys": keys, "path": f"/u/{name}.toml", "message": ""}


def test_enable_says_what_was_written(supctl: Supctl) -> None:
    """A line a unit; what is so already is said; with --now the job too. Options go over."""
    wrote = "wrote /var/lib/supervisord-py/control/web.toml.d/50-enabled.toml"
    outcomes = [
        outcome("web", "disable", message=wrote, job=0),
        outcome("db", "disable", message="already disabled", job=0),
        outcome("web", "stop", job=7),
    ]
    supctl.fake.on("Disable", done(*outcomes))
    ran = supctl("disable", "web", "db", "--now", "-m", "moved")
    assert ran.code == 0
    assert ran.lines[:2] == [f"disabled web: {wrote}", "db is already disabled"]
    assert ran.lines[2].startswith("stopped web (0.")
    (sent,) = supctl.fake.called("Disable")
    assert (sent["now"], sent["reason"], sent["units"], bool(sent["token"])) == (True, "moved", ["web", "db"], True)
    supctl.fake.on("Mask", Raise("JobFailed", {"outcomes": [], "message": "cannot mask web: its file is there"}))
    refused = supctl("mask", "web")
    assert (refused.code, "its file is there" in refused.err) == (1, True)
    assert supctl("unmask").code == 2


def test_rolling_options(supctl: Supctl) -> None:
    """One at a time unless more are said; a limit without --rolling, none, or a probation without an end is usage."""
    supctl.fake.on("Apply", applied(outcome("web", "restart")))
    supctl.fake.on("Restart", done(outcome("web", "restart")))
    supctl.fake.on("List", {"units": []})
    supctl("apply", "--rolling", "--probation", "5min", "web")
    supctl("apply")
    supctl("restart", "--rolling", "--max-unavailable", "3", "web")
    supctl("restart", "web")
    rolling, plain = supctl.fake.called("Apply")
    assert (rolling["max_unavailable"], rolling["probation_ms"], rolling["units"]) == (1, 300_000, ["web"])
    assert (plain["max_unavailable"], plain["probation_ms"], plain["units"]) == (None, None, [])
    rolling, plain = supctl.fake.called("Restart")
    assert (rolling["max_unavailable"], plain.get("max_unavailable")) == (3, None)
    for wrong in (
        ("apply", "--max-unavailable", "2"),
        ("restart", "web", "--max-unavailable", "2"),
        ("apply", "--rolling", "--max-unavailable", "0"),
        ("apply", "--probation", "infinity"),
        ("apply", "--probation", "soon"),
    ):
        assert supctl(*wrong).code == 2, wrong


def test_apply_tells_what_was_restarted_and_what_was_not(supctl: Supctl) -> None:
    """Each restart, then what took effect without one; as JSON all of it."""
    reply = applied(
        outcome("web", "restart"),
        restarts=("web",),
        changes=[changed("web", "restart"), changed("db", "live"), changed("new", "start", "added")],
    )
    supctl.fake.on("Apply", reply)
    supctl.fake.on("List", {"units": []})
    ran = supctl("apply")
    assert ran.lines[0].startswith("restarted web (0.")
    assert ran.lines[1:] == ["changed db (in force at once)", "added new (started)"]
    document = supctl("apply", "--json").document
    assert (document["restarts"], len(document["changes"])) == (["web"], 3)
    supctl.fake.on("Apply", applied(restarts=("db", "web"), changes=[changed("web", "restart")], job=None))
    plan = supctl("apply", "--plan")
    assert plan.lines == [
        "would be changed: web (service.exec-start)",
        "1. would restart db",
        "2. would restart web",
    ]
    assert supctl.fake.called("Apply")[-1]["plan"] is True


def test_a_failed_apply_names_the_unit(supctl: Supctl) -> None:
    """What came up is told, what failed with its last words, and what was not touched."""
    outcomes = [
        outcome("w@1", "restart", "canceled", "w@1 runs by the text before", job=1),
        outcome("w@2", "restart", "failed", "w@2 did not stay up; its last words: no such table", job=2),
    ]
    supctl.fake.on("Apply", Raise("JobFailed", {"outcomes": outcomes, "message": "cannot apply w@2"}))
    supctl.fake.on("Status", {"units": [unit("w@2")]})
    ran = supctl("apply", "--rolling")
    assert ran.code == 1
    assert "no such table" in ran.err
    assert "w@1 runs by the text before" in ran.err


def test_a_failed_apply_said_the_last_words_twice(supctl: Supctl) -> None:
    """They are in the message; the last lines of the unit would be them again, and those of the life after."""
    words = outcome("web", "restart", "failed", "web did not stay up; its last words: no such | table", job=2)
    supctl.fake.on("Apply", Raise("JobFailed", {"outcomes": [words], "message": "cannot apply web"}))
    supctl.fake.on("Status", {"units": [unit("web", lines=["no such", "table", "hello"])]})
    ran = supctl("apply")
    assert ran.err.splitlines() == [
        "supctl: cannot restart web: web did not stay up; its last words: no such | table",
        "  next: supctl why web",
    ]


class Editing:
    """A unit's file, an editor that writes one text after the other, and a terminal to answer on."""

    def __init__(self, supctl: Supctl, folder: Path) -> None:
        self._supctl = supctl
        self._folder = folder
        self.path = folder / "web.toml"
        self.path.write_text(OLD)
        self.path.chmod(0o640)
        supctl.fake.on("List", {"units": [unit("web", path=str(self.path))]})
        supctl.fake.on("Cat", {"files": [{"path": str(self.path), "text": OLD}]})
        supctl.fake.on("Apply", applied(outcome("web", "restart")))

    def run(
        self, *texts: str, answers: str = "", options: tuple[str, ...] = (), meanwhile: str = ":"
    ) -> tuple[int, str, str]:
        """Edit with these texts in turn; returns the exit code and what was printed. ``meanwhile`` is a command that
        the shell runs while the editor is open."""
        for old in self._folder.glob("text*"):
            old.unlink()
        for number, text in enumerate(texts):
            (self._folder / f"text{number}").write_text(text)
        (self._folder / "turn").write_text("0")
        editor = self._folder / "editor"
        write = 'turn=$(cat turn)\ncp "text$turn" "$1" || exit 3\necho $((turn + 1)) > turn'
        editor.write_text(f"#!/bin/sh\ncd {self._folder}\n{write}\n{meanwhile}\n")
        editor.chmod(0o755)
        ours, theirs = pty.openpty()
        try:
            environment = {"EDITOR": str(editor), "VISUAL": "", "TMPDIR": str(self._folder)}
            process = self._start(("edit", "web", *options), theirs, environment)
            os.write(ours, answers.encode())
            out, err = process.communicate(timeout=60)
        finally:
            os.close(ours)
            os.close(theirs)
        return process.returncode, out, err

    def _start(self, arguments: tuple[str, ...], stdin: int, environment: dict[str, str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "supervisord_py.ctl.cli", *arguments],
            env=os.environ
            | {"SUPERVISORD_PY_SOCKET": str(self._supctl.fake.path), "PYTHONPATH": str(ROOT)}
            | environment,
            text=True,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def copies(self) -> list[Path]:
        return sorted(self._folder.glob("web-*.toml"))


@pytest.fixture
def editing(supctl: Supctl, tmp_path: Path) -> Editing:
    return Editing(supctl, tmp_path)


def test_edit_asks_shows_writes_and_applies(supctl: Supctl, editing: Editing) -> None:
    """The difference is shown, the text written with the mode that the file had, no copy stays."""
    supctl.fake.on("CheckText", {"problems": []})
    new = OLD.replace("1", "2")
    code, out, err = editing.run(new, answers="y\n", options=("-m", "faster"))
    assert code == 0, err
    assert '-exec-start = ["work", "1"]' in out
    assert '+exec-start = ["work", "2"]' in out
    assert editing.path.read_text() == new
    assert editing.path.stat().st_mode & 0o777 == 0o640
    assert editing.copies() == []
    (sent,) = supctl.fake.called("Apply")
    assert (sent["units"], sent["reason"]) == (["web"], "faster")
    assert supctl.fake.called("CheckText") == [{"path": str(editing.path), "text": new}]


def test_edit_again_after_a_mistake(supctl: Supctl, editing: Editing) -> None:
    """The problem is told with its line, the editor opens again on the same text, and once more at will."""
    supctl.fake.on("CheckText", {"problems": [WRONG]}, {"problems": []})
    code, _, err = editing.run("wrong", OLD + "# one\n", OLD + "# two\n", answers="y\ne\ny\n")
    assert code == 0, err
    assert "/x/web.toml:2: service.exec-strat: unknown key (did you mean exec-start?)" in err
    assert editing.path.read_text() == OLD + "# two\n"


def test_edit_never_writes_what_is_invalid(supctl: Supctl, editing: Editing) -> None:
    """Given up, the text is kept in a file that is named; --yes does not ask and does not write either."""
    supctl.fake.on("CheckText", {"problems": [WRONG]})
    for answers, options in (("n\n", ()), ("", ("--yes",))):
        code, _, err = editing.run("wrong", answers=answers, options=options)
        assert code == 6
        (copy,) = editing.copies()
        assert str(copy) in err
        assert copy.read_text() == "wrong"
        copy.unlink()
    assert editing.path.read_text() == OLD
    assert supctl.fake.called("Apply") == []


def test_edit_that_is_called_off(supctl: Supctl, editing: Editing) -> None:
    """No change is no question; a no keeps the text beside; an editor that fails has written nothing."""
    supctl.fake.on("CheckText", {"problems": []})
    assert editing.run(OLD)[:2] == (0, "nothing has changed\n")
    code, _, err = editing.run(OLD + "#\n", answers="n\n")
    assert code == 1
    (copy,) = editing.copies()
    assert str(copy) in err
    copy.unlink()
    code, _, err = editing.run()
    assert (code, "nothing is written" in err) == (1, True)
    assert editing.path.read_text() == OLD


def test_edit_a_drop_in(supctl: Supctl, editing: Editing, tmp_path: Path) -> None:
    """A new file in a new folder beside the unit's."""
    supctl.fake.on("CheckText", {"problems": []})
    text = "[limits]\nnice = 5\n"
    code, _, err = editing.run(text, options=("--yes", "--drop-in"))
    assert code == 0, err
    assert (tmp_path / "web.toml.d" / "override.toml").read_text() == text
    assert editing.path.read_text() == OLD


def test_edit_what_one_may_not_write(supctl: Supctl, editing: Editing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the editor opens, with the way out."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    ran = supctl("edit", "web", "--yes")
    assert (ran.code, "sudo supctl edit" in ran.err) == (5, True)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "there is no editor" in supctl("edit", "web", "--yes").err


@pytest.mark.parametrize(
    ("meanwhile", "left", "said"),
    [
        ("echo '# a colleague' >> web.toml", OLD + "# a colleague\n", "was changed"),
        ("rm web.toml", None, "was removed"),
    ],
)
def test_edit_overwrote_what_a_colleague_wrote_meanwhile(
    supctl: Supctl, editing: Editing, meanwhile: str, left: str | None, said: str
) -> None:
    """A file that was changed or removed while the editor was open stays as it is; the text is kept."""
    supctl.fake.on("CheckText", {"problems": []})
    code, _, err = editing.run(OLD + "# mine\n", options=("--yes",), meanwhile=meanwhile)
    assert code == 1
    assert said in err
    assert (editing.path.read_text() if editing.path.exists() else None) == left
    (copy,) = editing.copies()
    assert copy.read_text() == OLD + "# mine\n"
    assert str(copy) in err
    assert supctl.fake.called("Apply") == []


@pytest.mark.parametrize("meanwhile", ['rm "$1"', 'rm "$1"; mkdir "$1"'])
def test_edit_with_an_editor_that_removes_the_file_was_a_traceback(editing: Editing, meanwhile: str) -> None:
    """It is said, also as a JSON document, and nothing is written."""
    code, out, err = editing.run(OLD + "#\n", options=("--yes", "--json"), meanwhile=meanwhile)
    assert code == 1
    assert "left no text" in json.loads(out)["error"]["message"]
    assert "Traceback" not in err
    assert editing.path.read_text() == OLD


def test_edit_to_an_empty_text_masked_the_unit(supctl: Supctl, editing: Editing) -> None:
    """An empty text is an error of ``edit``, with the verb that is meant; as JSON the problem is in the document."""
    code, out, _ = editing.run("", options=("--yes", "--json"))
    assert code == 6
    document = json.loads(out)
    assert document["error"]["code"] == "bad-unit"
    assert "masks" in document["problems"][0]["message"]
    assert editing.path.read_text() == OLD
    assert supctl.fake.called("Apply") == []


def test_apply_said_of_a_unit_that_is_gone_that_it_is_read_at_its_next_start(supctl: Supctl) -> None:
    """There is no next start of what no file defines."""
    gone = {"unit": "web", "path": "/x/web.toml", "change": "removed", "effect": "none", "keys": [], "message": ""}
    supctl.fake.on("Apply", applied() | {"changes": [gone]})
    assert "removed web (no file defines it)" in supctl("apply").out


@pytest.mark.parametrize("verb", ["status", "list", "logs", "apply", "reset-failed"])
def test_usage_lines_demanded_units_that_may_be_left_out(supctl: Supctl, verb: str) -> None:
    """What may be left out stands in brackets."""
    assert "[UNIT...]" in supctl(verb, "--help").out
