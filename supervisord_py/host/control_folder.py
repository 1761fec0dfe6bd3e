"""The control folder: what ``supctl enable``, ``disable``, ``mask`` and ``unmask`` say about units, on disk.

It lies in the state folder and is the first folder of every unit path, so what is written here is read by the one
loader as everything else is: ``NAME.toml.d/50-enabled.toml`` sets ``[unit] enabled``, ``NAME.toml`` as a link to
/dev/null masks the unit. Each change is one rename or one unlink, so a crash leaves the old or the new word, never half
of one.

A change is decided on what was read last (``plan_changes``: values, nothing is touched), then written, then loaded; no
other file is looked at, so nothing else is loaded by the way.

Source: systemd.unit(5), "Unit File Load Path", system.control.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.host.unit_files import CONTROL_PRIORITY, UnitSources, build, printable
from supervisord_py.model.effective_settings import Setting
from supervisord_py.model.names import is_unit_name, parse_unit_name
from supervisord_py.model.unitset import UnitFile, UnitFileKind

DROP_IN = "50-enabled.toml"
_FOLDER_MODE = 0o750
_FILE_MODE = 0o640


class Change(Struct, frozen=True):
    """What becomes of one file of the control folder: ``file`` is what will stand at ``path``, None takes it away."""

    unit: str
    path: str
    file: UnitFile | None


class RefusedChange(Exception):
    """A unit that cannot be enabled, disabled, masked or unmasked: why, and what to do."""

    def __init__(self, unit: str, message: str) -> None:
        super().__init__(message)
        self.unit = unit
        self.message = message


def plan_changes(verb: str, names: Sequence[str], sources: UnitSources, folder: Path) -> list[Change]:
    """Decide what ``verb`` changes in the control folder; what is so already is left out.

    Args:
        verb: ``enable``, ``disable``, ``mask`` or ``unmask``.
        names: Units, and templates (``worker@``: it and all of its instances).
        sources: What was read last.
        folder: The control folder.

    Raises:
        RefusedChange: A file that is not ours stands in the way.
    """
    changes: list[Change] = []
    narrowed = by_name(sources)
    for name in names:
        match verb:
            case "enable" | "disable":
                changes += _enablement(name, verb == "enable", narrowed(name), folder)
            case "mask":
                changes += _mask(name, narrowed(name), folder)
            case _:
                changes += _unmask(name, narrowed(name), folder)
    return changes


def by_name(sources: UnitSources) -> Callable[[str], UnitSources]:
    """Return what gives the part of ``sources`` that has a say about a unit or a template (then also about its
    instances). Looking through all files for each of thousands of units takes minutes."""
    places: dict[str, list[int]] = {}
    general: list[int] = []
    for place, file in enumerate(sources.files):
        if file.kind is UnitFileKind.DEFAULTS:
            general.append(place)
            continue
        for holder in _holders(file.name):
            places.setdefault(holder, []).append(place)

    def narrowed(name: str) -> UnitSources:
        found = sorted({*general, *(place for holder in _holders(name) for place in places.get(holder, ()))})
        return replace(sources, files=tuple(sources.files[place] for place in found))

    return narrowed


def _holders(name: str) -> set[str]:
    """The name and that of its template; not parsed, for a file may have a name that no unit can have."""
    prefix, at, _ = name.partition("@")
    return {name, prefix + at}


def apply_changes(sources: UnitSources, changes: Iterable[Change]) -> UnitSources:
    """Return what a load would read after the changes, if nothing else had changed."""
    by_path = {change.path: change.file for change in changes}
    kept = [file for file in sources.files if file.path not in by_path]
    return replace(sources, files=(*(file for file in by_path.values() if file is not None), *kept))


def write_changes(changes: Iterable[Change], folder: Path, gid: int | None) -> None:
    """Put the changes on disk.

    Raises:
        OSError: They could not be written; those before the one that failed are. Of that one nothing is left behind,
            and the error names its file.
    """
    touched: dict[Path, None] = {}
    for change in changes:
        path = Path(change.path)
        try:
            _write_change(change, path, folder, gid, touched)
        except OSError as error:
            with contextlib.suppress(OSError):
                _temporary(path).unlink(missing_ok=True)
            if path.parent != folder:
                with contextlib.suppress(OSError):  # it is not empty: it was there before
                    path.parent.rmdir()
            _sync_all(touched, ignored=OSError)
            error.filename = str(path)
            raise
    _sync_all(touched, ignored=FileNotFoundError)  # a folder that was removed when it was empty


def _sync_all(folders: Iterable[Path], ignored: type[OSError]) -> None:
    """Each folder once, at the end: nearly all changes are in the same one."""
    for folder in folders:
        with contextlib.suppress(ignored):
            _sync(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _write_change(change: Change, path: Path, folder: Path, gid: int | None, touched: dict[Path, None]) -> None:
    """Write one change; the folders in which something was done are added to ``touched``."""
    if change.file is None:
        path.unlink(missing_ok=True)
        touched[path.parent] = None
        if path.parent != folder:
            with contextlib.suppress(OSError):  # others have put something into it
                path.parent.rmdir()
        return
    _make_folder(folder, gid, touched)
    if path.parent != folder:
        _make_folder(path.parent, gid, touched)
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    if change.file.kind is UnitFileKind.UNIT:
        temporary.symlink_to(os.devnull)
    else:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        with open(descriptor, "w", encoding="utf-8") as file:
            _give(descriptor, gid)
            file.write(change.file.text)
            file.flush()
            os.fsync(descriptor)
    temporary.replace(path)
    touched[path.parent] = None


def is_enabled(name: str, sources: UnitSources) -> bool:
    """What the files in ``sources`` say about a unit or a template; one that does not say is enabled."""
    return next((bool(each.value) for each in _settings(name, sources) if each.key == "unit.enabled"), True)


def overruling(name: str, sources: UnitSources, folder: Path) -> str | None:
    """Name the place whose word about ``enabled`` counts in place of ours, because it is merged after it; None when
    ours does."""
    written = next((each for each in _settings(name, sources) if each.key == "unit.enabled"), None)
    if written is None or written.file == _drop_in_path(folder, name):
        return None
    return f"{written.file}:{written.line}"


def _settings(name: str, sources: UnitSources) -> list[Setting]:
    """The settings of one unit or template, built alone: the rest of the set says nothing about it."""
    template = parse_unit_name(name).template
    files = []
    for file in sources.files:
        is_own = file.kind is UnitFileKind.DROP_IN and file.name in (name, template)
        if is_own or file.kind is UnitFileKind.DEFAULTS:
            files.append(file)
    main = _main_file(name, sources)
    if main is not None:
        # An instance is built as if the template's file were its own: whether it is numbered or not.
        files.append(replace(main, name=name))
    return build(replace(sources, files=tuple(files), problems=()), is_part=True).settings(name)


def _enablement(name: str, wanted: bool, sources: UnitSources, folder: Path) -> list[Change]:
    changes = []
    for instance in _instances_with_drop_in(name, sources):
        # What was said of one instance gives way to what is said of all.
        changes.append(Change(instance, _drop_in_path(folder, instance), None))
    path = _drop_in_path(folder, name)
    now = next((file for file in sources.files if file.path == path), None)
    others = replace(sources, files=tuple(file for file in sources.files if file.path != path))
    if is_enabled(name, others) == wanted:
        return changes if now is None else [*changes, Change(name, path, None)]
    text = f"[unit]\nenabled = {'true' if wanted else 'false'}\n"
    if now is None or now.text != text:
        file = UnitFile(name, path, text, UnitFileKind.DROP_IN, printable(str(folder)), CONTROL_PRIORITY)
        changes.append(Change(name, path, file))
    return changes


def _instances_with_drop_in(name: str, sources: UnitSources) -> list[str]:
    if is_unit_name(name):
        return []
    return [
        file.name
        for file in sources.files
        if file.priority == CONTROL_PRIORITY
        and file.path.endswith("/" + DROP_IN)
        and file.name != name
        and parse_unit_name(file.name).template == name
    ]


def _mask(name: str, sources: UnitSources, folder: Path) -> list[Change]:
    path = printable(str(folder / f"{name}.toml"))
    now = _main_file(name, sources)
    if now is not None and now.path == path and (now.text or now.problem is not None):
        raise RefusedChange(name, f"cannot mask {name}: its file is {path}; move it away first")
    if now is not None and not now.text and now.problem is None:
        return []
    return [Change(name, path, UnitFile(name, path, "", UnitFileKind.UNIT, printable(str(folder)), CONTROL_PRIORITY))]


def _unmask(name: str, sources: UnitSources, folder: Path) -> list[Change]:
    path = printable(str(folder / f"{name}.toml"))
    now = _main_file(name, sources)
    if now is None or now.text or now.problem is not None:
        return []
    if now.path == path:
        return [Change(name, path, None)]
    raise RefusedChange(name, f"{name} is masked by {now.path}, which is not ours: remove that file or link yourself")


def _main_file(name: str, sources: UnitSources) -> UnitFile | None:
    """The file that defines a unit or template: its own before its template's, of several the first folder's."""
    for holder in dict.fromkeys((name, parse_unit_name(name).template or name)):
        found = [file for file in sources.files if file.kind is UnitFileKind.UNIT and file.name == holder]
        if found:
            return min(found, key=lambda file: file.priority)
    return None


def _drop_in_path(folder: Path, name: str) -> str:
    return printable(str(folder / f"{name}.toml.d" / DROP_IN))


def _make_folder(folder: Path, gid: int | None, touched: dict[Path, None]) -> None:
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700)
    _give_path(folder, gid)
    folder.chmod(_FOLDER_MODE)
    touched[folder.parent] = None


def _give(descriptor: int, gid: int | None) -> None:
    if gid is not None:
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, -1, gid)


def _give_path(folder: Path, gid: int | None) -> None:
    if gid is not None:
        with contextlib.suppress(PermissionError):
            os.chown(folder, -1, gid)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
