"""The table of the service machine is total."""

from itertools import product

from core_rig import Rig, service

from supervisord_py.core.events import ExitStatus, Now, ProcessExited, ProcessSpawned, SpawnFailed
from supervisord_py.core.service import IGNORED, IMPOSSIBLE, NOT_ENTERED, TRANSITIONS, Input, feed
from supervisord_py.core.state import ACTIVE_STATES, ARMED, BETWEEN_LIVES, REST, STARTING, STOPPING, UP
from supervisord_py.model.states import Severity, SubState

ENTERED = [sub for sub in SubState if sub not in NOT_ENTERED]


def test_every_pair_of_state_and_input_is_in_exactly_one_table() -> None:
    """Whatever happens in whatever state was thought about: it leads somewhere, means nothing, or cannot be."""
    tables = [set(TRANSITIONS), set(IGNORED), set(IMPOSSIBLE)]
    assert set.union(*tables) == set(product(ENTERED, Input))
    assert sum(map(len, tables)) == len(set.union(*tables))


def test_every_reason_is_given() -> None:
    """What is ignored or impossible says why."""
    assert all(reason for reason in (*IGNORED.values(), *IMPOSSIBLE.values()))


def test_the_groups_of_states_are_a_partition() -> None:
    """Each state that is entered belongs to one group and has a high-level state."""
    groups = (REST, BETWEEN_LIVES, ARMED, STARTING, UP, STOPPING, {SubState.STUB})
    assert frozenset().union(*groups) == frozenset(ENTERED) == frozenset(ACTIVE_STATES)
    assert sum(map(len, groups)) == len(ENTERED)


def test_an_impossible_input_is_told_and_ends_nothing() -> None:
    """A fact that cannot be is an error in the journal; the manager goes on, or the next one would meet it again."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    ledger = rig.manager.ledger
    ledger.begin(Now(1, 1, 1, 1))
    feed(ledger, "web", Input.START)
    feed(ledger, "web", Input.CONTROL_ENDED)
    messages = [record.fields["message"] for record in ledger.end().records]
    assert messages == ["internal error: control-ended happened to web in running"]


def test_facts_about_nobody_change_nothing() -> None:
    """A spawn id that is not known (any more) changes no unit; an exit is recorded all the same."""
    rig = Rig(service("web"))
    rig.happen(ProcessSpawned(77, 1))
    rig.happen(SpawnFailed(77, "exec", 203, 2))
    assert rig.last.records == []
    rig.happen(ProcessExited(77, 1, ExitStatus(code=0)))
    assert [(record.event, record.unit) for record in rig.last.records] == [("unit.exited", None)]
    assert rig.record("unit.exited").severity is Severity.INFO
    rig.happen(ProcessExited(77, 1, ExitStatus(code=1)))
    assert rig.record("unit.exited").severity is Severity.WARNING
