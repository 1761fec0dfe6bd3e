"""The manager's own hands in the simulated world: pid files it waits for, conditions it looks at.

Both belong to the manager's process and die with it: no keeper holds them. A new manager is told by the core what to
ask again (``Manager.pending_actions``). A pid file is looked at when it is asked for and after each change; one that
names nothing that runs is waited for on. A condition is the truth about a path, which changes while the world goes on;
the answer comes some time after the question and tells what was true when somebody looked.
"""

from collections.abc import Callable, Sequence
from random import Random

from supervisord_py.core.actions import (
    AnyAction,
    CheckConditions,
    FollowMain,
    FreezeUnit,
    LookAtConnections,
    LookAtProcesses,
    ReleaseUnit,
    RunProbe,
    StopFollowing,
    ThawUnit,
)
from supervisord_py.core.events import ConditionsChecked, ConnectionsSeen, Event, MainFollowed, ProcessesSeen
from supervisord_py.model.states import Role
from supervisord_py.model.unit import Condition, Unit
from supervisord_py.testing.checks import CheckingHand
from supervisord_py.testing.clock import MILLISECOND_NS, Agenda
from supervisord_py.testing.freezer import FreezingHand
from supervisord_py.testing.kernel import Kernel
from supervisord_py.testing.limits import LimitHand
from supervisord_py.testing.profile import Profile
from supervisord_py.testing.sockets import Listeners


class Hands:
    """What one manager does besides asking the keeper; ``drop`` at its death."""

    def __init__(
        self,
        rng: Random,
        profile: Profile,
        agenda: Agenda,
        kernel: Kernel,
        submit: Callable[[Event], None],
        text_of: Callable[[str], Unit | None],
    ) -> None:
        self._rng = rng
        self._profile = profile
        self._agenda = agenda
        self._kernel = kernel
        self._submit = submit
        self._text_of = text_of
        self._watched: dict[int, FollowMain] = {}
        self._manager = 0
        self.freezing = FreezingHand(rng, profile, agenda, kernel, submit)
        self.checking = CheckingHand(rng, profile, agenda, submit)
        self.checking.struck = lambda fault, unit: kernel.struck(fault, unit)
        kernel.beside.verdict = lambda action: self.checking.verdict(action) if action.role is Role.PROBE else None
        self.listeners = Listeners(rng, profile, agenda, kernel)
        self.counting = LimitHand(agenda, kernel, submit)
        self._truths: dict[str, bool] = {}
        self.calm = False
        kernel.pid_file_written = self._file_written

    def apply(self, actions: Sequence[AnyAction]) -> None:
        self.listeners.apply(actions)
        self.counting.look()
        for action in actions:
            match action:
                case LookAtConnections():
                    self._look_at_connections(action)
                case FollowMain() if action.pid_file is not None:
                    self._watched[action.spawn_id] = action
                    self._look(action)
                case StopFollowing():
                    self._watched.pop(action.spawn_id, None)
                case FreezeUnit() | ThawUnit():
                    self.freezing.apply(action)
                case CheckConditions():
                    self._check(action)
                case RunProbe():
                    self.checking.make(action)
                case LookAtProcesses():
                    self._look_at_processes(action)
                case ReleaseUnit():
                    self._remove_pid_file(action.unit)
                case _:
                    pass

    def become_calm(self) -> None:
        """From now on everything is done at once, and well."""
        self.calm = self.freezing.calm = self.checking.calm = self.listeners.calm = True

    def drop(self) -> None:
        """The manager is dead: nobody waits, and what was looked at is told to nobody."""
        self._watched.clear()
        self.freezing.drop()
        self.checking.drop()
        self.counting.drop()
        if self._kernel.is_lost:
            self.listeners.lose()
        self._manager += 1

    def change(self) -> None:
        """Something that a condition is about comes or goes."""
        if self._truths:
            path = self._rng.choice(list(self._truths))
            self._truths[path] = not self._truths[path]

    def holds(self, condition: Condition) -> bool:
        """Whether a condition holds now."""
        path = condition.parameter
        if path not in self._truths:
            self._truths[path] = self._rng.random() >= self._profile.condition_fails
        return self._truths[path] is not condition.negate

    def _file_written(self, path: str) -> None:
        for action in list(self._watched.values()):
            if action.pid_file == path:
                self._look(action)

    def _look(self, action: FollowMain) -> None:
        assert action.pid_file is not None
        pid = self._kernel.pid_files.get(action.pid_file)
        if pid is not None and self._kernel.follow(action.unit, action.spawn_id, pid):
            self._watched.pop(action.spawn_id, None)
        elif not action.wait:
            self._watched.pop(action.spawn_id, None)
            self._submit(MainFollowed(action.unit, action.spawn_id, refused="the pid file names nobody"))

    def _remove_pid_file(self, name: str) -> None:
        unit = self._text_of(name)
        if unit is not None and unit.service is not None and unit.service.pid_file is not None:
            self._kernel.pid_files.pop(unit.service.pid_file, None)

    def _check(self, action: CheckConditions) -> None:
        delay_ns = self._rng.randint(0, 5) * MILLISECOND_NS
        if not self.calm and self._rng.random() < self._profile.check_slow:
            delay_ns = self._rng.randint(100, 12_000) * MILLISECOND_NS
        manager = self._manager
        self._agenda.after(delay_ns, lambda: self._answer(action, manager))

    def _look_at_processes(self, action: LookAtProcesses) -> None:
        """Somebody looks at once, and tells it a moment later."""
        seen = ProcessesSeen(action.look_id, action.unit, self._kernel.freezer.is_stopped(action.unit))
        delay_ns = self._rng.randint(0, 5) * MILLISECOND_NS
        if not self.calm and self._rng.random() < self._profile.look_slow:
            delay_ns = self._rng.randint(10, 3000) * MILLISECOND_NS
        manager = self._manager
        self._agenda.after(delay_ns, lambda: self._submit(seen) if manager == self._manager else None)

    def _look_at_connections(self, action: LookAtConnections) -> None:
        seen = ConnectionsSeen(action.look_id, action.unit, self.listeners.count(action))
        manager = self._manager
        delay_ns = self._rng.randint(0, 50) * MILLISECOND_NS
        self._agenda.after(delay_ns, lambda: self._submit(seen) if manager == self._manager else None)

    def _answer(self, action: CheckConditions, manager: int) -> None:
        if manager != self._manager:
            return
        condition = self._first_broken("condition", action.conditions)
        assertion = self._first_broken("assert", action.asserts)
        self._submit(ConditionsChecked(action.check_id, action.unit, condition, assertion))

    def _first_broken(self, table: str, conditions: Sequence[Condition]) -> str | None:
        """Say the first entry that decides against the start: all plain ones hold, and one of those with ``|``."""
        triggers = [each for each in conditions if each.trigger]
        broken = [each for each in conditions if not each.trigger and not self.holds(each)]
        if not broken and triggers and not any(self.holds(each) for each in triggers):
            broken = triggers
        return condition_text(table, broken[0]) if broken else None


def condition_text(table: str, condition: Condition) -> str:
    """Say a condition as it is written in the unit file."""
    prefix = ("|" if condition.trigger else "") + ("!" if condition.negate else "")
    return f'{table}-{condition.kind} = "{prefix}{condition.parameter}"'
