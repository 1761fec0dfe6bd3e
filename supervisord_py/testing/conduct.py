"""How the processes of the fake machine behave by themselves: what they do when their program runs, how long that goes
well, and what they say to a reload.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from supervisord_py.core.events import ExitStatus, NotifyReceived
from supervisord_py.model.states import Role, ServiceType
from supervisord_py.testing.beside import BESIDE
from supervisord_py.testing.population import SHORT_LIVED, is_broken_release
from supervisord_py.testing.processes import CRASHES, NOTIFYING, SIGTERM, Process, Spawn

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel


class Conduct:
    """What the processes of one kernel do."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel

    def begin(self, spawn: Spawn) -> None:
        """The program of a process runs: draw what it does."""
        kernel = self._kernel
        if spawn.role not in BESIDE:
            kernel.appetite.begin(spawn)
        if spawn.role in (Role.START, Role.MAIN) and is_broken_release(spawn.service) and not kernel.is_calm:
            kernel.later(1, 8000, lambda: kernel.end(spawn.main, ExitStatus(code=78)))
        match spawn.role:
            case Role.START:
                kernel.daemons.begin(spawn)
            case Role.MAIN:
                self._begin_main(spawn)
            case Role.STUB:
                self._begin_stub(spawn)
            case Role.PROBE | Role.HOOK:
                kernel.beside.begin(spawn)
            case _:
                self._begin_command(spawn)

    def _begin_main(self, spawn: Spawn) -> None:
        service = spawn.service
        oneshot = service is not None and service.type is ServiceType.ONESHOT
        if oneshot:
            self._begin_command(spawn)
        elif service is not None and service.type in NOTIFYING:
            self._begin_notify(spawn)
        if not oneshot:
            self.draw_end(spawn.unit, lambda: spawn.main)
        self.begin_daemon(spawn)

    def _begin_stub(self, spawn: Spawn) -> None:
        kernel = self._kernel
        if kernel.fault("grandchild"):
            kernel.later(0, 30, lambda: kernel.fork(spawn))
        if kernel.fault("stub_ends"):
            status = kernel.choice((ExitStatus(code=0), *CRASHES))
            kernel.later(1, 20_000, lambda: kernel.end(spawn.main, status))

    def begin_daemon(self, spawn: Spawn) -> None:
        """What a main process may do besides its work: fork, talk, hand its place over."""
        kernel = self._kernel
        if kernel.fault("grandchild"):
            for _ in range(kernel.number(1, 2)):
                kernel.later(0, 30, lambda: kernel.fork(spawn))
        if spawn.service is not None and spawn.service.type is ServiceType.ONESHOT:
            return
        kernel.beats.begin(spawn)
        kernel.speech.begin(spawn)
        if kernel.fault("main_pid"):
            kernel.later(5, 3000, lambda: self._hand_over(spawn))

    def _begin_command(self, spawn: Spawn) -> None:
        kernel = self._kernel
        code = kernel.choice((1, 2, 100, 255)) if kernel.fault("command_failed") else 0
        spawn.unfinished = lambda: kernel.end(spawn.main, ExitStatus(code=0))
        if kernel.fault("command_hung"):
            kernel.struck("command_hung", spawn.unit)
        else:
            delay_ns = kernel.milliseconds(1, 800)
            kernel.after(delay_ns, lambda: kernel.end(spawn.main, ExitStatus(code=code)))
        if kernel.fault("command_leaves"):
            kernel.later(0, 2, lambda: kernel.fork(spawn))
        if spawn.role is Role.STOP and kernel.rng.random() < 0.5:
            for other in list(kernel.trees.get(spawn.unit, {}).values()):
                if other.spawn is not None and other.spawn.role is Role.MAIN:
                    kernel.later(1, 100, partial(kernel.deliver, other, SIGTERM))

    def _begin_notify(self, spawn: Spawn) -> None:
        kernel = self._kernel
        if kernel.fault("exit_before_ready"):
            status = kernel.choice((ExitStatus(code=0), ExitStatus(code=1), ExitStatus(signal=11, core_dumped=True)))
            kernel.later(1, 500, lambda: kernel.end(spawn.main, status))
            return
        spawn.unfinished = lambda: kernel.say_ready(spawn)
        if kernel.fault("never_ready"):
            return
        delay_ns = kernel.milliseconds(500, 12_000) if kernel.fault("ready_slow") else kernel.milliseconds(1, 300)
        kernel.after(delay_ns, lambda: kernel.say_ready(spawn))
        if kernel.fault("double_ready"):
            kernel.after(delay_ns + kernel.milliseconds(0, 500), lambda: kernel.say_ready(spawn))

    def draw_end(self, unit: str, process: Callable[[], Process]) -> None:
        """Decide how, and when, what a unit is there for ends by itself."""
        kernel = self._kernel
        if unit in SHORT_LIVED:
            kernel.later(100, 3000, lambda: kernel.end(process(), ExitStatus(code=0)))
            return
        if kernel.fault("crash_at_once"):
            status = kernel.choice(CRASHES)
            kernel.later(0, 60, lambda: kernel.end(process(), status))
        elif kernel.fault("crash"):
            status = kernel.choice(CRASHES)
            kernel.later(100, 30_000, lambda: kernel.end(process(), status))
        elif kernel.fault("clean_exit"):
            status = kernel.choice((ExitStatus(code=0), ExitStatus(signal=SIGTERM)))
            kernel.later(100, 30_000, lambda: kernel.end(process(), status))

    def _hand_over(self, spawn: Spawn) -> None:
        """The main process makes another, names it with MAINPID= and goes (a daemon does); somebody has to hear it."""
        kernel = self._kernel
        if kernel.freezer.holds(spawn.main, lambda: self._hand_over(spawn)):
            return
        is_heard = not kernel.is_lost and kernel.admits(spawn, spawn.main)
        if spawn.over or not spawn.main.alive or spawn.main.dying or not is_heard:
            return
        old = spawn.main
        new = kernel.new_process(spawn.unit, spawn.invocation)
        new.spawn = spawn
        new.parent = old
        kernel.struck("main_pid", spawn.unit)
        # who takes the place of one that was asked to end knows that
        new.signalled = old.signalled
        kernel.watcher.born(new)
        spawn.main = new
        kernel.custody.tell(
            NotifyReceived(spawn.unit, spawn.spawn_id, old.pid, {"MAINPID": str(new.pid)}, main_pid=new.pid)
        )
        kernel.later(0, 200, lambda: kernel.end(old, ExitStatus(code=0)))

    def reloads(self, process: Process, signal: int) -> bool:
        """Whether this signal asks a ``notify-reload`` service to read its settings again; it says what it does."""
        kernel = self._kernel
        spawn = process.spawn
        # a command of the unit does not know that signal: it ends by it
        if spawn is None or spawn.role is not Role.MAIN or spawn.main is not process or spawn.service is None:
            return False
        if spawn.service.type is not ServiceType.NOTIFY_RELOAD or signal != spawn.service.reload_signal:
            return False
        kernel.later(0, 20, lambda: self._reload(spawn, process))
        return True

    def _reload(self, spawn: Spawn, process: Process) -> None:
        kernel = self._kernel
        if spawn.over or spawn.main is not process or process.dying:
            return
        spawn.unfinished = lambda: self._say_reloaded(spawn)
        if kernel.fault("reload_deaf"):
            return
        self._say_reloading(spawn)
        if not kernel.fault("never_ready"):
            kernel.later(1, 2000, lambda: kernel.say_ready(spawn))

    def _say_reloading(self, spawn: Spawn) -> None:
        kernel = self._kernel
        kernel.notify(spawn, {"RELOADING": "1", "MONOTONIC_USEC": str(kernel.now_ns // 1000)})

    def _say_reloaded(self, spawn: Spawn) -> None:
        kernel = self._kernel
        self._say_reloading(spawn)
        kernel.say_ready(spawn)
