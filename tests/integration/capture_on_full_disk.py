"""Run by test_output_splice on a file system of 1 MiB: fills it, makes room again, and accounts for every byte."""

import asyncio
import os
import re
import sys
from pathlib import Path

from supervisord_py.host.output import OutputCollector, OutputTrouble
from supervisord_py.model.log import LogPolicy


async def main() -> None:
    folder = Path(sys.argv[1])
    ballast = folder / "ballast"
    ballast.write_bytes(b"b" * 600_000)
    news = asyncio.Event()
    troubles: list[OutputTrouble] = []

    def note(trouble: OutputTrouble) -> None:
        troubles.append(trouble)
        news.set()

    collector = OutputCollector(asyncio.get_running_loop(), folder / "log", on_trouble=note)
    reading, writing = os.pipe()
    pipe = os.open(f"/proc/self/fd/{writing}", os.O_RDWR)
    os.close(reading)
    collector.attach("web", os.dup(pipe), LogPolicy())
    data = b"".join(b"%09d\n" % number for number in range(300_000))

    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(writing, view) :]

    async with asyncio.timeout(30):
        await asyncio.to_thread(write)
        await collector.drain("web")
        problems = collector.problems()
        assert any("No space left on device" in problem for problem in problems), problems
        ballast.unlink()
        await collector.reopen()
        while not troubles or troubles[-1].problem is not None:
            news.clear()
            await news.wait()
    assert collector.problems() == []
    lost = sum(trouble.dropped_bytes for trouble in troubles if trouble.problem is None)
    await collector.close()
    text = (folder / "log" / "web.log").read_bytes()
    told = [int(number) for number in re.findall(rb"supervisord-py: (\d+) bytes of output lost here", text)]
    assert lost == sum(told) > 0, (lost, told)
    kept = len(re.sub(rb"\n?supervisord-py: [^\n]*\n", b"", text))
    # A newline that stands before a note may be ours or the writer's: nothing tells.
    assert abs(kept + sum(told) - len(data)) <= len(told), (kept, told, len(data))
    print("accounted for")


asyncio.run(main())
