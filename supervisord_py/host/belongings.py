"""What is read and made for a unit before its processes: variables of files, folders below the roots, credentials.

Folders are made when a command of the unit is, with the owner it runs as; an existing one of another owner is handed
over with all that is in it. Each step of a path is entered by descriptor, and a link only when root or we made it: a
user cannot have a folder made, or given away, elsewhere. What goes when the unit stops (its runtime folders, its
credentials) is written down in ``made/UNIT.json`` before it is made, so that a later manager removes it.

Source: systemd.exec(5), RuntimeDirectory=, LoadCredential=, EnvironmentFile=; systemd src/core/exec-invoke.c,
setup_exec_directory, src/core/exec-credential.c.
"""

import contextlib
import errno
import glob
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from supervisord_py.host.accounts import Account
from supervisord_py.host.places import default_places
from supervisord_py.model.context import Belongings, Credential, Folder, FolderKind, Folders
from supervisord_py.model.environment_file import is_variable_name, parse_environment_file

EXIT_CODES = {
    FolderKind.RUNTIME: 233,
    FolderKind.STATE: 238,
    FolderKind.CACHE: 239,
    FolderKind.LOGS: 240,
    FolderKind.CONFIGURATION: 241,
}
EXIT_CREDENTIALS = 243
ENVIRONMENT_FILE_MAX = 16 * 1024 * 1024
CREDENTIALS = "credentials"
"""The folder in the runtime folder that holds those of the units."""

PRIVATE = "private"
"""The folder in a root that only root may enter: what lies in it belongs to a number that may be another's later."""

CREDENTIAL_MAX = 1024 * 1024
"""Bytes of all credentials of a unit, as in systemd."""


class CannotProvideError(Exception):
    """Something cannot be read or made; ``step`` and ``code`` are those of a failed spawn."""

    def __init__(self, step: str, code: int, number: int, detail: str) -> None:
        super().__init__(detail)
        self.step, self.code, self.errno, self.detail = step, code, number, detail


class Roots(Struct, frozen=True):
    """Below what folders are made."""

    runtime: str
    state: str
    cache: str
    logs: str
    configuration: str

    def of(self, kind: FolderKind) -> str:
        root: str = getattr(self, kind.value)
        return root


def own_roots(environment: Mapping[str, str]) -> Roots:
    """Return the roots of the user that we are, by the XDG variables of ``environment``."""
    home = os.path.expanduser("~")
    if os.geteuid() == 0:
        return Roots("/run", "/var/lib", "/var/cache", "/var/log", "/etc")
    state = environment.get("XDG_STATE_HOME") or f"{home}/.local/state"
    return Roots(
        runtime=environment.get("XDG_RUNTIME_DIR")
        or str(default_places(dict(environment), os.geteuid(), home).runtime),
        state=state,
        cache=environment.get("XDG_CACHE_HOME") or f"{home}/.cache",
        logs=f"{state}/log",
        configuration=environment.get("XDG_CONFIG_HOME") or f"{home}/.config",
    )


class OwnFolder(Struct, frozen=True):
    """A folder of a unit: of which ``key``, where it lies, and what hides it from everybody else."""

    key: str
    path: str
    private: str | None = None


class Keeping:
    """Makes what units own, and removes what goes with them.

    Args:
        folder: The instance's runtime folder.
        roots: Below what folders are made.
    """

    def __init__(self, folder: Path, roots: Roots) -> None:
        self._made = folder / "made"
        self._credentials = folder / CREDENTIALS
        self._roots = roots

    def variables(self, unit: str, belongings: Belongings) -> dict[str, str]:
        """Return the variables that name a unit's folders and credentials."""
        variables = {
            f"{kind.name}_DIRECTORY": ":".join(f"{self._roots.of(kind)}/{each.path}" for each in in_order(folders))
            for kind, folders in belongings.all_folders
        }
        if belongings.credentials:
            variables["CREDENTIALS_DIRECTORY"] = str(self._credentials / unit)
        return variables

    def provide(
        self, unit: str, invocation: str, belongings: Belongings, account: Account, *, is_dynamic: bool = False
    ) -> list[str]:
        """Make a unit's folders and credentials for a life, unless they are there.

        ``is_dynamic``: the account is the unit's while it runs; folders that outlive it are out of all others' reach.

        Returns:
            What it does without: credentials that the supervisor was to be given itself, and was not. systemd lets
            them be missing, too; a program notices when it opens them.

        Raises:
            CannotProvideError: Something of it cannot be had.
        """
        if not belongings.all_folders and not belongings.credentials:
            return []
        note = self._read_note(unit)
        if note.get("invocation") != invocation:
            if note.get("preserve") == "no":
                self._remove(unit, note)
            with _failing("runtime-directory", EXIT_CODES[FolderKind.RUNTIME], str(self._made)):
                self._write_note(unit, invocation, belongings, is_dynamic=is_dynamic)
            self._provide_credentials(unit, belongings.credentials, account)
        for kind, folders in belongings.all_folders:
            owner = None if kind is FolderKind.CONFIGURATION else account
            root, is_private = self._roots.of(kind), is_dynamic and belongings.outlives(kind)
            for folder in in_order(folders):
                with _failing(f"{kind.value}-directory", EXIT_CODES[kind], f"{root}/{folder.path}"):
                    _make(root, folder, folders, owner, is_private=is_private)
        return [
            f"load-credential: the supervisor was given no credential {each.path}"
            for each in belongings.load_credentials
            if is_handed_on(each) and not (self._credentials / unit / each.name).exists()
        ]

    def own_folders(self, belongings: Belongings, *, is_dynamic: bool) -> tuple[OwnFolder, ...]:
        """Return where the folders lie into which a unit may write."""
        found = []
        for kind, folders in belongings.all_folders:
            if kind is not FolderKind.CONFIGURATION:
                root = self._roots.of(kind)
                private = f"{root}/{PRIVATE}" if is_dynamic and belongings.outlives(kind) else None
                found += [
                    OwnFolder(f"{kind.value}-directory", f"{private or root}/{each.path}", private)
                    for each in in_order(folders)
                ]
        return tuple(found)

    def release(self, unit: str, *, is_restarted: bool) -> None:
        """Remove what goes when a unit has stopped."""
        note = self._read_note(unit)
        if note and not (is_restarted and note.get("preserve") == "restart"):
            self._remove(unit, note)
            (self._made / f"{unit}.json").unlink(missing_ok=True)

    def sweep(self, living: Collection[str]) -> None:
        """Remove what units have left whose life nobody knows any more: the supervisor was killed with them, and what
        it knew is lost."""
        with contextlib.suppress(FileNotFoundError):
            for path in list(self._made.iterdir()):
                if path.suffix == ".json" and path.stem not in living:
                    self.release(path.stem, is_restarted=True)

    def _read_note(self, unit: str) -> dict[str, object]:
        try:
            found = json.loads((self._made / f"{unit}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_note(self, unit: str, invocation: str, belongings: Belongings, *, is_dynamic: bool) -> None:
        root, folders = self._roots.runtime, belongings.runtime.folders
        gone = [f"{root}/{each.link}" for each in folders if each.link]
        gone += [f"{root}/{each.path}" for each in folders]
        if is_dynamic and belongings.outlives(FolderKind.RUNTIME):
            gone += [f"{root}/{PRIVATE}/{each.path}" for each in folders]
        if belongings.runtime_preserve == "yes":
            gone = []
        note = {"invocation": invocation, "preserve": belongings.runtime_preserve, "remove": gone}
        self._made.mkdir(mode=0o700, exist_ok=True)
        path = self._made / f"{unit}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(note))
        fresh.rename(path)

    def _remove(self, unit: str, note: Mapping[str, object]) -> None:
        gone = note.get("remove")
        for path in gone if isinstance(gone, list) else ():
            with contextlib.suppress(OSError):
                _remove_below(self._roots.runtime, path)
        _remove_credentials(self._credentials / unit)

    def _provide_credentials(self, unit: str, credentials: tuple[Credential, ...], account: Account) -> None:
        folder = self._credentials / unit
        with _failing("credentials", EXIT_CREDENTIALS, str(folder)):
            _remove_credentials(folder)
            if not credentials:
                return
            contents = read_credentials(credentials)
            self._credentials.mkdir(mode=0o711, exist_ok=True)
            folder.mkdir(mode=0o700)
            for name, content in contents.items():
                fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
                with open(fd, "wb") as file:
                    file.write(content)
                    _give(fd, account)
            fd = os.open(folder, os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _give(fd, account)
                os.fchmod(fd, 0o500)
            finally:
                os.close(fd)


def in_order(folders: Folders) -> list[Folder]:
    """Return folders before what lies in them, as systemd has them."""
    return sorted(folders.folders, key=lambda folder: folder.path.split("/"))


def _make(root: str, folder: Folder, folders: Folders, owner: Account | None, *, is_private: bool) -> None:
    os.makedirs(root, exist_ok=True)
    real = f"{PRIVATE}/{folder.path}" if is_private else folder.path
    _move_here(root, folder.path, is_private=is_private)
    outer, name = _open_parent(root, real)
    try:
        fd = _enter(outer, name, folders.mode)
    finally:
        os.close(outer)
    try:
        _hand_over(fd, folders.mode, owner)
    finally:
        os.close(fd)
    is_within = any(folder.path.startswith(f"{other.path}/") for other in folders.folders)
    if is_private and not is_within:
        _link(root, folder.path, f"{root}/{real}")
    if folder.link is not None:
        _link(root, folder.link, f"{root}/{real}")


def _open_parent(root: str, path: str, *, makes: bool = True) -> tuple[int, str]:
    """Return a descriptor of the folder in which ``path`` below ``root`` lies, made where it is not there, and the last
    part of the path."""
    fd = os.open(root, os.O_DIRECTORY | os.O_CLOEXEC)
    *parts, last = path.split("/")
    for number, part in enumerate(parts):
        mode = 0o700 if number == 0 and part == PRIVATE else 0o755
        outer = fd
        try:
            fd = _enter(outer, part, mode if makes else None)
        finally:
            os.close(outer)
    return fd, last


def _remove_below(root: str, path: str) -> None:
    """Remove a folder below ``root``, or a link, entered as it was made: a unit that may write a folder on the way
    cannot have another one removed by a link. Raises OSError."""
    fd, name = _open_parent(root, path.removeprefix(f"{root}/"), makes=False)
    try:
        if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)
        else:
            shutil.rmtree(name, ignore_errors=True, dir_fd=fd)
    finally:
        os.close(fd)


def _link(root: str, path: str, target: str) -> None:
    fd, name = _open_parent(root, path)
    try:
        with contextlib.suppress(FileExistsError):
            os.symlink(target, name, dir_fd=fd)
        if not stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            raise OSError(errno.EEXIST, "there is something else than a link", f"{root}/{path}")
    finally:
        os.close(fd)


def _move_here(root: str, path: str, *, is_private: bool) -> None:
    """Move a folder that was made when its unit was one with a user of its own, or was none yet."""
    private = f"{PRIVATE}/{path}"
    fd, name = _open_parent(root, path)
    try:
        try:
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        was_private = stat.S_ISLNK(mode) and os.readlink(name, dir_fd=fd) == f"{root}/{private}"
        if (is_private and not stat.S_ISDIR(mode)) or (not is_private and not was_private):
            return
        other, last = _open_parent(root, private)
        try:
            if is_private and not os.path.lexists(f"/proc/self/fd/{other}/{last}"):
                os.rename(name, last, src_dir_fd=fd, dst_dir_fd=other)
            elif not is_private:
                os.unlink(name, dir_fd=fd)
                with contextlib.suppress(FileNotFoundError):
                    os.rename(last, name, src_dir_fd=other, dst_dir_fd=fd)
        finally:
            os.close(other)
    finally:
        os.close(fd)


def is_handed_on(credential: Credential) -> bool:
    """Whether it is one that the supervisor was given itself."""
    return credential.path is not None and not credential.path.startswith("/")


def read_credentials(credentials: tuple[Credential, ...]) -> dict[str, bytes]:
    """Return the credentials by name; one with a value is the default of one whose file is missing, and of those that
    the supervisor was to be given itself what is missing is left out.

    Raises:
        OSError: A file is missing or cannot be read.
    """
    contents: dict[str, bytes] = {}
    own = os.environ.get("CREDENTIALS_DIRECTORY")
    for each in credentials:
        if each.value is not None:
            contents[each.name] = each.value.encode()
            continue
        assert each.path is not None
        if is_handed_on(each) and own is None:
            continue
        path = f"{own}/{each.path}" if is_handed_on(each) else each.path
        try:
            if os.path.isdir(path):
                contents |= _read_all(each.name, path)
            else:
                contents[each.name] = _read(path)
        except FileNotFoundError:
            if each.name not in contents and not is_handed_on(each):
                raise
    if sum(map(len, contents.values())) > CREDENTIAL_MAX:
        raise OSError(errno.E2BIG, "credentials of more than 1 MiB")
    return contents


def _read_all(name: str, folder: str) -> dict[str, bytes]:
    """Return the files in and below a folder, as ``NAME_FILE`` and ``NAME_FOLDER_FILE``; what begins with a dot is left
    alone, and so are links to folders: nobody goes in circles."""
    contents: dict[str, bytes] = {}
    with os.scandir(folder) as found:
        entries = sorted((each for each in found if not each.name.startswith(".")), key=lambda each: each.name)
    for each in entries:
        if each.is_dir(follow_symlinks=False):
            contents |= _read_all(f"{name}_{each.name}", each.path)
        elif not each.is_dir():
            contents[f"{name}_{each.name}"] = _read(each.path)
    return contents


def read_environment_files(patterns: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Read the variables of ``environment-file``, later ones win.

    Returns:
        The variables, and what was left out because no variable can have that name.

    Raises:
        CannotProvideError: A file is missing without ``-`` before it, cannot be read, or is none.
    """
    variables: dict[str, str] = {}
    odd: list[str] = []
    for pattern in patterns:
        may_miss, path = pattern.startswith("-"), pattern.removeprefix("-")
        found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
        if not found and not may_miss:
            raise CannotProvideError("environment-file", 0, errno.ENOENT, f"no environment-file is like {path}")
        for each in found:
            try:
                parsed = parse_environment_file(_read(each))
            except OSError as error:
                if may_miss:
                    continue
                detail = f"environment-file {each}: {(error.strerror or str(error)).lower()}"
                raise CannotProvideError("environment-file", 0, error.errno or 0, detail) from None
            except ValueError as error:
                if may_miss:
                    continue
                detail = f"environment-file {each}: {error}"
                raise CannotProvideError("environment-file", 0, errno.EINVAL, detail) from None
            for name, value in parsed:
                if is_variable_name(name):
                    variables[name] = value
                else:
                    odd.append(f"{each}: {name!r} is not a variable's name")
    return variables, odd


def _read(path: str) -> bytes:
    """Return what a file says; never waits for a FIFO or a device."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    # open() of a folder's descriptor fails and leaves that open, so it is looked at first.
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, "is a directory", path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a file", path)
        if found.st_size > ENVIRONMENT_FILE_MAX:
            raise OSError(errno.EFBIG, "too large", path)
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


@contextlib.contextmanager
def _failing(step: str, code: int, about: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        named = error.filename if isinstance(error.filename, str) and error.filename.startswith("/") else about
        raise CannotProvideError(step, code, error.errno or 0, f"{step} {named}: {words}") from None


def _enter(fd: int, name: str, mode: int | None) -> int:
    """Return a descriptor of a folder in ``fd``, made with ``mode``, unless that is None, when it is not there; a link
    is followed when root or we made it.
    """
    if mode is not None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=fd)
    flags = os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode) and found.st_uid in (0, os.geteuid()):
        flags &= ~os.O_NOFOLLOW
    return os.open(name, flags, dir_fd=fd)


def _hand_over(fd: int, mode: int, owner: Account | None) -> None:
    found = os.fstat(fd)
    if stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(fd, mode)
    if owner is None or os.geteuid() != 0:
        return
    uid, gid = _ids(owner)
    if (found.st_uid, found.st_gid) == (uid, gid):
        return
    for _, folders, files, below in os.fwalk(".", dir_fd=fd):
        for name in (*folders, *files):
            os.chown(name, uid, gid, dir_fd=below, follow_symlinks=False)
    os.fchown(fd, uid, gid)


def _ids(account: Account) -> tuple[int, int]:
    return (os.geteuid() if account.uid is None else account.uid, os.getegid() if account.gid is None else account.gid)


def _give(fd: int, account: Account) -> None:
    if os.geteuid() == 0:
        os.fchown(fd, *_ids(account))


def _remove_credentials(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.chmod(0o700)
        shutil.rmtree(folder)
