"""What survives a manager, and the managers themselves: started, watched, replaced.

Facts are numbered here and kept until acknowledged; those not yet sent are pulled when the socket has room, so that a
slow manager makes them coalesce instead of piling up in packets. A commit is checked whole before any of it is applied.
"""

import errno
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from supervisord_py.keeper.child import Plan, Spawner, SpawnError
from supervisord_py.keeper.loop import MANAGER, Loop, say
from supervisord_py.keeper.protocol import FDS_MAX, KEEPER_FD, PROTOCOL, Channel

SECOND_NS = 1_000_000_000
FACTS_A_PACKET = 100
QUICK_NS = 10 * SECOND_NS
"""A manager that lived shorter and acknowledged nothing died quickly: each one more in a row doubles the wait for the
next, from 0.1 to 5 s. One that was killed while it made progress is replaced at once."""
PREFLIGHT_TIMEOUT_NS = 30 * SECOND_NS


class Custody:
    def __init__(self) -> None:
        self.state: dict[str, str] = {}
        self.lines: deque[tuple[int, str]] = deque()
        self._facts: deque[tuple[int, dict[str, Any]]] = deque()
        self._last = self._sent = self.acknowledged = 0
        self.sent_at: list[tuple[int, int]] = []
        """Numbers and times of the last fact of each packet that is not acknowledged."""
        self.on_fact: Callable[[int, dict[str, Any]], None] = lambda number, fact: None
        """Told of each fact that is queued (one that it coalesces with afterwards excepted)."""
        self._open_notify: dict[str, tuple[int, dict[str, Any]]] = {}
        """By unit: its newest fact, when that is a notification that a later one may coalesce with."""

    def pack(self) -> dict[str, Any]:
        facts = {"facts": list(self._facts), "last": self._last, "acknowledged": self.acknowledged}
        return {"state": self.state, "lines": list(self.lines), **facts}

    def unpack(self, packed: dict[str, Any]) -> None:
        self.state, self._last = packed["state"], packed["last"]
        self.lines = deque((seq, text) for seq, text in packed["lines"])
        self._facts = deque((number, fact) for number, fact in packed["facts"])
        self._sent = self.acknowledged = packed["acknowledged"]

    def put(self, fact: dict[str, Any], unit: str | None = None) -> bool:
        """Queue a fact (of ``unit``); return False when it coalesced with one that is not sent yet."""
        coalesces = fact["fact"] == "notify" and fact["fields"].keys() <= {"WATCHDOG", "STATUS"}
        coalesces = coalesces and fact["fields"].get("WATCHDOG", "1") == "1"
        number, newest = self._open_notify.pop(unit, (0, fact)) if unit is not None else (0, fact)
        if coalesces and number > self._sent and newest["pid"] == fact["pid"]:
            newest["fields"].update(fact["fields"])
        else:
            self._last = number = self._last + 1
            newest = fact
            self._facts.append((number, fact))
            self.on_fact(number, fact)
        if coalesces and unit is not None:
            self._open_notify[unit] = (number, newest)
        return newest is fact

    def take_unsent(self, now_ns: int) -> list[tuple[int, dict[str, Any]]]:
        first = self._sent - self.acknowledged
        batch = [self._facts[i] for i in range(first, min(len(self._facts), first + FACTS_A_PACKET))]
        if batch:
            self._sent = batch[-1][0]
            self.sent_at.append((self._sent, now_ns))
        return batch

    def acknowledge(self, number: int) -> list[dict[str, Any]]:
        """Forget the facts up to ``number`` and return them."""
        done = []
        while self._facts and self._facts[0][0] <= number:
            done.append(self._facts.popleft()[1])
        self.acknowledged = max(self.acknowledged, number)
        self.sent_at = [sent for sent in self.sent_at if sent[0] > number]
        return done

    def rewind(self) -> None:
        """Nothing is sent: a new manager is told all that the old one did not acknowledge."""
        self._sent = self.acknowledged
        self.sent_at = []

    def restamp(self, now_ns: int) -> None:
        self.sent_at = [(number, now_ns) for number, _ in self.sent_at]

    def check(self, commit: dict[str, Any]) -> None:
        """Raise TypeError, ValueError or KeyError unless the commit can be applied as a whole."""
        if not 0 <= commit["ack"] <= self._sent:
            raise ValueError(f"acknowledges fact {commit['ack']} of {self._sent} sent")
        if not all(text is None or isinstance(text, str) for text in commit["state"].values()):
            raise TypeError("state is not text")
        if not all(isinstance(seq, int) and isinstance(text, str) for seq, text in commit["lines"]):
            raise TypeError("lines are not [number, text]")
        numbers = isinstance(commit["journalled"], int) and isinstance(commit.get("deadline"), int | None)
        if not numbers or not all(isinstance(do["do"], str) for do in commit["do"]):
            raise TypeError("journalled or deadline is no number, or a request has no name")

    def apply(self, commit: dict[str, Any]) -> list[dict[str, Any]]:
        """Take over state and lines of a checked commit; return the facts that it acknowledged."""
        for key, text in commit["state"].items():
            if text is None:
                self.state.pop(key, None)
            else:
                self.state[key] = text
        self.lines.extend((seq, text) for seq, text in commit["lines"])
        while self.lines and self.lines[0][0] <= commit["journalled"]:
            self.lines.popleft()
        return self.acknowledge(commit["ack"])


class Manager:
    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid, self.channel, self.started_ns = pid, channel, time.monotonic_ns()
        self.is_greeted = self.is_ending = self.is_useful = self.is_read_out = False
        self.deadline_ns: int | None = None
        self.stopped_ns: int | None = None
        """When it wants to act by itself next; one that lets it pass by is hung, though nothing was asked of it."""
        self.orders: deque[tuple[str, int]] = deque()
        """Orders that it was sent and has not heard yet, with the time."""


class Managers:
    """At most one manager that decides and one in pre-flight; ``keeper`` does what they ask and welcomes them."""

    def __init__(self, config: dict[str, Any], loop: Loop, spawner: Spawner, custody: Custody, keeper: Any) -> None:
        self._argv: list[str] = config["manager_argv"]
        self._hung_ns = int(config["hung_timeout_s"] * SECOND_NS)
        self._start_ns = int(config["start_timeout_s"] * SECOND_NS)
        self._loop, self._spawner, self._custody, self._keeper = loop, spawner, custody, keeper
        self.current: Manager | None = None
        self._next: Manager | None = None
        self._orders = deque[str]()
        self._quick, self.count = 0, 0
        self.pids: set[int] = keeper.inventory.managers

    def pack(self) -> dict[str, Any]:
        """Return what the next image needs: one manager at most, to whom nothing was said yet."""
        now = self.current
        packed = None if now is None else [now.pid, now.channel.sock.fileno(), now.started_ns, now.is_greeted]
        orders = [order for manager in (now,) if manager is not None for order, _ in manager.orders]
        return {
            "current": packed, "orders": [*orders, *self._orders], "count": self.count, "quick": self._quick,
            "pids": sorted(self.pids),
        }  # fmt: skip

    def unpack(self, packed: dict[str, Any]) -> None:
        """Take over what the image before packed; ``resume`` begins to speak."""
        self.pids |= set(packed["pids"])
        self.count, self._quick, self._orders = packed["count"], packed["quick"], deque(packed["orders"])
        if packed["current"] is not None:
            pid, fd, started_ns, is_greeted = packed["current"]
            self.current = manager = Manager(pid, Channel(socket.socket(fileno=fd)))
            manager.started_ns, manager.is_greeted = started_ns, is_greeted
            self._loop.watch(fd, MANAGER, lambda: self._exchange(manager))

    def resume(self) -> None:
        """Go on after an exec, or one that failed."""
        if self.current is None:
            self.start()
        elif self.current.is_greeted:
            self._converse(self.current, self._welcome)

    def start(self) -> None:
        self.current = self._launch()
        if self.current is None:
            self._start_again(True)

    def _launch(self) -> Manager | None:
        """Make a manager, if that can be now."""
        try:
            return self._make()
        except (SpawnError, OSError) as error:
            step = error.step if isinstance(error, SpawnError) else "fds"
            say(f"cannot start the manager {self._argv[0]}: {step}: {os.strerror(error.errno or 0)}; trying again")
            return None

    def _make(self) -> Manager:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.set_inheritable(True)
            env = {**self._keeper.upward.environment(), KEEPER_FD: str(theirs.fileno())}
            plan = Plan({"argv": self._argv, "env": env, "cwd": ".", "umask": 0o022, "sigpipe": True}, -1, {})
            pid, report = self._spawner.execute(plan)
        self.pids.add(pid)
        self.count += 1
        if report is not None:
            os.close(report)  # a failed exec shows as a quick death
        manager = Manager(pid, Channel(ours))
        # Should this fail, our end is closed: the new manager reads end of file and goes.
        self._loop.watch(ours.fileno(), MANAGER, lambda: self._exchange(manager))
        return manager

    def _start_again(self, is_quick: bool) -> None:
        self._quick = self._quick + 1 if is_quick else 0
        delay_ns = min(5 * SECOND_NS, (SECOND_NS // 10) << min(self._quick - 2, 10)) if self._quick > 1 else 0
        self._loop.set_timer("manager", time.monotonic_ns() + delay_ns, self.start)

    def preflight(self) -> None:
        """Start the next manager beside the current one, which ends when the next has greeted."""
        if self.current is None or self._next is not None:
            return
        self._next = self._launch()
        if self._next is None:
            self._refuse(f"cannot start {self._argv[0]}")
        else:
            pid = self._next.pid
            self._loop.set_timer("preflight", time.monotonic_ns() + PREFLIGHT_TIMEOUT_NS, lambda: self._kill(pid))

    def _refuse(self, reason: str) -> None:
        self._send({"preflight-failed": reason})
        self._keeper.not_replaced(reason)

    def order(self, order: str) -> None:
        """Tell the manager of a signal, now or when there is one again."""
        self._orders.append(order)
        self.flush()

    def send(self, message: dict[str, Any]) -> None:
        """Tell the manager of now, if one listens, what no other needs to know."""
        self._send(message)

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self.current is not None and self.current.is_greeted and not self.current.is_ending:
            self.current.channel.send(message, fds or [])

    def send_outputs(self, outputs: list[tuple[str, int]]) -> None:
        for i in range(0, len(outputs), FDS_MAX):
            part = outputs[i : i + FDS_MAX]
            self._send({"outputs": [name for name, _ in part]}, [fd for _, fd in part])

    def flush(self) -> None:
        """Send what there is and fits, and set the time at which the manager counts as hung. Called each turn."""
        manager, now_ns = self.current, time.monotonic_ns()
        if manager is None or manager.is_ending:
            self._loop.set_timer("hung", None, self.start)
            return
        since = [manager.started_ns + self._start_ns - self._hung_ns]
        if manager.is_greeted:
            while self._orders:
                manager.orders.append((self._orders.popleft(), now_ns))
                manager.channel.send({"order": manager.orders[-1][0]})
            self._converse(manager, self._tell)
            since = [at_ns for _, at_ns in [*list(manager.orders)[:1], *self._custody.sent_at[:1]]]
            since += [at_ns for at_ns in (manager.deadline_ns, manager.stopped_ns) if at_ns is not None]
        if manager.pid in self.pids and not manager.is_read_out:
            waiting = manager.channel.is_waiting
            self._loop.watch(manager.channel.sock.fileno(), MANAGER, lambda: self._exchange(manager), output=waiting)
        at_ns = min(since) + self._hung_ns if since else None
        self._loop.set_timer("hung", at_ns, lambda: self._abort(manager))

    def _tell(self, manager: Manager) -> None:
        while manager.channel.flush() and (facts := self._custody.take_unsent(time.monotonic_ns())):
            manager.channel.send({"facts": facts})

    def _abort(self, manager: Manager) -> None:
        now_ns = time.monotonic_ns()
        if self._loop.lag_ns > SECOND_NS and manager.is_greeted:
            self._custody.restamp(now_ns)
            manager.orders = deque((order, now_ns) for order, _ in manager.orders)
            if manager.deadline_ns is not None:
                manager.deadline_ns = max(manager.deadline_ns, now_ns)
            return
        say(f"the manager (pid {manager.pid}) does not answer: aborting it, a new one follows")
        manager.is_ending = True
        self._kill(manager.pid, signal.SIGABRT)
        self._loop.set_timer(f"end {manager.pid}", now_ns + self._hung_ns // 5, lambda: self._kill(manager.pid))

    def look(self) -> None:
        """A child changed its state: a manager that was stopped has as long to go on as one that does not answer."""
        if (manager := self.current) is not None:
            stopped = os.waitid(os.P_PID, manager.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
            manager.stopped_ns = (manager.stopped_ns or time.monotonic_ns()) if stopped else None

    def _kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        if pid in self.pids:
            os.kill(pid, number)

    def end(self, manager: Manager, grace_ns: int = 5 * SECOND_NS) -> None:
        """Let a manager read end of file; kill it when that is not enough."""
        manager.is_ending = True
        manager.channel.sock.shutdown(socket.SHUT_WR)
        self._loop.set_timer(f"end {manager.pid}", time.monotonic_ns() + grace_ns, lambda: self._kill(manager.pid))

    def end_all(self) -> None:
        """End whatever manager there is, and start no other."""
        self._loop.set_timer("manager", None, self.start)
        for manager in filter(None, (self.current, self._next)):
            self.end(manager)

    def _exchange(self, manager: Manager) -> None:
        """Read all that a manager has sent."""
        self._converse(manager, self._read)

    def _read(self, manager: Manager) -> None:
        while (packet := manager.channel.receive()) is not None:
            message, fds = packet
            for fd in fds:
                os.close(fd)
            self._take(manager, message)

    def _converse(self, manager: Manager, step: Callable[[Manager], None]) -> None:
        """Do a step of the conversation; a manager with whom it fails is ended, for the next one begins it anew."""
        try:
            step(manager)
        except EOFError:
            manager.is_read_out = True
            self._loop.unwatch(manager.channel.sock.fileno())
            if not manager.is_ending:
                self._kill(manager.pid)
        except OSError as error:
            # Its end is gone, or there are no descriptors: what it is not told now it would wait for. All that it has
            # sent is still read.
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                say(f"cannot talk to the manager (pid {manager.pid}), ending it: {error}")
            self._kill(manager.pid)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            say(f"the manager (pid {manager.pid}) breaks the protocol, ending it: {type(error).__name__}: {error}")
            self._kill(manager.pid)

    def _take(self, manager: Manager, message: dict[str, Any]) -> None:
        match message["op"]:
            case "hello":
                if message["protocol"] != PROTOCOL:
                    raise ValueError(f"protocol {message['protocol']}, this keeper speaks {PROTOCOL}")
                manager.is_greeted = True
                if manager is self.current:
                    self._begin(manager)
                elif self.current is not None:
                    self.end(self.current)
            case "commit" if manager is self.current:
                self._custody.check(message)
                manager.is_useful |= message["ack"] > self._custody.acknowledged
                manager.deadline_ns = message.get("deadline")
                self._keeper.commit(message)
            case "whose" | "trees" if manager is self.current:
                self._send(self._keeper.answer(message))
            case "heard":
                manager.orders.popleft()
            case op:
                raise ValueError(f"unexpected {op!r}")

    def _begin(self, manager: Manager) -> None:
        """The turn of a manager that has greeted has come, unless the keeper wants to be another before."""
        if not self._keeper.is_leaving():
            self._welcome(manager)

    def _welcome(self, manager: Manager) -> None:
        self._loop.set_timer("preflight", None, self.preflight)
        self._custody.rewind()
        welcome, fds, outputs = self._keeper.welcome(manager.pid)
        # What was told of a shutdown is in the welcome.
        self._orders = deque(order for order in self._orders if order not in ("stop", "kill"))
        self._send({"welcome": welcome}, fds)
        self.send_outputs(outputs)

    def reaped(self, pid: int, status: int) -> None:
        """A manager has ended: read what it had sent, then let the next one begin."""
        self.pids.discard(pid)
        manager = next((m for m in (self.current, self._next) if m is not None and m.pid == pid), None)
        if manager is None:
            return
        manager.is_ending = True
        self._loop.guard(lambda: self._exchange(manager))
        self._loop.unwatch(manager.channel.sock.fileno())
        manager.channel.close()
        code = os.waitstatus_to_exitcode(status)
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        lived_ns = time.monotonic_ns() - manager.started_ns
        if manager is self._next:
            self._next = None
            self._loop.set_timer("preflight", None, self.preflight)
            self._refuse(f"the new manager ended before it was ready ({how})")
            return
        self._orders.extendleft(order for order, _ in reversed(manager.orders))
        self.current, self._next = self._next, None
        if self.current is not None and self.current.is_greeted:
            self._converse(self.current, self._begin)
        elif self.current is None and not self._keeper.is_ending:
            say(f"the manager (pid {pid}) has ended ({how}); starting another")
            self._start_again(lived_ns < QUICK_NS and not manager.is_useful)
