"""A message from another agent."""

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes longer to import than all of this
    from collections.abc import Callable
    from typing import Any

    from supervisord_py.agent.agent import Agent


class Missed:
    """Messages that are gone: the journal has dropped what was between two numbers before it was delivered here.

    Attributes:
        to: The unit, or ``topic:NAME``.
        after: The last number before them that was seen here.
        until: Up to this number nothing is kept; how many messages there were nobody knows.
    """

    __slots__ = ("after", "to", "until")

    def __init__(self, to: str, after: int, until: int) -> None:
        self.to = to
        self.after = after
        self.until = until

    def __repr__(self) -> str:
        return f"<Missed to {self.to}, behind {self.after} up to {self.until}>"

    def handler(self, agent: "Agent") -> "Callable[[Any], object]":
        """Return what takes this."""
        return agent.on_missed


class Message:
    """What somebody sent, as it stands in the journal.

    Attributes:
        seq: Its number in the journal; give the last one you saw to ``subscribe`` and you miss nothing.
        sender: The unit that sent it, as the kernel knows it; ``key/NAME`` for somebody elsewhere who has that key.
        event: What it is about, as the sender calls it.
        to: The unit it was sent to, or ``topic:NAME``.
        payload: The other fields that were sent.
    """

    __slots__ = ("event", "payload", "sender", "seq", "to")

    def __init__(self, seq: int, sender: str, event: str, to: str, payload: "dict[str, Any]") -> None:
        self.seq = seq
        self.sender = sender
        self.event = event
        self.to = to
        self.payload = payload

    def handler(self, agent: "Agent") -> "Callable[[Any], object]":
        """Return what takes this."""
        return agent.on_message

    def __repr__(self) -> str:
        return f"<Message {self.seq} {self.event} from {self.sender} to {self.to}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]  # its payload can be changed
