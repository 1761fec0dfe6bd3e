"""Sockets: what nobody may lose over restarts, idle ends and lost keepers, each found by the simulated world."""

from typing import Any

import pytest
from core_rig import Rig, commands, needs, service

from supervisord_py.core.actions import AwaitConnection, CloseSockets, LookAtConnections, OpenSockets
from supervisord_py.core.events import ConnectionCame, ConnectionsSeen, KeeperLost, SocketsOpened, UnitFrozen
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.sockets import Listen, ListenKind, Socket, Sockets, parse_socket_address
from supervisord_py.model.unit import SECOND_NS, Dependency, ExitStatuses, Restart, RestartPolicy, Unit

LISTENS = (Listen(ListenKind.STREAM, parse_socket_address("/run/web.sock")),)


def listens(name: str = "web", *, idle: int | None = None, relations: Any = None, keys: Any = None, **how: Any) -> Unit:
    """A unit on demand; ``how`` are fields of its socket."""
    sockets = Sockets((Socket(name, LISTENS, **how),), idle_exit_ns=None if idle is None else idle * SECOND_NS)
    return service(name, relations={"sockets": sockets, **(relations or {})}, **(keys or {}))


def opened(rig: Rig, name: str = "web", failed: str | None = None) -> None:
    """The keeper answers what it was asked last."""
    asked = [each for each in rig.actions if isinstance(each, OpenSockets) and each.unit == name]
    rig.happen(SocketsOpened(asked[-1].listen_id, name, failed))


def came(rig: Rig, number: int | None = None, name: str = "web") -> None:
    rig.happen(ConnectionCame(name, name, number))


def listening(unit: Unit, *others: Unit, **loaded_with: Any) -> Rig:
    rig = Rig()
    rig.load(unit, *others, **loaded_with)
    rig.ask("start", unit.name)
    opened(rig, unit.name)
    assert rig.shown(unit.name) == "active/listening/success"
    return rig


def seen(rig: Rig, connections: int) -> None:
    """Somebody has looked at the connections that the manager asked about last."""
    asked = [each for each in rig.actions if isinstance(each, LookAtConnections)]
    rig.happen(ConnectionsSeen(asked[-1].look_id, "web", connections))


def awaits(rig: Rig) -> int:
    """How often the next connection was asked for."""
    return sum(isinstance(each, AwaitConnection) for each in rig.actions)


def test_who_comes_while_the_connections_are_counted_is_not_sent_away() -> None:
    """The count was made before: whoever was told of since then keeps the unit up."""
    rig = listening(listens(idle=8))
    came(rig)
    rig.up("web")
    rig.later(8)
    came(rig)
    seen(rig, 0)
    assert rig.shown("web") == "active/running/success"
    rig.later(8)
    seen(rig, 0)
    assert rig.shown("web") == "deactivating/stop-sigterm/success"


def test_what_a_killed_keeper_held_is_not_awaited_of_the_next() -> None:
    """The process serves on by its own descriptors, and nobody can say that it is unused; then all is opened anew."""
    rig = listening(listens(idle=8))
    came(rig)
    rig.happen(KeeperLost({}))
    before = awaits(rig)
    rig.up("web")
    rig.later(60)
    assert rig.shown("web") == "active/running/success"
    assert awaits(rig) == before
    rig.exited("web", 0)
    opened(rig)
    assert awaits(rig) == before + 1


def test_connections_that_are_awaited_in_a_run_begin_no_more_runs_than_the_limit_allows() -> None:
    """A unit with an idle time awaits the next while it runs: after the run that counts as any other."""
    rig = listening(listens(idle=4, trigger_burst=1, trigger_interval_ns=60 * SECOND_NS))
    came(rig)
    rig.up("web")
    rig.exited("web", 0)
    came(rig)
    assert rig.shown("web") == "active/listening/success"
    assert [record.event for record in rig.records][-1] == "socket.paused"
    rig.later(60)
    came(rig)
    assert rig.shown("web") == "activating/start/success"


def test_who_comes_to_a_unit_that_runs_does_not_count_as_a_start() -> None:
    """Within one run many may be told of: none of them pauses the unit afterwards."""
    rig = listening(listens(idle=4, trigger_burst=3, trigger_interval_ns=600 * SECOND_NS))
    came(rig)
    rig.up("web")
    for _ in range(5):
        came(rig)
        rig.later(1)
    rig.exited("web", 0)
    assert rig.shown("web") == "active/listening/success"
    assert "socket.paused" not in [record.event for record in rig.records]


def test_a_paused_unit_is_told_who_comes() -> None:
    """What came while it stood still is as long ago as it is when it goes on."""
    rig = listening(listens(idle=8))
    came(rig)
    rig.up("web")
    rig.ask("pause", "web")
    rig.happen(UnitFrozen("web", frozen=True))
    came(rig)
    before = awaits(rig)
    rig.later(8)
    assert awaits(rig) == before + 1


def test_an_instance_for_a_connection_was_not_found() -> None:
    """It has no file, and nothing is wrong with that: it is loaded as long as its unit is."""
    rig = listening(listens(accept=True))
    came(rig, 1)
    rig.up("web@1-local")
    assert rig.status("web@1-local").load_state == "loaded"
    rig.load()
    assert rig.status("web@1-local").load_state == "not-found"


def test_an_instance_of_before_the_loss_of_a_keeper_closes_no_connection_of_the_next() -> None:
    """The next keeper counts its connections from 1 again: number and name are taken, and another's."""
    rig = listening(listens(accept=True))
    came(rig, 1)
    rig.up("web@1-local")
    rig.happen(KeeperLost({}))
    opened(rig)
    came(rig, 1)
    rig.up("web@1-local-2")
    before = len(rig.actions)
    rig.exited("web@1-local", 0)
    assert not [each for each in rig.actions[before:] if isinstance(each, CloseSockets)]
    rig.exited("web@1-local-2", 0)
    assert [each for each in rig.actions if isinstance(each, CloseSockets)] == [CloseSockets("web", 1)]


def test_who_was_accepted_by_a_killed_keeper_and_has_no_process_gets_none() -> None:
    """Its connection is gone: a program would be run for nobody, be it that its turn has not come or a command before
    it runs.
    """
    rig = listening(listens(accept=True, keys={"exec_start_pre": commands("/bin/pre")}), limits=PoolLimits(1))
    came(rig, 1)
    came(rig, 2)
    rig.spawned("web@1-local")
    rig.happen(KeeperLost({}))
    rig.exited("web@1-local", 0)
    assert [spawn.unit for spawn in rig.spawns] == ["web@1-local"]
    assert sorted(rig.manager.ledger.texts) == ["web"]


def test_an_instance_that_waits_for_its_turn_goes_with_its_parent() -> None:
    """It waits for a slot when its parent is stopped, which closes its connection: started again that is another one's
    parent.
    """
    rig = listening(listens(accept=True), limits=PoolLimits(1))
    came(rig, 1)
    came(rig, 2)
    rig.up("web@1-local")
    rig.ask("stop", "web")
    rig.ask("start", "web")
    opened(rig)
    rig.exited("web@1-local", signal=15)
    assert [spawn.unit for spawn in rig.spawns] == ["web@1-local"]
    assert rig.shown("web") == "active/listening/success"


def test_a_restart_that_comes_to_nothing_takes_the_instances_along() -> None:
    """A restart leaves them alone; when nothing listens after it their connections are closed."""
    rig = listening(listens(accept=True))
    came(rig, 1)
    rig.up("web@1-local")
    rig.ask("restart", "web")
    opened(rig, failed="/run/web.sock: address already in use")
    assert rig.shown("web") == "failed/failed/resources"
    assert rig.shown("web@1-local") == "deactivating/stop-sigterm/success"


@pytest.mark.parametrize(
    "policy",
    [
        RestartPolicy(restart=Restart.ALWAYS, force=ExitStatuses((3,))),
        RestartPolicy(restart=Restart.ALWAYS, failures=1),
    ],
    ids=["forced", "quarantined"],
)
def test_an_instance_is_neither_restarted_nor_quarantined(policy: RestartPolicy) -> None:
    """It is there for one connection, whatever its file says of the lives of a service."""
    rig = listening(listens(accept=True, keys={"restart": policy}))
    came(rig, 1)
    rig.up("web@1-local")
    rig.exited("web@1-local", 3)
    events = [record.event for record in rig.records if record.unit == "web@1-local"]
    assert events[-2:] == ["unit.failed", "unit.removed"]


def test_a_start_whose_sockets_were_asked_of_a_killed_keeper_asks_the_next() -> None:
    """Nobody will answer the first question, be it that of the first start or of a restart."""
    rig = Rig(listens())
    rig.ask("start", "web")
    rig.happen(KeeperLost({}))
    opened(rig)
    came(rig)
    rig.up("web")
    rig.crash("web")
    rig.later(1)
    rig.happen(KeeperLost({}))
    opened(rig)
    assert rig.shown("web") == "activating/start/success"


def test_a_unit_that_waits_to_be_restarted_is_not_there_for_who_pulls_it_in() -> None:
    """Its restart waits for a slot; the start that is pulled in takes the place of that job, and must do its work."""
    rig = listening(
        listens(keys={"restart": RestartPolicy(jitter=0.0)}),
        service("app", relations=needs("web")),
        service("other"),
        limits=PoolLimits(1),
    )
    came(rig)
    rig.up("web")
    rig.crash("web")
    rig.ask("start", "other")
    rig.up("other")
    rig.later(1)
    assert rig.status("web").sub_state == "auto-restart-queued"
    rig.ask("start", "app", wait=False)
    rig.ask("stop", "other", wait=False)
    rig.exited("other", signal=15)
    opened(rig)
    assert [spawn.unit for spawn in rig.spawns] == ["web", "other", "web"]


def test_the_restart_of_a_run_that_lacks_what_it_needs_waited_for_ever() -> None:
    """Its job had failed, and nobody was told of whoever connected next: it listens again."""
    quick = RestartPolicy(restart=Restart.ALWAYS, jitter=0.0, delay_ns=SECOND_NS)
    once = service("dep", restart=RestartPolicy(restart=Restart.NO))
    rig = Rig()
    rig.load(listens(keys={"restart": quick}, relations={"requisite": (Dependency("dep"),)}), once)
    rig.ask("start", "dep")
    rig.up("dep")
    rig.ask("start", "web")
    opened(rig)
    came(rig)
    rig.up("web")
    rig.crash("web")
    rig.crash("dep")
    rig.later(1)
    assert rig.shown("web") == "active/listening/exit-code"
    assert rig.record("unit.stopped").fields["armed"] is True


def test_a_connection_was_counted_as_often_as_it_was_looked_at() -> None:
    """A unit with an idle time is told of what waits again and again; one run was begun."""
    rig = listening(listens(idle=8))
    came(rig)
    rig.up("web")
    for _ in range(3):
        came(rig)
        rig.later(2)
    assert rig.status("web").accepted == 1


@pytest.mark.parametrize("waits", [False, True], ids=["before the answer", "after it"])
def test_a_unit_listens_as_its_file_says_when_it_starts(waits: bool) -> None:
    """A reload comes while the keeper opens what the file said before, or while the start waits for its turn."""
    other = listens(trigger_burst=7)
    rig = Rig(listens(), service("db"), service("app"))
    if waits:
        rig.load(listens(relations=needs("db")), service("db"))
        other = listens(trigger_burst=7, relations=needs("db"))
    rig.ask("start", "web")
    rig.load(other, service("db"))
    if waits:
        rig.up("db")
    opened(rig)
    asked = [each.sockets[0].trigger_burst for each in rig.actions if isinstance(each, OpenSockets)]
    assert asked[-1] == 7
    assert rig.shown("web") == "active/listening/success"


def test_a_run_that_is_tried_again_keeps_the_sockets_that_its_file_has_no_more() -> None:
    """They were closed, and the run was handed them all the same."""
    rig = listening(
        listens(keys={"restart": RestartPolicy(restart=Restart.ON_FAILURE, jitter=0.0, delay_ns=SECOND_NS)})
    )
    came(rig)
    rig.spawned("web")
    rig.load(service("web"))
    rig.exited("web", 1)
    rig.later(1)
    asked = [each.sockets for each in rig.actions if isinstance(each, OpenSockets)]
    assert len(asked) > 1
    assert asked[-1] == asked[0] != ()


def test_a_quarantined_unit_that_cannot_listen_stays_quarantined_and_says_so() -> None:
    """Its records told that it had failed, and its status that it was quarantined."""
    policy = RestartPolicy(restart=Restart.ON_FAILURE, jitter=0.0, failures=1)
    rig = listening(listens(keys={"restart": policy}))
    came(rig)
    rig.spawned("web")
    rig.exited("web", 1)
    assert rig.shown("web") == "quarantined/failed/exit-code"
    rig.ask("start", "web")
    opened(rig, failed="/run/web.sock: address already in use")
    assert rig.shown("web") == "quarantined/failed/resources"
    assert rig.events("web")[-3:].count("unit.quarantined") == 1
    assert rig.record("unit.quarantined", "web").fields["result"] == "resources"
