"""``edit``: change a unit's file with an editor; nothing is written that the supervisor would not take.

Theory of operation
-------------------
The editor works on a copy. Each time it ends, the supervisor is asked what would be wrong with that text
(``CheckText``); an invalid one can only be edited again or left in the copy, whose name is told. What is
good is shown as a diff, written beside the file and renamed over it, and applied. A file that is no longer what the
editor was given (changed, removed or made by somebody else) is left alone, and the text is kept.

The file is written by the caller, with the caller's rights, on the machine of the supervisor.
"""

import contextlib
import difflib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from supervisord_py.ctl.client import ControlError
from supervisord_py.ctl.options import Misuse, Verb, unit_argument
from supervisord_py.ctl.render import clean
from supervisord_py.ctl.session import Session
from supervisord_py.ctl.verbs import carry_out
from supervisord_py.errors import SupervisordError

DROP_IN = "override.toml"


class CannotEditError(SupervisordError):
    """The file cannot be edited: why, and what to do."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_status = exit_status

    def __str__(self) -> str:
        return self.message


@click.command("edit", cls=Verb, accepts=("reason", "plan"))
@unit_argument()
@click.option("--drop-in", "drop_in", is_flag=True, help=f"Edit a drop-in ({DROP_IN}) instead of the unit's own file.")
@click.option("-y", "--yes", is_flag=True, help="Write and apply without asking.")
@click.pass_context
def edit(context: click.Context, unit: str, drop_in: bool, yes: bool) -> int:
    """Open $VISUAL or $EDITOR on a unit's file, check the text, show the difference, write it and apply it.

    A text that is not valid is never written.
    """
    session: Session = context.obj
    if session.options.remote is not None:
        raise Misuse("edit writes files of this machine, and --remote is another: ssh HOST supctl edit ...", context)
    if not yes and not sys.stdin.isatty() and not session.options.plan:
        raise Misuse("edit asks before it writes, and this is no terminal: give --yes", context)
    path = _file_of(session, unit, drop_in=drop_in)
    old = _read(path)
    editor = _editor(session)
    descriptor, name = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".toml")
    copy, keep = Path(name), False
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(old if old is not None else "")
    try:
        while True:
            new = _run(editor, copy)
            if new == (old or ""):
                session.echo("nothing has changed")
                return 0
            problems = _check(session, path, new, masks=not drop_in)
            if any(problem["severity"] == "error" for problem in problems):
                keep = True
                if yes or session.options.plan or _ask("edit again? [y/n] ", "yn") != "y":
                    invalid = CannotEditError(f"not written, the text is kept in {copy}", exit_status=6)
                    return session.fail(invalid, problems=problems)
                keep = False
                continue
            _show(session, path, old or "", new)
            if session.options.plan:
                return 0
            answer = "y" if yes else _ask(f"write {path} and apply it? [y]es, [e]dit again, [n]o ", "yen")
            if answer == "y":
                break
            if answer == "n":
                keep = True
                session.note(f"not written, the text is kept in {copy}")
                return 1
        keep = True
        try:
            _write(path, old, new)
        except _ChangedMeanwhileError as changed:
            message = f"{path} was {changed} while you edited: not written, the text is kept in {copy}"
            raise CannotEditError(message) from None
        except CannotEditError as error:
            raise CannotEditError(f"{error}; the text is kept in {copy}", error.exit_status) from None
        except OSError as error:
            message = f"cannot write {path}: {(error.strerror or str(error)).lower()}; the text is kept in {copy}"
            raise CannotEditError(message) from None
        keep = False
    finally:
        if not keep:
            with contextlib.suppress(OSError):  # the editor has removed it, or put something else in its place
                copy.unlink()
    # Of a template's file all instances are built.
    return _apply(session, path.stem if path.stem.endswith("@") else unit)


def _file_of(session: Session, unit: str, *, drop_in: bool) -> Path:
    """Return the file to edit, as the supervisor names it; of an instance it is the template's."""
    name = unit
    if unit.endswith("@"):
        name = session.call("List", units=[unit], failed=False)["units"][0]["name"]
    files = session.call("Cat", unit=name)["files"]
    status = session.call("List", units=[name], failed=False)["units"][0]
    if status.get("transient"):
        raise CannotEditError(f"{unit} was run without a file: supctl set changes keys of it, run --save writes a file")
    path = status["path"] or next((file["path"] for file in files if ".toml.d/" not in file["path"]), None)
    if path is None:
        raise CannotEditError(f"{unit} has no file to edit (it is {status['load_state'].replace('_', '-')})")
    found = Path(path)
    if drop_in:
        found = found.parent / f"{unit}.toml.d" / DROP_IN
    return found


def _editor(session: Session) -> list[str]:
    for variable in ("VISUAL", "EDITOR"):
        if session.environment.get(variable, "").strip():
            return shlex.split(session.environment[variable])
    found = shutil.which("vi", path=session.environment.get("PATH"))
    if found is None or not sys.stdin.isatty():
        raise CannotEditError("there is no editor: set EDITOR, for example EDITOR=nano")
    return [found]


def _read(path: Path) -> str | None:
    """Return the text that is there, None for a file that is to be made; says early what could not be written."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise CannotEditError(f"you may not write {path}: edit it as its owner (sudo supctl edit)", exit_status=5)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CannotEditError(f"cannot read {path}: {error}") from None


def _run(editor: list[str], copy: Path) -> str:
    """Open the editor on the copy and return the text that it leaves."""
    try:
        ended = subprocess.run([*editor, str(copy)], check=False)
    except OSError as error:
        raise CannotEditError(f"cannot run the editor {editor[0]}: {error.strerror}") from None
    if ended.returncode != 0:
        raise CannotEditError(f"the editor {editor[0]} ended with {ended.returncode}: nothing is written")
    try:
        return copy.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CannotEditError(f"the editor {editor[0]} left no text ({reason}): nothing is written") from None


def _check(session: Session, path: Path, text: str, *, masks: bool) -> list[dict[str, Any]]:
    """Return what is wrong with the text, and tell it; ``masks``: an empty one would mask the unit."""
    problem = {"severity": "error", "file": str(path), "line": 0, "column": 0, "key": "", "hint": ""}
    try:
        text.encode()
    except UnicodeEncodeError:
        problems = [problem | {"message": "not UTF-8"}]
    else:
        if masks and not text:
            hint = "supctl mask does that, and supctl unmask takes it back"
            problems = [problem | {"message": "an empty file masks its unit", "hint": hint}]
        else:
            problems = session.call("CheckText", path=str(path), text=text)["problems"]
    for problem in problems:
        where = f"{problem['file']}:{problem['line']}" if problem["line"] else problem["file"]
        key = f" {problem['key']}:" if problem["key"] else ""
        hint = f" ({problem['hint']})" if problem["hint"] else ""
        session.note(clean(f"{problem['severity']}: {where}:{key} {problem['message']}{hint}"))
    return problems


def _show(session: Session, path: Path, old: str, new: str) -> None:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), str(path), f"{path} (new)", lineterm="")
    colours = {"+": "green", "-": "red", "@": "cyan"}
    if session.wants_json:
        return
    session.echo(*(session.style.paint(clean(line), *filter(None, (colours.get(line[:1]),))) for line in lines))
    session.flush()


def _ask(question: str, answers: str) -> str:
    while True:
        sys.stderr.write(question)
        sys.stderr.flush()
        word = sys.stdin.readline().strip().lower()[:1]
        if not word:
            return "n"
        if word in answers:
            return word


class _ChangedMeanwhileError(Exception):
    """The file is not what the editor was given; the message says in one word what became of it."""


def _write(path: Path, old: str | None, text: str) -> None:
    """Replace the file whole or not at all, with the mode and owner that it has.

    Raises:
        _ChangedMeanwhileError: It is not ``old`` (None: not there) any more.
        OSError: It cannot be written.
    """
    now = _read(path)
    if now != old:
        raise _ChangedMeanwhileError("removed" if now is None else "made" if old is None else "changed")
    real = Path(os.path.realpath(path))
    real.parent.mkdir(mode=0o755, exist_ok=True)
    temporary = real.with_name(f".{real.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
        if real.exists():
            status = real.stat()
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            with contextlib.suppress(PermissionError):
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(real)
    folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _apply(session: Session, unit: str) -> int:
    def request() -> dict[str, Any]:
        return session.call("Apply", units=[unit], wait=True, plan=False, reason=session.options.reason)

    try:
        return carry_out(session, request, [unit], nothing="applied: nothing needs a restart")
    except ControlError as error:
        return session.fail(error)
