"""Hooks: commands that are run at an event of the journal."""

from fnmatch import fnmatchcase

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.model.command import Expand
from supervisord_py.model.records import EVENTS, UNNUMBERED
from supervisord_py.model.unit import SECOND_NS, Command

_OF_THE_HOST = frozenset(
    {
        "daemon.started", "daemon.stopped", "manager.restarted", "manager.unfit", "unit.message",
        "command", "command.denied", "command.invalid", "journal.gap", "journal.rotated", "remote.listening",
        "remote.failed",
    }
)  # fmt: skip
"""Events that nothing decides: the supervisor writes of itself, of its journal and of whoever calls."""

_OF_HOOKS = frozenset({"hook.failed", "hook.dropped"})

CALLING: tuple[str, ...] = tuple(event for event in EVENTS if event not in UNNUMBERED | _OF_THE_HOST | _OF_HOOKS)
"""The events that can call for a hook: what the core decides. Beats would call for one a second, and what becomes of
hooks for hooks without end."""


class Hook(Struct, frozen=True):
    """One ``[[hooks]]``: ``event`` is an event's name or a glob; specifiers in ``command`` are those of the unit that
    the event is about, and are expanded when it is run (``with_specifiers``)."""

    event: str
    command: Command
    timeout_ns: int = 10 * SECOND_NS


def is_called_by(pattern: str, event: str) -> bool:
    """Tell whether ``event`` is one that a hook on ``pattern`` is for."""
    return event in CALLING and fnmatchcase(event, pattern)


def with_specifiers(command: Command, expand: Expand) -> Command:
    """The command with its specifiers replaced.

    Raises:
        BadValue: An unknown specifier; ``parse_settings`` lets none through.
    """
    argv0 = None if command.argv0 is None else expand(command.argv0)
    return replace(command, words=tuple(map(expand, command.words)), argv0=argv0)
