"""Runs one agent in this process: from the command line of ``agent.start`` to the exit code."""

import os
import sys

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: another start would end the same way, so agents are not restarted after it."""

if sys.version_info < (3, 11):  # noqa: UP036  whatever [agent] python is; here, and before others have been compiled
    sys.stderr.write(sys.executable + " is Python " + sys.version.split()[0] + ": agents need 3.11 (agent.python)\n")
    sys.exit(EXIT_CONFIG)

from supervisord_py.agent.agent import Agent, Plugin, bind  # noqa: E402
from supervisord_py.agent.cycles import Cycles, Waiter, stop_on_signals  # noqa: E402
from supervisord_py.agent.link import SupervisorLink  # noqa: E402
from supervisord_py.agent.plan import CONFIG, Plan, find_class, parse_arguments  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


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
