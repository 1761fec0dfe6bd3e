"""A supervisor without anything behind it: answers Varlink calls on a real socket as a test says, and can hang up in
between.

Each call and each answer is checked against the interface definitions in ``packaging/``, so a test of supctl that
passes here speaks the language of the real one.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from supervisord_py.wire.interface import Interface, InvalidParameterError, parse_interface
from supervisord_py.wire.varlink import JOURNAL, MANAGER, SERVICE, Call, ServerConnection

PACKAGING = Path(__file__).parent.parent.parent / "packaging"


class Raise(msgspec.Struct, frozen=True):
    """Answer with an error; ``name`` is of the manager's interface unless it is qualified."""

    name: str
    parameters: dict[str, Any] = {}


class HangUp(msgspec.Struct, frozen=True):
    """Cut the connection, as the death of a manager does."""


class Later(msgspec.Struct, frozen=True):
    """Go on only when the event is set (or the test is over)."""

    event: threading.Event


Step = dict[str, Any] | Raise | HangUp | Later
Handler = Callable[[dict[str, Any]], Iterable[Step]]


def interfaces() -> dict[str, Interface]:
    return {name: parse_interface((PACKAGING / f"{name}.varlink").read_text()) for name in (MANAGER, JOURNAL)}


class FakeSupervisor:
    """Listens on ``path`` until ``close``.

    Attributes:
        calls: Every call that came, in order: (method without the manager's interface, parameters).
        problems: What was said that the interface definition does not allow; ``close`` asserts that there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.problems: list[str] = []
        self._interfaces = interfaces()
        self._handlers: dict[str, Handler] = {"Ping": lambda _: [{"answer": "pong"}]}
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._start(self._accept)

    def on(self, method: str, *answers: Step | Handler) -> None:
        """Answer each call of ``method`` with the next of ``answers``, the last one again and again."""
        handlers: list[Handler] = [
            answer if callable(answer) else (lambda _, answer=answer: [answer]) for answer in answers
        ]

        def handle(parameters: dict[str, Any]) -> Iterable[Step]:
            handler = handlers.pop(0) if len(handlers) > 1 else handlers[0]
            return handler(parameters)

        self._handlers[method] = handle

    def called(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of each call of ``method``, in order."""
        return [parameters for name, parameters in self.calls if name == method]

    def cut_all(self) -> None:
        """Close every connection, as a server does with idle ones; the client sees it when this returns."""
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # The other end, or its own thread, was first.

    def stop_listening(self) -> None:
        """Take the socket away, as the end of the keeper does."""
        self.path.unlink(missing_ok=True)
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It was stopped before.
        self._listener.close()

    def close(self) -> None:
        self._over.set()
        self.stop_listening()
        self.cut_all()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        assert not self.problems, self.problems

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        protocol = ServerConnection()
        with connection:
            while not self._over.is_set():
                call = protocol.next_call()
                try:
                    if call is not None:
                        if not self._answer(connection, protocol, call):
                            return
                        continue
                    data = connection.recv(65536)
                except OSError:
                    return  # The client has closed: a stream that was ended, a time-out.
                if not data:
                    return
                protocol.receive_data(data)

    def _answer(self, connection: socket.socket, protocol: ServerConnection, call: Call) -> bool:
        """Answer one call; False: the connection is to be cut."""
        name = call.member if call.interface == MANAGER else f"{call.interface.rpartition('.')[2]}.{call.member}"
        if call.interface == SERVICE:
            name = call.member
        self._check(call, "input", call.parameters)
        self.calls.append((name, call.parameters))
        if name not in self._handlers:
            connection.sendall(protocol.error(f"{SERVICE}.MethodNotFound", {"method": call.method}))
            return True
        steps = list(self._handlers[name](call.parameters)) if not call.more else self._handlers[name](call.parameters)
        pending: dict[str, Any] | None = None
        for step in steps:
            match step:
                case Later(event):
                    if pending is not None:
                        connection.sendall(protocol.reply(pending, continues=True))
                        pending = None
                    while not event.wait(0.05):
                        if self._over.is_set():
                            return False
                case HangUp():
                    if pending is not None:
                        connection.sendall(protocol.reply(pending, continues=True))
                    return False
                case Raise(error, parameters):
                    qualified = error if "." in error else f"{MANAGER}.{error}"
                    self._check_error(qualified, parameters)
                    connection.sendall(protocol.error(qualified, parameters))
                    return True
                case _:
                    self._check(call, "output", step)
                    if pending is not None:
                        connection.sendall(protocol.reply(pending, continues=True))
                    pending = step
        if pending is not None:
            connection.sendall(protocol.reply(pending))
        return True

    def _check(self, call: Call, direction: str, parameters: dict[str, Any]) -> None:
        interface = self._interfaces.get(call.interface)
        if interface is None:
            return
        method = interface.methods.get(call.member)
        if method is None:
            self.problems.append(f"no method {call.method}")
            return
        check = interface.check_input if direction == "input" else interface.check_output
        try:
            check(method, parameters)
        except InvalidParameterError as error:
            self.problems.append(f"{direction} of {call.method}: {error!r}: {parameters}")

    def _check_error(self, qualified: str, parameters: dict[str, Any]) -> None:
        interface, _, name = qualified.rpartition(".")
        if interface not in self._interfaces:
            return
        try:
            self._interfaces[interface].check_error(name, parameters)
        except (KeyError, InvalidParameterError) as error:
            self.problems.append(f"error {qualified}: {error!r}: {parameters}")


def unit(name: str, state: str = "active", sub: str = "running", **fields: Any) -> dict[str, Any]:
    """Return a ``Unit`` as it is on the wire."""
    return {
        "name": name,
        "description": f"the unit {name}",
        "load_state": "loaded",
        "active_state": state,
        "sub_state": sub,
        "result": "success",
        "pid": 123 if state == "active" else None,
        "invocation": f"inv-{name}",
        "since": "2026-11-20T12:00:00.000000Z",
        "restarts": 0,
        "failures": 0,
        "exit": None,
        "memory_bytes": None,
        "cpu_ns": None,
        "tasks": None,
        "status_text": None,
        "path": f"/etc/supervisord-py/units/{name}.toml",
        "enabled": True,
        "why": None,
        "exec": None,
        "lines": None,
        "groups": [],
        "needs_restart": False,
        "needs_reload": False,
        "refused": None,
        "restart_keys": None,
        "condition_result": None,
        "condition_at": None,
        "condition_unmet": None,
        "health": [],
        "next_elapse": None,
        "last_elapse": None,
        "has_run": True,
        "lowered_limits": [],
        "applied": [],
        "degraded": [],
        "sockets": [],
        "accepted": 0,
        "connections": 0,
        "stored": [],
        "dropped_lines": 0,
        "transient": False,
    } | fields


def outcome(name: str, kind: str = "start", result: str = "done", message: str = "", job: int = 7) -> dict[str, Any]:
    return {"unit": name, "job": job, "type": kind, "result": result, "message": message}


def done(*outcomes: dict[str, Any], job: int | None = 7, durable: bool = True) -> dict[str, Any]:
    return {"job": job, "durable": durable, "outcomes": list(outcomes)}


def not_there(name: str, *suggestions: str) -> Raise:
    return Raise("NoSuchUnit", {"unit": name, "suggestions": list(suggestions), "message": f"no such unit: {name}"})
