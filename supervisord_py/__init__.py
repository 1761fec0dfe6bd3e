"""A process supervisor for long-running agents and services on Linux."""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisord_py.ctl.client import Client
    from supervisord_py.embedded import Supervisor

__all__ = ["Client", "Supervisor", "__version__"]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is: the keeper and the agents need none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(f"{__name__}.{'embedded' if name == 'Supervisor' else 'ctl.client'}", fromlist=[name])
    found = globals()[name] = getattr(module, name)
    return found
