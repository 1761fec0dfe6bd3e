"""What the runner is told: which class, how often, for how long."""

from supervisord_py.agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from supervisord_py.agent.agent import Agent

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
                raise ConfigError(f"the runner does not know {argument}")
    if not plan.cls:
        raise ConfigError("the runner needs a class: package.module:Class")
    return plan
