"""Whose a supervisor's folders and files are and who may write to them; and who lives in them when nobody answers."""

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from supervisord_py.doctor.evidence import Instance, config_of, variable
from supervisord_py.doctor.findings import Finding, degraded, wrong
from supervisord_py.host.adoption import find_processes
from supervisord_py.host.trusted_files import FileRefused, TrustedReader, trusted_uids

ALONE = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def belongings(instance: Instance) -> list[Finding]:
    """Say what others than the supervisor's user could change or read, as far as we may look."""
    if instance.runtime is None or instance.state is None or instance.log is None:
        return []
    with contextlib.suppress(OSError):
        uid = os.stat(f"/proc/{instance.keeper}").st_uid
        config = config_of(instance.keeper)
        found = [*_folders(instance, uid), *_files(instance, uid), *_socket(config)]
        # A supervisor of an ordinary user believes what the kernel lets it read.
        return [*found, *_unit_files(instance, config)] if uid == 0 else found
    return []


def _folders(instance: Instance, uid: int) -> Iterator[Finding]:
    named = {"runtime folder": instance.runtime, "state folder": instance.state, "log folder": instance.log}
    named |= {"journal": f"{instance.state}/journal", "notify sockets": f"{instance.runtime}/n"}
    for topic, folder in named.items():
        if (status := _status(folder)) is None:
            continue
        if status.st_uid not in (uid, 0):
            yield wrong(topic, f"{folder} belongs to {_user(status.st_uid)}", f"chown {_user(uid)} {folder}")
        elif status.st_mode & stat.S_IWOTH:
            yield wrong(topic, f"everybody may write to {folder}", f"chmod o-w {folder}")


def _files(instance: Instance, uid: int) -> Iterator[Finding]:
    """The book says what runs next time, the lock whose the processes are, the journal what was."""
    book = f"{instance.runtime}/book"
    segments = []
    with contextlib.suppress(OSError):
        segments = [entry.path for entry in os.scandir(f"{instance.state}/journal")]
    for topic, path, mode in (
        ("book", book, ALONE),
        ("lock", f"{instance.runtime}/lock", OTHERS_WRITE),
        *(("journal", path, OTHERS_WRITE) for path in sorted(segments)),
    ):
        status = _status(path)
        if status is not None and (status.st_uid != uid or status.st_mode & mode):
            who = f"{_user(status.st_uid)}, {stat.S_IMODE(status.st_mode):04o}"
            cure = f"chown {_user(uid)} {path}; chmod {'go-rwx' if mode == ALONE else 'go-w'} {path}"
            yield wrong(topic, f"{path} ({who}) is not the supervisor's alone", cure)


def _socket(config: Mapping[str, Any]) -> Iterator[Finding]:
    path, wanted = config.get("socket"), config.get("socket_mode")
    status = _status(path) if isinstance(path, str) else None
    if status is not None and isinstance(wanted, int) and stat.S_IMODE(status.st_mode) & ~wanted & 0o222:
        fact = (
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: more may connect than socket-mode says ({wanted:04o})"
        )
        yield degraded("control socket", fact, f"chmod {wanted:04o} {path}")


def _unit_files(instance: Instance, config: Mapping[str, Any]) -> Iterator[Finding]:
    """What the next daemon-reload of root's supervisor would refuse."""
    environment = {"SUDO_UID": variable(instance.keeper, "SUDO_UID") or ""}
    reader = TrustedReader(trusted_uids(environment, typed=True))
    for path in map(str, [*(config.get("unit_paths") or []), config.get("settings_path", "")]):
        try:
            if os.path.isdir(path):
                for name in reader.list(path):
                    if name.endswith(".toml"):
                        reader.read(f"{path}/{name}")
            else:
                reader.read(path)
        except FileRefused as refused:
            yield wrong("unit files", f"{path}: {refused.message}", refused.hint or "look at the file")
        except OSError:
            pass  # no settings, a file that is gone by now: `check` tells


def _status(path: str | None) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return None if path is None else os.lstat(path)
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def who_is_there(runtime: Path) -> Finding | None:
    """Say who lives in a runtime folder although nobody answers on the control socket; None where nobody does."""
    keeper = next((pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_of(pid, runtime)), None)
    if keeper is not None:
        fact = f"the keeper (pid {keeper}) lives, and nobody can reach it: its control socket is gone"
        return wrong("control socket", fact, f"kill -USR2 {keeper}: the next manager makes it anew, no unit is touched")
    try:
        pid, number = map(int, (runtime / "lock").read_bytes().split()[:2])
    except (OSError, ValueError):
        return None
    count = sum(1 for _ in find_processes(number))
    fact = f"the keeper (pid {pid}) was killed; {count} of its processes live, and nobody supervises them"
    return degraded("control socket", fact, "start the supervisor: run goes on with what is left")


def _is_of(pid: int, runtime: Path) -> bool:
    """Whether a process is a keeper in this folder: of the same root, because a container has folders of this name."""
    with contextlib.suppress(OSError):
        return config_of(pid).get("runtime_dir") == str(runtime) and os.path.samefile(f"/proc/{pid}/root", "/")
    return False
