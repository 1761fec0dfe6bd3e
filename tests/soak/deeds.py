"""What the soak does to the supervisor and its units, at random moments, and notes: so that each restart that is not
among its deeds is a false one."""

import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from supervisord_py.ctl.client import ControlError
from supervisord_py.errors import SupervisordError
from tests.integration.supervisor_rig import RunningSupervisor
from tests.soak.units import Population

PACE_S = 1.5
"""Between two deeds, on average."""
STOP_MAX_S = 9.0
MANAGER_STOP_MAX_S = 14.0
"""Above ten seconds the keeper calls it hung and starts another."""
KEEPER_STOP_MAX_S = 7.0
CALL_S = 120.0


@dataclass
class Deeds:
    """Everything that was done; times are of the monotonic clock [ns]."""

    killed: dict[tuple[str, int], int] = field(default_factory=dict)
    """Unit and pid -> when; within an hour a pid comes round again, for another unit."""
    hung: dict[tuple[str, int], int] = field(default_factory=dict)
    stopped: set[tuple[str, int]] = field(default_factory=set)
    """What was stopped with SIGSTOP."""
    orders: list[tuple[str, int, int]] = field(default_factory=list)
    """Unit or template, from when until when somebody had it stopped or restarted."""
    triggers: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    """What an operator was told and should not have been."""


class _Still(NamedTuple):
    """A process that is stopped, and what lets it go on."""

    pidfd: int
    timer: threading.Timer


class Fate(threading.Thread):
    """Stops, kills and silences, one deed after the other, and lets go on what it stopped."""

    def __init__(
        self, running: RunningSupervisor, people: Population, seed: int, *, calm_from_s: float, pace_s: float = PACE_S
    ) -> None:
        super().__init__(daemon=True)
        self.deeds = Deeds()
        self._pace_s = pace_s
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self._running = running
        self._people = people
        self._random = random.Random(seed)
        self._calm_from_s = calm_from_s
        """From then on no manager is killed: what grows in one shows when it gets old."""
        self._still: dict[int, _Still] = {}

    def run(self) -> None:
        try:
            while not self.stopping.wait(self._random.expovariate(1 / self._pace_s)):
                self._do_something()
        except BaseException as error:  # noqa: BLE001  told by whoever joins
            self.error = error
        finally:
            for pid in list(self._still):
                self._go_on(pid)

    def _do_something(self) -> None:
        deeds = {
            self._stop_unit: 10, self._kill_unit: 4, self._hang_unit: 2,
            self._kill_manager: 2, self._stop_manager: 2, self._stop_keeper: 2,
        }  # fmt: skip
        self._random.choices(list(deeds), list(deeds.values()))[0]()

    def _victim(self) -> tuple[str, int] | None:
        """Return one that runs, and that nothing was done to yet."""
        unit = self._random.choice(self._people.victims)
        try:
            with self._running.client(timeout_s=CALL_S) as client:
                (status,) = client.call("Status", units=[unit], lines=0)["units"]
        except SupervisordError as error:
            self.deeds.troubles.append(f"status of {unit}: {error}")
            return None
        pid = status["pid"]
        if status["active_state"] != "active" or pid is None or pid in self._still or (unit, pid) in self.deeds.hung:
            return None
        return unit, int(pid)

    def _stop_unit(self) -> None:
        if (victim := self._victim()) is not None:
            pid = victim[1]
            self.deeds.stopped.add(victim)
            self._stand_still(pid, self._random.uniform(0.2, STOP_MAX_S), "unit stopped")

    def _kill_unit(self) -> None:
        if (victim := self._victim()) is not None:
            pid = victim[1]
            self.deeds.killed[victim] = time.monotonic_ns()
            self.deeds.counts["unit killed"] += 1
            _signal(pid, signal.SIGKILL)

    def _hang_unit(self) -> None:
        if (victim := self._victim()) is not None:
            pid = victim[1]
            self.deeds.hung[victim] = time.monotonic_ns()
            self.deeds.counts["unit hung"] += 1
            _signal(pid, signal.SIGUSR1)

    def _kill_manager(self) -> None:
        pid = self._running.manager_pid()
        if pid is not None and time.monotonic() < self._calm_from_s:
            self.deeds.counts["manager killed"] += 1
            _signal(pid, signal.SIGKILL)

    def _stop_manager(self) -> None:
        pid = self._running.manager_pid()
        longest_s = MANAGER_STOP_MAX_S if time.monotonic() < self._calm_from_s else KEEPER_STOP_MAX_S
        if pid is not None and pid not in self._still:
            self._stand_still(pid, self._random.uniform(0.2, longest_s), "manager stopped")

    def _stop_keeper(self) -> None:
        pid = self._running.keeper_pid
        if pid not in self._still:
            self._stand_still(pid, self._random.uniform(0.2, KEEPER_STOP_MAX_S), "keeper stopped")

    def _stand_still(self, pid: int, span_s: float, what: str) -> None:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        self.deeds.counts[what] += 1
        # Not by this thread: it may be waiting for an answer of what stands still.
        timer = threading.Timer(span_s, self._go_on, (pid,))
        self._still[pid] = _Still(fd, timer)
        _signal(pid, signal.SIGSTOP)
        timer.start()

    def _go_on(self, pid: int) -> None:
        if (still := self._still.pop(pid, None)) is not None:
            still.timer.cancel()
            try:
                signal.pidfd_send_signal(still.pidfd, signal.SIGCONT)
            except ProcessLookupError:
                pass  # it has ended meanwhile
            os.close(still.pidfd)


class Operator(threading.Thread):
    """Pauses, resumes, triggers, scales, restarts and replaces, like somebody who has nothing else to do."""

    def __init__(
        self, running: RunningSupervisor, people: Population, deeds: Deeds, seed: int, calm_from_s: float
    ) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self._running = running
        self._people = people
        self._deeds = deeds
        self._random = random.Random(seed)
        self._calm_from_s = calm_from_s

    def run(self) -> None:
        while not self.stopping.wait(self._random.uniform(0.2, 2 * PACE_S)):
            try:
                self._do_something()
            except (SupervisordError, OSError) as error:
                self._deeds.troubles.append(f"{type(error).__name__}: {error}")

    def _do_something(self) -> None:
        deeds = {
            self._pause: 8, self._trigger: 6, self._scale: 3, self._restart: 2,
            self._reload: 1, self._release: 2, self._replace: 0.5, self._set: 2,
        }  # fmt: skip
        self._random.choices(list(deeds), list(deeds.values()))[0]()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._deeds.counts[method.lower()] += 1
        with self._running.client(timeout_s=CALL_S) as client:
            return client.call(method, **parameters)

    def _pause(self) -> None:
        unit = self._random.choice(self._people.paused)
        self._call("Pause", units=[unit], wait=True, plan=False)
        self.stopping.wait(self._random.uniform(0.1, STOP_MAX_S))
        self._call("Resume", units=[unit], wait=True, plan=False)

    def _trigger(self) -> None:
        unit = self._random.choice(self._people.triggered)
        self._call("Trigger", units=[unit], wait=True, plan=False)
        self._deeds.triggers[unit] += 1

    def _scale(self) -> None:
        (template,) = self._people.workers
        self._order(template, "Scale", template=template, count=self._random.randint(1, 5), wait=True, plan=False)

    def _restart(self) -> None:
        unit = self._random.choice(self._people.victims)
        self._order(unit, "Restart", units=[unit], wait=True, plan=False)

    def _order(self, unit: str, method: str, **parameters: Any) -> None:
        began_ns = time.monotonic_ns()
        try:
            self._call(method, **parameters)
        except ControlError as error:
            # The same moment's kill or silence may have ended it; then it is started again by its policy.
            if error.name != "JobFailed":
                raise
            self._deeds.counts[f"{method.lower()} failed"] += 1
        finally:
            self._deeds.orders.append((unit, began_ns, time.monotonic_ns()))

    def _reload(self) -> None:
        self._call("DaemonReload", plan=False)

    def _release(self) -> None:
        unit = self._random.choice(self._people.loops)
        try:
            self._call("Release", units=[unit], wait=True, plan=False)
        except ControlError as error:
            if error.name != "JobFailed":
                raise

    def _replace(self) -> None:
        if time.monotonic() < self._calm_from_s:
            try:
                self._call(self._random.choice(("DaemonRestart", "DaemonReexec")))
            except SupervisordError:
                # The manager that was to answer may just have been killed: nobody may say whether it was done.
                self._deeds.counts["replacement unanswered"] += 1

    def _set(self) -> None:
        unit = self._random.choice(self._people.paused)
        setting = f"service.restart-sec={self._random.randint(1, 100)}ms"
        self._call("Set", unit=unit, settings=[setting], persist=False, plan=False)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has just ended
