"""Runs one agent in this process: ``python runner.py package.module:Class [OPTIONS]``, as ``[agent]`` of a unit has it.

Started as a script and not as a module, so that it runs in any interpreter: it brings this package along, and nothing
else of the interpreter that the supervisor runs in.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: another start would end the same way, so agents are not restarted after it."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from supervisord_py.agent.agent import Agent
    from supervisord_py.agent.plan import Plan


def main(arguments: "Sequence[str]") -> int:
    """Run the agent of the command line; return the exit code of the process."""
    from supervisord_py.agent.errors import ConfigError
    from supervisord_py.agent.link import SupervisorLink
    from supervisord_py.agent.reports import describe

    link = SupervisorLink(os.environ)
    try:
        agent, plan = _build(arguments, link)
    except ConfigError as problem:
        sys.stderr.write(f"{describe(problem)}\n")
        link.tell(X_ERROR=describe(problem), STATUS=describe(problem))
        return EXIT_CONFIG
    try:
        return _run(agent, plan, link)
    finally:
        link.close()


def _build(arguments: "Sequence[str]", link: "Any") -> "tuple[Agent, Plan]":
    from supervisord_py.agent.agent import Agent, Plugin, bind
    from supervisord_py.agent.config import find_class, read_config
    from supervisord_py.agent.plan import CONFIG, parse_arguments

    plan = parse_arguments(arguments)
    sys.path[:0] = plan.path
    cls = find_class(plan.cls, Agent, "agent.class")
    plan.complete(cls, os.environ)
    agent = cls()
    name = os.environ.get("SUPERVISORD_PY_UNIT", cls.__name__)
    # The variable was written for this process: programs that the agent runs have no business with it.
    bind(agent, name=name, config=read_config(cls, os.environ.pop(CONFIG, "")), link=link)
    plugins: dict[str, Plugin] = {}
    for spec in plan.plugins:
        plugin = find_class(spec, Plugin, "agent.plugins")()
        plugin.name, plugin.agent = plugin.name or type(plugin).__name__, agent
        plugins[plugin.name] = plugin
    agent.plugins = plugins
    return agent, plan


def _run(agent: "Agent", plan: "Plan", link: "Any") -> int:
    if has_coroutine(agent):
        from supervisord_py.agent.coroutines import LoopCycles

        return LoopCycles(agent, plan, link).run()
    import signal

    from supervisord_py.agent.cycles import Cycles, Waiter

    waiter = agent._waiter = Waiter()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    return Cycles(agent, plan, link, waiter).run()


CO_COROUTINE = 0x80
"""The flag of a code object that ``inspect`` knows under this name, which takes 10 ms to import."""


def has_coroutine(agent: "Agent") -> bool:
    """Tell whether one of the methods of an agent or of its plugins is a coroutine."""
    methods: list[Any] = [agent.setup, agent.run_cycle, agent.on_message, agent.teardown]
    for plugin in agent.plugins.values():
        methods += [plugin.setup, plugin.finalize]
    return any(getattr(getattr(each, "__code__", None), "co_flags", 0) & CO_COROUTINE for each in methods)


def _bring_along() -> None:
    """Have ``supervisord_py`` be this one, also where the interpreter has none, or another version of it; of what else
    lies beside it nothing is to be seen.
    """
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]
    sys.path.insert(0, os.path.dirname(os.path.dirname(_HERE)))
    try:
        import supervisord_py  # noqa: F401
    finally:
        del sys.path[0]


if __name__ == "__main__":
    _bring_along()
    from supervisord_py.agent.runner import main as run_agent

    sys.exit(run_agent(sys.argv[1:]))
