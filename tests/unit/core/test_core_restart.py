"""When a life is followed by another, and after how long."""

import pytest

from supervisord_py.core.events import ExitStatus
from supervisord_py.core.restart import (
    admit_start,
    exit_result,
    is_limit_hit,
    jitter_ns,
    next_random,
    restart_delay_ns,
    wants_restart,
)
from supervisord_py.model.states import Restart, Result
from supervisord_py.model.unit import SECOND_NS, ExitStatuses, RestartPolicy, StartLimit

CELLS: dict[Result, set[Restart]] = {
    Result.SUCCESS: {Restart.ALWAYS, Restart.ON_SUCCESS},
    Result.EXIT_CODE: {Restart.ALWAYS, Restart.ON_FAILURE},
    Result.SIGNAL: {Restart.ALWAYS, Restart.ON_FAILURE, Restart.ON_ABNORMAL, Restart.ON_ABORT},
    Result.CORE_DUMP: {Restart.ALWAYS, Restart.ON_FAILURE, Restart.ON_ABNORMAL, Restart.ON_ABORT},
    Result.TIMEOUT: {Restart.ALWAYS, Restart.ON_FAILURE, Restart.ON_ABNORMAL},
    Result.WATCHDOG: {Restart.ALWAYS, Restart.ON_FAILURE, Restart.ON_ABNORMAL, Restart.ON_WATCHDOG},
    Result.EXEC_CONDITION: set(),
    Result.UNKNOWN: {Restart.ALWAYS, Restart.ON_FAILURE, Restart.ON_ABNORMAL},
}
"""Source: systemd.service(5), the table under Restart=; UNKNOWN is ours and counts as a failure."""


@pytest.mark.parametrize("result", CELLS, ids=lambda result: result.value)
@pytest.mark.parametrize("restart", Restart, ids=lambda restart: restart.value)
def test_restart_matrix(restart: Restart, result: Result) -> None:
    """Each policy restarts after exactly the results that systemd's table names."""
    assert wants_restart(RestartPolicy(restart), result, oneshot=False) == (restart in CELLS[result])


@pytest.mark.parametrize("restart", Restart, ids=lambda restart: restart.value)
def test_a_oneshot_that_did_its_work_is_not_repeated(restart: Restart) -> None:
    """No policy runs a successful oneshot again."""
    assert not wants_restart(RestartPolicy(restart), Result.SUCCESS, oneshot=True)


@pytest.mark.parametrize("number", [1, 2, 13, 15])
def test_clean_signals_are_clean_for_daemons_only(number: int) -> None:
    """HUP, INT, PIPE and TERM end a daemon well, and a command badly."""
    assert exit_result(ExitStatus(signal=number), daemon=True) is Result.SUCCESS
    assert exit_result(ExitStatus(signal=number), daemon=False) is Result.SIGNAL


def test_exits_are_classified() -> None:
    """Codes, signals, dumps and the unknown each have their result."""
    assert exit_result(ExitStatus(code=0), daemon=False) is Result.SUCCESS
    assert exit_result(ExitStatus(code=3), daemon=True) is Result.EXIT_CODE
    assert exit_result(ExitStatus(signal=9), daemon=True) is Result.SIGNAL
    assert exit_result(ExitStatus(signal=11, core_dumped=True), daemon=True) is Result.CORE_DUMP
    assert exit_result(ExitStatus(), daemon=True) is Result.UNKNOWN


def test_success_statuses_are_clean_whatever_the_process_is() -> None:
    """success-exit-status adds codes and signals to the clean ends, and takes none away."""
    success = ExitStatuses(codes=(3,), signals=(9,))
    for daemon in (True, False):
        assert exit_result(ExitStatus(code=3), daemon=daemon, success=success) is Result.SUCCESS
        assert exit_result(ExitStatus(signal=9), daemon=daemon, success=success) is Result.SUCCESS
        assert exit_result(ExitStatus(code=0), daemon=daemon, success=success) is Result.SUCCESS
        assert exit_result(ExitStatus(code=9), daemon=daemon, success=success) is Result.EXIT_CODE
        assert exit_result(ExitStatus(), daemon=daemon, success=success) is Result.UNKNOWN


@pytest.mark.parametrize("restart", Restart, ids=lambda restart: restart.value)
def test_forced_statuses_restart_under_every_policy(restart: Restart) -> None:
    """restart-force-exit-status wins over restart, even over "no", for a clean end and a failure."""
    policy = RestartPolicy(restart, force=ExitStatuses(codes=(0, 3), signals=(15,)))
    for main, result in (
        (ExitStatus(code=0), Result.SUCCESS),
        (ExitStatus(code=3), Result.EXIT_CODE),
        (ExitStatus(signal=15), Result.SUCCESS),
    ):
        assert wants_restart(policy, result, oneshot=False, main=main)
    assert not wants_restart(policy, Result.SUCCESS, oneshot=True, main=ExitStatus(code=0))
    assert wants_restart(policy, Result.EXIT_CODE, oneshot=True, main=ExitStatus(code=3))


@pytest.mark.parametrize("restart", Restart, ids=lambda restart: restart.value)
def test_prevented_statuses_restart_under_no_policy(restart: Restart) -> None:
    """restart-prevent-exit-status wins over everything, also over what is forced."""
    statuses = ExitStatuses(codes=(3,), signals=(9,))
    policy = RestartPolicy(restart, prevent=statuses, force=statuses)
    assert not wants_restart(policy, Result.EXIT_CODE, oneshot=False, main=ExitStatus(code=3))
    assert not wants_restart(policy, Result.SIGNAL, oneshot=False, main=ExitStatus(signal=9))


def test_statuses_without_a_main_process_decide_nothing() -> None:
    """A life whose main process never ran, or whose end nobody knows, is left to the policy."""
    policy = RestartPolicy(Restart.ON_FAILURE, prevent=ExitStatuses(codes=(1,)))
    assert wants_restart(policy, Result.EXIT_CODE, oneshot=False, main=None)
    assert wants_restart(policy, Result.UNKNOWN, oneshot=False, main=ExitStatus())


def test_a_start_limit_counts_what_is_within_its_interval() -> None:
    """So many starts are admitted, the next is not, and each makes room when it is older than the interval."""
    limit = StartLimit(interval_ns=10 * SECOND_NS, burst=2)
    first = admit_start([], limit, 100 * SECOND_NS)
    assert first is not None
    both = admit_start(first, limit, 105 * SECOND_NS)
    assert both == [100 * SECOND_NS, 105 * SECOND_NS]
    assert admit_start(both, limit, 110 * SECOND_NS - 1) is None
    assert admit_start(both, limit, 110 * SECOND_NS) == [105 * SECOND_NS, 110 * SECOND_NS]


def test_a_start_limit_of_nothing_is_no_limit() -> None:
    """An interval or a burst of 0 switches it off; an infinite interval never forgets."""
    for limit in (StartLimit(0, 1), StartLimit(SECOND_NS, 0)):
        assert admit_start([1, 1, 1], limit, 1) == []
    assert admit_start([1], StartLimit(None, 1), 10**18) is None


def test_delays_grow_geometrically_from_first_to_last() -> None:
    """The first restart waits delay_ns, the one after the steps max_delay_ns, in between it grows by a factor."""
    policy = RestartPolicy(delay_ns=SECOND_NS, steps=3, max_delay_ns=8 * SECOND_NS)
    seconds = [restart_delay_ns(policy, attempt) // SECOND_NS for attempt in (1, 2, 3, 4, 5, 99)]
    assert seconds == [1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize(
    "policy",
    [
        RestartPolicy(delay_ns=5, steps=0),
        RestartPolicy(delay_ns=5, max_delay_ns=None),
        RestartPolicy(delay_ns=5, max_delay_ns=4),
    ],
    ids=["no steps", "no cap", "cap below the first"],
)
def test_without_steps_or_cap_the_delay_is_constant(policy: RestartPolicy) -> None:
    """Where systemd does not grow the delay neither do we."""
    assert {restart_delay_ns(policy, attempt) for attempt in range(1, 20)} == {5}


def test_a_million_steps_cost_no_time() -> None:
    """A unit file cannot make the core compute a root of a degree of its choice."""
    policy = RestartPolicy(delay_ns=SECOND_NS, steps=1_000_000, max_delay_ns=1000 * SECOND_NS)
    middle_ns = restart_delay_ns(policy, 500_001)
    assert 31 * SECOND_NS < middle_ns < 32 * SECOND_NS


def test_jitter_is_at_most_its_fraction() -> None:
    """The jitter of the largest draw is just below the fraction, that of the smallest is nothing."""
    policy = RestartPolicy(jitter=0.1)
    assert jitter_ns(policy, 1000 * SECOND_NS, 0) == 0
    most_ns = jitter_ns(policy, 1000 * SECOND_NS, (1 << 64) - 1)
    assert 99 * SECOND_NS < most_ns < 100 * SECOND_NS


def test_the_generator_is_splitmix64() -> None:
    """The first numbers for seed 1234567 are those of the published reference."""
    state, drawn = 1234567, []
    for _ in range(3):
        state, value = next_random(state)
        drawn.append(value)
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_zero_failures_means_never() -> None:
    """``failures = 0`` never ends the restarts, any other number does when it is reached."""
    assert not is_limit_hit(RestartPolicy(failures=0), 1000)
    assert not is_limit_hit(RestartPolicy(failures=3), 2)
    assert is_limit_hit(RestartPolicy(failures=3), 3)
