"""What the control interfaces may ask of the running manager: the seam between ``manager_interface`` and ``daemon``.

The daemon implements ``Supervisor``; tests use a fake of it. Everything here runs on the manager's one event loop.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from msgspec import Struct

from supervisord_py.core.actions import Refusal, Reply, UnitOutcome
from supervisord_py.core.events import Origin
from supervisord_py.core.manager import Manager
from supervisord_py.host.output_reading import Window
from supervisord_py.host.resources import UnitResources
from supervisord_py.host.unit_watch import SourceMarks
from supervisord_py.model.changes import Change, KeyChange, UnitChange
from supervisord_py.model.problems import Problem
from supervisord_py.model.records import Record
from supervisord_py.model.settings import Settings
from supervisord_py.model.states import JobMode
from supervisord_py.model.unit import Transient, Unit
from supervisord_py.model.unitset import LoadResult
from supervisord_py.wire.log_lines import LogLine


class RemoteKey(Struct, frozen=True):
    """Who comes over TCP: the name of the key that was shown, from where, and to which listener (the table of the
    settings)."""

    name: str
    address: str
    listener: Literal["control", "bus"]

    def __str__(self) -> str:
        return f"key {self.name} ({self.address})"


class Peer(Struct, frozen=True):
    """Who is at the other end of a control connection, by the kernel's word.

    ``unit`` is set when the peer is a process of that unit (then the unit is the subject, not the uid); ``stray``
    when it descends from the keeper and belongs to no unit. ``groups`` holds the supplementary groups too. ``gone``:
    the process that connected had ended before it could be looked at, so nothing but its uid is known; it is a stray.
    ``claimed``: that it is a process of ``unit`` is what it says itself: it is granted nothing that others are not.
    ``remote`` is set where the kernel has no word to say; nothing else is then, and the ids are -1, which nobody has.
    """

    uid: int
    gid: int
    pid: int
    groups: tuple[int, ...] = ()
    user: str = ""
    login_uid: int | None = None
    command: str = ""
    unit: str | None = None
    stray: bool = False
    gone: bool = False
    remote: RemoteKey | None = None
    claimed: bool = False
    started_ns: int | None = None
    """When the process that connected was started [CLOCK_BOOTTIME ns], for whoever looks at it later."""

    @property
    def subject(self) -> str | None:
        """Whose budgets it uses up, of the unit's: those that only claim to be of it have their own."""
        return f"{self.unit} (claimed)" if self.unit is not None and self.claimed else self.unit

    def origin(self) -> Origin:
        if self.remote is not None:
            return Origin(remote=str(self.remote))
        return Origin(uid=self.uid, gid=self.gid, pid=self.pid, user=self.user, unit=self.unit)


def remote_peer(key: RemoteKey) -> Peer:
    """Return who shows a key."""
    return Peer(uid=-1, gid=-1, pid=-1, remote=key)


class Submission(Struct, frozen=True):
    """An answered command: the core's reply, whether its records are on disk, and the number of its ``command``
    record."""

    reply: Reply
    durable: bool
    seq: int | None


class ReloadReport(Struct, frozen=True):
    """What a reload changed, or a plan of it would; ``changes`` tells it by unit and key, ``settings`` by key.

    ``problems`` are all that is wrong with the files as they are; the units that have one are not loaded, and settings
    that have one change nothing.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    problems: tuple[str, ...]
    durable: bool
    changes: tuple[UnitChange, ...] = ()
    settings: tuple[KeyChange, ...] = ()


def reload_report(
    changes: Sequence[UnitChange], settings: Sequence[KeyChange] = (), problems: Sequence[str] = ()
) -> ReloadReport:
    """Sort changes by what they are; a unit whose text changed and means the same is not among ``changed``."""

    def names(kind: Change) -> tuple[str, ...]:
        return tuple(each.unit for each in changes if each.change is kind and (each.keys or kind is not Change.CHANGED))

    return ReloadReport(
        added=names(Change.ADDED),
        changed=names(Change.CHANGED),
        removed=names(Change.REMOVED),
        problems=tuple(problems),
        durable=False,
        changes=tuple(changes),
        settings=tuple(settings),
    )


class EnablementReport(Struct, frozen=True):
    """What ``enable``, ``disable``, ``mask`` or ``unmask`` did: what became of which file of the control folder, by
    unit or template, and with ``now`` what became of the jobs."""

    files: dict[str, str]
    durable: bool
    submission: Submission | None = None


class ApplyReport(Struct, frozen=True):
    """What ``apply`` loaded, whom it restarts, in order, and what became of them (None for a plan)."""

    reload: ReloadReport
    restarts: tuple[str, ...]
    submission: Submission | None = None


class TuningReport(Struct, frozen=True):
    """What became of a ``scale`` or ``set``; the core may refuse the jobs of what is loaded already."""

    outcomes: tuple[UnitOutcome, ...]
    durable: bool
    refusal: Refusal | None = None


class RolloutOptions(Struct, frozen=True):
    """How units are restarted: see ``core.rollout``. ``max_unavailable`` 0 is all at once."""

    max_unavailable: int = 0
    probation_ns: int = 0
    reverts: bool = False


class Usage(Struct, frozen=True):
    """What a unit's whole tree uses now; None where it cannot be known."""

    memory_bytes: int | None = None
    cpu_ns: int | None = None
    tasks: int | None = None


class ProcessFigures(Struct, frozen=True):
    """One of our own processes; None where it cannot be seen."""

    pid: int
    uptime_ms: int | None = None
    memory_bytes: int | None = None
    cpu_ns: int | None = None


class SupervisorFigures(Struct, frozen=True):
    """What the supervisor itself needs, and where its journal stands: so many records are decided and not in the file
    (``unwritten``), or not on stable storage (``unsynced``)."""

    keeper: ProcessFigures
    manager: ProcessFigures
    last_seq: int
    unwritten: int
    unsynced: int
    lost: int
    journal_bytes: int
    output_bytes: int


class UnitFigures(Struct, frozen=True):
    """What a unit uses, and by which mechanism each number was counted; None where it cannot be known."""

    memory_bytes: int | None = None
    cpu_ns: int | None = None
    tasks: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    counted_by: dict[str, str] = {}


class Figures(Protocol):
    """Numbers for ``stats``: see ``host.figures``."""

    async def of_supervisor(self) -> SupervisorFigures: ...

    async def of_units(self, trees: Mapping[str, Sequence[int]]) -> dict[str, UnitFigures]:
        """What units use, by their processes."""


class JournalStats(Struct, frozen=True):
    records: int
    bytes: int
    segments: int
    first_seq: int | None
    last_seq: int | None
    oldest: str | None
    lost: int
    degraded: str | None
    by_event: dict[str, int]
    by_unit: dict[str, int]


class BusStats(Struct, frozen=True):
    """What became of messages since this manager began; ``/`` are those who belong to no unit."""

    listening: bool
    connections: int
    totals: dict[str, int]
    by_unit: dict[str, dict[str, int]]


class Verification(Struct, frozen=True):
    ok: bool
    records: int
    first_seq: int | None
    last_seq: int | None
    bad_seq: int | None = None
    file: str | None = None
    problem: str | None = None


class RecordFilter(Struct, frozen=True):
    """Which records are wanted; every given condition must hold. Units are globs, times RFC 3339 in UTC, ``grep`` a
    regular expression."""

    units: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    severity: str | None = None
    since: str | None = None
    until: str | None = None
    after: int | None = None
    grep: str | None = None
    invocation: str | None = None


class Followed(Struct, frozen=True):
    """A record; before it a slow reader has missed ``dropped``, and what was asked for up to number ``gone`` is no
    longer kept."""

    record: dict[str, Any]
    dropped: int = 0
    gone: int | None = None


class Order(Struct, frozen=True):
    """What is to be run: ``save`` makes it a file in the first folder of unit files. ``objection`` says what speaks
    against the unit that the text makes."""

    name: str
    text: str
    argv: tuple[str, ...] = ()
    transient: Transient = Transient()
    save: bool = False
    objection: Callable[[Unit], str | None] | None = None


class RunReport(Struct, frozen=True):
    """What came of it; ``path`` is that of a saved file, ``submission`` None for a plan."""

    path: str | None
    warnings: tuple[str, ...]
    submission: Submission | None = None


class Transients(Protocol):
    """Units without a file: see ``host.transients``."""

    def holding(self, name: str) -> AbstractContextManager[None]:
        """Keep a unit from being forgotten meanwhile."""

    async def run(
        self, order: Order, peer: Peer, *, reason: str = "", plan: bool = False, wait: bool = True, token: str = ""
    ) -> RunReport:
        """Load a unit and start it.

        Raises:
            CannotChangeError: It cannot be, and nothing has changed.
        """

    async def ended(self, name: str) -> None:
        """Return when a unit is at rest, or forgotten."""

    def give_up(self, name: str, peer: Peer, reason: str) -> None:
        """Stop a unit, and wait for nothing."""


class Tuning(Protocol):
    """Changes of what runs: see ``host.tuning``."""

    async def scale(
        self,
        template: str,
        count: int,
        peer: Peer,
        *,
        reason: str = "",
        plan: bool = False,
        wait: bool = True,
        token: str = "",
    ) -> TuningReport:
        """Let a template have so many instances.

        Raises:
            CannotChangeError: It cannot be, and nothing has changed.
        """

    async def set(
        self, unit: str, settings: Sequence[str], peer: Peer, *, persist: bool, reason: str = "", plan: bool = False
    ) -> TuningReport:
        """Give keys of a unit or template other values.

        Raises:
            CannotChangeError: It cannot be, and nothing has changed.
        """


class Changes(Protocol):
    """Changes of unit files that are made through the supervisor: see ``host.unit_changes``."""

    async def change(
        self,
        verb: str,
        names: Sequence[str],
        peer: Peer,
        *,
        reason: str = "",
        plan: bool = False,
        now: Sequence[str] = (),
        wait: bool = True,
        token: str = "",
    ) -> EnablementReport:
        """``enable``, ``disable``, ``mask`` or ``unmask`` units and templates, and start or stop the units ``now``.

        Raises:
            CannotChangeError: It cannot be, and nothing has changed.
        """

    async def apply(
        self,
        units: Sequence[str],
        peer: Peer,
        options: RolloutOptions,
        *,
        reason: str = "",
        plan: bool = False,
        wait: bool = True,
        token: str = "",
    ) -> ApplyReport:
        """Load the files of these units (all files when empty), then restart what needs it.

        Raises:
            CannotChangeError: A file has become invalid, or another apply is under way; nothing has changed.
        """

    async def check_text(self, path: str, text: str) -> tuple[Problem, ...]:
        """Return the problems that there would be with this text at ``path``, and are not there without.

        Raises:
            CannotChangeError: It is no file that the supervisor reads.
        """

    @property
    def tuning(self) -> "Tuning":
        """How many instances there are, and single keys."""

    @property
    def transients(self) -> "Transients":
        """Units without a file."""

    def refused_text(self, unit: str) -> str | None:
        """Say why the file of a unit on disk is not in use, None where apply has not refused it."""


class MessageBus(Protocol):
    """The bus: see ``host.bus``."""

    def stats(self) -> BusStats: ...

    def stream(self, wanted: RecordFilter) -> AsyncIterator[list[dict[str, Any]]]:
        """All records that match, in batches: for histories that are larger than memory."""

    async def publish(self, records: list[Record]) -> list[int]:
        """Write messages and deliver them; returns their numbers, none when they cannot be written."""


class Output(Protocol):
    """What is known of the lines that units write."""

    def log_lines(
        self, unit: str, lines: int, *, previous: bool = False, window: Window | None = None
    ) -> list[LogLine]:
        """The last lines, with times where the log has them; of the life before, or of a window of time."""

    def has_times(self, unit: str) -> bool:
        """Whether the lines of a unit have times in its log, as it is written now."""

    def dropped_lines(self, unit: str) -> int:
        """How many lines of its present or last life were above its rate limit."""


class Supervisor(Protocol):
    """The running manager, as the control interfaces see it."""

    @property
    def manager(self) -> Manager:
        """The core; for queries through ``core.view`` only."""

    @property
    def settings(self) -> Settings: ...

    @property
    def loaded(self) -> LoadResult: ...

    @property
    def resources(self) -> UnitResources:
        """How bounds on units are kept here."""

    @property
    def versions(self) -> Mapping[str, Any]:
        """The answer of Version."""

    async def command(
        self,
        verb: str,
        units: Sequence[str],
        peer: Peer,
        *,
        reason: str = "",
        mode: JobMode = JobMode.REPLACE,
        wait: bool = True,
        plan: bool = False,
        token: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> Submission:
        """Submit a verb of ``CommandRequested``; records it, waits for the reply and for its durability.

        Cancelling the awaiting task (a lost client, a time-out) leaves the jobs running.
        """

    async def note(self, record: Record, *, durable: bool = False) -> int | None:
        """Write a record of the host's own (``command.denied``, ``command.invalid``); returns its number."""

    async def usage(self, units: Sequence[str]) -> dict[str, Usage]: ...

    async def trees(self, units: Sequence[str]) -> dict[str, list[int]]:
        """All processes of these units."""

    @property
    def figures(self) -> Figures:
        """What is counted."""

    async def live(self, unit: str) -> dict[str, Any]:
        """What the unit's main process really has now: limits, niceness, descriptors, ...; empty when there is none."""

    async def changed(self) -> None:
        """Return after the next batch that changed any unit (for ``Wait``)."""

    def last_lines(self, unit: str, lines: int, *, previous: bool = False, invocation: str | None = None) -> list[str]:
        """The last lines of output; of the life before (``previous``), or of one life."""

    @property
    def output(self) -> Output: ...

    def follow_output(self, units: Sequence[str]) -> AsyncIterator[tuple[str, str]]:
        """New output lines as they come: (unit, line without its newline)."""

    async def journal_query(self, query: RecordFilter, last: int | None) -> list[dict[str, Any]]: ...

    def journal_follow(self, query: RecordFilter, last: int | None) -> AsyncIterator[Followed]: ...

    async def journal_verify(self) -> Verification: ...

    @property
    def bus(self) -> "MessageBus": ...

    async def journal_stats(self) -> JournalStats: ...

    async def reload(self, peer: Peer, *, reason: str = "", plan: bool = False) -> ReloadReport: ...

    @property
    def changes(self) -> Changes:
        """Changes of unit files."""

    async def restart_manager(self, peer: Peer, *, reason: str = "") -> tuple[bool, str | None]:
        """Let a new manager take over; returns as ``reexec_keeper``."""

    async def reexec_keeper(self, peer: Peer, *, reason: str = "") -> tuple[bool, str | None]:
        """Let the keeper replace itself; returns whether the record is durable, and why it refuses when it does. When
        it does not, a new manager and a new keeper take over within moments."""

    async def shutdown(self, peer: Peer, *, reason: str = "") -> bool:
        """Begin the ordered stop; returns whether the record is durable. The connection ends with the supervisor."""

    def health_problems(self) -> list[str]: ...

    def health_warnings(self) -> list[str]:
        """What is degraded and keeps no unit from doing its work."""

    @property
    def marks(self) -> SourceMarks:
        """Where the files are others than those that were loaded."""
