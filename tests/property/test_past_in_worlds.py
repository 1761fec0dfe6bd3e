"""The state at a record, rebuilt from the journal's records, is what was shown when that record was the last one."""

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.events import CommandRequested
from supervisord_py.core.manager import Manager
from supervisord_py.core.processes import is_idling
from supervisord_py.model.records import UNNUMBERED, Record
from supervisord_py.model.states import Result, ServiceType
from supervisord_py.store.past import Past
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.profile import draw_profile
from supervisord_py.testing.world import World

WORLDS = 10


class Told(Checker):
    """Follows the records that become true, and compares after random steps."""

    name = "past"
    rng = Random(0)
    certain = uncertain = pids = 0

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._past = Past()
        self._seq = 0
        self._has_lost = False
        self._began: Manager | None = None

    def step(self, step: Step) -> None:
        event = step.event
        if isinstance(event, CommandRequested) and event.verb == "reset-failed" and not event.plan:
            is_refused = any(reply.refusal is not None for reply in step.effects.replies)
            fields = {"verb": event.verb, "units": list(event.units), "result": "error" if is_refused else "done"}
            self._follow(Record("command", fields=fields))  # the host writes it
        for number, record in step.numbered:
            if record.event not in UNNUMBERED:
                self._has_lost = self._has_lost or not number
                self._follow(record)
        if self.rng.random() < 0.3 and not self._has_lost:
            self._compare()

    def cold_start(self) -> None:
        """A supervisor begins; what the one before had decided and not committed never was."""
        self._follow(Record("daemon.started"))

    def _follow(self, record: Record) -> None:
        self._seq += 1
        line: dict[str, Any] = {"seq": self._seq, "ts": "then", "event": record.event, "unit": record.unit}
        self._past.follow(line | {"invocation": record.invocation} | record.fields)

    def _compare(self) -> None:
        manager = self.world.manager
        for name in view.list_units(manager):
            status, told = view.unit_status(manager, name), self._past.units.get(name)
            if told is None or told.active_state is None:
                assert status.active_state in ("inactive", "queued", "activating"), (
                    f"{name}: {status} is told by nobody"
                )
                continue
            if told.uncertain is not None:
                Told.uncertain += 1
                continue
            Told.certain += 1
            if status.active_state == "queued":
                assert set(told.jobs.values()) - {"stop"}, f"{name} is queued: {told}"
            elif is_idling(manager.ledger, name):
                assert told.jobs, f"{name} is idle: {told}"
            else:
                assert told.active_state == status.active_state, f"{name} is {status}, records say {told}"
            job = manager.ledger.job_of.get(name)
            assert list(told.jobs) == ([] if job is None else [job.id]), f"{name}: {job}, {told}"
            service = manager.ledger.service(name)
            # That another process is the main one by now (MAINPID, a pid file) is no record.
            if self.world.profile.main_pid == 0 and service is not None and service.type is not ServiceType.FORKING:
                is_so = (
                    told.pid in (None, status.pid)
                    if told.active_state == "quarantined"
                    else told.pid in (None, view.main_pid(manager, name))
                )
                assert is_so, f"{name}: {status}, {told}"
                Told.pids += told.pid is not None
            # A start that the plain window refuses has no record of its unit's, only of the job.
            is_refused = status.result == Result.START_LIMIT_HIT.value
            if status.active_state in ("failed", "quarantined") and not is_refused:
                assert (told.result, told.failures) == (status.result, status.failures), f"{name}: {status}, {told}"


class Watched(World):
    """A world whose records are followed."""

    def __init__(self, seed: int, rng: Random, requests: int) -> None:
        Told.rng = rng
        super().__init__(seed, replace(draw_profile(rng), requests=requests), rng=rng)
        self.told = Told(self)
        self.checkers._step.append(self.told.step)

    def _new_manager(self) -> Manager:
        manager = super()._new_manager()
        if hasattr(self, "told"):
            self.told.cold_start()
        return manager


@pytest.mark.parametrize("seed", range(WORLDS))
def test_what_the_records_tell_is_what_status_said(seed: int) -> None:
    """At random moments of worlds with faults, for every unit: its state, its process, its job, how it failed."""
    outcome = Watched(seed, Random(1000 + seed), 30).run()
    assert outcome.violation is None, outcome.report()


def test_what_cannot_be_known_is_rare() -> None:
    """The law above would hold of a telling that is never certain."""
    Told.certain = Told.uncertain = Told.pids = 0
    for seed in range(40):
        Watched(seed, Random(seed), 40).run()
    assert Told.certain > 25 * Told.uncertain
    assert Told.pids > 100
