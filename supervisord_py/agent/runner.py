"""Runs one agent in this process: from the command line of ``agent.start`` to the exit code.

One module, where there could be two: each that is imported costs every agent a hundredth of the start of bare Python.
"""

import os
import sys

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: another start would end the same way, so agents are not restarted after it."""

CONFIG = "SUPERVISORD_PY_AGENT_CONFIG"
"""The variable with ``[agent] config`` as JSON: an argument would be there for every user to read."""

if sys.version_info < (3, 11):  # noqa: UP036  whatever [agent] python is; here, and before others have been compiled
    sys.stderr.write(sys.executable + " is Python " + sys.version.split()[0] + ": agents need 3.11 (agent.python)\n")
    sys.exit(EXIT_CONFIG)

from supervisord_py.agent.agent import Agent, Plugin, bind  # noqa: E402
from supervisord_py.agent.cycles import Cycles, Waiter, stop_on_signals  # noqa: E402
from supervisord_py.agent.link import SupervisorLink  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeVar

    from supervisord_py.agent.errors import ConfigError

    Found = TypeVar("Found")


def main(arguments: "Sequence[str]") -> int:
    """Run the agent of the command line; return the exit code of the process."""
    link = SupervisorLink(os.environ)
    try:
        agent, plan = _build(arguments, link)
    except Exception as problem:  # only what is wrong in the unit file is told, the others are raised on
        from supervisord_py.agent.errors import ConfigError
        from supervisord_py.agent.reports import describe

        if not isinstance(problem, ConfigError):
            raise
        sys.stderr.write(f"{describe(problem)}\n")
        link.tell(X_ERROR=describe(problem), STATUS=describe(problem))
        return EXIT_CONFIG
    try:
        return _run(agent, plan, link)
    finally:
        link.close()


def _build(arguments: "Sequence[str]", link: "Any") -> "tuple[Agent, Plan]":
    plan = parse_arguments(arguments)
    sys.path[:0] = plan.path
    is_stub = bool(os.environ.get("SUPERVISORD_PY_STUB"))
    cls = find_class(plan.cls, Agent, "quarantine.stub-class" if is_stub else "agent.class")
    plan.complete(cls, os.environ)
    agent = cls()
    name = os.environ.get("SUPERVISORD_PY_UNIT", cls.__name__)
    bind(agent, name=name, config=_config(cls), link=link)
    plugins: dict[str, Plugin] = {}
    for spec in plan.plugins:
        plugin = find_class(spec, Plugin, "agent.plugins")()
        plugin.name, plugin.agent = plugin.name or type(plugin).__name__, agent
        if plugin.name in plugins:
            from supervisord_py.agent.errors import ConfigError

            raise ConfigError(f"agent.plugins: two are called {plugin.name}: set the name of {spec} to another one")
        plugins[plugin.name] = plugin
    agent.plugins = plugins
    return agent, plan


def _config(cls: "type[Agent]") -> "Any":
    # The variable was written for this process: programs that the agent runs have no business with it.
    text = os.environ.pop(CONFIG, "")
    if not text and cls.Config is None:
        return {}
    from supervisord_py.agent.config import read_config

    return read_config(cls, text)


def _before_fork() -> None:
    """The first fork brings along what every fork does."""
    from supervisord_py.agent import forks

    forks.hold_signals()


def _run(agent: "Agent", plan: "Plan", link: "Any") -> int:
    os.register_at_fork(before=_before_fork)
    if has_coroutine(agent):
        from supervisord_py.agent.coroutines import LoopCycles

        return LoopCycles(agent, plan, link).run()
    waiter = agent._waiter = Waiter()
    stop_on_signals(agent)
    code = Cycles(agent, plan, link, waiter).run()

    from supervisord_py.agent.leaving import bound_the_end

    bound_the_end(code)
    return code


CO_COROUTINE = 0x80
"""The flag of a code object that ``inspect`` knows under this name, which takes 10 ms to import."""


def has_coroutine(agent: "Agent") -> bool:
    """Tell whether one of the methods of an agent or of its plugins is a coroutine."""
    methods: list[Any] = [agent.setup, agent.run_cycle, agent.on_message, agent.on_missed, agent.teardown]
    for plugin in agent.plugins.values():
        methods += [plugin.setup, plugin.finalize]
    return any(getattr(getattr(each, "__code__", None), "co_flags", 0) & CO_COROUTINE for each in methods)


# What it is told: which class, how often, for how long


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
        # No match statement: an interpreter that knows none has to read this to say that it is too old.
        if name == "--every":
            plan.every_s = float(value)
            plan.written.add("every")
        elif name == "--cycle-timeout":
            plan.cycle_timeout_s = float(value) if value != "infinity" else None
            plan.written.add("cycle-timeout")
        elif name == "--path":
            plan.path.append(value)
        elif name == "--plugin":
            plan.plugins.append(value)
        elif name == "--once":
            plan.is_once = True
        elif not plan.cls and not name.startswith("-"):
            plan.cls = argument
        else:
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
