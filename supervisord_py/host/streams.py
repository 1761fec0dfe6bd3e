"""``standard-input``, ``-output`` and ``-error``: operations by which the child opens them itself, with the keeper's
privileges, as systemd does; a FIFO that nobody reads holds up that child alone. Unlike systemd it follows no link of
another user on the way: who may write a folder there must not choose which file the keeper opens. Nothing is opened for
what is captured.

``journald`` speaks the stream protocol of systemd's journal. Source: systemd src/core/exec-invoke.c,
connect_journal_socket, setup_output.
"""

import base64
import os
from collections.abc import Iterator
from typing import Any

from supervisord_py.model.context import Streams

JOURNAL = "/run/systemd/journal/stdout"
FIRST_HANDED = 3
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
KEEPERS_UMASK = 0o022
_REGISTERS = ("stdin", "stdout", "stderr")
_KEYS = ("standard-input", "standard-output", "standard-error")
_OPENED = {
    "file": os.O_WRONLY | os.O_CREAT,
    "append": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "truncate": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
}


def input_data(streams: Streams) -> bytes:
    """Return what is read from ``data``: the lines, then the bytes."""
    lines = "".join(f"{text}\n" for text in streams.texts).encode(errors="surrogateescape")
    return lines + b"".join(map(base64.b64decode, streams.data))


def stream_operations(
    unit: str, identifier: str, streams: Streams, is_connected: bool = False, umask: int = KEEPERS_UMASK
) -> list[dict[str, Any]]:
    """Return what the child does, which has its connection as descriptor 3 if ``is_connected``; the error output goes
    where the output goes unless it is told otherwise. What goes to the same file is opened once, so that one does not
    write over the other; ``umask`` is that of the unit, for files that are made."""
    given = [("stdin", 0, streams.input), ("stdout", 1, streams.output), ("stderr", 2, streams.error)]
    operations: list[dict[str, Any]] = list(_take_connection(streams)) if is_connected else []
    for step, target, wanted in given:
        source = _same_file(streams, target)
        opened = _open(unit, identifier, target, wanted, streams) if source is None else _again(source, target)
        operations += ({"step": step, "key": _KEYS[target], **each} for each in opened)
    if umask != KEEPERS_UMASK and any("mode" in each for each in operations):
        operations.insert(0, {"step": "stdin", "do": "call", "name": "umask", "args": [umask]})
        operations.append({"step": "stdin", "do": "call", "name": "umask", "args": [KEEPERS_UMASK]})
    return operations


def captured_stream(streams: Streams) -> str:
    """Return which stream of a unit's processes its log gets: ``stdout``, ``stderr``, or ``output`` for both."""
    is_output = streams.output in (None, "inherit", "journal")
    is_error = streams.error == "journal" or (streams.error in (None, "inherit") and is_output)
    return "output" if is_output == is_error else "stdout" if is_output else "stderr"


def _same_file(streams: Streams, target: int) -> int | None:
    """Return the descriptor that has been opened already for what ``target`` is to be, None without one. Source:
    systemd src/core/exec-invoke.c, can_inherit_stderr_from_stdout, setup_output."""
    wanted = (streams.input, streams.output, streams.error)[target]
    is_redirected = streams.output not in (None, "inherit", "journal")
    if target == 2 and is_redirected and wanted in (None, "inherit", streams.output):
        return 1 if _same_file(streams, 1) is None else 0
    return 0 if target and wanted is not None and _is_both(streams) and wanted == streams.input else None


def _is_both(streams: Streams) -> bool:
    """Whether the file that is read is written as well."""
    given = streams.input or ""
    return given.startswith("file:") and given in (streams.output, streams.error)


def _again(source: int, target: int) -> Iterator[dict[str, Any]]:
    yield {"do": "dup", "fd": _REGISTERS[source], "to": target}


def _take_connection(streams: Streams) -> Iterator[dict[str, Any]]:
    """Put the connection in the place of input and output, as inetd does (systemd.exec(5), StandardInput=socket)."""
    places = [("stdin", 0)]
    places += [("stdout", 1)] if streams.output in (None, "inherit") else []
    places += [("stderr", 2)] if streams.error in (None, "inherit") and streams.output in (None, "inherit") else []
    for step, place in places:
        yield {"step": step, "do": "call", "name": "dup2", "args": [FIRST_HANDED, place]}
    yield {"step": "stdin", "do": "call", "name": "close", "args": [FIRST_HANDED]}


def _open(
    unit: str, identifier: str, target: int, wanted: str | None, streams: Streams
) -> Iterator[dict[str, Any]]:  # fmt: skip
    register = _REGISTERS[target]
    if wanted in (None, "inherit", "journal") or (target == 0 and wanted in ("null", "socket")):
        return
    kind, _, path = wanted.partition(":")
    if kind == "null":
        yield {"do": "open", "path": "/dev/null", "flags": os.O_WRONLY, "as": register}
    elif kind == "data":
        yield {"do": "data", "bytes": base64.b64encode(input_data(streams)).decode(), "as": register}
    elif kind == "journald":
        name = identifier if streams.identifier is None else streams.identifier
        priority = FACILITIES.index(streams.facility) << 3 | LEVELS.index(streams.level)
        known = unit if os.geteuid() == 0 else ""
        header = f"{name}\n{known}\n{priority}\n{streams.level_prefix:d}\n0\n0\n0\n"
        yield {"do": "connect", "path": JOURNAL, "text": header, "as": register}
    else:
        read = os.O_RDWR | os.O_CREAT if _is_both(streams) else os.O_RDONLY
        flags = (read if target == 0 else _OPENED[kind]) | os.O_NOCTTY
        yield {"do": "open", "path": path, "flags": flags, "mode": 0o666, "as": register, "safe": True}
    yield {"do": "dup", "fd": register, "to": target}
