"""When a life is followed by another, and after how long."""

import pytest

from supervisord_py.core.events import ExitStatus
from supervisord_py.core.restart import (
    exit_result,
    is_limit_hit,
    jitter_ns,
    next_random,
    restart_delay_ns,
    wants_restart,
)
from supervisord_py.model.states import Restart, Result
from supervisord_py.model.unit import SECOND_NS, RestartPolicy

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
