"""``convert procfile`` beside honcho: the same processes with the same commands."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisord_py.convert.draft import ConvertError, SourceFile
from tests.convert.bench import check_passes, converted, fixture, loaded, lost_of, read_all, text_of


def test_a_procfile() -> None:
    """Each line is a unit that a shell runs, in the folder of the file."""
    assert text_of("procfile", "web: gunicorn app -b :$PORT  \n\n# worker: no\nworker_1:x 100%\n") == (
        '# web\n[service]\nexec-start = ["/bin/sh", "-c", "gunicorn app -b :$PORT"]\n'
        'working-directory = "/"\n\n'
        '# worker_1\n[service]\nexec-start = ["/bin/sh", "-c", "x 100%%"]\n'
        'working-directory = "/"\n'
    )


def test_what_is_no_line_is_told() -> None:
    """Other lines are passed over by honcho too, but not in silence here; a name that stands twice is an error."""
    conversion = converted("procfile", [SourceFile("Procfile", "web x\nweb: y\n")])
    assert [line for line, _, _ in lost_of(conversion)] == [1]
    with pytest.raises(ConvertError, match=r"Procfile:2: web stands in line 1 already"):
        converted("procfile", [SourceFile("Procfile", "web: x\nweb: y\n")])


def test_the_variables_beside_a_procfile_were_passed_over(tmp_path: Path) -> None:
    """foreman and honcho read ``.env``; so do the units, and what stands in it needs no note any more."""
    (tmp_path / ".env").write_text("PORT=5051\n")
    (tmp_path / "Procfile").write_text("web: serve $PORT $PS\n")
    conversion = converted("procfile", read_all([str(tmp_path / "Procfile")]))
    assert conversion.drafts["web"].get("service", "environment-file") == f"-{tmp_path}/.env"
    assert [note.reason.partition(" ")[0] for note in conversion.ledger.notes] == ["PS", "its"]
    check_passes(conversion)


def test_every_file_says_what_honcho_reads(record_property: Callable[[str, object], None]) -> None:
    """For each file of others, the same names and the same command lines."""
    folder = fixture("procfile")
    answers = json.loads((folder / "_expected.json").read_text())
    counts: Counter[str] = Counter()
    for path in sorted(folder.iterdir()):
        if path.name.startswith("_"):
            continue
        theirs = answers[f"procfile/{path.name}"]
        try:
            conversion = converted("procfile", read_all([str(path)]))
        except ConvertError:
            assert "error" in theirs, path.name
            continue
        check_passes(conversion)
        units = loaded(conversion).unit_set.units
        ours = {name: unit.service.exec_start[0].words[2] for name, unit in units.items() if unit.service is not None}
        assert ours == theirs["processes"], path.name
        counts["files"] += 1
        counts["processes"] += len(ours)
    record_property("summary", f"convert procfile: {dict(counts)}")
