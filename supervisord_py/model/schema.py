"""The JSON schema of unit files and settings, for editors: generated from the table of keys.

Only what is built is in it, so that an editor says of a key what ``check`` says. What a schema cannot say (specifiers,
quoting, units of other files) is left to ``check``. Source: JSON Schema, draft 2020-12.
"""

from typing import Any

from supervisord_py.model.commands import COMMANDS, PRESETS
from supervisord_py.model.keys import FileKind, KeySpec, KeyTable, TableSpec
from supervisord_py.model.states import Until

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Fragment = dict[str, Any]


def _one_or_list(item: Fragment) -> Fragment:
    return {"anyOf": [item, {"type": "array", "items": item}]}


def _reference(name: str) -> Fragment:
    return {"$ref": f"#/$defs/{name}"}


_TEXT: Fragment = {"type": "string"}
_SPAN: Fragment = {"anyOf": [{"type": "number", "minimum": 0}, _TEXT]}
_LIMIT: Fragment = {"anyOf": [{"type": "integer", "minimum": 0}, _TEXT]}
_ACCOUNT: Fragment = {"anyOf": [{"type": "integer", "minimum": 0}, _TEXT]}

DEFINITIONS: dict[str, Fragment] = {
    "argv": {"type": "array", "items": _TEXT, "minItems": 1},
    "command-table": {
        "type": "object",
        "properties": {
            "command": {"anyOf": [_TEXT, _reference("argv")]},
            "ignore-failure": {"type": "boolean"},
            "privileged": {"type": "boolean"},
            "argv0": _TEXT,
        },
        "required": ["command"],
        "additionalProperties": False,
    },
    "command": {"anyOf": [_TEXT, _reference("argv"), _reference("command-table")]},
    "commands": {
        "anyOf": [
            _TEXT,
            _reference("argv"),
            _reference("command-table"),
            {"type": "array", "items": {"anyOf": [_reference("argv"), _reference("command-table")]}},
        ]
    },
    "dependency": {
        "anyOf": [
            _TEXT,
            {
                "type": "object",
                "properties": {
                    "unit": _TEXT,
                    "until": {"enum": [until.value for until in Until]},
                    "ordered": {"type": "boolean"},
                },
                "required": ["unit"],
                "additionalProperties": False,
            },
        ]
    },
    "ordering": {
        "anyOf": [
            _TEXT,
            {
                "type": "object",
                "properties": {
                    "unit": _TEXT,
                    "until": {"enum": [until.value for until in Until]},
                },
                "required": ["unit"],
                "additionalProperties": False,
            },
        ]
    },
}

_GRANT: Fragment = _one_or_list({"enum": [*PRESETS, *sorted(COMMANDS)]})
_CLASS: Fragment = {"type": "string", "pattern": "^[^:]+:[^:]+$"}

_FRAGMENTS: dict[str, Fragment] = {
    "string": _TEXT,
    "strings": _one_or_list(_TEXT),
    "boolean": {"type": "boolean"},
    "switch-or-strings": {"anyOf": [{"type": "boolean"}, *_one_or_list(_TEXT)["anyOf"]]},
    "integer": {"type": "integer"},
    "fraction": {"type": "number", "minimum": 0, "maximum": 1},
    "timespan": _SPAN,
    "timespans": _one_or_list(_SPAN),
    "timeout": _SPAN,
    "period": _SPAN,
    "delay": _SPAN,
    "calendars": _one_or_list(_TEXT),
    "size": {"anyOf": [{"type": "integer", "minimum": 0}, _TEXT]},
    "mode": {"type": "string", "pattern": "^[0-7]+$"},
    "signal": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 64}, _TEXT]},
    "command": _reference("command"),
    "commands": _reference("commands"),
    "url": {"type": "string", "pattern": "^(https?://|.*%)"},
    "address": {"type": "string", "pattern": "(:[0-9]{1,5}$|%)"},
    "listen-address": {"type": "string", "pattern": ":[0-9]{1,5}$"},
    "path": {"type": "string", "pattern": "^(/|%)"},
    "socket-path": {"type": "string", "pattern": "^(/|@|%)"},
    "socket-addresses": _one_or_list({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, _TEXT]}),
    "fifos": _one_or_list({"type": "string", "pattern": "^(/|%)"}),
    "descriptor-name": {"type": "string", "minLength": 1},
    "regex": _TEXT,
    "event": _TEXT,
    "dependencies": _one_or_list(_reference("dependency")),
    "ordering": _one_or_list(_reference("ordering")),
    "names": _one_or_list(_TEXT),
    "label": _TEXT,
    "labels": _one_or_list(_TEXT),
    "account": _ACCOUNT,
    "accounts": _one_or_list(_ACCOUNT),
    "directory": {"type": "string", "pattern": "^-?(/|~$|%)"},
    "environment-files": _one_or_list(_TEXT),
    "variable-names": _one_or_list(_TEXT),
    "unset-variables": _one_or_list(_TEXT),
    "folders": _one_or_list(_TEXT),
    "loaded-credentials": _one_or_list(_TEXT),
    "set-credentials": _one_or_list(_TEXT),
    "input-stream": _TEXT,
    "input-texts": _one_or_list(_TEXT),
    "input-data": _one_or_list({"type": "string", "pattern": "^[A-Za-z0-9+/=\\s]*$"}),
    "nanoseconds": {"anyOf": [{"type": "integer", "minimum": 0}, _TEXT]},
    "absolute-paths": _one_or_list({"type": "string", "pattern": "^(/|%)"}),
    "size-or-percent": {"anyOf": [{"type": "integer", "minimum": 0}, _TEXT]},
    "count-or-percent": {"anyOf": [{"type": "integer", "minimum": 1}, _TEXT]},
    "percent": {"type": "string", "pattern": "^([0-9.]+%|infinity)$"},
    "cpus": _one_or_list({"anyOf": [{"type": "integer", "minimum": 0}, _TEXT]}),
    "output-stream": _TEXT,
    "runtime-path": {"type": "string", "minLength": 1},
    "conditions": _one_or_list({"type": ["string", "integer", "boolean"]}),
    "exit-statuses": _one_or_list({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 255}, _TEXT]}),
    "environment": {
        "type": "object",
        "additionalProperties": {
            "anyOf": [_TEXT, {"type": "integer"}, {"type": "boolean"}, {"type": "array", "maxItems": 0}]
        },
    },
    "environment-names": _one_or_list(_TEXT),
    "pause": _SPAN,
    "class": _CLASS,
    "classes": _one_or_list(_CLASS),
    "config": {"type": "object"},
    "limit-count": _LIMIT,
    "limit-bytes": _LIMIT,
    "limit-seconds": _LIMIT,
    "limit-hard-microseconds": _LIMIT,
    "grant": _GRANT,
    "key-grants": {"anyOf": [*_GRANT["anyOf"], {"type": "object", "additionalProperties": _GRANT}]},
    "pattern": _TEXT,
    "patterns": _one_or_list(_TEXT),
    "rate": {"type": "string", "pattern": "^[1-9][0-9]*/"},
    "counts": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
}
"""What each type of ``docs/keys.toml`` looks like; ``enum`` is made of the key's values."""


def json_schema(key_table: KeyTable, file: FileKind) -> Fragment:
    """The schema of a unit file or of ``supervisord.toml``."""
    root: Fragment = {
        "$schema": DIALECT,
        "title": "a unit of supervisord-py" if file == "unit" else "supervisord.toml",
        "type": "object",
        "properties": {},
        "additionalProperties": False,
        "$defs": DEFINITIONS,
    }
    for table in key_table.of(file):
        if table.built:
            _place(root, table)
    return root


def _place(root: Fragment, table: TableSpec) -> None:
    """Put a table where its dotted name says."""
    *holders, name = table.name.removesuffix(".NAME").split(".")
    holder = root
    for part in holders:
        holder = holder["properties"].setdefault(part, _empty_object(""))
    schema = _empty_object(table.doc)
    for key, spec in table.keys.items():
        if spec.built:
            schema["properties"][key] = _key(spec, resets=table.file == "unit")
    match table.form:
        case "list":
            schema = {"type": "array", "items": schema}
        case "named":
            schema = {"type": "object", "additionalProperties": schema}
        case "table":
            # A table below this one may have come first.
            schema["properties"] |= holder["properties"].get(name, {}).get("properties", {})
    holder["properties"][name] = schema


def _empty_object(doc: str) -> Fragment:
    return {"type": "object", "description": doc, "properties": {}, "additionalProperties": False}


def _key(spec: KeySpec, *, resets: bool) -> Fragment:
    if spec.type == "enum":
        schema: Fragment = {"enum": [value for value in spec.values if value not in spec.pending]}
    elif spec.type == "switch":
        schema = {"enum": [*spec.values, True, False]}
    else:
        schema = dict(_FRAGMENTS[spec.type])
    if spec.type == "environment":
        schema["propertyNames"] = {"not": {"enum": list(spec.values)}}
    if spec.minimum is not None:
        schema["minimum"] = spec.minimum
    if spec.maximum is not None:
        schema["maximum"] = spec.maximum
    if resets and not _takes_lists(schema):
        # Any key of a unit can be taken back with an empty list.
        schema = {"anyOf": [*schema.get("anyOf", [schema]), {"type": "array", "maxItems": 0}]}
    schema["description"] = spec.doc if not spec.systemd else f"{spec.doc} (systemd: {spec.systemd}=)"
    if spec.default is not None:
        schema["default"] = spec.default
    return schema


def _takes_lists(schema: Fragment) -> bool:
    if "$ref" in schema:
        return _takes_lists(DEFINITIONS[schema["$ref"].rpartition("/")[2]])
    return schema.get("type") == "array" or any(map(_takes_lists, schema.get("anyOf", ())))
