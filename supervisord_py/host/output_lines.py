"""Output that is looked at line by line: ``[log] format`` and ``rate-limit``.

Bytes come into the staging file (``output_staging``) as they are and go on from there as lines: those that the rate
lets through, in the format that is asked for. A line that has no end yet waits there, until it has one, until it is
``PIECE`` long, or until its life is over.

Lines above the rate are dropped whole, those at the end of a window first, and are counted: in the status of the unit,
in the journal, and by a line in the log when the window is over. The process never waits for it.
"""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from supervisord_py.host.output_folder import LogFolder
from supervisord_py.host.output_staging import Staging, Taker
from supervisord_py.model.log import LogFormat, LogPolicy, Rate
from supervisord_py.model.values import format_rate
from supervisord_py.wire.log_lines import OURS, json_lines, time_text, timestamped

CHUNK = 256 * 1024
PIECE = 64 * 1024
"""A line without an end is written when it is so long, and goes on as it comes."""
BEGUN, DROPPING = 1, 2
"""What becomes of the rest of a line."""


class LineLog(Protocol):
    """The file that lines go to."""

    @property
    def inode(self) -> int: ...
    @property
    def offset(self) -> int: ...
    def settle(self) -> None: ...
    def room(self) -> int | None: ...
    def ends_line(self) -> bool: ...
    def append(self, data: bytes) -> None: ...
    def turn_over(self) -> None: ...


class Admitted(NamedTuple):
    """``skipped`` bytes are the rest of a line that is dropped, ``kept`` come after them."""

    skipped: int
    kept: bytes
    dropped: int
    begun: int


class RateWindow:
    """So many lines in so much time, from the first one on."""

    def __init__(self) -> None:
        self._begin_ns = 0
        self._used = 0

    def end_ns(self, rate: Rate) -> int:
        return self._begin_ns + rate.span_ns

    def admit(self, lines: int, rate: Rate, now_ns: int) -> int:
        """Return how many of ``lines`` may pass."""
        if now_ns >= self.end_ns(rate):
            self._begin_ns, self._used = now_ns, 0
        allowed = max(0, min(lines, rate.count - self._used))
        self._used += allowed
        return allowed


def admit(data: bytes, begun: int, allow: Callable[[int], int]) -> Admitted:
    """Decide which lines of ``data`` are written: the first ones, as many as ``allow`` grants.

    Args:
        data: Lines; the last one may have no end yet.
        begun: Whether ``data`` begins with the rest of a line, and what becomes of that.
        allow: Asked once with the number of lines that begin here.
    """
    end = data.find(b"\n") + 1
    skipped = (end or len(data)) if begun == DROPPING else 0
    free = (end or len(data)) if begun == BEGUN else skipped
    is_open = not data.endswith(b"\n")
    lines = data.count(b"\n", free) + (is_open and free < len(data))
    allowed = allow(lines) if lines else 0
    if allowed >= lines:
        kept_to, last_kept = len(data), lines > 0 or begun != DROPPING
    else:
        rest = data[free:]
        kept_to, last_kept = len(data) - len(rest.split(b"\n", allowed)[-1]), False
    after = 0 if not is_open else BEGUN if last_kept else DROPPING
    return Admitted(skipped, data[skipped:kept_to], lines - allowed, after)


class LineWork:
    """Turns what one unit writes into lines of its log; everything here is called by the thread that moves output.

    Args:
        log: Where lines go.
        folder: Where the staging file is made.
        unit: Whose output.
        policy: What holds now.
        origin: Returns the stream and the invocation that lines are of.
        on_dropped: Told how many lines were dropped; of 0 when a line was written that says so.
        call_at: Has a function called at a time of the monotonic clock [ns].

    Raises:
        OSError: a file cannot be used; nothing is lost by that, and every method may be called again.
    """

    def __init__(
        self,
        log: LineLog,
        folder: LogFolder,
        unit: str,
        *,
        policy: Callable[[], LogPolicy],
        origin: Callable[[], tuple[str, str]],
        on_dropped: Callable[[int], None],
        call_at: Callable[[int, Callable[[], None]], None],
    ) -> None:
        self._log = log
        self._folder = folder
        self._unit = unit
        self._policy = policy
        self._origin = origin
        self._on_dropped = on_dropped
        self._call_at = call_at
        self._window = RateWindow()
        self._is_timed = False
        self._is_checked = False
        self.is_stuck = False
        """Whether there are lines that could not be written."""
        self._staging = Staging(folder, unit)

    @property
    def dropped(self) -> int:
        """Lines of this life that were dropped."""
        return self._staging.progress.dropped

    @property
    def untold(self) -> int:
        """Those that no line tells of yet."""
        return self._staging.progress.untold

    @property
    def pending(self) -> int:
        """Bytes that are not in the log yet."""
        return self._staging.pending

    def cut_at(self, inode: int, size: int) -> int | None:
        """The log was opened: return where to cut it off, None where it is as it should be."""
        progress, is_first = self._staging.progress, not self._is_checked
        self._is_checked = True
        is_torn = is_first and self._staging.pending > 0 and progress.inode == inode and progress.offset < size
        return progress.offset if is_torn else None

    def take(self, taker: Taker, pipe: int, count: int) -> int:
        """Take up to ``count`` bytes from ``pipe`` and write the lines that are whole; returns how many were taken."""
        if self.is_stuck:
            self.work_off()
        if self._staging.is_removed and not self._staging.pending:
            self._staging.close()
            self._staging = Staging(self._folder, self._unit)
        moved = self._staging.fill(taker, pipe, count)
        self.work_off()
        return moved

    def work_off(self, *, final: bool = False) -> None:
        """Write the lines that are whole; ``final``: the last one too, however it ends."""
        self.is_stuck = self._staging.pending > 0
        while data := self._staging.read(CHUNK):
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) < PIECE and not final:
                    break
                end = len(data)
            self._write(data[:end], goes_on=not final)
        self.is_stuck = False
        self._staging.settle()

    def finish(self) -> None:
        """Write everything that waits."""
        self.work_off(final=True)
        self.tell_dropped()

    def next_life(self) -> None:
        """What comes from now on is another life's: it begins a line."""
        self.finish()
        self.end_line()
        self._staging.note(self._staging.progress._replace(begun=0, dropped=0))

    def end_line(self) -> None:
        """End a line whose rest nobody will write, so that the next one gets its time."""
        if self._policy().format is LogFormat.TIMESTAMP and self._staging.progress.begun:
            self._begin()
            if not self._log.ends_line():
                self._log.append(b"\n")
            self._note(begun=0)

    def say(self, text: str) -> None:
        """Write a line of our own."""
        self._begin()
        line = f"{text}\n".encode()
        match self._policy().format:
            case LogFormat.JSON:
                _, invocation = self._origin()
                line = json_lines(line, time_text(time.time_ns()), self._unit, OURS, invocation)
            case LogFormat.TIMESTAMP:
                line = timestamped(line, time_text(time.time_ns()), continues=False)
        self._append(line if self._log.ends_line() else b"\n" + line)
        self._note()

    def tell_dropped(self) -> None:
        """Write how many lines were dropped since that was told."""
        untold = self._staging.progress.untold
        if untold:
            rate = self._policy().rate_limit
            limit = "" if rate is None else f" (rate-limit {format_rate(rate)})"
            self.say(f"supervisord-py: {untold} {'line' if untold == 1 else 'lines'} dropped here{limit}")
            self._note(untold=0)

    def discard(self) -> int:
        """Pass over what waits, which is lost; returns how many bytes."""
        self.is_stuck = False
        return self._staging.discard()

    def close(self) -> None:
        self._staging.close()

    def remove(self) -> None:
        """Lines are not looked at any longer, and nothing waits."""
        self._staging.remove()

    def _begin(self) -> None:
        """Have the log ready, and on disk that it is this one that will be written to."""
        self._log.settle()
        self._note()

    def _note(self, **changes: int) -> None:
        progress = self._staging.progress._replace(inode=self._log.inode, offset=self._log.offset, **changes)
        self._staging.note(progress)

    def _write(self, data: bytes, *, goes_on: bool) -> None:
        rate = self._policy().rate_limit
        now_ns = time.monotonic_ns()
        if rate is not None and now_ns >= self._window.end_ns(rate):
            self.tell_dropped()
        progress = self._staging.progress

        def allow(lines: int) -> int:
            return lines if rate is None else self._window.admit(lines, rate, now_ns)

        admitted = admit(data, progress.begun, allow)
        if admitted.kept:
            self._begin()
            self._write_lines(admitted.kept, self._staging.progress.done + admitted.skipped, goes_on=goes_on)
        after = self._staging.progress
        self._staging.note(
            after._replace(
                done=progress.done + len(data),
                offset=self._log.offset if admitted.kept else after.offset,
                begun=admitted.begun,
                dropped=after.dropped + admitted.dropped,
                untold=after.untold + admitted.dropped,
            )
        )
        if admitted.dropped:
            self._on_dropped(admitted.dropped)
            if rate is not None and not self._is_timed:
                self._is_timed = True
                self._call_at(self._window.end_ns(rate), self._window_ended)

    def _window_ended(self) -> None:
        self._is_timed = False
        rate = self._policy().rate_limit
        end_ns = 0 if rate is None else self._window.end_ns(rate)
        if end_ns > time.monotonic_ns():  # another one has begun
            self._is_timed = True
            self._call_at(end_ns, self._window_ended)
        elif not self.is_stuck:
            with contextlib.suppress(OSError):  # told with the next lines, then
                self.tell_dropped()
            self._on_dropped(0)

    def _write_lines(self, kept: bytes, done: int, *, goes_on: bool) -> None:
        """Write lines that begin at ``done`` in the staging file; all but the last of a file's are noted here."""
        now = time_text(time.time_ns())
        continues = not self._log.ends_line()
        room = self._log.room()
        text = self._shape(kept, now, continues=continues, goes_on=goes_on)
        if room is None or len(text) <= room:
            self._log.append(text)
            return
        run: list[bytes] = []
        run_bytes = 0
        for line in _lines(kept):
            text = self._shape(line, now, continues=continues, goes_on=goes_on)
            if room is not None and run_bytes + len(text) > room and (run or self._log.offset):
                if run:
                    self._log.append(b"".join(run))
                    self._note(done=done, begun=0)
                run, run_bytes = [], 0
                self._log.turn_over()
                self._note()
                room = self._log.room()
                continues = not self._log.ends_line()
                text = self._shape(line, now, continues=continues, goes_on=goes_on)
            run.append(text)
            run_bytes += len(text)
            done += len(line)
            continues = False
        self._log.append(b"".join(run))

    def _append(self, text: bytes) -> None:
        room = self._log.room()
        if room is not None and len(text) > room and self._log.offset:
            self._log.turn_over()
            self._note()
        self._log.append(text)

    def _shape(self, lines: bytes, now: str, *, continues: bool, goes_on: bool) -> bytes:
        match self._policy().format:
            case LogFormat.JSON:
                stream, invocation = self._origin()
                goes_on = goes_on and not lines.endswith(b"\n")
                written = json_lines(lines, now, self._unit, stream, invocation, goes_on=goes_on)
                return b"\n" + written if continues else written
            case LogFormat.TIMESTAMP:
                return timestamped(lines, now, continues=continues)
            case _:
                return lines


def _lines(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]
