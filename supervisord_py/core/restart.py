"""When a life that ended is followed by another, and after how long: pure functions.

Source: systemd.service(5), Restart=, RestartSec=, RestartSteps=, RestartMaxDelaySec=; core/service.c
(service_shall_restart); system-anchors 1.5. Ours are the jitter, the count of failures that ends the restarts, and that
both are forgotten after healthy time.
"""

from collections.abc import Sequence

from supervisord_py.core.events import ExitStatus
from supervisord_py.model.states import Restart, Result
from supervisord_py.model.unit import ExitStatuses, RestartPolicy, StartLimit

CLEAN_SIGNALS = frozenset({1, 2, 13, 15})
"""SIGHUP, SIGINT, SIGPIPE, SIGTERM: a clean end of a daemon, though not of a command or a oneshot."""

_NONE = ExitStatuses()
_MASK = (1 << 64) - 1
_PARTS = 1_000_000
"""The jitter fraction is taken in millionths, so that no time is ever a float."""

_DEGREE_MAX = 64
"""More steps than this are taken in stairs: roots of any degree would be exact, and as slow as a unit file wants."""

RESTARTED: dict[Restart, frozenset[Result]] = {
    Restart.NO: frozenset(),
    Restart.ALWAYS: frozenset(Result) - {Result.EXEC_CONDITION},
    Restart.ON_SUCCESS: frozenset({Result.SUCCESS}),
    Restart.ON_FAILURE: frozenset(Result) - {Result.SUCCESS, Result.EXEC_CONDITION},
    Restart.ON_ABNORMAL: frozenset(Result) - {Result.SUCCESS, Result.EXEC_CONDITION, Result.EXIT_CODE},
    Restart.ON_ABORT: frozenset({Result.SIGNAL, Result.CORE_DUMP}),
    Restart.ON_WATCHDOG: frozenset({Result.WATCHDOG}),
}
"""Which results each policy restarts after."""


def is_among(status: ExitStatus, statuses: ExitStatuses) -> bool:
    """Tell whether a process ended in one of these ways."""
    return status.code in statuses.codes if status.code is not None else status.signal in statuses.signals


def exit_result(status: ExitStatus, *, daemon: bool, success: ExitStatuses = _NONE) -> Result:
    """Say what an exit means.

    Args:
        status: How the process ended.
        daemon: It is meant to run until it is told to end (it is no oneshot's, and no other command's).
        success: What counts as clean besides (``success-exit-status``), for every command of the unit.

    Source: systemd, basic/exit-status.c (is_clean_exit), core/service.c (service_sigchld_event).
    """
    if is_among(status, success):
        return Result.SUCCESS
    if status.code is not None:
        return Result.SUCCESS if status.code == 0 else Result.EXIT_CODE
    if status.signal is None:
        return Result.UNKNOWN
    if daemon and status.signal in CLEAN_SIGNALS:
        return Result.SUCCESS
    return Result.CORE_DUMP if status.core_dumped else Result.SIGNAL


def wants_restart(policy: RestartPolicy, result: Result, *, oneshot: bool, main: ExitStatus | None = None) -> bool:
    """Tell whether the policy asks for another life after one that ended with ``result``.

    ``main`` is how the main process of that life ended, None without one: what prevents a restart wins over what forces
    it, and both over ``restart``. A oneshot that did its work is never repeated, not even by force.
    """
    if oneshot and result is Result.SUCCESS:
        return False
    if main is not None and is_among(main, policy.prevent):
        return False
    return (main is not None and is_among(main, policy.force)) or result in RESTARTED[policy.restart]


def admit_start(starts_ns: Sequence[int], limit: StartLimit, now_ns: int) -> list[int] | None:
    """Decide whether a unit may be started once more.

    Args:
        starts_ns: The starts so far that may still count [CLOCK_BOOTTIME ns], ascending.
        limit: So many of them are allowed within its interval.
        now_ns: The moment of the decision, on the same clock [ns].

    Returns:
        The starts that count from now on, this one among them; None when it is one too many.

    Source: systemd.unit(5), StartLimitIntervalSec=; basic/ratelimit.c. That a start by hand is never refused is ours:
    it begins the count anew, with itself.
    """
    if limit.interval_ns == 0 or limit.burst == 0:
        return []
    counted = [at_ns for at_ns in starts_ns if limit.interval_ns is None or now_ns - at_ns < limit.interval_ns]
    return [*counted, now_ns] if len(counted) < limit.burst else None


def is_limit_hit(policy: RestartPolicy, failures: int) -> bool:
    """Tell whether so many counted failures end the automatic restarts."""
    return 0 < policy.failures <= failures


def restart_delay_ns(policy: RestartPolicy, attempt: int) -> int:
    """Return the delay before automatic restart number ``attempt`` (from 1), without jitter [ns].

    The first waits ``delay_ns``, the one after ``steps`` waits ``max_delay_ns``, those between lie on a geometric line;
    integers only.
    """
    first_ns, last_ns, steps = policy.delay_ns, policy.max_delay_ns, policy.steps
    if attempt <= 1 or steps == 0 or last_ns is None or last_ns <= first_ns:
        return first_ns
    if attempt > steps:
        return last_ns
    # A delay of zero has no geometric line: one microsecond stands for it, as in systemd.
    base_ns = max(first_ns, 1000)
    taken = attempt - 1
    if steps > _DEGREE_MAX:
        taken, steps = taken * _DEGREE_MAX // steps, _DEGREE_MAX
    return _integer_root(base_ns ** (steps - taken) * last_ns**taken, steps)


def jitter_ns(policy: RestartPolicy, delay_ns: int, draw: int) -> int:
    """Return what is added to a delay: at most ``jitter`` of it, for a 64-bit random ``draw`` [ns]."""
    return delay_ns * round(policy.jitter * _PARTS) * draw // (_PARTS << 64)


def next_random(state: int) -> tuple[int, int]:
    """Return the generator's next state and a 64-bit number (splitmix64: small, even, and the state is one integer).

    Source: Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (2014).
    """
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    value = state
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return state, value ^ (value >> 31)


def _integer_root(value: int, degree: int) -> int:
    """Return the largest integer whose ``degree``-th power is not above ``value``, at least 1 (Newton's method)."""
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        closer = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if closer >= guess:
            return guess
        guess = closer
