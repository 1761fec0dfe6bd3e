"""What the core remembers of a unit's sockets; see ``core.listening``."""

from msgspec import Struct


class Connection(Struct, frozen=True, omit_defaults=True):
    """The connection that an instance was made for: number ``number`` of unit ``unit``; a killed keeper holds none."""

    unit: str
    number: int | None
    environment: tuple[tuple[str, str], ...] = ()
    """Who is at its other end, for the process."""


class SocketState(Struct, frozen=True, omit_defaults=True):
    """None of a unit that has been at rest since it was loaded, or has no sockets."""

    held: bool = False
    """The keeper was asked to listen, and has not been told to close."""
    asked: int | None = None
    """The number of that question, until it is answered."""
    armed: bool = False
    """The unit is run by its connections: it is up, in a run and between two."""
    awaited: bool = False
    """The keeper will tell of the next connection."""
    triggers_ns: tuple[int, ...] = ()
    """The connections that the trigger limit still counts [CLOCK_BOOTTIME ns], ascending."""
    resume_at_ns: int | None = None
    """When connections are awaited again, after too many."""
    refused: int = 0
    """How many connections in a row have begun no run."""
    used_ns: int = 0
    """When something came last to a unit that runs, as far as that was looked at."""
    idle_at_ns: int | None = None
    """When its use is looked at next."""
    look_id: int | None = None
    """Its open connections are being looked at."""
    came: int = 0
    """How many connections have begun a run or an instance since it was armed."""
    instances: tuple[str, ...] = ()
    """Units that were made for connections and are there."""
    stored: tuple[str, ...] = ()
    """Names of the descriptors that its processes have left with the keeper."""
