"""What the runner is told: which class, how often, for how long."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeVar

    from supervisord_py.agent.agent import Agent
    from supervisord_py.agent.errors import ConfigError

    Found = TypeVar("Found")

CONFIG = "SUPERVISORD_PY_AGENT_CONFIG"
"""The variable with ``[agent] config`` as JSON: an argument would be there for every user to read."""


class Plan:
    """One agent as its unit file has it; ``complete`` asks the class for what the file does not say."""

    def __init__(self) -> None:
        self.cls = ""
        self.path: list[str] = []
        self.plugins: list[str] = []
        self.is_once = False
        self.every_s: float = 1.0
        self.cycle_timeout_s: float | None = None
        self.beat_s: float | None = None
        self.written: set[str] = set()

    def complete(self, agent: "type[Agent]", environment: "Mapping[str, str]") -> None:
        """Take from the class what the unit file does not say, and from the environment how often to beat."""
        if "every" not in self.written:
            self.every_s = agent.every
        if "cycle-timeout" not in self.written:
            self.cycle_timeout_s = agent.cycle_timeout
        usec = environment.get("WATCHDOG_USEC", "")
        if usec.isdigit() and int(usec):
            self.beat_s = int(usec) / 2_000_000


def parse_arguments(arguments: "Sequence[str]") -> Plan:
    """Read the runner's command line: ``CLASS [--every=S] [--cycle-timeout=S] [--path=DIR] [--plugin=CLASS] [--once]``.

    Raises:
        ConfigError: It is not that.
    """
    plan = Plan()
    for argument in arguments:
        name, _, value = argument.partition("=")
        match name:
            case "--every":
                plan.every_s = float(value)
                plan.written.add("every")
            case "--cycle-timeout":
                plan.cycle_timeout_s = float(value) if value != "infinity" else None
                plan.written.add("cycle-timeout")
            case "--path":
                plan.path.append(value)
            case "--plugin":
                plan.plugins.append(value)
            case "--once":
                plan.is_once = True
            case _ if not plan.cls and not name.startswith("-"):
                plan.cls = argument
            case _:
                raise _wrong(f"the runner does not know {argument}")
    if not plan.cls:
        raise _wrong("the runner needs a class: package.module:Class")
    return plan


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
        raise _wrong(f"{key}: {spec!r} is not package.module:Class")
    try:
        module = __import__(module_name, fromlist=["_"])
    except ModuleNotFoundError as problem:
        if problem.name is None or not f"{module_name}.".startswith(f"{problem.name}."):
            raise _wrong(f"{key}: {module_name} needs {problem.name}, which is not installed here") from problem
        import sys

        path_key = "agent.path" if key.startswith("agent.") else "quarantine.stub-path"
        raise _wrong(
            f"{key}: no module {problem.name} ({path_key} adds folders to {', '.join(map(repr, sys.path))})"
        ) from problem
    found = module
    for part in class_name.split("."):
        if not hasattr(found, part):
            raise _wrong(f"{key}: {module_name} has no {class_name}")
        found = getattr(found, part)
    if not isinstance(found, type) or not issubclass(found, base):
        raise _wrong(f"{key}: {spec} is no subclass of {base.__module__}.{base.__qualname__}")
    return found


def _wrong(message: str) -> "ConfigError":
    """Make the error; its module is imported when there is one."""
    from supervisord_py.agent.errors import ConfigError

    return ConfigError(message)
