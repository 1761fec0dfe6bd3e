"""The golden scripts: each story is played again, and its trace has to be what people have reviewed."""

from pathlib import Path

import pytest

from supervisord_py.testing.scene import StoryError
from supervisord_py.testing.script import main, run_script

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_story_is_as_reviewed(path: Path) -> None:
    """The core does what the script says, line by line (else: read the diff, then record it anew with --rewrite)."""
    text = path.read_text(encoding="utf-8")
    assert run_script(text) == text, f"python -m supervisord_py.testing.script --rewrite {path}"


def test_there_are_stories() -> None:
    """The folder was found: at least the fifteen stories that people ask about are in it."""
    assert len(SCRIPTS) >= 15


def test_rewrite_records_a_new_story_and_a_changed_trace_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script without traces gets them; a wrong trace is printed as a diff and fails."""
    story = tmp_path / "story.txt"
    story.write_text("# One start.\n\nunit web\n\nstart web\n", encoding="utf-8")
    assert main([str(tmp_path), "--rewrite"]) == 0
    recorded = story.read_text(encoding="utf-8")
    assert "> spawn #1 web main: /opt/web/run" in recorded
    assert main([str(story)]) == 0
    story.write_text(recorded.replace("spawn #1", "spawn #7"), encoding="utf-8")
    assert main([str(story)]) == 1
    assert "-> spawn #7 web main" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("dance web", "dance is no command"),
        ("exited web 0", "web has no running process"),
        ("unit web colour=red", "no such key in a script's unit: colour"),
    ],
)
def test_a_story_that_makes_no_sense_is_refused(line: str, says: str) -> None:
    """A slip in a script is an error with its reason, never an empty trace."""
    with pytest.raises(StoryError, match=says):
        run_script(f"unit web\n\n{line}\n")
