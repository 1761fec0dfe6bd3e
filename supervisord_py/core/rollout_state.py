"""What is remembered of a rollout: how far it and each of its units have got (``core.rollout``). Data, as all state."""

from enum import Enum

from msgspec import Struct


class RolloutStep(Enum):
    """How far one unit of a rollout has got."""

    WAITING = "waiting"
    RESTARTING = "restarting"
    PROBATION = "probation"
    """It is ready, and has to stay up."""
    DONE = "done"
    FAILED = "failed"
    LEFT_OUT = "left-out"
    """It is not restarted any more, and that is no failure."""


class RolloutPhase(Enum):
    FORWARD = "forward"
    REVERTING = "reverting"
    """The host was asked for the older texts."""
    BACK = "back"


class RolloutUnit(Struct, omit_defaults=True):
    """One unit of a rollout; ``job`` is its number for those who wait, ``restart_job`` the job that restarts it."""

    job: int
    before: str | None = None
    """Its invocation when the rollout began."""
    was_stopped: bool = False
    """Somebody had stopped it before."""
    step: RolloutStep = RolloutStep.WAITING
    restart_job: int | None = None
    invocation: str | None = None
    """The life that is watched."""
    good_at_ns: int | None = None
    """End of its probation."""
    message: str = ""


class Rollout(Struct, omit_defaults=True):
    """Many units that are restarted so that few are down at a time; see ``core.rollout``."""

    verb: str
    units: dict[str, RolloutUnit]
    """In the order in which they are restarted."""
    max_unavailable: int = 0
    """0: all at once."""
    probation_ns: int = 0
    reverts: bool = False
    by: str = ""
    """Who asked for it."""
    note: str = ""
    """The reason that they gave."""
    phase: RolloutPhase = RolloutPhase.FORWARD
    failed: str | None = None
    """The unit whose failure ended the way forward."""
    message: str = ""
    cause: int | None = None
