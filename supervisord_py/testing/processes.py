"""What lives on the fake machine: processes, the spawns that they stand for, and who watches them."""

from collections.abc import Callable

from supervisord_py.core.events import ExitStatus
from supervisord_py.model.states import Role, ServiceType
from supervisord_py.model.unit import Service

SIGABRT, SIGKILL, SIGTERM, SIGCONT, SIGSTOP = 6, 9, 15, 18, 19

FAILED_STEPS: tuple[tuple[str, int, int], ...] = (
    ("exec", 203, 2), ("exec", 203, 13), ("limits", 205, 1), ("chdir", 200, 2), ("user", 217, 1), ("fork", 71, 11),
)  # fmt: skip
"""(step, systemd's exit code, errno) of a spawn that fails."""

LATER_STEPS: tuple[tuple[str, int, int], ...] = (
    ("seccomp", 228, 38), ("namespace", 226, 1), ("capabilities", 218, 1), ("credentials", 243, 2),
    ("runtime-directory", 233, 13), ("environment-file", 0, 2), ("cgroup", 219, 16),
)  # fmt: skip
"""Those of what is done between fork and exec for the keys that came last."""

DEGRADED: tuple[tuple[str, ...], ...] = (
    ("limits.memory-max: nothing here can enforce it",),
    ("sandbox.private-network: operation not permitted", "limits.cpu-quota: nothing here can enforce it"),
)
"""Without what a program may run whose unit asks for it."""

CRASHES = (
    ExitStatus(code=1), ExitStatus(code=255), ExitStatus(signal=11, core_dumped=True), ExitStatus(signal=9),
)  # fmt: skip
"""How a main process ends that has a bug."""

NOTIFYING = frozenset({ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD})


class Process:
    """One process. ``spawn`` is set for those that the keeper made, or follows as a main process; None is a
    descendant.
    """

    def __init__(self, pid: int, unit: str, invocation: str, spawn: "Spawn | None", born_ns: int) -> None:
        self.pid = pid
        self.unit = unit
        self.invocation = invocation
        self.spawn = spawn
        self.born_ns = born_ns
        self.alive = True
        self.outlives_main = False
        self.ignores_term = False
        self.term_delay_ns = 0
        self.term_status: ExitStatus | None = None
        self.unkillable = False
        self.killed = False
        """SIGKILL was sent: if it is still there, nothing more can be done."""
        self.parent: Process | None = None
        """Who forked it; None for a child of the keeper."""
        self.daemon_of: Spawn | None = None
        """The command of a forking unit that left it behind as the daemon of the unit."""
        self.dying = False
        self.signalled = False
        self.status_unknown = False
        self.resumed_ns = born_ns
        """Since when it can run: it was stopped before."""


class Pulse:
    """What one process has to say again and again; see ``beats``."""

    def __init__(self, period_ns: int, every_ns: int, now_ns: int) -> None:
        self.period_ns = period_ns
        """It may be silent for so long; 0: for ever."""
        self.every_ns = every_ns
        self.silent = False
        self.heard_ns = now_ns
        """When the last sign went out that the keeper could hear."""
        self.round = 0


class Spawn:
    """One spawn id: its request, the process that stands for it, and whether its program runs yet."""

    def __init__(self, spawn_id: int, role: Role, service: Service | None, process: Process) -> None:
        self.spawn_id = spawn_id
        self.unit = process.unit
        self.role = role
        self.invocation = process.invocation
        self.service = service
        self.main = process
        self.pending = True
        self.over = False
        self.ready_sent = False
        self.held_signals: list[int] = []
        self.degraded: tuple[str, ...] = ()
        self.followed_pid: int | None = None
        """Set for a process that was not made for this spawn id but is followed as it."""
        self.pulses: dict[str, Pulse] = {}
        """The signs of life that are expected of it, by their field."""
        self.unfinished: Callable[[], None] | None = None
        """What ``cure`` does for a process that hangs: say READY, or end."""


class Watcher:
    """What the fake kernel tells an observer (the checkers); the default is to look away."""

    def born(self, process: Process) -> None:
        """A process exists from now on (its program may not run yet)."""

    def followed(self, process: Process) -> None:
        """A process that was nobody's is followed as a main one from now on."""

    def exited(self, process: Process, spawn_id: int | None) -> None:
        """A process is gone; ``spawn_id`` when an exit fact was queued for it."""

    def released(self, unit: str) -> None:
        """The keeper is asked to forget the unit."""
