"""The laws of the job algebra, over every combination there is."""

from itertools import product

from supervisord_py.core import jobs
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


def test_collapse_leaves_a_type_that_can_be_run() -> None:
    """In every state reload-or-start becomes one of the two, and everything else stays."""
    for kind, sub in product(JobType, SubState):
        collapsed = jobs.collapse(kind, sub)
        assert collapsed is not JobType.RELOAD_OR_START
        assert collapsed is kind or kind is JobType.RELOAD_OR_START


def test_a_redundant_stop_leaves_nothing_that_waits() -> None:
    """A stop is redundant only for a unit that is down and does not wait to come up."""
    redundant = {sub for sub in SubState if jobs.is_redundant(JobType.STOP, sub)}
    assert redundant == {SubState.DEAD, SubState.FAILED}
