"""Write an agent in Python: a class with ``setup``, ``run_cycle`` and ``teardown``, supervised as a process of its own.

    from supervisord_py.agent import Agent

    class Ping(Agent):
        async def run_cycle(self): ...

Standard library only, and as little of that as can be: what is imported here is what every agent pays for, also in an
interpreter of its own that has nothing installed (``[agent] python``).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisord_py.agent.agent import Agent, Plugin
    from supervisord_py.agent.errors import AgentError, ConfigError, CycleTimeout, Fatal, NotSentError, Recoverable
    from supervisord_py.agent.life import LastLife
    from supervisord_py.agent.message import Message, Missed

__all__ = [
    "Agent",
    "AgentError",
    "ConfigError",
    "CycleTimeout",
    "Fatal",
    "LastLife",
    "Message",
    "Missed",
    "NotSentError",
    "Plugin",
    "Recoverable",
]
_MODULES = {"Agent": "agent", "Plugin": "agent", "LastLife": "life", "Message": "message", "Missed": "message"}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is: each module costs a third of a millisecond."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(f"{__name__}.{_MODULES.get(name, 'errors')}", fromlist=[name])
    found = globals()[name] = getattr(module, name)
    return found
