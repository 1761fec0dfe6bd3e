"""What the command of a forking unit leaves behind on the fake machine: a daemon, two, none, and a pid file."""

from typing import TYPE_CHECKING

from supervisord_py.core.events import ExitStatus
from supervisord_py.testing.processes import Process, Spawn

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel


class Daemons:
    """How forking units start on one kernel."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel

    def begin(self, spawn: Spawn) -> None:
        """The command of a forking unit: it leaves a daemon behind, or fails to."""
        kernel = self._kernel
        daemonize = spawn.unfinished = lambda: self._daemonize(spawn)
        if kernel.fault("command_hung"):
            return
        if kernel.fault("command_failed"):
            status = kernel.choice((ExitStatus(code=1), ExitStatus(signal=11, core_dumped=True)))
            kernel.later(1, 800, lambda: kernel.end(spawn.main, status))
        else:
            kernel.later(1, 800, daemonize)

    def _daemonize(self, spawn: Spawn) -> None:
        kernel = self._kernel
        if spawn.over or not spawn.main.alive or spawn.main.dying:
            return
        if not kernel.fault("no_daemon"):
            daemon = self._fork_daemon(spawn)
            if kernel.fault("two_daemons"):
                self._fork_daemon(spawn)
            path = spawn.service.pid_file if spawn.service is not None else None
            if path is not None:
                self._plan_pid_file(path, daemon)
        kernel.end(spawn.main, ExitStatus(code=0))

    def _fork_daemon(self, spawn: Spawn) -> Process:
        kernel = self._kernel
        daemon = kernel.new_process(spawn.unit, spawn.invocation)
        daemon.parent, daemon.daemon_of, daemon.outlives_main = spawn.main, spawn, True
        kernel.watcher.born(daemon)
        kernel.catch_up(daemon)
        kernel.conduct.draw_end(spawn.unit, lambda: daemon)
        return daemon

    def _plan_pid_file(self, path: str, daemon: Process) -> None:
        """Decide when the daemon names itself in its pid file, and whether it gets that right."""
        kernel = self._kernel
        if kernel.fault("pid_file_never"):
            return
        pid = daemon.pid
        if kernel.fault("pid_file_wrong"):
            others = [each.pid for each in kernel.alive() if each is not daemon]
            pid = kernel.choice([4_000_000, *others])
        if kernel.fault("pid_file_late"):
            kernel.later(1, 8000, lambda: self.write_pid_file(path, daemon, pid))
        else:
            self.write_pid_file(path, daemon, pid)

    def cure(self, process: Process) -> None:
        """A daemon whose pid file never came writes it after all."""
        spawn = process.daemon_of
        path = spawn.service.pid_file if spawn is not None and spawn.service is not None else None
        if path is not None:
            self._kernel.later(0, 50, lambda: self.write_pid_file(path, process, process.pid))

    def write_pid_file(self, path: str, daemon: Process, pid: int) -> None:
        if daemon.alive:
            self._kernel.pid_files[path] = pid
            self._kernel.pid_file_written(path)
