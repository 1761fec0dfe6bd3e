"""What hooks print: all in one file, each line after the name of its unit, whole."""

import asyncio
import os
from pathlib import Path

from output_rig import Source, rig, run

from supervisord_py.host.hook_output import CHUNK, HOOKS_LOG, HookOutput


def test_lines_of_hooks_at_the_same_time_stay_whole(tmp_path: Path) -> None:
    """A line that comes in pieces is written when it is there, one without its end when its hook is gone."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            hooks = HookOutput(it.output)
            web, none = Source(), Source()
            hooks.attach("web!1", web.handed_over())
            hooks.attach("!2", none.handed_over())
            web.write(b"one ")
            none.write(b"two\nthr")
            async with asyncio.timeout(20):
                while not it.files() or "two" not in it.text(f"{HOOKS_LOG}.log"):
                    await it.output.drain(HOOKS_LOG)
            web.write(b"line\n\nlast")
            hooks.detach("web!1")
            hooks.detach("web!1")
            none.write(b"ee\n")
            hooks.detach("!2")
            await it.output.drain(HOOKS_LOG)
            assert it.text(f"{HOOKS_LOG}.log").splitlines() == ["two", "web: one line", "web: last", "three"]
            hooks.close()
            for source in (web, none):
                source.close()

    run(test)


def test_what_a_manager_has_not_read_is_the_next_one_s(tmp_path: Path) -> None:
    """The keeper holds the pipe; a line that never ends is written in pieces."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = Source()
            first = HookOutput(it.output)
            first.attach("web!1", source.handed_over())
            first.close()
            os.set_blocking(source.fd, False)
            source.write(b"x" * (CHUNK // 2))
            second = HookOutput(it.output)
            second.attach("web!1", source.handed_over())
            second.detach("web!1")
            await it.output.drain(HOOKS_LOG)
            assert it.text(f"{HOOKS_LOG}.log") == f"web: {'x' * (CHUNK // 2)}\n"
            second.close()
            source.close()

    run(test)
