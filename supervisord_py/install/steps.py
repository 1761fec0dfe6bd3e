"""What install and uninstall do to the machine, one step at a time; each is said, and done unless it is a rehearsal."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click

_DONE = {"make": "made", "write": "wrote", "link": "linked", "run": "ran", "remove": "removed"}


class Steps:
    """Every path is meant below ``root``; a step that has nothing to do says nothing."""

    def __init__(
        self, root: Path, say: Callable[[str], None], *, rehearsal: bool, environment: Mapping[str, str]
    ) -> None:
        self._root, self.say, self.is_rehearsal, self._environment = root, say, rehearsal, dict(environment)

    def at(self, path: Path) -> Path:
        """Return where a path is below the root."""
        return self._root / path.relative_to("/")

    def make_folder(self, path: Path, mode: int, gid: int | None = None) -> None:
        """Make a folder, with this mode from the first instant that it is anybody else's."""
        where = self.at(path)
        if where.is_dir():
            return
        self._say("make", f"{where} ({mode:04o})")
        if not self.is_rehearsal:
            with _telling("make", where):
                where.parent.mkdir(parents=True, exist_ok=True)
                where.mkdir(mode=0o700)
                if gid is not None:
                    os.chown(where, -1, gid)
                where.chmod(mode)

    def write(self, path: Path, text: str) -> bool:
        """Write a file in one go; return whether it is another now."""
        where = self.at(path)
        if read_text(where) == text:
            return False
        self._say("write", str(where))
        if not self.is_rehearsal:
            new = where.with_name(f".{where.name}.new")
            with _telling("write", where):
                where.parent.mkdir(parents=True, exist_ok=True)
                new.write_text(text, encoding="utf-8")
                new.chmod(0o644)
                new.replace(where)
        return True

    def link(self, path: Path, target: Path) -> None:
        where = self.at(path)
        if where.is_symlink() and where.readlink() == target:
            return
        self._say("link", f"{where} to {target}")
        if not self.is_rehearsal:
            with _telling("link", where):
                where.parent.mkdir(parents=True, exist_ok=True)
                where.unlink(missing_ok=True)
                where.symlink_to(target)

    def remove(self, path: Path) -> None:
        """Remove a file or a link."""
        where = self.at(path)
        if where.is_symlink() or where.exists():
            self._say("remove", str(where))
            if not self.is_rehearsal:
                with _telling("remove", where):
                    where.unlink()

    def remove_if_empty(self, path: Path) -> None:
        where = self.at(path)
        if where.is_dir() and not where.is_symlink() and not any(where.iterdir()):
            self._say("remove", str(where))
            if not self.is_rehearsal:
                with _telling("remove", where):
                    where.rmdir()

    def remove_tree(self, path: Path) -> None:
        where = self.at(path)
        if where.is_dir() and not where.is_symlink():
            self._say("remove", f"{where} and all in it")
            if not self.is_rehearsal:
                with _telling("remove", where):
                    shutil.rmtree(where)

    def run(self, command: Sequence[str], failure: str = "") -> None:
        """Run a command and wait for its end. With ``failure`` (what to do then) it must succeed."""
        self._say("run", " ".join(command))
        if self.is_rehearsal:
            return
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode != 0 and failure:
            message = f"`{' '.join(command)}` failed ({done.returncode}): {done.stderr.strip()}; {failure}"
            raise click.ClickException(message)

    def ask(self, command: Sequence[str]) -> str:
        """Return what a command that changes nothing prints; nothing when it cannot be run."""
        with contextlib.suppress(OSError):
            return subprocess.run(
                command, env=self._environment, capture_output=True, text=True, check=False
            ).stdout.strip()
        return ""

    def _say(self, verb: str, what: str) -> None:
        self.say(f"would {verb} {what}" if self.is_rehearsal else f"{_DONE[verb]} {what}")


def read_text(path: Path) -> str | None:
    """Return the text of a file; None when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error


@contextlib.contextmanager
def _telling(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise click.ClickException(f"cannot {verb} {path}: {reason}") from error
