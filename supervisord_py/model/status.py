"""What clients are shown: the values behind ``status``, ``show``, ``jobs`` and ``why``."""

from msgspec import Struct


class Exit(Struct, frozen=True, omit_defaults=True):
    """The last main process's end: a code, or a signal's name."""

    code: int | None = None
    signal: str | None = None


class HealthStatus(Struct, frozen=True):
    """One health check: ``good`` is what holds by its thresholds, None as long as nothing is known in this life.

    ``check`` is how it is made (``exec http tcp unix file log``), ``detail`` what it found last, at ``checked_at``.
    """

    name: str
    kind: str
    check: str
    good: bool | None = None
    detail: str = ""
    checked_at: str | None = None


class UnitStatus(Struct, frozen=True):
    """One unit, as ``status --json`` prints it (contract, section 1).

    ``since`` is the time of the last change of the active state (RFC 3339); ``memory_bytes``, ``cpu_ns`` and
    ``tasks`` are of the whole tree, filled in by the host, None when nothing runs. ``why`` says in a sentence what
    keeps the unit from being plainly active. ``needs_restart``: its life runs by another text than the loaded one, in a
    key that only a restart brings; ``needs_reload`` (the host's): its files are others than those that were loaded;
    ``refused`` (the host's) why apply has gone back from those.
    ``has_run`` says whether the main program of its present or last life has begun, so that ``exit`` is its end;
    ``lowered_limits`` (the host's) names limits of its main process that are lower than they should be; ``applied``
    (the host's) what confines it, with the mechanism, ``degraded`` what of that its main process had to do without.
    ``condition_result`` says whether its conditions and assertions held when they were looked at last (None: never),
    ``condition_at`` when that was, ``condition_unmet`` which did not hold. ``health`` has all its health checks.
    ``sockets`` are the addresses that are listened on for it, ``accepted`` how many connections have begun a run or an
    instance since it was started, ``connections`` how many instances there are, ``stored`` the names of the descriptors
    that its processes have left with the supervisor.
    ``dropped_lines`` (the host's) are those of its present or last life that were above its rate limit.
    ``transient``: it has no file, and is forgotten when it has ended.
    ``next_elapse`` is when its timer fires next, ``last_elapse`` when it did last (None: it does not, it has not).
    """

    name: str
    description: str
    load_state: str
    active_state: str
    sub_state: str
    result: str
    pid: int | None
    invocation: str | None
    since: str | None
    restarts: int
    failures: int
    exit: Exit | None
    memory_bytes: int | None = None
    cpu_ns: int | None = None
    tasks: int | None = None
    status_text: str | None = None
    path: str | None = None
    enabled: bool = True
    why: str | None = None
    needs_restart: bool = False
    needs_reload: bool = False
    refused: str | None = None
    condition_result: bool | None = None
    condition_at: str | None = None
    condition_unmet: str | None = None
    health: tuple[HealthStatus, ...] = ()
    next_elapse: str | None = None
    last_elapse: str | None = None
    has_run: bool = True
    lowered_limits: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    accepted: int = 0
    connections: int = 0
    stored: tuple[str, ...] = ()
    dropped_lines: int = 0
    transient: bool = False


class JobStatus(Struct, frozen=True):
    job: int
    unit: str
    type: str
    state: str
    waiting_for: tuple[str, ...] = ()
    limit: str | None = None
    """The limit of which it waits for a slot: a pool's name, ``max-workers`` for that over everything."""
    position: int | None = None
    """Its place among those that wait for the same limit, from 1."""


class WhyLine(Struct, frozen=True):
    """One cause in the chain that ``why`` prints, nearest first.

    ``kind`` is one of ``dependency backoff failed quarantine operator limit disabled conflict condition starting
    running bad-setting stuck pool probe timer socket watchdog``; ``unit`` names the other unit that it points at,
    ``seq`` the journal record that tells more, ``advice`` the next command to type, ``about`` the unit whose state it
    explains.
    """

    kind: str
    message: str
    unit: str | None = None
    seq: int | None = None
    advice: str | None = None
    about: str | None = None
