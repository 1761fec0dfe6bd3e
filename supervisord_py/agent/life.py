"""How the life of the agent before this one ended."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class LastLife:
    """The story of the last life, from ``SUPERVISORD_PY_LAST_LIFE``.

    Attributes:
        result: ``success``, ``exit-code``, ``watchdog``, ...: the words of ``supctl status``.
        exit: ``{"code": N}`` or ``{"signal": NAME}``; empty where nobody knows.
        runtime_ms: How long it lasted, None where nobody knows.
        last_words: The end of what it printed.
    """

    __slots__ = ("exit", "last_words", "result", "runtime_ms")

    def __init__(self, result: str, exit: "dict[str, Any]", runtime_ms: "int | None", last_words: str) -> None:
        self.result = result
        self.exit = exit
        self.runtime_ms = runtime_ms
        self.last_words = last_words

    def __repr__(self) -> str:
        return f"<LastLife {self.result} {self.exit}>"


def parse_last_life(text: "str | None") -> "LastLife | None":
    """Read the variable; None in the first life."""
    if not text:
        return None
    import json

    told = json.loads(text)
    ended = told.get("exit") or {}
    return LastLife(told.get("result", "unknown"), ended, told.get("runtime_ms"), told.get("last_words", ""))
