"""What ``%(NAME)s`` stands for in a ``supervisord.conf``. Source: supervisor 4.3, options.py (expand)."""

import re

from msgspec import Struct

from supervisord_py.convert.text_forms import literal
from supervisord_py.model.problems import BadValue

FIELD = re.compile(r"%(?:%|\((?P<name>[^)]*)\)(?P<format>[-#0 +]*\d*(?:\.\d+)?[sdrixX]))")
MARK = re.compile("\ue000([^\ue001]*)\ue001")
"""Stands for a variable that only the supervisor's environment has."""


class Scope(Struct, frozen=True):
    """What expansions stand for. ``number`` is that of the process; with ``is_template`` it is ``%i``."""

    base: str
    program: str = ""
    group: str = ""
    count: int = 1
    number: int = 0
    is_template: bool = False
    environment: dict[str, str] = {}


def with_changes(scope: Scope, **changes: object) -> Scope:
    values: dict[str, object] = {name: getattr(scope, name) for name in scope.__struct_fields__}
    return Scope(**(values | changes))  # type: ignore[arg-type]


def braced(word: str) -> str:
    return MARK.sub(r"${\1}", word.replace("$", "$$"))


def expanded(text: str, scope: Scope, base: str = "") -> str:
    """Expand as ``text % expansions`` does; per cents that stay are doubled, because they mean something here.

    What refers to the environment of the supervisor is left as a mark.

    Raises:
        BadValue: It is badly formatted, or names what supervisor does not know.
    """

    def one(match: re.Match[str]) -> str:
        name, how = match["name"], match["format"]
        if name is None:
            return "%%"
        if name == "process_num" and scope.is_template:
            return "%i"
        known: dict[str, object] = {
            "program_name": literal(scope.program),
            "group_name": literal(scope.group),
            "process_num": scope.number,
            "numprocs": scope.count,
            "here": literal(base or scope.base),
            "host_node_name": "%H",
        }
        if name.startswith("ENV_"):
            variable = name.removeprefix("ENV_")
            value = scope.environment.get(variable)
            return value if value is not None else "%h" if variable == "HOME" else f"\ue000{variable}\ue001"
        if name not in known:
            raise BadValue(f"{match[0]} names what supervisor does not know")
        try:
            return f"%{how}" % known[name]
        except (TypeError, ValueError, OverflowError):
            raise BadValue(f"{match[0]} is badly formatted, and supervisor refuses it") from None

    rest = FIELD.sub("", text)
    if "%" in rest or "\ue000" in text or "\ue001" in text:
        raise BadValue("a % that is badly formatted, and supervisor refuses it: write %%")
    return FIELD.sub(one, text)
