"""Run by test_output_splice: one writer in full flow, and capturing processes that are killed again and again.

Arguments: the log folder, the number of kills, the seed of their moments, the rotation size, and what of ``[log]`` is
on: ``json``, ``timestamp``, ``compress``, or nothing. The parent holds the
pipe, as the keeper does; every life of the collector begins with a fork, so that a kill may come within its first
millisecond.
"""

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from supervisord_py.host.output import OutputCollector
from supervisord_py.host.output_gzip import CompressedFile
from supervisord_py.model.log import LogFormat, LogPolicy

LINE = 80
BLOCK_LINES = 800
DEADLINE_S = 60.0


def write_forever(pipe: int) -> None:
    """Write numbered lines until told to stop, then the rest of the block and nothing more."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    number = 0
    while not stopping:
        block = b"".join(b"%012d %s\n" % (line, b"x" * (LINE - 14)) for line in range(number, number + BLOCK_LINES))
        view = memoryview(block)
        while view:
            view = view[os.write(pipe, view) :]
        number += BLOCK_LINES
    os._exit(0)


def capture(pipe: int, log_dir: Path, policy: LogPolicy, until_empty: bool) -> None:
    async def main() -> None:
        collector = OutputCollector(asyncio.get_running_loop(), log_dir)
        collector.use_policies({"web": policy})
        collector.attach("web", pipe, policy)
        if until_empty:
            await collector.drain("web")
            await collector.close()
        else:
            await asyncio.Event().wait()

    asyncio.run(main())
    os._exit(0)


def total(log_dir: Path) -> int:
    """Bytes that all files hold; a file that is renamed under us may be counted wrong once, which only moves a kill."""
    size = 0
    for name in os.listdir(log_dir):
        try:
            if name.endswith(".gz"):
                with open(log_dir / name, "rb") as file:
                    size += CompressedFile(file.fileno()).size
                continue
            size += os.stat(log_dir / name).st_size if not name.endswith((".lives", ".staged", ".new")) else 0
        except FileNotFoundError:
            continue
    return size


def child(work: object, *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        work(*arguments)  # type: ignore[operator]
    return pid


def main() -> None:
    log_dir, kills, seed, max_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    policy = LogPolicy(
        max_bytes=max_bytes,
        backups=1_000,
        compress="compress" in sys.argv[5:],
        format=LogFormat(next((word for word in sys.argv[5:] if word != "compress"), "raw")),
    )
    chance = random.Random(seed)
    deadline_s = time.monotonic() + DEADLINE_S
    log_dir.mkdir()
    reading, writing = os.pipe()
    pipe = os.open(f"/proc/self/fd/{writing}", os.O_RDWR)
    os.close(reading)
    writer = child(write_forever, writing)
    capturing = 0
    done = 0
    try:
        while done < kills:
            before = total(log_dir)
            capturing = child(capture, os.dup(pipe), log_dir, policy, False)
            # Killed in full flow: after some growth, at a moment that nothing is in step with.
            wanted = before + chance.randrange(1, 1_500_000)
            while total(log_dir) < wanted:
                assert time.monotonic() < deadline_s, "the collector captures nothing"
                assert os.waitpid(capturing, os.WNOHANG) == (0, 0), "the collector has ended by itself"
            os.kill(capturing, signal.SIGKILL)
            _, status = os.waitpid(capturing, 0)
            capturing = 0
            assert os.WIFSIGNALED(status), status
            done += 1
        assert os.waitpid(writer, os.WNOHANG) == (0, 0), "the writer did not survive"
        os.kill(writer, signal.SIGTERM)
        capturing = child(capture, os.dup(pipe), log_dir, policy, False)
        os.waitpid(writer, 0)
        os.kill(capturing, signal.SIGKILL)
        os.waitpid(capturing, 0)
        capturing = 0
        last = child(capture, pipe, log_dir, policy, True)
        assert os.waitpid(last, 0)[1] == 0
    finally:
        for pid in filter(None, (writer, capturing)):
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
    print(done)


main()
