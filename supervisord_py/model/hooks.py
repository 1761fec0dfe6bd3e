"""Hooks: commands that are run at an event of the journal."""

from msgspec import Struct

from supervisord_py.model.unit import SECOND_NS, Command


class Hook(Struct, frozen=True):
    """One ``[[hooks]]``: ``event`` is an event's name or a glob; specifiers in ``command`` are those of the unit that
    the event is about, and are expanded when it is run."""

    event: str
    command: Command
    timeout_ns: int = 10 * SECOND_NS
