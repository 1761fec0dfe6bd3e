"""From the words of a unit file to classes and typed configuration."""

from supervisord_py.agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from supervisord_py.agent.agent import Agent

    Found = TypeVar("Found")


def find_class(spec: str, base: "type[Found]", key: str) -> "type[Found]":
    """Import ``package.module:Class``.

    Args:
        spec: As it is written.
        base: What it has to be a subclass of.
        key: The key that it stands under, for messages.

    Raises:
        ConfigError: There is no such module or class, or it is no subclass of ``base``.
    """
    module_name, colon, class_name = spec.partition(":")
    if not colon or not module_name or not class_name:
        raise ConfigError(f"{key}: {spec!r} is not package.module:Class")
    try:
        module = __import__(module_name, fromlist=["_"])
    except ModuleNotFoundError as problem:
        if problem.name is None or not f"{module_name}.".startswith(f"{problem.name}."):
            raise ConfigError(f"{key}: {module_name} needs {problem.name}, which is not installed here") from problem
        import sys

        raise ConfigError(
            f"{key}: no module {problem.name} (agent.path adds folders to {', '.join(map(repr, sys.path))})"
        ) from problem
    found = module
    for part in class_name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{key}: {module_name} has no {class_name}")
        found = getattr(found, part)
    if not isinstance(found, type) or not issubclass(found, base):
        raise ConfigError(f"{key}: {spec} is no subclass of {base.__module__}.{base.__qualname__}")
    return found


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
