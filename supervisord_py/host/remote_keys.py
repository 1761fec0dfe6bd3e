"""The keys of remote access: the folder that ``[control.remote]`` and ``[bus.remote]`` name.

In it lie the supervisor's own key, ``server.key_secret``, which nobody else may read, and the public key of everybody
who may come, ``NAME.key``; ``server.key`` is what clients have to have, and lets nobody in. The folder, its files and
everything above belong to root or to the supervisor and may be written by nobody else.

``KeyFolder`` has what lies there now: whoever is asked about looks whether the folder is still as it was read, and
inotify tells of changes where nobody asks. Without a readable folder there are no keys, so nobody is let in.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable

from msgspec import Struct

from supervisord_py.host import inotify
from supervisord_py.host.trusted_files import FileRefused, TrustedReader, key_owners
from supervisord_py.model.keys import KeyTable
from supervisord_py.model.parse import read_tables
from supervisord_py.model.problems import Problem
from supervisord_py.model.settings import Settings
from supervisord_py.wire.curve import (
    PUBLIC_SUFFIX,
    SECRET_SUFFIX,
    SERVER,
    Certificate,
    CurveError,
    is_key_name,
    parse_certificate,
)

KEYS_MAX = 1000
LOOK_AGAIN_S = 5.0
"""How often the folder is looked at where the kernel does not tell of changes."""


class KeysRefused(Exception):
    """A folder of keys that cannot be used: why, and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint


class RemoteKeys(Struct, frozen=True):
    """The supervisor's own key, and who may come: name by public key. ``problems`` are the files that are not used."""

    own: Certificate
    names: dict[str, str]
    problems: tuple[str, ...] = ()


def read_remote_keys(folder: str) -> RemoteKeys:
    """Read a folder of keys.

    Raises:
        KeysRefused: It has no key of the supervisor's that could be used.
    """
    reader = TrustedReader(key_owners())
    path = os.path.join(folder, SERVER + SECRET_SUFFIX)
    make = f"supervisord-py keygen --curve --name {SERVER} -o {folder} makes it"
    try:
        files = reader.list(folder)
        own = parse_certificate(reader.read_secret(path))
        if own.secret is None:
            raise KeysRefused(f"{path} has no secret key in it", make)
    except FileNotFoundError:
        raise KeysRefused(f"the supervisor's own key is missing: no {path}", make) from None
    except (OSError, FileRefused, CurveError) as error:
        raise _refusal(error, path) from None
    names: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        name = file.removesuffix(PUBLIC_SUFFIX)
        if name in (file, SERVER) or file.startswith("."):
            continue
        key_path = os.path.join(folder, file)
        try:
            if not is_key_name(name):
                raise CurveError("a name has letters, digits and _ . @ - only")
            public = parse_certificate(reader.read(key_path)).public
            if public == own.public:
                raise CurveError("it is the supervisor's own key")
            if public in names:
                raise CurveError(f"it is the key of {names[public]}")
            if len(names) == KEYS_MAX:
                raise CurveError(f"a folder has {KEYS_MAX} keys at most")
        except FileNotFoundError:
            continue  # it has just been removed
        except (OSError, FileRefused, CurveError) as error:
            problems.append(f"the key {key_path} is not used: {_refusal(error, key_path).message}")
        else:
            names[public] = name
    return RemoteKeys(own, names, tuple(problems))


def _refusal(error: Exception, path: str) -> KeysRefused:
    match error:
        case FileRefused():
            return KeysRefused(error.message, error.hint)
        case OSError():
            return KeysRefused(f"cannot read {error.filename or path}: {(error.strerror or str(error)).lower()}")
    return KeysRefused(f"{path}: {error}")


def key_problems(settings: Settings, text: str, path: str, key_table: KeyTable) -> list[Problem]:
    """Return what is wrong with the folders of keys that the settings name, at the place where they do."""
    problems: list[Problem] = []
    for table, remote in (("control", settings.control.remote), ("bus", settings.bus.remote)):
        if remote is None:
            continue
        entry = read_tables(path, text, "settings", key_table).tables[(table, "remote")]["keys"]
        try:
            keys = read_remote_keys(remote.keys)
        except KeysRefused as refused:
            problems.append(entry.problem(refused.message, refused.hint))
            continue
        problems += [entry.problem(problem, severity="warning") for problem in keys.problems]
        if not keys.names and not keys.problems:
            hint = f"supervisord-py keygen --curve makes keys; copy the {PUBLIC_SUFFIX} file of each client there"
            problems.append(entry.problem("nobody has a key here yet", hint, severity="warning"))
    return problems


class KeyFolder:
    """A folder of keys as it is now.

    Args:
        path: The folder.
        on_change: Is called in the event loop after the keys have become others.
    """

    def __init__(self, path: str, on_change: Callable[[], None]) -> None:
        self.path = path
        self.problem: str | None = None
        """Why there are no keys."""
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._keys: RemoteKeys | None = None
        self._seen: object = None
        self._inotify: inotify.Inotify | None = None
        self._is_watched = self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._read()
        self._watch()

    @property
    def known(self) -> RemoteKeys | None:
        """The keys as they were read last: for those who are inside, and whom a change will cut."""
        return self._keys

    @property
    def keys(self) -> RemoteKeys | None:
        """The keys, read again where the folder is not as it was; None where they cannot be used."""
        if self._look() != self._seen:
            before = self._keys
            self._read()
            if self._keys != before:
                self._loop.call_soon(self._changed)
        return self._keys

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()

    def _read(self) -> None:
        # The look first: what comes while the files are read is seen the next time.
        self._seen = self._look()
        try:
            self._keys, self.problem = read_remote_keys(self.path), None
        except KeysRefused as refused:
            self._keys, self.problem = None, str(refused)

    def _look(self) -> object:
        """Return what changes when the folder or a file in it does."""
        try:
            folder = os.stat(self.path)
            with os.scandir(self.path) as entries:
                files = []
                for entry in entries:
                    if entry.name.endswith((PUBLIC_SUFFIX, SECRET_SUFFIX)):
                        with contextlib.suppress(OSError):
                            files.append((entry.name, _identity(entry.stat())))
        except OSError as error:
            return error.errno
        return _identity(folder), sorted(files)

    def _watch(self) -> None:
        """Have the kernel tell of changes; where it does not, look now and then."""
        self._is_watched = False
        try:
            if self._inotify is None:
                self._inotify = inotify.Inotify()
                self._loop.add_reader(self._inotify.fileno(), self._told)
            self._inotify.add(self.path, inotify.FOLDER_OF_FILES)
            self._is_watched = True
        except OSError:
            self._timer = self._loop.call_later(LOOK_AGAIN_S, self._look_again)

    def _told(self) -> None:
        assert self._inotify is not None
        gone = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.IGNORED
        changes = self._inotify.read()
        if self._is_watched and any(change.mask & gone for change in changes):
            self._watch()
        _ = self.keys

    def _look_again(self) -> None:
        self._watch()
        _ = self.keys

    def _changed(self) -> None:
        if not self._is_closed:
            self._on_change()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
        status.st_mode,
        status.st_uid,
    )
