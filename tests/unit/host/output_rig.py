"""A collector with pipes as the keeper makes them, for the tests of output."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from supervisord_py.host.output import OutputCollector, OutputTrouble
from supervisord_py.model.log import LogPolicy


class Source:
    """A pipe as the keeper makes it (open for reading and writing at once), with the writing end of a child."""

    def __init__(self) -> None:
        reading, self.fd = os.pipe2(os.O_CLOEXEC)
        self.keeper = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        os.close(reading)

    def handed_over(self) -> int:
        """The descriptor that the collector gets, as one that came over a socket."""
        return os.dup(self.keeper)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.keeper)


class Rig:
    """A collector with the pipes and troubles of a test."""

    def __init__(self, log_dir: Path, **options: object) -> None:
        self.log_dir = log_dir
        self.troubles: list[OutputTrouble] = []
        self.news = asyncio.Event()
        self.sources: list[Source] = []
        self.output = OutputCollector(
            asyncio.get_running_loop(),
            log_dir,
            on_trouble=self._trouble,
            **options,  # type: ignore[arg-type]
        )

    def _trouble(self, trouble: OutputTrouble) -> None:
        self.troubles.append(trouble)
        self.news.set()

    def attach(self, unit: str, policy: LogPolicy | None = None) -> Source:
        source = Source()
        self.sources.append(source)
        self.output.attach(unit, source.handed_over(), policy or LogPolicy())
        return source

    async def until_trouble(self, condition: Callable[[OutputTrouble], bool]) -> OutputTrouble:
        async with asyncio.timeout(10):
            while not (self.troubles and condition(self.troubles[-1])):
                self.news.clear()
                await self.news.wait()
        return self.troubles[-1]

    def text(self, name: str = "web.log") -> str:
        return (self.log_dir / name).read_text()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.log_dir.iterdir()) if self.log_dir.exists() else []


@asynccontextmanager
async def rig(log_dir: Path, **options: object) -> AsyncIterator[Rig]:
    made = Rig(log_dir, **options)
    try:
        yield made
    finally:
        await made.output.close()
        for source in made.sources:
            source.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())
