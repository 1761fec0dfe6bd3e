"""The types of ``docs/keys.toml``: a TOML value and its key's spec in, a value of the model out.

``DECODERS`` has one entry a type that a built key uses; each raises ``BadValue``. A key that takes a list also takes
one value. Specifiers are expanded in what is text (strings, names, paths, commands), not in numbers, spans, sizes,
modes, signals and enums.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import cast

from msgspec import Struct

from supervisord_py.model import decode_service
from supervisord_py.model.amounts import parse_count_amount, parse_percent, parse_size_amount
from supervisord_py.model.command import Expand, parse_command, parse_commands
from supervisord_py.model.commands import COMMANDS, PRESETS
from supervisord_py.model.conditions import parse_condition
from supervisord_py.model.digits import parse_digits
from supervisord_py.model.exit_status import join_exit_statuses, parse_exit_statuses
from supervisord_py.model.hooks import CALLING, is_called_by
from supervisord_py.model.keys import KeySpec
from supervisord_py.model.names import Reference, parse_group_name, parse_reference
from supervisord_py.model.problems import BadValue, raise_all
from supervisord_py.model.records import UNNUMBERED, is_own_event
from supervisord_py.model.sockets import AddressFamily, SocketAddress, parse_socket_address
from supervisord_py.model.states import Until
from supervisord_py.model.targets import (
    parse_address,
    parse_endpoint,
    parse_path,
    parse_regex,
    parse_socket_path,
    parse_url,
)
from supervisord_py.model.unit import ExitStatuses, Limit
from supervisord_py.model.values import (
    parse_boolean,
    parse_fraction,
    parse_integer,
    parse_limit,
    parse_mode,
    parse_rate,
    parse_signal,
    parse_size,
    parse_timeout,
    parse_timespan,
    shown,
)

Decoder = Callable[[object, KeySpec, Expand], object]

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_ACCOUNT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?", re.ASCII)
_PATTERN = re.compile(r"@?[A-Za-z0-9:_.*?\[\]!@-]+", re.ASCII)
_CLASS_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_UID_MAX = 2**32 - 2
_DESCRIPTOR_NAME_MAX = 255
_NOT_SUPPORTED = "not supported yet"


class RawDependency(Struct, frozen=True):
    """A dependency as written, before groups and templates are resolved; ``index`` is its place in the list, None for a
    single value."""

    reference: Reference
    until: Until = Until.READY
    ordered: bool = True
    index: int | None = None


def _text(value: object, expand: Expand) -> str:
    if not isinstance(value, str):
        raise BadValue(
            f"{shown(value)} is not a string", f'write "{value}", in quotes' if isinstance(value, int | float) else ""
        )
    if "\0" in value:
        raise BadValue("a string with a NUL character")
    return expand(value)


def _each(value: object, decode_one: Callable[[object, int | None], object]) -> tuple[object, ...]:
    """Decode a list, or a single value as a list of one; complaints get the index."""
    if not isinstance(value, list):
        return (decode_one(value, None),)
    decoded: list[object] = []
    complaints: list[BadValue] = []
    for index, item in enumerate(value):
        try:
            decoded.append(decode_one(item, index))
        except BadValue as complaint:
            complaints.append(complaint.under(index))
    raise_all(complaints)
    return tuple(decoded)


def _line(value: object, expand: Expand) -> str:
    """A text that is shown to people: one line, nothing that a terminal would obey."""
    text = _text(value, expand)
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise BadValue("a text with a line break or a control character", "write one line")
    return text


def _strings(value: object, spec: KeySpec, expand: Expand) -> object:
    return _each(value, lambda item, _: _line(item, expand))


def _switch(value: object, spec: KeySpec, expand: Expand) -> object:
    """One of the values, or a boolean for its yes and no."""
    return ("yes" if value else "no") if isinstance(value, bool) else _enum(value, spec, expand)


def _switch_or_strings(value: object, spec: KeySpec, expand: Expand) -> object:
    return ("yes" if value else "no",) if isinstance(value, bool) else _strings(value, spec, expand)


def _nanoseconds(value: object) -> int:
    """A time span whose plain number is nanoseconds, as in systemd."""
    number = re.fullmatch(r"([0-9]{1,18}) *(?:ns|nsec)?", str(value))
    if number is not None and not isinstance(value, bool):
        return int(number[1])
    found = parse_timespan(value)
    if found is None:
        raise BadValue(f"{shown(value)} is no time that a timer can be late by", 'write "50us", or nanoseconds')
    return found


def _items(decode_one: Callable[[str], object]) -> Decoder:
    """Make the decoder of a list of texts, each of which means something."""
    return lambda value, spec, expand: _each(value, lambda item, _: decode_one(_text(item, expand)))


def _absolute_paths(value: object, spec: KeySpec, expand: Expand) -> object:
    """All folders of a list of texts, each of which may name several."""
    parts = cast("tuple[tuple[str, ...], ...]", _items(decode_service.absolute_paths)(value, spec, expand))
    return tuple(dict.fromkeys(path for part in parts for path in part))


def _cpus(value: object, spec: KeySpec, expand: Expand) -> object:
    """All CPUs of a list of texts or numbers."""

    def one(item: object, _: int | None) -> object:
        is_number = isinstance(item, int) and not isinstance(item, bool)
        return decode_service.cpus(str(item) if is_number else _line(item, expand))

    parts = cast("tuple[tuple[int, ...], ...]", _each(value, one))
    return tuple(sorted({cpu for part in parts for cpu in part}))


def _enum(value: object, spec: KeySpec, expand: Expand) -> object:
    if isinstance(value, bool) and "no" in spec.values:
        raise BadValue(f"{shown(value)} is not a string", f"write one of {_listed(spec.values)}, in quotes")
    if not isinstance(value, str):
        raise BadValue(f"{shown(value)} is not a string", f"write one of {_listed(spec.values)}")
    if value not in spec.values:
        near = get_close_matches(value, spec.values, 1)
        raise BadValue(
            f"{value!r} is not possible here",
            (f"did you mean {near[0]!r}? " if near else "") + f"possible are {_listed(spec.values)}",
        )
    if value in spec.pending:
        raise BadValue(
            f"{value!r} is {_NOT_SUPPORTED}", f"possible are {_listed(v for v in spec.values if v not in spec.pending)}"
        )
    return value


def _account(value: object, expand: Expand) -> str:
    """A user's or group's name, or its number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(parse_integer(value, 0, _UID_MAX))
    text = _text(value, expand)
    number = parse_digits(text)
    if text.isdecimal() and (number is None or number > _UID_MAX):
        raise BadValue(f"{shown(text)} is no uid or gid", f"the largest is {_UID_MAX}")
    if _ACCOUNT_NAME.fullmatch(text) is None:
        raise BadValue(f"{text!r} is not the name of a user or group", "write a name or a number")
    return text


def _directory(value: object, spec: KeySpec, expand: Expand) -> object:
    text = _text(value, expand)
    path = text.removeprefix("-")
    if path != "~" and not path.startswith("/"):
        raise BadValue(f"{text!r} is a relative path", "write an absolute path, or ~ for the user's home")
    return text


def _runtime_path(value: object, expand: Expand) -> str:
    """A path, relative ones below the runtime folder (``/run``)."""
    text = _text(value, expand)
    path = text if text.startswith("/") else f"{expand('%t')}/{text}"
    parts = path.split("/")
    if not text or text.endswith("/") or ".." in parts or not path.isprintable():
        raise BadValue(f"{text!r} is not the path of a file", "write an absolute path, or one below the runtime folder")
    return "/" + "/".join(part for part in parts if part not in ("", "."))


def _conditions(value: object, spec: KeySpec, expand: Expand) -> object:
    return _each(value, lambda item, _: parse_condition(spec.values[0], item, expand))


def _exit_statuses(value: object, spec: KeySpec, expand: Expand) -> object:
    parts = _each(value, lambda item, _: parse_exit_statuses(_text(item, expand) if isinstance(item, str) else item))
    return join_exit_statuses(cast("tuple[ExitStatuses, ...]", parts))


def _label(value: object, expand: Expand) -> str:
    text = _text(value, expand)
    try:
        return parse_group_name(text)
    except ValueError as error:
        raise BadValue(str(error), "write the name without @" if text.startswith("@") else "") from None


def _reference(value: object, expand: Expand) -> Reference:
    text = _text(value, expand)
    try:
        return parse_reference(text)
    except ValueError as error:
        bare = re.sub(r"\.(service|target|toml)$", "", text)
        raise BadValue(str(error), f"did you mean {bare!r}?" if bare != text else "") from None


def _names(value: object, spec: KeySpec, expand: Expand) -> object:
    def one(item: object, index: int | None) -> RawDependency:
        if isinstance(item, dict):
            raise BadValue("a table is not possible here", "write the name alone: there is nothing to wait for")
        return RawDependency(_reference(item, expand), index=index)

    return _each(value, one)


def _dependencies(value: object, spec: KeySpec, expand: Expand) -> object:
    return _each(value, lambda item, index: _dependency(item, index, expand, ("unit", "until", "ordered")))


def _ordering(value: object, spec: KeySpec, expand: Expand) -> object:
    return _each(value, lambda item, index: _dependency(item, index, expand, ("unit", "until")))


def _dependency(item: object, index: int | None, expand: Expand, keys: tuple[str, ...]) -> RawDependency:
    if not isinstance(item, dict):
        return RawDependency(_reference(item, expand), index=index)
    for key in item:
        if key not in keys:
            near = get_close_matches(key, keys, 1)
            raise BadValue(
                f"unknown key {key!r} in a dependency",
                f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(keys)}",
                (key,),
                on_key=True,
            )
    if "unit" not in item:
        raise BadValue("a dependency without the key 'unit'", 'write { unit = "NAME" }')
    until, ordered = item.get("until", "ready"), item.get("ordered", True)
    if until not in [member.value for member in Until]:
        possible = "possible are started, ready, healthy and exited"
        raise BadValue(f"{shown(until)} is not possible here", possible, ("until",))
    if not isinstance(ordered, bool):
        raise BadValue(f"{shown(ordered)} is not a boolean", "write true or false, without quotes", ("ordered",))
    if not ordered and "until" in item:
        raise BadValue("until means nothing without an order", "leave out until, or ordered = false", ("until",))
    try:
        return RawDependency(_reference(item["unit"], expand), Until(until), ordered, index)
    except BadValue as problem:
        raise problem.under("unit") from None


def _environment(value: object, spec: KeySpec, expand: Expand) -> object:
    if not isinstance(value, dict):
        raise BadValue(
            f"{shown(value)} is not a table", 'write environment = { NAME = "VALUE" } or a table [service.environment]'
        )
    variables: dict[str, str] = {}
    complaints: list[BadValue] = []
    for name, item in value.items():
        try:
            variable = _variable(name, item, spec, expand)
        except BadValue as complaint:
            complaints.append(complaint.under(name))
        else:
            variables |= {} if variable is None else {name: variable}
    raise_all(complaints)
    return variables


def _variable(name: str, value: object, spec: KeySpec, expand: Expand) -> str | None:
    """One variable's value; None for ``[]``, which takes it back."""
    if name in spec.values:
        raise BadValue(
            f"{name!r} is a key of [service], not a variable",
            "move it above [service.environment]: whatever follows that line is a variable",
            on_key=True,
        )
    if _VARIABLE_NAME.fullmatch(name) is None:
        raise BadValue(f"{name!r} is not a variable's name", "letters, digits and _ only, no digit first", on_key=True)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _text(value, expand)
    if value == []:
        return None
    quoted = f'write {name} = "{value}"' if isinstance(value, float) else ""
    raise BadValue("a variable is a string, an integer or a boolean", quoted)


def _config(value: object, spec: KeySpec, expand: Expand) -> object:
    if not isinstance(value, dict):
        raise BadValue(f"{shown(value)} is not a table", "write config = { NAME = VALUE } or a table [agent.config]")
    return _expanded(value, expand)


def _expanded(value: object, expand: Expand) -> object:
    """Expand the specifiers of all strings in a value."""
    match value:
        case str():
            return _text(value, expand)
        case list():
            return [_expanded(item, expand) for item in value]
        case dict():
            return {name: _expanded(item, expand) for name, item in value.items()}
        case float() if not math.isfinite(value):
            raise BadValue("JSON, in which it is handed over, has no such number", f'write "{value}", in quotes')
        case _:
            return value


def _class(value: object, expand: Expand) -> str:
    text = _text(value, expand)
    if _CLASS_NAME.fullmatch(text) is None:
        raise BadValue(f"{text!r} is not the name of a class", "write package.module:Class")
    return text


def _pause(value: object) -> int:
    pause_ns = parse_timespan(value)
    if pause_ns is None:
        raise BadValue("a pause without end", "write a time span, or 0 for none")
    return pause_ns


def _socket_address(value: object, expand: Expand) -> SocketAddress:
    return parse_socket_address(_line(value, expand) if isinstance(value, str) else value)


def _fifo(value: object, expand: Expand) -> SocketAddress:
    return SocketAddress(AddressFamily.UNIX, parse_path(_line(value, expand)))


def _descriptor_name(value: object, expand: Expand) -> str:
    text = _text(value, expand)
    if not (0 < len(text) <= _DESCRIPTOR_NAME_MAX and text.isascii() and text.isprintable() and ":" not in text):
        hint = f"at most {_DESCRIPTOR_NAME_MAX} printable ASCII characters, and no colon, which separates them"
        raise BadValue(f"{text!r} is not the name of a descriptor", hint)
    return text


def _environment_names(value: object, spec: KeySpec, expand: Expand) -> object:
    if value == "all":
        return "all"

    def one(item: object, _: int | None) -> str:
        text = _text(item, expand)
        if _VARIABLE_NAME.fullmatch(text) is None:
            raise BadValue(f"{text!r} is not a variable's name", 'write names, or "all"')
        return text

    return _each(value, one)


def _hard_limit(value: object, spec: KeySpec, expand: Expand) -> object:
    if isinstance(value, str) and ":" in value:
        raise BadValue(
            "only the hard limit can be set here",
            "write one value: the soft limit is how a process is known to be ours",
        )
    return Limit(None, parse_limit(value, "microseconds").hard)


def _grant(value: object, spec: KeySpec, expand: Expand) -> object:
    def one(item: object, _: int | None) -> str:
        text = _text(item, expand)
        if text not in PRESETS and text not in COMMANDS:
            near = get_close_matches(text, [*PRESETS, *sorted(COMMANDS)], 1)
            raise BadValue(
                f"there is no command or preset {text!r}",
                f"did you mean {near[0]!r}?"
                if near
                else f"presets are {_listed(PRESETS)}; supctl commands lists the commands",
            )
        return text

    if isinstance(value, str):
        granted = one(value, None)
        return granted if granted in PRESETS else (granted,)
    return _each(value, one)


def _key_grants(value: object, spec: KeySpec, expand: Expand) -> object:
    """What each key may do, by its name or a glob; what is said of all of them stands under ``*``."""
    if not isinstance(value, dict):
        return {"*": _grant(value, spec, expand)}
    grants: dict[str, object] = {}
    complaints: list[BadValue] = []
    for name, granted in value.items():
        try:
            if _PATTERN.fullmatch(name) is None or name.startswith("@"):
                hint = "write the name of a key, or a glob such as 'ops-*'"
                raise BadValue(f"{name!r} is not the name of a key", hint, on_key=True)
            grants[name] = _grant(granted, spec, expand)
        except BadValue as complaint:
            complaints.append(complaint.under(name))
    raise_all(complaints)
    return grants


def _pattern(value: object, expand: Expand) -> str:
    text = _text(value, expand)
    if _PATTERN.fullmatch(text) is None:
        raise BadValue(f"{text!r} is not a unit name or pattern", "write a name, a glob such as 'web*', or @GROUP")
    return text


def _counts(value: object, spec: KeySpec, expand: Expand) -> object:
    if not isinstance(value, dict):
        raise BadValue(f"{shown(value)} is not a table", 'write { "unit.heartbeat" = 2 }')
    counts: dict[str, int] = {}
    for event, count in value.items():
        if event not in UNNUMBERED and is_own_event(event):
            raise BadValue(
                f"{event!r} cannot be kept in a ring",
                f"possible are {_listed(sorted(UNNUMBERED))} and the names that agents give to events of their own",
                (event,),
                on_key=True,
            )
        try:
            counts[event] = parse_integer(count, 0)
        except BadValue as problem:
            raise problem.under(event) from None
    return counts


def _period(value: object) -> int:
    """A time span in which something comes again: above zero, and it ends."""
    span_ns = parse_timespan(value)
    if not span_ns:
        raise BadValue(
            f"{shown(value)} is not possible here", "write a time span above zero that ends, or leave it out"
        )
    return span_ns


def _delay(value: object) -> int:
    """A time span that ends."""
    span_ns = parse_timespan(value)
    if span_ns is None:
        raise BadValue("a time that never comes", "write a time span that ends, or leave it out")
    return span_ns


def _calendar(value: object, expand: Expand) -> str:
    text = _line(value, expand)
    if not text.strip():
        raise BadValue("an empty time", 'write one such as "Mon..Fri 09:00", or "daily"')
    return text


def _event(value: object, expand: Expand) -> str:
    text = _line(value, expand)
    if not any(is_called_by(text, event) for event in CALLING):
        near = get_close_matches(text, CALLING, 1)
        raise BadValue(
            f"no hook is called by {text!r}",
            f"did you mean {near[0]!r}?" if near else 'write an event of the journal, or a glob such as "unit.*"',
        )
    return text


def _looked_at(parse: Callable[[str], str]) -> Decoder:
    """The decoder of what a health check looks at."""
    return lambda value, spec, expand: parse(_line(value, expand))


DECODERS: Mapping[str, Decoder] = {
    "string": lambda value, spec, expand: _line(value, expand),
    "strings": _strings,
    "switch": _switch,
    "switch-or-strings": _switch_or_strings,
    "boolean": lambda value, spec, expand: parse_boolean(value),
    "integer": lambda value, spec, expand: parse_integer(value, spec.minimum, spec.maximum),
    "fraction": lambda value, spec, expand: parse_fraction(value),
    "timespan": lambda value, spec, expand: parse_timespan(value),
    "timeout": lambda value, spec, expand: parse_timeout(value),
    "size": lambda value, spec, expand: parse_size(value),
    "mode": lambda value, spec, expand: parse_mode(value),
    "signal": lambda value, spec, expand: parse_signal(value),
    "enum": _enum,
    "period": lambda value, spec, expand: _period(value),
    "delay": lambda value, spec, expand: _delay(value),
    "timespans": lambda value, spec, expand: _each(value, lambda item, _: _delay(item)),
    "calendars": lambda value, spec, expand: _each(value, lambda item, _: _calendar(item, expand)),
    "command": lambda value, spec, expand: parse_command(value, expand),
    "url": _looked_at(parse_url),
    "address": _looked_at(parse_address),
    "path": _looked_at(parse_path),
    "socket-path": _looked_at(parse_socket_path),
    "socket-addresses": lambda value, spec, expand: _each(value, lambda item, _: _socket_address(item, expand)),
    "fifos": lambda value, spec, expand: _each(value, lambda item, _: _fifo(item, expand)),
    "descriptor-name": lambda value, spec, expand: _descriptor_name(value, expand),
    "regex": _looked_at(parse_regex),
    "event": lambda value, spec, expand: _event(value, expand),
    "commands": lambda value, spec, expand: parse_commands(value, expand),
    "dependencies": _dependencies,
    "ordering": _ordering,
    "names": _names,
    "label": lambda value, spec, expand: _label(value, expand),
    "labels": lambda value, spec, expand: _each(value, lambda item, _: _label(item, expand)),
    "account": lambda value, spec, expand: _account(value, expand),
    "accounts": lambda value, spec, expand: _each(value, lambda item, _: _account(item, expand)),
    "directory": _directory,
    "runtime-path": lambda value, spec, expand: _runtime_path(value, expand),
    "conditions": _conditions,
    "exit-statuses": _exit_statuses,
    "environment": _environment,
    "environment-names": _environment_names,
    "environment-files": _items(decode_service.environment_file),
    "variable-names": _items(decode_service.variable_name),
    "unset-variables": _items(decode_service.unset_variable),
    "folders": _items(decode_service.folder),
    "loaded-credentials": _items(decode_service.load_credential),
    "set-credentials": _items(decode_service.set_credential),
    "cpus": _cpus,
    "size-or-percent": lambda value, spec, expand: parse_size_amount(value),
    "count-or-percent": lambda value, spec, expand: parse_count_amount(value),
    "percent": lambda value, spec, expand: parse_percent(value),
    "input-stream": lambda value, spec, expand: decode_service.input_stream(_line(value, expand)),
    "output-stream": lambda value, spec, expand: decode_service.output_stream(_line(value, expand)),
    "input-texts": _items(lambda text: text),
    "input-data": _items(decode_service.input_data),
    "absolute-paths": _absolute_paths,
    "nanoseconds": lambda value, spec, expand: _nanoseconds(value),
    "config": _config,
    "class": lambda value, spec, expand: _class(value, expand),
    "classes": lambda value, spec, expand: _each(value, lambda item, _: _class(item, expand)),
    "pause": lambda value, spec, expand: _pause(value),
    "limit-count": lambda value, spec, expand: parse_limit(value, "count"),
    "limit-bytes": lambda value, spec, expand: parse_limit(value, "bytes"),
    "limit-seconds": lambda value, spec, expand: parse_limit(value, "seconds"),
    "limit-hard-microseconds": _hard_limit,
    "grant": _grant,
    "key-grants": _key_grants,
    "listen-address": _looked_at(lambda text: parse_endpoint(text, listens=True)),
    "pattern": lambda value, spec, expand: _pattern(value, expand),
    "patterns": lambda value, spec, expand: _each(value, lambda item, _: _pattern(item, expand)),
    "counts": _counts,
    "rate": lambda value, spec, expand: parse_rate(value),
}


def _listed(values: Iterable[str]) -> str:
    return ", ".join(values)
