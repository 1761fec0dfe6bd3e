"""Output against the worst: the capturing process is killed in full flow, and the disk is really full."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KILLS = 25


def python(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, str(HERE / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def captured(log_dir: Path) -> list[bytes]:
    """Return the content of all files, oldest first, each once."""
    old: dict[int, bytes] = {}
    for path in log_dir.glob("web.log.*"):
        place = path.name.split(".")[2]
        if place.isdigit() and path.suffix != ".gz":
            old[int(place)] = path.read_bytes()
        elif place.isdigit():
            old.setdefault(int(place), gzip.decompress(path.read_bytes()))
    now = log_dir / "web.log"
    return [old[place] for place in sorted(old, reverse=True)] + ([now.read_bytes()] if now.exists() else [])


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [0, 400_000], ids=["one file", "rotated"])
def test_kills_in_full_flow_lose_and_double_no_byte(tmp_path: Path, max_bytes: int) -> None:
    """After 25 kills of the capturing process in full flow every numbered line is there, once, in order, and whole."""
    log_dir = tmp_path / "log"
    result = python("capture_under_fire.py", log_dir, KILLS, 7, max_bytes)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == KILLS
    files = captured(log_dir)
    lines = b"".join(files).split(b"\n")
    assert lines.pop() == b""
    assert len(lines) > 100_000 if max_bytes == 0 else len(files) > 10
    wrong = next((place for place, line in enumerate(lines) if not re.fullmatch(b"%012d x{66}" % place, line)), None)
    assert wrong is None, lines[max(0, wrong - 1) : wrong + 2]
    if max_bytes:
        assert all(len(data) <= max_bytes and data.endswith(b"\n") for data in files)


def text_of(line: bytes, form: str) -> bytes:
    if form == "json":
        return bytes(json.loads(line)["text"], "ascii")
    return line.partition(b"Z ")[2] if form == "timestamp" else line


@pytest.mark.slow
@pytest.mark.parametrize("words", [["timestamp"], ["json", "compress"]], ids=" ".join)
def test_kills_while_lines_are_written_and_files_compressed(tmp_path: Path, words: list[str]) -> None:
    """The same holds where output is looked at line by line, and where a kill may find a file half compressed."""
    log_dir = tmp_path / "log"
    result = python("capture_under_fire.py", log_dir, KILLS // 2, 11, 500_000, *words)
    assert result.returncode == 0, result.stderr
    files = captured(log_dir)
    lines = [text_of(line, words[0]) for line in b"".join(files).splitlines()]
    assert len(lines) > 50_000
    wrong = next((place for place, line in enumerate(lines) if not re.fullmatch(b"%012d x{66}" % place, line)), None)
    assert wrong is None, lines[max(0, wrong - 1) : wrong + 2]
    assert all(data.endswith(b"\n") and len(data) <= 500_000 for data in files)
    assert any(log_dir.glob("*.gz")) == ("compress" in words)


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare for a disk of its own"
)
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a file system of 1 MiB the writer never stalls; with room again, all that is not in the file is counted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    result = python(
        "capture_on_full_disk.py",
        folder,
        prefix=("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=1M none "{folder}" && exec "$@"', "sh"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "accounted for\n"
