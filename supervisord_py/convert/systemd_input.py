"""``StandardInputText=`` and ``StandardInputData=``: one text in systemd, in the order of their lines; two keys here.

Lines come before bytes here, so where bytes come first they are written as lines, which they mostly are, or the lines
as bytes. Source: systemd src/core/load-fragment.c, config_parse_exec_input_text, config_parse_exec_input_data.
"""

import base64

from supervisord_py.convert.draft import Draft, Ledger, Place
from supervisord_py.convert.systemd_syntax import Assignment
from supervisord_py.convert.systemd_values import UnitContext, translate_specifiers
from supervisord_py.model.command import unescape
from supervisord_py.model.problems import BadValue

TEXT, DATA = "StandardInputText", "StandardInputData"


class InputData:
    """Collects the assignments of one unit."""

    def __init__(self, context: UnitContext) -> None:
        self._context = context
        self._parts: list[tuple[str | bytes, Place]] = []

    def take(self, assignment: Assignment, place: Place) -> None:
        """Take one of either; an empty one takes back what was said.

        Raises:
            BadValue: It is one that systemd ignores.
        """
        if not assignment.value:
            self._parts = []
        elif assignment.name == TEXT:
            self._parts.append((translate_specifiers(unescape(assignment.value), self._context), place))
        else:
            try:
                data = base64.b64decode("".join(assignment.value.split()), validate=True)
            except ValueError:
                raise BadValue("this is not base64, and systemd ignores it") from None
            self._parts.append((data, place))

    def write(self, draft: Draft, ledger: Ledger) -> None:
        """Write what was said, and what became of it."""
        first = next((at for at, (part, _) in enumerate(self._parts) if isinstance(part, bytes)), len(self._parts))
        head, tail = self._parts[:first], self._parts[first:]
        if all(isinstance(part, bytes) for part, _ in tail):
            texts, data = [str(part) for part, _ in head], [part for part, _ in tail if isinstance(part, bytes)]
        elif None not in (as_lines := [_as_line(part) for part, _ in self._parts]):
            texts, data = [str(line) for line in as_lines], []
        elif not any(isinstance(part, str) and "%" in part.replace("%%", "") for part, _ in self._parts):
            texts, data = [], [_as_bytes(part) for part, _ in self._parts]
        else:
            for _, place in self._parts:
                ledger.lost(place, "bytes come before a line with a specifier, and here lines come first")
            return
        places = [place for _, place in self._parts]
        if texts:
            lines = [line for text in texts for line in text.split("\n")]
            draft.put("service", "standard-input-text", lines, *places)
        if data:
            draft.put("service", "standard-input-data", base64.b64encode(b"".join(data)).decode(), *places)
        ledger.carried(*places)


def _as_line(part: str | bytes) -> str | None:
    """Bytes that are a text and end a line, as that line."""
    if isinstance(part, str):
        return part
    try:
        text = part.decode()
    except UnicodeDecodeError:
        return None
    return text[:-1].replace("%", "%%") if text.endswith("\n") and "\0" not in text else None


def _as_bytes(part: str | bytes) -> bytes:
    return part if isinstance(part, bytes) else f"{part.replace('%%', '%')}\n".encode(errors="surrogateescape")
