"""A unit's output as a row of files, plain and compressed, which are read in the same way.

A file that was compressed is there twice for a moment, and after a crash in that moment until the supervisor looks
again: then it is one piece, read from the plain file and known by both inodes.
"""

import os
from collections.abc import Iterator

from supervisord_py.host.output_folder import LogFolder, log_name
from supervisord_py.host.output_gzip import CompressedFile, Origin

COMPRESSED = ".gz"


def compressed_name(unit: str, backup: int) -> str:
    return f"{log_name(unit, backup)}{COMPRESSED}"


class LogPiece:
    """One open file of a unit's output; ``close`` it."""

    def __init__(self, fd: int, content: CompressedFile | None = None, twin: int | None = None) -> None:
        self.fd = fd
        status = os.fstat(fd)
        self.inode = status.st_ino
        self.key = (status.st_dev, status.st_ino)
        self._content = content
        self._twin = twin

    @property
    def is_plain(self) -> bool:
        return self._content is None

    @property
    def stamp(self) -> tuple[int, int, int]:
        """Inode, size and time of the plain file: the same for what was made from it. Inodes and sizes alone are not
        enough: when files are compressed their inodes are used anew, and full files have the same size."""
        made_from = Origin(self.inode, self.size) if self._content is None else self._content.origin
        return (*made_from, os.fstat(self.fd).st_mtime_ns)

    @property
    def size(self) -> int:
        """How much it holds now."""
        return os.fstat(self.fd).st_size if self._content is None else self._content.size

    def pread(self, count: int, offset: int) -> bytes:
        return os.pread(self.fd, count, offset) if self._content is None else self._content.pread(count, offset)

    def is_inode(self, inode: int) -> bool:
        """Whether a mark with this inode means this file."""
        return inode in (self.inode, self._twin)

    def is_same(self, other: "LogPiece") -> bool:
        """Whether this is the file ``other`` that was read to its end, or what was made from it meanwhile."""
        return self.key == other.key or (not self.is_plain and other.is_plain and self.stamp == other.stamp)

    def close(self) -> None:
        os.close(self.fd)


def open_piece(folder: LogFolder, unit: str, backup: int) -> LogPiece | None:
    """Open one file of a unit's output; None when there is none, or none that was made here.

    Raises:
        OSError: it cannot be opened.
    """
    fd = folder.open_to_read(log_name(unit, backup))
    if backup == 0:
        return None if fd is None else LogPiece(fd)
    name = compressed_name(unit, backup)
    if fd is not None:
        twin = folder.status(name)
        is_twin = twin is not None and is_made_from(folder, name, fd)
        return LogPiece(fd, twin=twin.st_ino if twin is not None and is_twin else None)
    return open_compressed(folder, name)


def open_compressed(folder: LogFolder, name: str) -> LogPiece | None:
    """Open a compressed file; None when there is none, or none that was made here."""
    fd = folder.open_to_read(name)
    if fd is None:
        return None
    try:
        return LogPiece(fd, CompressedFile(fd))
    except (ValueError, OSError) as error:
        os.close(fd)
        if isinstance(error, OSError):
            raise
        return None


def is_made_from(folder: LogFolder, name: str, plain: int) -> bool:
    """Whether the compressed file ``name`` holds just what the open plain file does."""
    piece = open_compressed(folder, name)
    if piece is None:
        return False
    try:
        return piece.stamp == LogPiece(plain).stamp
    finally:
        piece.close()


def youngest_first(folder: LogFolder, unit: str) -> Iterator[LogPiece]:
    """Open the unit's files one after the other, youngest first; each file once, however they are renamed meanwhile.

    One place may be empty (the youngest is missing between a rotation and the next byte, another while names are
    shifted); the second empty one after the youngest ends the list.
    """
    seen: set[tuple[int, int]] = set()
    plain: set[tuple[int, int, int]] = set()
    backup = holes = 0
    while True:
        piece = open_piece(folder, unit, backup)
        if piece is None:
            holes += backup > 0
            if holes > 1:
                return
        elif piece.key in seen or (not piece.is_plain and piece.stamp in plain):
            piece.close()
        else:
            seen.add(piece.key)
            if backup and piece.is_plain:
                plain.add(piece.stamp)  # it may be compressed before the next place is looked at
            yield piece
        backup += 1
