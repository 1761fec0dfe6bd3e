"""Older output files, compressed: gzip that ``zcat`` and ``zgrep`` read, and of which any place can be read by itself.

A file is a row of gzip members of ``BLOCK`` bytes each, as RFC 1952 allows. The extra field of each one's head says how
long it is and how much it holds, so that its index is read from the heads alone, and the end of a large file costs the
unpacking of one block: readers go backwards, on the manager's event loop. The heads also say which file, by inode and
size, it was made from: where both are still there it is known that they are the same.

Compressing is done by a thread of its own, a file at a time, a block at a time and then a pause that is as long, so
that it takes half a processor at most. It is not niced: on a busy machine a thread that gets no time while it holds the
interpreter's lock would stop the whole manager. It makes ``UNIT.log.gz.new``, which has its last name only when it is
whole and on disk; that step, and the removal of the plain file, belong to the thread that rotates
(``output_old_files``).
"""

import contextlib
import errno
import os
import queue
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

from supervisord_py.host.output_folder import LogFolder, log_name

BLOCK = 256 * 1024
LEVEL = 6

_MAGIC = b"\x1f\x8b\x08\x04"
_FIELD = b"SP"
_HEAD = struct.Struct("<4sI2sH2sHIIQQ")
"""Magic with the flag FEXTRA, time, flags and system, length of the extra field; in it: name, length, bytes of this
member, bytes that it holds, inode and size of the plain file."""
_EXTRA = _HEAD.size - 12
_TAIL = struct.Struct("<II")


class Origin(NamedTuple):
    """The plain file that one was made from."""

    inode: int
    size: int


def member(data: bytes, origin: Origin) -> bytes:
    """Compress one block."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(data) + packer.flush()
    length = _HEAD.size + len(body) + _TAIL.size
    head = _HEAD.pack(_MAGIC, 0, b"\0\xff", _EXTRA, _FIELD, _EXTRA - 4, length, len(data), *origin)
    return head + body + _TAIL.pack(zlib.crc32(data), len(data))


class CompressedFile:
    """An open one, to be read at any place; the descriptor stays the caller's.

    Raises:
        ValueError: It was not made here, or is damaged.
        OSError: It cannot be read.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._starts: list[tuple[int, int, int, int]] = []
        """Of each member where its content begins and how much it is, and where itself stands and how long it is."""
        self._unpacked: tuple[int, bytes] = (-1, b"")
        at = start = 0
        end = os.fstat(fd).st_size
        origin: Origin | None = None
        while at < end:
            head = os.pread(fd, _HEAD.size, at)
            if len(head) < _HEAD.size:
                raise ValueError("cut off")
            magic, _, _, extra, field, _, length, holds, *made_from = _HEAD.unpack(head)
            if magic != _MAGIC or extra != _EXTRA or field != _FIELD or at + length > end or not length:
                raise ValueError("not made here")
            self._starts.append((start, holds, at, length))
            origin = Origin(*made_from)
            at += length
            start += holds
        if origin is None or origin.size != start:
            raise ValueError("not whole")
        self.size = start
        self.origin = origin

    def pread(self, count: int, offset: int) -> bytes:
        """Return up to ``count`` bytes of the content from ``offset``, as ``os.pread`` does."""
        pieces: list[bytes] = []
        for number, (start, holds, _, _) in enumerate(self._starts):
            if start + holds > offset and start < offset + count:
                data = self._block(number)
                pieces.append(data[max(0, offset - start) : offset + count - start])
        return b"".join(pieces)

    def _block(self, number: int) -> bytes:
        if self._unpacked[0] != number:
            _, _, at, length = self._starts[number]
            whole = os.pread(self._fd, length, at)
            try:
                data = zlib.decompress(whole[_HEAD.size : -_TAIL.size], -zlib.MAX_WBITS)
            except zlib.error as error:
                raise OSError(errno.EIO, f"damaged: {error}") from None
            self._unpacked = (number, data)
        return self._unpacked[1]


def unfinished_name(unit: str) -> str:
    """The name of a compressed file that is being made."""
    return f"{log_name(unit)}.gz.new"


class Work(NamedTuple):
    """A file to compress: who it belongs to, its name now, and its inode, by which it is known again."""

    unit: str
    name: str
    inode: int


Done = Callable[[Work, int | None, OSError | None], None]


class Compressor:
    """The thread. ``done`` is called on it: with the inode of the new file, or with why there is none."""

    def __init__(self, folder: LogFolder, done: Done) -> None:
        self._folder = folder
        self._done = done
        self._wanted: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def give(self, work: Work) -> None:
        """Have a file compressed, after those that were given before."""
        self._wanted.put(work)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="compress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the block that is worked on; what is not finished is begun anew by whoever comes next."""
        self._ending.set()
        self._wanted.put(None)

    def join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._ending.is_set():
            work = self._wanted.get()
            if work is None:
                break
            try:
                inode, problem = self._compress(work), None
            except OSError as error:
                inode, problem = None, error
                with contextlib.suppress(OSError):
                    self._folder.remove(unfinished_name(work.unit))
                self._folder.forget()
            if not self._ending.is_set():
                self._done(work, inode, problem)
        self._folder.forget()

    def _compress(self, work: Work) -> int | None:
        """Make the new file; None when the old one has another name by now, or we are to end."""
        source = self._folder.open_to_read(work.name)
        if source is None:
            return None
        name = unfinished_name(work.unit)
        try:
            status = os.fstat(source)
            if status.st_ino != work.inode:
                return None
            self._folder.remove(name)
            target = self._folder.open_to_write(name)
            try:
                at = 0
                origin = Origin(status.st_ino, status.st_size)
                while at < status.st_size:
                    begun_s = time.monotonic()
                    data = os.pread(source, min(BLOCK, status.st_size - at), at)
                    if not data:
                        raise OSError(errno.ESTALE, "it was cut off meanwhile")
                    packed = memoryview(member(data, origin))
                    while packed:
                        packed = packed[os.write(target, packed) :]
                    at += len(data)
                    if self._ending.wait(time.monotonic() - begun_s):
                        return None
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
                os.fsync(target)
                return os.fstat(target).st_ino
            finally:
                os.close(target)
        finally:
            os.close(source)
