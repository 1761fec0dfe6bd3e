"""The laws of the job algebra, over every combination there is."""

from itertools import combinations_with_replacement, permutations, product

from supervisord_py.core import jobs
from supervisord_py.core.state import REST, STARTING, THERE, UP
from supervisord_py.model.states import JobType, SubState


def merged(a: JobType | None, b: JobType | None) -> JobType | None:
    return None if a is None or b is None else jobs.merge(a, b)


def test_the_table_is_total() -> None:
    """Every pair of types is in the table."""
    assert set(jobs.MERGE) == set(product(JobType, repeat=2))


def test_merging_is_commutative() -> None:
    """It does not matter which job was there first."""
    assert all(jobs.merge(a, b) == jobs.merge(b, a) for a, b in product(JobType, repeat=2))


def test_merging_is_associative() -> None:
    """It does not matter in which order three jobs come, conflicts included."""
    for a, b, c in product(JobType, repeat=3):
        assert merged(merged(a, b), c) == merged(a, merged(b, c)), (a, b, c)


def test_merging_is_idempotent_and_nop_is_its_identity() -> None:
    """The same job twice is that job, and nothing adds nothing."""
    for kind in JobType:
        assert jobs.merge(kind, kind) is kind
        assert jobs.merge(JobType.NOP, kind) is kind


def test_stop_merges_with_nothing() -> None:
    """A stop contradicts everything that wants the unit up."""
    for kind in JobType:
        expected = JobType.STOP if kind in (JobType.STOP, JobType.NOP) else None
        assert jobs.merge(JobType.STOP, kind) is expected


def test_the_named_merges() -> None:
    """The rows that people know."""
    assert jobs.merge(JobType.START, JobType.VERIFY_ACTIVE) is JobType.START
    assert jobs.merge(JobType.START, JobType.RELOAD) is JobType.RELOAD_OR_START
    assert jobs.merge(JobType.VERIFY_ACTIVE, JobType.RELOAD) is JobType.RELOAD
    for kind in (JobType.START, JobType.VERIFY_ACTIVE, JobType.RELOAD, JobType.RELOAD_OR_START):
        assert jobs.merge(JobType.RESTART, kind) is JobType.RESTART


def test_any_order_of_any_three_jobs_is_one_job_or_none() -> None:
    """All triples in all six orders, conflicts included: who comes first decides nothing."""
    for kinds in combinations_with_replacement(JobType, 3):
        results = {merged(merged(a, b), c) for a, b, c in permutations(kinds)}
        assert len(results) == 1, kinds


def test_what_merges_is_at_least_as_much_as_each() -> None:
    """A merged job does what both ask for: merging either one into it again adds nothing."""
    for a, b in product(JobType, repeat=2):
        both = jobs.merge(a, b)
        if both is not None:
            assert jobs.merge(both, a) is jobs.merge(both, b) is both, (a, b)


def test_collapse_leaves_a_type_that_can_be_run() -> None:
    """In every state reload-or-start becomes one of the two, and everything else stays; once is enough."""
    for kind, sub in product(JobType, SubState):
        collapsed = jobs.collapse(kind, sub)
        assert collapsed is not JobType.RELOAD_OR_START
        assert collapsed is kind or kind is JobType.RELOAD_OR_START
        assert jobs.collapse(collapsed, sub) is collapsed


def test_collapsing_before_or_after_merging_is_the_same() -> None:
    """Every three jobs in every state: when the state is looked at does not decide what is done."""
    for (a, b, c), sub in product(product(JobType, repeat=3), SubState):
        late = merged(merged(a, b), c)
        early = merged(merged(jobs.collapse(a, sub), jobs.collapse(b, sub)), jobs.collapse(c, sub))
        if late is None or early is None:
            assert late is early, (a, b, c, sub)
        else:
            assert jobs.collapse(late, sub) is jobs.collapse(early, sub), (a, b, c, sub)


def test_redundancy_of_every_type_in_every_state() -> None:
    """start and verify-active where the unit is there, stop where it is down and waits for nothing, nop always; reload
    and restart always do something. What is redundant stays so with anything that is redundant too.
    """
    for kind, sub in product(JobType, SubState):
        expected = {
            JobType.START: sub in THERE,
            JobType.VERIFY_ACTIVE: sub in THERE,
            JobType.STOP: sub in REST and sub is not SubState.DEPENDENCY,
            JobType.NOP: True,
        }.get(kind, False)
        assert jobs.is_redundant(kind, sub) is expected, (kind, sub)
    for a, b, sub in product(JobType, JobType, SubState):
        both = jobs.merge(a, b)
        if both is not None and jobs.is_redundant(a, sub) and jobs.is_redundant(b, sub):
            assert jobs.is_redundant(both, sub), (a, b, sub)


def test_try_restart_restarts_lives_only() -> None:
    """A unit that is up or starting is restarted; anything else is left alone."""
    for sub in SubState:
        assert jobs.try_restart(sub) is (JobType.RESTART if sub in UP | STARTING else JobType.NOP)
