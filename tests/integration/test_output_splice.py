"""Output against the worst: the capturing process is killed in full flow, and the disk is really full."""

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
    """Return the content of all files, oldest first."""
    old = sorted(
        (path for path in log_dir.glob("web.log.*") if path.name[8:].isdigit()), key=lambda path: -int(path.name[8:])
    )
    return [path.read_bytes() for path in [*old, log_dir / "web.log"] if path.exists()]


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
