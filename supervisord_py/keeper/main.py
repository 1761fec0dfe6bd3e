"""The keeper: makes and reaps every process, holds what must not be lost, outlives every manager.

One thread, one epoll, no tick. In one wake-up: the manager's packets, results of forks, notifications, exits, signals;
then requests for at most ``SLICE_NS``, then orphans and empty trees, then what there is to tell. Nothing is imported
after the start.
"""

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import signal
import socket
import stat
import sys
import time
from collections import deque
from functools import partial
from typing import Any

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import supervisord_py
from supervisord_py.keeper.book import Book
from supervisord_py.keeper.child import Spawner
from supervisord_py.keeper.custody import SECOND_NS, Custody, Managers
from supervisord_py.keeper.handover import Handover, end_check, read_state
from supervisord_py.keeper.inventory import Inventory, walk
from supervisord_py.keeper.loop import PAUSE_NS, SIGNAL, Loop, say
from supervisord_py.keeper.protocol import CONFIG_DEFAULTS, PROTOCOL
from supervisord_py.keeper.reaper import Reaper
from supervisord_py.keeper.upward import Upward

_VERSION: str = supervisord_py.__version__
RUNTIME_DIR_MAX = 80
SOCKET_PATH_MAX = 106
BACKLOG = 256
BUS_MODE = 0o666  # agents of every user; the manager refuses whoever is no process of a unit
SLICE_NS = 10_000_000
GRACE_NS = 5 * SECOND_NS
EXIT_SOFTWARE = 70
PR_SET_CHILD_SUBREAPER = 36
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGRTMIN + 3)
FORWARDED = signal.valid_signals() - {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD, signal.SIGPIPE,
    signal.SIGXFSZ, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP,
    signal.SIGSYS,
}  # fmt: skip
"""What the main process of ``exec`` gets that was sent to us; faults and job control are ours."""
ORDERS: dict[int, str] = {signal.SIGHUP: "reload", signal.SIGUSR1: "reopen", signal.SIGUSR2: "replace"}


class Keeper:
    """All of it; with ``state`` it goes on with what an image of this process before it held (``handover``)."""

    def __init__(self, config: dict[str, Any], state: dict[str, Any] | None = None) -> None:
        adopted = state if state is not None and "listener" not in state else None
        # The locks of the state and log folder, which ``run`` took for as long as we live.
        self._kept = state["kept"] if state is not None and adopted is None else _open_files()
        self._config = {**CONFIG_DEFAULTS, **config}
        self._given = config
        self._runtime: str = config["runtime_dir"]
        self._socket_path: str = self._config["socket"] or f"{self._runtime}/control.sock"
        self._addresses = {
            "control": (self._socket_path, self._config["socket_mode"], self._config["socket_gid"]),
            "bus": (f"{self._runtime}/bus.sock", BUS_MODE, None),
        }
        if state is None or adopted is not None:
            self._kept = [fd for fd in self._kept if adopted is None or fd not in adopted["fds"]]
            self._instance = int.from_bytes(os.urandom(4), "big") & 0xFFFFF if adopted is None else adopted["instance"]
            self._lock = _prepare_folder(self._runtime, None if adopted is None else adopted["lock"], self._instance)
            self._listeners = {name: self._listen(name) for name in self._addresses}
        else:
            self._lock, self._instance = state["lock"], state["instance"]
            held = state.get("listeners", {"control": (state["listener"], state["socket_inode"])})  # without a bus
            self._listeners = {name: (socket.socket(fileno=fd), inode) for name, (fd, inode) in held.items()}
            self._listeners |= {name: self._listen(name) for name in self._addresses.keys() - held.keys()}
        self._become_reaper()
        self._loop = Loop()
        self._custody = Custody()
        limits = {name: (soft, hard) for name, (soft, hard) in (state or {}).get("limits", {}).items()}
        self._spawner = spawner = Spawner(self._instance, self._config["spawner"], limits)
        self.inventory = Inventory(self._instance, self._custody.put)
        self.upward = Upward(f"{self._runtime}/n", self._loop, self._manager_pid, (state or {}).get("upward"))
        self._managers = Managers(self._config, self._loop, spawner, self._custody, self)
        self._book = Book(f"{self._runtime}/book", self.inventory, self._describe)
        self._reaper = Reaper(
            self._loop, self.inventory, spawner, self._custody.put, f"{self._runtime}/n",
            self._managers.send_outputs, self._managers.reaped, self._book,
        )  # fmt: skip
        self._handover = Handover(self._loop, config, self.inventory.managers, self._pack, self._replacement_checked)
        self._lost: dict[str, Any] | None = None if state is None else state.get("lost")
        self._requests: deque[dict[str, Any]] = deque()
        self._stopping: str | None = None
        self._shutdown_ns: int | None = None
        self._exit_code: int | None = None
        self._is_leaving = False
        self._forwarded = FORWARDED if self._config["forward"] is not None else frozenset[int]()
        self._wake, wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        # SIGXFSZ: a limit on files is an error of our memfds, not our death; handled, for that ends at exec.
        for number in (signal.SIGCHLD, signal.SIGXFSZ, *STOPS, *ORDERS, *self._forwarded):
            signal.signal(number, lambda *_: None)
        self._loop.watch(self._wake, SIGNAL, self._signalled)
        if adopted is not None:
            if adopted["custody"] is not None:
                self._custody.unpack(adopted["custody"])
                self._requests += adopted["requests"]
            self.inventory.unpack(adopted["inventory"])
            self._reaper.unpack(adopted["inventory"], [])
            for spawn in self.inventory.spawns.values():
                self.inventory.learn_groups(spawn)
        elif state is not None:
            self._unpack(state)
            os.write(wake_in, bytes(state.get("signals", [])))
        self._custody.on_fact = self._book.fact
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    @property
    def is_ending(self) -> bool:
        return self._exit_code is not None

    def run(self) -> int:
        """Keep until the end; return the exit code."""
        self._book.rewrite()
        self.upward.start_beating()
        self._managers.resume()
        gc.collect()
        gc.freeze()
        while not (self.is_ending and self._is_alone()):
            self._loop.guard(self._managers.flush)
            self.inventory.is_stale = True
            self._loop.guard(partial(self._loop.turn, bool(self._requests) or self._reaper.is_behind))
            if self._reaper.is_behind:
                self._loop.guard(self._reaper.reap)
            self._loop.guard(self._carry_out)
            self._loop.guard(self._book.keep_short)
            if not self._loop.guard(self._reaper.settle, of_unit=True) or self.inventory.touched:
                self._loop.set_timer("settle", time.monotonic_ns() + PAUSE_NS, lambda: None)
            if self._is_leaving and not self.is_ending:
                self._loop.guard(self._replace)
            if self._loop.is_broken:
                self._end(EXIT_SOFTWARE)
        assert self._exit_code is not None
        self._clean_up()
        return self._exit_code

    def _signalled(self) -> None:
        for number in dict.fromkeys(os.read(self._wake, 65536)):
            self._loop.guard(partial(self._on_signal, number))

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reaper.reap()
            self._managers.look()
        elif number in self._forwarded and (number != signal.SIGTERM or self._stopping) and self._forward(number):
            pass
        elif number in ORDERS:
            self._managers.order(ORDERS[number])
        elif number in STOPS and self._stopping is None:
            self._stopping = "stop"
            self.upward.stopping()
            if (timeout_s := self._config["shutdown_timeout_s"]) is not None:
                self._give_up_at(time.monotonic_ns() + int(timeout_s * SECOND_NS) + GRACE_NS)
            self._managers.order("stop")
        elif number == signal.SIGINT and self._stopping == "stop":
            self._stopping = "kill"
            self._give_up_at(time.monotonic_ns() + 2 * GRACE_NS)
            self._managers.order("kill")

    def _forward(self, number: int) -> bool:
        """Send a signal on to the main process of ``exec``; say whether there is one (or had to be one)."""
        unit = self.inventory.units.get(self._config["forward"])
        if unit is None or unit.main is None:
            return number not in STOPS
        self._reaper.request({"do": "signal", "unit": unit.name, "id": unit.main.id, "whom": "main", "signal": number})
        return True

    def _give_up_at(self, at_ns: int) -> None:
        self._shutdown_ns = at_ns
        self._loop.set_timer("shutdown", at_ns, self._give_up)

    def _give_up(self) -> None:
        say("the shutdown took too long: killing every process")
        self._end(1)

    def _end(self, code: int) -> None:
        """Kill what is left, end the manager, and let ``run`` return when nothing is left."""
        if not self.is_ending:
            self._exit_code = code
            self.upward.stopping()
            self._loop.set_timer("end", time.monotonic_ns() + 2 * GRACE_NS, self._abandon)
            self._requests.clear()
            self._loop.guard(self._managers.end_all)
            self._loop.guard(partial(self.inventory.scan, again=True))
            for unit in [*self.inventory.units.values(), self.inventory.strays]:
                self._loop.guard(partial(self._reaper.kill, unit, signal.SIGKILL))

    def _abandon(self) -> None:
        try:
            left = sorted(walk({*self.inventory.children, *self.inventory.managers}))
            say(f"these processes cannot be killed, leaving them: {' '.join(map(str, left))}")
            self._clean_up()
        finally:
            os._exit(1)

    def _manager_pid(self) -> int | None:
        return None if self._managers.current is None else self._managers.current.pid

    def _is_alone(self) -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    # What the managers ask

    def commit(self, commit: dict[str, Any]) -> None:
        self._book.commit(commit)
        facts = self._custody.apply(commit)
        self._requests += [] if self.is_ending else commit["do"]
        for fact in facts:
            if fact["fact"] == "notify" and (unit := self.inventory.units.get(fact["unit"])) is not None:
                self._loop.guard(partial(self._reaper.notify.acknowledged, unit), of_unit=True)

    def _carry_out(self) -> None:
        until_ns = time.monotonic_ns() + SLICE_NS
        while self._requests and time.monotonic_ns() < until_ns:
            do = self._requests.popleft()
            if do["do"] == "exit":
                self._end(do.get("code", EXIT_SOFTWARE))
            elif do["do"] == "restart-manager":
                self._managers.preflight()
            elif do["do"] == "reexec":
                self._handover.begin()
            else:
                self._loop.guard(partial(self._reaper.request, do), of_unit=True)
            self._book.did()

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"answer": question["question"]}
        if question["op"] == "whose":
            found = self.inventory.whose(question["pid"])
            answer |= {"unit": found.unit.name if found.unit else None, "stray": found.stray}
            return {**answer, "descendant": found.descends, "claimed": found.claimed}
        names = self.inventory.units.keys() if question["units"] is None else question["units"]
        units = [self.inventory.units[name] for name in names if name in self.inventory.units]
        self._reaper.look(units)
        return {**answer, "trees": {unit.name: sorted(walk(self.inventory.roots(unit))) for unit in units}}

    def welcome(self, pid: int) -> tuple[dict[str, Any], list[int], list[tuple[str, int]]]:
        """Return what a new manager is told first, the listeners, and the units' outputs."""
        self._loop.guard(self._mend_folder)
        self.inventory.scan()
        mains = [spawn for at, spawn in self.inventory.spawns.items() if at == spawn.main_pid]
        processes = [
            {"id": s.id, "unit": s.unit.name, "role": s.role, "pid": s.main_pid, "pending": s.report is not None}
            for s in mains
        ] + [
            {"id": do["id"], "unit": do["unit"], "role": do["role"], "pid": 0, "pending": True}
            for do in self._requests
            if do["do"] == "spawn" and {"id", "unit", "role"} <= do.keys()
        ]
        strays = self.inventory.strays.children
        orphans = self.inventory.children.keys() - {spawn.main_pid for spawn in mains} - strays
        outputs = [(unit.name, unit.output[0]) for unit in self.inventory.units.values() if unit.output is not None]
        welcome = {
            "protocol": PROTOCOL, "version": _VERSION, "pid": os.getpid(), "instance": self._instance,
            "runtime_dir": self._runtime, "state": self._custody.state, "lines": list(self._custody.lines),
            "processes": processes,
            "orphans": [{"pid": orphan, "unit": self.inventory.children[orphan].name} for orphan in sorted(orphans)],
            "strays": sorted(strays), "outputs": [name for name, _ in outputs], "managers": self._managers.count,
            "stopping": self._stopping, "config": self._given, "listeners": list(self._listeners), "lost": self._lost,
        }  # fmt: skip
        return welcome, [listener.fileno() for listener, _ in self._listeners.values()], outputs

    def _describe(self) -> dict[str, Any]:
        """Return what the book needs to know of custody and of what is under way."""
        return {**self._custody.pack(), "requests": list(self._requests), "ended": self._reaper.pack()}

    # A new image of ourselves

    def _pack(self) -> dict[str, Any]:
        inventory = self.inventory.pack()
        listeners = {name: (listener.fileno(), inode) for name, (listener, inode) in self._listeners.items()}
        held = [self._lock, *(fd for fd, _ in listeners.values()), *self._kept]
        for unit in inventory["units"]:
            held += [*(unit["output"] or ()), *(unit["notify"] or ())[1:2], *(fd for _, fd in unit["followed"])]
        managers = self._managers.pack()
        upward = self.upward.pack()
        held += (upward or [])[1:2]
        held += [spawn["report"] for spawn in inventory["spawns"] if spawn["report"] is not None]
        held += (managers["current"] or ())[1:2]
        return {
            "fds": held, "kept": self._kept, "lock": self._lock, "listener": listeners["control"][0],
            "socket_inode": listeners["control"][1], "listeners": listeners, "instance": self._instance,
            "limits": self._spawner.given, "old": _VERSION, "lost": self._lost, "stopping": self._stopping,
            "shutdown_ns": self._shutdown_ns, "custody": self._custody.pack(), "managers": managers, "upward": upward,
            "inventory": inventory, "ended": self._reaper.pack(), "requests": list(self._requests),
        }  # fmt: skip

    def _unpack(self, state: dict[str, Any]) -> None:
        self._custody.unpack(state["custody"])
        self.inventory.unpack(state["inventory"])
        self._managers.unpack(state["managers"])
        self._reaper.unpack(state["inventory"], state["ended"])
        self._requests += state["requests"]
        self._stopping = state["stopping"]
        if state["shutdown_ns"] is not None:
            self._give_up_at(state["shutdown_ns"])
        self._custody.put({"fact": "reexecuted", "old": state["old"], "new": _VERSION, "refused": None})

    def _replacement_checked(self, refused: str | None) -> None:
        self._managers.send({"reexec": refused})
        if refused is not None:
            self._custody.put({"fact": "reexecuted", "old": _VERSION, "new": None, "refused": refused})
        else:
            self._managers.preflight()

    def not_replaced(self, reason: str) -> None:
        """No new manager took over: then we do not leave either."""
        if self._handover.is_wanted:
            self._handover.is_wanted = False
            self._managers.send({"reexec": reason})
            self._custody.put({"fact": "reexecuted", "old": _VERSION, "new": None, "refused": reason})

    def is_leaving(self) -> bool:
        """Say whether a new image of ours welcomes the manager whose turn has come; at the end of this turn it does."""
        self._is_leaving = self._handover.is_wanted and not self.is_ending
        return self._is_leaving

    def _replace(self) -> None:
        self._is_leaving = False
        reason = self._handover.exec(self._wake)
        say(f"cannot replace myself, going on: {reason}")
        self._custody.put({"fact": "reexecuted", "old": _VERSION, "new": None, "refused": reason})
        self._managers.resume()

    # Beginning and end

    def _listen(self, name: str) -> tuple[socket.socket, int]:
        """Bind a socket under another name and move it into its place: nobody meets a half-made one."""
        path, mode, gid = self._addresses[name]
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            sys.exit(f"supervisord-py: socket path too long, {SOCKET_PATH_MAX} bytes at most: {path}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        new = path + "~"
        _unlink(new)
        listener.bind(new)
        if gid is not None:
            os.chown(new, -1, gid)
        os.chmod(new, mode)
        listener.listen(BACKLOG)
        inode = os.stat(new).st_ino
        os.rename(new, path)
        return listener, inode

    def _mend_folder(self) -> None:
        """Make the runtime folder anew for a new manager, should a logout or a cleaner have taken it."""
        missing = [name for name, (path, _, _) in self._addresses.items() if not os.path.exists(path)]
        if not missing:
            return
        try:
            os.makedirs(self._runtime, 0o755 if os.geteuid() == 0 else 0o700, exist_ok=True)
            os.makedirs(f"{self._runtime}/n", 0o711, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            if not os.path.exists(f"{self._runtime}/lock"):
                lock = os.open(f"{self._runtime}/lock", flags, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _sign_lock(lock, self._instance)
                os.dup2(lock, self._lock, inheritable=False)
                os.close(lock)
            for name in missing:
                old, _ = self._listeners[name]
                self._listeners[name] = self._listen(name)
                old.close()
            self._book.rewrite()
        except OSError as error:
            say(f"cannot make {self._runtime} anew: {error.strerror}")

    def _become_reaper(self) -> None:
        for fd in _open_files():
            os.set_inheritable(fd, False)
        for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        libc = ctypes.CDLL(None, use_errno=True)
        if os.getpid() != 1 and libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            sys.exit(
                f"supervisord-py: cannot become a subreaper: {os.strerror(ctypes.get_errno())}; Linux 5.3 is needed"
            )

    def _clean_up(self) -> None:
        try:
            for name, (_, inode) in self._listeners.items():
                path = self._addresses[name][0]
                if os.path.exists(path) and os.stat(path).st_ino == inode:
                    os.unlink(path)
            if os.path.isdir(f"{self._runtime}/n"):
                _empty_folder(f"{self._runtime}/n")
                os.rmdir(f"{self._runtime}/n")
        except OSError as error:
            say(f"cannot empty {self._runtime}: {error.strerror}; the next start does it")
        with contextlib.suppress(OSError):
            _unlink(f"{self._runtime}/book")
            _unlink(f"{self._runtime}/lock")
        if self._config["remove"] is not None:
            for folder, folders, files in os.walk(self._config["remove"], topdown=False):
                for remove, names in ((os.unlink, files), (os.rmdir, folders)):
                    for name in names:
                        with contextlib.suppress(OSError):
                            remove(os.path.join(folder, name))
            with contextlib.suppress(OSError):
                os.rmdir(self._config["remove"])


def _sign_lock(lock: int, instance: int) -> None:
    """Write pid and instance number at once: a keeper that is killed has left both, or what was there before.

    They are for the next `run`: the processes that a killed keeper leaves carry the number in their tag.
    """
    words = b"%d\n%d\n" % (os.getpid(), instance)
    os.pwrite(lock, words, 0)
    os.ftruncate(lock, len(words))


def _prepare_folder(runtime: str, lock: int | None, instance: int) -> int:
    """Make the runtime folder and take its lock, unless ``run`` holds it already; return the lock's descriptor.

    Exits with 1 when that cannot be.
    """
    if len(os.fsencode(runtime)) > RUNTIME_DIR_MAX:
        sys.exit(
            f"supervisord-py: runtime folder too long, {RUNTIME_DIR_MAX} bytes at most: {runtime}; give --runtime-dir"
        )
    os.umask(0o022)
    try:
        os.makedirs(runtime, 0o755 if os.geteuid() == 0 else 0o700, exist_ok=True)
        found = os.stat(runtime)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            sys.exit(f"supervisord-py: {runtime} belongs to another user or may be written by others; remove it")
        path = f"{runtime}/lock"
        while lock is None:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (os.path.exists(path) and os.path.samestat(os.fstat(lock), os.stat(path))):
                os.close(lock)  # its last holder removed it between our open and our lock
                lock = None
        _sign_lock(lock, instance)
        os.makedirs(f"{runtime}/n", 0o711, exist_ok=True)
        os.chmod(f"{runtime}/n", 0o711)
        _empty_folder(f"{runtime}/n")
    except BlockingIOError:
        holder = os.read(lock or 0, 32).decode().partition("\n")[0]
        sys.exit(
            f"supervisord-py: already running here as pid {holder} ({path} is locked); stop it, or give --runtime-dir"
        )
    except OSError as error:
        sys.exit(f"supervisord-py: cannot use {runtime}: {error.strerror} ({error.filename}); give --runtime-dir")
    return lock


def _open_files() -> list[int]:
    """Return our descriptors but for the standard ones."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            os.fstat(fd)
            found.append(fd)
    return sorted(fd for fd in found if fd > 2)


def _empty_folder(folder: str) -> None:
    for name in os.listdir(folder):
        _unlink(f"{folder}/{name}")


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


if __name__ == "__main__":
    for standard in (0, 1, 2):
        try:
            os.fstat(standard)
        except OSError:
            os.open("/dev/null", os.O_RDWR)
    given = dict(zip(sys.argv[1:-1], sys.argv[2:], strict=True))
    resumed = read_state(int(given["--resume"])) if "--resume" in given else None
    keeper = Keeper(json.loads(given["--config"]), resumed)
    if "--check" in sys.argv:
        end_check(_VERSION)
    sys.exit(keeper.run())
