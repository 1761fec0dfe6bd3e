"""Calls that may hang (a path on a file server that is gone), made beside the event loop and not waited for in vain.

Each call has a daemon thread of its own: one that hangs keeps neither the others nor the end of the process waiting.
So that a dead file server cannot fill the process with them, only so many of a group may hang at a time, and only so
many are under way at a time (the others wait for their turn). What is asked again and again has a ``key``: while a call
with it hangs, no other is begun.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

Result = TypeVar("Result")

HANGING_MAX = 32
"""No call is begun while as many were given up and have not come back."""

AT_A_TIME = 8

_hanging: dict[threading.Thread, tuple[str, str | None]] = {}
"""Threads that were given up, with their group and key."""

_turns: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]]" = WeakKeyDictionary()


class HangsError(Exception):
    """A call that did not come back in time, or was not begun because too many others have not."""


class TooManyHangError(HangsError):
    """A call that was not begun, for nothing that is its own."""


async def call_bounded(
    function: Callable[[], Result],
    timeout_s: float,
    *,
    group: str = "",
    at_a_time: int = AT_A_TIME,
    key: str | None = None,
) -> Result:
    """Call ``function`` in a thread and return what it returns.

    Args:
        function: What is called.
        timeout_s: How long it is waited for, from its turn on.
        group: Calls of one group have their limits together, and take nothing from those of another.
        at_a_time: So many of the group are under way.
        key: What the call is about, where it may be asked again before it has come back.

    Raises:
        HangsError: It did not come back within ``timeout_s``; the thread is left to itself.
        Exception: What the function raised.
    """
    for thread in [thread for thread in _hanging if not thread.is_alive()]:
        del _hanging[thread]
    if key is not None and (group, key) in _hanging.values():
        raise HangsError("the look before has not come back")
    if sum(other == group for other, _ in _hanging.values()) >= HANGING_MAX:
        raise TooManyHangError(f"{HANGING_MAX} earlier looks have not come back")
    loop = asyncio.get_running_loop()
    turns = _turns.setdefault(loop, {}).setdefault(group, asyncio.Semaphore(at_a_time))
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only where Result is

    def run() -> None:
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = function()
        except Exception as raised:  # noqa: BLE001  handed to whoever waits
            error = raised
        # The loop may be closed by now: then nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=run, name="bounded", daemon=True)
    async with turns:
        try:
            thread.start()
        except RuntimeError as error:
            raise TooManyHangError(f"no thread could be made: {error}") from None
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except asyncio.CancelledError:
            _hanging[thread] = (group, key)
            raise
        except TimeoutError:
            _hanging[thread] = (group, key)
            raise HangsError(f"no answer within {timeout_s:g} s") from None
