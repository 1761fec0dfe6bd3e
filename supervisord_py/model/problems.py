"""A problem in a file that people wrote: where it is, what is wrong, and what to do about it."""

import re
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

_QUOTED = re.compile(r"(?<!\w)(?:'(?:[^'\\]|\\.)*(?:'|$)|\"(?:[^\"\\]|\\.)*(?:\"|$))", re.DOTALL)
_PLAIN = re.compile(r"[\w.@:/*-]{1,64}")
_PLAIN_KEY = re.compile(r"[\w.@:\[\]-]*")
_PRIVATE = frozenset({"environment", "set-credential", "load-credential"})


def _public(quoted: str, is_private: bool) -> str:
    return quoted if not is_private and _PLAIN.fullmatch(quoted[1:-1]) else f"{quoted[0]}...{quoted[0]}"


Gravity = Literal["error", "warning", "info"]
"""How grave a problem is."""


class Problem(Struct, frozen=True):
    """One thing wrong with a unit file or the settings.

    ``line`` and ``column`` count from 1 (characters, not bytes); 0 when the problem is about the file as a whole.
    ``key`` is the dotted path (``service.restart-sec``), ``source`` the line itself. An error makes the unit
    ``bad-setting``; a warning does not, and an info is about what is right and may surprise.
    """

    file: str
    line: int
    column: int
    key: str
    message: str
    hint: str = ""
    severity: Gravity = "error"
    source: str = ""

    def headline(self) -> str:
        """The problem in one line: ``FILE:LINE:COLUMN: KEY: message``."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)

    def public(self) -> str:
        """The headline as it may be told to who may not read the file (``why``, the journal): without what might be a
        secret.

        A quoted part is kept when it is a plain word, such as a mistyped key or the name of a unit; what holds a space
        or ``=`` may be a command line, and around environment and credentials everything may be one.
        """
        steps = self.key.split(".")
        is_private = not _PRIVATE.isdisjoint(steps[1:2])
        key = ".".join(steps[:2]) if is_private else self.key if _PLAIN_KEY.fullmatch(self.key) else "..."
        message = _QUOTED.sub(lambda quoted: _public(quoted[0], is_private), self.message)
        return replace(self, key=key, message=message).headline()

    def text(self) -> str:
        """The headline, the line with a caret under the column, and the hint."""
        lines = [self.headline() if self.severity == "error" else f"{self.headline()} ({self.severity})"]
        if self.line and self.source:
            # A tab in the line is kept in the caret's line, so that the caret stands right at any tab width.
            indent = "".join("\t" if character == "\t" else " " for character in self.source[: self.column - 1])
            lines += [f"    {self.source}", f"    {indent}^"]
        if self.hint:
            lines.append(f"    hint: {self.hint}")
        return "\n".join(lines)


class BadValue(ValueError):
    """A value that a key does not take.

    ``at`` leads to the part of the value that is wrong: list indexes and names; with ``on_key`` the last of these names
    is wrong, not what it stands for. ``more`` are further complaints about the same value.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        at: tuple[str | int, ...] = (),
        *,
        on_key: bool = False,
        more: tuple["BadValue", ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.at = at
        self.on_key = on_key
        self.more = more

    def under(self, step: str | int) -> "BadValue":
        """The same complaints seen from the value that holds this one at ``step``."""
        more = tuple(other.under(step) for other in self.more)
        return BadValue(self.message, self.hint, (step, *self.at), on_key=self.on_key, more=more)

    def all(self) -> list["BadValue"]:
        """This complaint and the further ones, each alone."""
        return [self, *(one for other in self.more for one in other.all())]


def raise_all(complaints: list[BadValue]) -> None:
    """Raise them as one, if there are any."""
    if complaints:
        first, *more = (one for complaint in complaints for one in complaint.all())
        raise BadValue(first.message, first.hint, first.at, on_key=first.on_key, more=tuple(more))
