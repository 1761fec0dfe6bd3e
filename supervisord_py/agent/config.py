"""Typed configuration."""

from supervisord_py.agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from supervisord_py.agent.agent import Agent


def read_config(cls: "type[Agent]", text: str) -> "Any":
    """Read ``[agent] config`` by the ``Config`` of the class; a class without one is given a dict.

    Raises:
        ConfigError: A field is missing, unknown or of the wrong type; the message names it.
    """
    raw = {}
    if text:
        import json

        raw = json.loads(text)
    return convert_config(cls, raw)


def convert_config(cls: "type[Agent]", raw: "dict[str, Any]") -> "Any":
    """Make the typed configuration of an agent out of a dict.

    Raises:
        ConfigError: A field is missing, unknown or of the wrong type; the message names it.
    """
    if cls.Config is None:
        return raw
    try:
        import msgspec
    except ModuleNotFoundError:
        import sys

        raise ConfigError(
            f"agent.class: {cls.__name__} has a Config, and {sys.executable} has no msgspec to read it by: install that"
        ) from None
    known = {field.encode_name for field in _fields(msgspec, cls.Config)}
    for name in raw:
        if known and name not in known:
            raise ConfigError(f"agent.config.{name}: unknown field (known: {', '.join(sorted(known))})")
    try:
        return msgspec.convert(raw, cls.Config)
    except msgspec.ValidationError as problem:
        message, _, place = str(problem).partition(" - at `$")
        field = place.rstrip("`").lstrip(".")
        if not field and "missing required field" in message:
            field = message.rpartition("`")[0].rpartition("`")[2]
        message = message.replace("Object missing required field", "missing field").replace("`", "")
        raise ConfigError(f"agent.config{f'.{field}' if field else ''}: {message[:1].lower()}{message[1:]}") from None


def _fields(msgspec: "Any", config: "Any") -> "list[Any]":
    """Return the fields of a ``Config``; empty where it is no type that has them."""
    import msgspec.inspect

    return list(getattr(msgspec.inspect.type_info(config), "fields", ()))
