"""A supervisor inside a Python program: the same keeper, manager and core as the daemon's, in folders of its own.

Theory of operation
-------------------
``Supervisor`` writes unit files and settings into a folder, starts ``supervisord-py run`` on it in a session of its
own, and talks to it over its control socket like anybody else. So what runs under it outlives no mistake of the
program's: it stops in order when the program calls ``stop``, leaves the ``with`` block, or dies (``run --stop-with``).
Callbacks are called in a thread that follows the journal.

    from supervisord_py import Supervisor

    with Supervisor(max_workers=2) as supervisor:
        supervisor.register("db", {"service": {"exec-start": ["/usr/bin/postgres"]}})
        supervisor.register("api", Api, config={"port": 8080})     # an Agent's class
        supervisor.add_dependency("api", "db")
        supervisor.on("unit.failed", lambda record: print(record["unit"], record["message"]))
        supervisor.start()
        code = supervisor.join()
"""

import contextlib
import fnmatch
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from supervisord_py.agent.agent import Agent
from supervisord_py.ctl.client import Client, ConnectionLostError, ControlError, UnreachableError
from supervisord_py.errors import SupervisordError
from supervisord_py.host.facade import RecordFilter
from supervisord_py.host.journal_file import compile_filter
from supervisord_py.host.journal_reader import JournalReader
from supervisord_py.host.toml_values import write_toml
from supervisord_py.model.names import is_unit_name, parse_unit_name
from supervisord_py.model.records import EVENTS

Callback = Callable[[dict[str, Any]], object]
Tables = Mapping[str, Any]

START_S = 60.0
"""How long the supervisor may take until it answers."""

POLL_S = 0.05
LOOK_S = 0.25
"""How often the journal's files are looked at where it cannot be followed."""

_log = logging.getLogger("supervisord_py")


class SupervisorError(SupervisordError):
    """The embedded supervisor could not be started, or is not there; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Supervisor:
    """One supervisor of this program's own. Its methods may be called from any thread, but for ``client``.

    Args:
        name: Its name.
        mode: ``until-empty``: it ends when nothing is left to do; ``daemon``: when it is told to.
        max_workers: So many units run at a time; 0: no limit.
        pools: Limits by name, ``{"gpu": 1}``, for units with ``{"pool": {"name": "gpu"}}``.
        allowed_commands: The ceiling for everybody who asks over the control socket: a preset or a list of commands.
        rules: ``[[control.allow]]`` rules, as dicts.
        keep: How many records of an event are kept a unit, in a ring beside the journal: of ``unit.heartbeat``, and of
            events of agents' own (``send("metrics", ...)``).
        folder: Where units, journal and output are, and stay; None: a temporary folder that goes with the supervisor.
        settings: Other tables of ``supervisord.toml``.
        timeout_s: How long each call may take [s].
    """

    def __init__(
        self,
        *,
        name: str = "embedded",
        mode: str = "until-empty",
        max_workers: int = 0,
        pools: Mapping[str, int] | None = None,
        allowed_commands: str | Sequence[str] = "admin",
        rules: Sequence[Mapping[str, Any]] = (),
        keep: Mapping[str, int] | None = None,
        folder: str | os.PathLike[str] | None = None,
        settings: Tables | None = None,
        timeout_s: float | None = 60.0,
    ) -> None:
        self.timeout_s = timeout_s
        self._is_temporary = folder is None
        # Without ".." and links, as the daemon has it: a socket's path has 107 bytes, however one wrote it.
        self.folder = Path(tempfile.mkdtemp(prefix="spy-")) if folder is None else Path(folder).resolve()
        for below in ("units", "run", "state"):
            (self.folder / below).mkdir(parents=True, exist_ok=True, mode=0o700)
        own = {
            "name": name,
            "mode": mode,
            "max-workers": max_workers,
            "allowed-commands": allowed_commands if isinstance(allowed_commands, str) else list(allowed_commands),
        }
        tables: dict[str, Any] = {"supervisor": own}
        if pools:
            tables["pools"] = {pool: {"max-workers": count} for pool, count in pools.items()}
        if keep:
            tables["journal"] = {"keep-last": dict(keep)}
        text = write_toml(_merged(tables, settings or {}))
        for rule in rules:
            text += "[[control.allow]]\n" + write_toml({"x": dict(rule)}).partition("\n")[2]
        (self.folder / "supervisord.toml").write_text(text, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._callbacks: list[tuple[str, Callback]] = []
        self._follower: threading.Thread | None = None
        self._requires: dict[str, list[str]] = {}
        self._is_over = threading.Event()

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    # What is supervised

    def register(
        self,
        name: str,
        unit: "Tables | type[Agent] | str | os.PathLike[str]",
        /,
        *,
        stub: "type[Agent] | None" = None,
        **agent: Any,
    ) -> None:
        """Add a unit; while the supervisor runs it is loaded and, unless it says ``enabled = false``, started.

        Args:
            name: Its name.
            unit: Its tables as a dict (``{"service": {"exec-start": [...]}}``), the path of a unit file, or the class
                of an agent.
            stub: The class of an agent that takes the place of the unit when it has failed so often that it is
                quarantined (``[quarantine] failures``).
            agent: Of an agent: the keys of ``[agent]`` (``every="5s"``, ``config={...}``; ``_`` for ``-``), and
                other tables of the unit as ``tables={"service": {...}}``.

        Raises:
            ValueError: The name is none, or the class cannot be imported by another process.
            SupervisorError: The supervisor runs and does not accept the unit; the message says why.
        """
        if not is_unit_name(name):
            parse_unit_name(name)
            raise ValueError(f"{name} is not the name of a unit")
        if isinstance(unit, type):
            tables = _merged(agent.pop("tables", {}), {"agent": _agent_table(unit, agent)})
            text = write_toml(tables)
        elif isinstance(unit, Mapping):
            text = write_toml(unit)
        else:
            text = Path(unit).read_text(encoding="utf-8")
        instead = None if stub is None else _class_and_path(stub)
        with self._lock:
            (self.folder / "units" / f"{name}.toml").write_text(text, encoding="utf-8")
            self._drop_in(name, "50-stub", None if instead is None else {"quarantine": _stub_keys(*instead)})
            if self.is_running:
                self._load([name])

    def add_dependency(self, unit: str, *needs: str) -> None:
        """Have a unit wait for others until they are ready, and go down with them (``requires``)."""
        with self._lock:
            known = self._requires.setdefault(unit, [])
            known += [each for each in needs if each not in known]
            self._drop_in(unit, "50-requires", {"unit": {"requires": known}})
            if self.is_running:
                self._load([])

    def _drop_in(self, unit: str, name: str, tables: Tables | None) -> None:
        """Write what stands beside a unit's own file; None removes it."""
        path = self.folder / "units" / f"{unit}.toml.d" / f"{name}.toml"
        if tables is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(exist_ok=True)
        path.write_text(write_toml(tables), encoding="utf-8")

    def _load(self, names: list[str]) -> None:
        with self.client() as client:
            try:
                report = client.call("DaemonReload", plan=False)
            except ControlError as refused:
                if refused.name != "NotPermitted":
                    raise
                self._load_by_signal(names)
                return
            wrong = [text for text in report.get("problems", []) if any(f"/{name}.toml" in text for name in names)]
            if wrong:
                raise SupervisorError("; ".join(wrong))

    def _load_by_signal(self, names: list[str]) -> None:
        """``allowed_commands`` binds whoever comes by the socket, and not the program whose supervisor this is."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + START_S
        for name in names:
            while (found := self._find(name)) is None:
                if time.monotonic() > deadline:
                    raise SupervisorError(f"{name} was not loaded in {START_S:g} s")
                time.sleep(POLL_S)
            if found["load_state"] == "bad-setting":
                raise SupervisorError(found["why"])

    def _find(self, unit: str) -> dict[str, Any] | None:
        try:
            found = self.status(unit)
        except ControlError:
            return None
        return None if found["load_state"] == "not-found" else found

    # Its life

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def socket_path(self) -> str:
        """The control socket: for ``supctl --socket``, and for a ``Client`` of one's own."""
        return str(self.folder / "run" / "control.sock")

    def start(self, *units: str) -> None:
        """Start the supervisor, with all units that are enabled; while it runs: start these units, and wait for them.

        Raises:
            SupervisorError: It did not start: a unit file is invalid and there is no other, a folder cannot be used.
            ControlError: A unit did not start.
        """
        with self._lock:
            if not self.is_running:
                self._launch()
        if units:
            with self.client() as client:
                client.call("Start", units=list(units), wait=True, plan=False)

    def _launch(self) -> None:
        self._is_over.clear()
        command = [
            # Nothing of the folder that the program happens to be in is imported (-P, and no empty part of the path).
            *(sys.executable, "-P", "-m", "supervisord_py", "run", str(self.folder / "units")),
            *("--config", str(self.folder / "supervisord.toml"), "--runtime-dir", str(self.folder / "run")),
            *("--state-dir", str(self.folder / "state"), "--log-dir", str(self.folder / "log")),
            *("--stop-with", str(os.getpid())),
        ]
        path = os.pathsep.join([_home(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
        environment = {**os.environ, "PYTHONPATH": path}
        output = self.folder / "supervisor.log"
        with open(output, "ab") as out:
            # A session of its own: a Ctrl-C is this program's, which then stops it in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                with Client(self.socket_path, timeout_s=START_S) as client:
                    client.call("Ping")
                break
            except UnreachableError as error:
                if self._process.poll() is not None:
                    text = output.read_text(errors="replace").strip()
                    if self._process.returncode == 0:
                        break
                    raise SupervisorError(f"the supervisor did not start: {text}") from None
                if time.monotonic() > deadline:
                    self._process.terminate()
                    raise SupervisorError(f"the supervisor does not answer: {error}") from None
                time.sleep(0.02)
        if self._callbacks:
            self._follow()

    def join(self, timeout_s: float | None = None) -> int:
        """Return the supervisor's exit code when it has ended: 0, or the code of the first unit that failed for good.

        Raises:
            TimeoutError: ``timeout_s`` ran out; it goes on, or a callback does.
            SupervisorError: It was never started.
        """
        if self._process is None:
            raise SupervisorError("the supervisor was not started")
        begun = time.monotonic()
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the supervisor still runs after {timeout_s:g} s") from None
        self._finish(None if timeout_s is None else max(0.0, begun + timeout_s - time.monotonic()))
        return code

    def stop(self, timeout_s: float | None = None) -> int:
        """Stop all units in order, and the supervisor; return its exit code.

        Raises:
            TimeoutError: ``timeout_s`` ran out; it goes on stopping.
        """
        if self.is_running and self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        return self.join(timeout_s)

    def close(self) -> None:
        """Stop it, if it runs; a temporary folder is removed."""
        if self._process is not None and self.stop() < 0 and self._is_temporary:
            self._stop_what_is_left()
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _stop_what_is_left(self) -> None:
        """Somebody has killed the supervisor: the next one adopts its processes, and stops them. It starts nothing."""
        for file in (self.folder / "units").glob("*.toml"):
            drop_in = self.folder / "units" / f"{file.name}.d" / "99-closing.toml"
            drop_in.parent.mkdir(exist_ok=True)
            drop_in.write_text(write_toml({"unit": {"enabled": False}}), encoding="utf-8")
        self._callbacks.clear()
        try:
            self._launch()
            self.stop()
        except SupervisordError:
            _log.exception("what a killed supervisor has left was not stopped")

    def _finish(self, timeout_s: float | None) -> None:
        self._is_over.set()
        follower = self._follower
        if follower is not None and follower is not threading.current_thread():
            follower.join(timeout_s)
            if follower.is_alive():
                raise TimeoutError(f"the supervisor has ended, and a callback has not after {timeout_s:g} s")
            self._follower = None

    # What it says

    def client(self) -> Client:
        """A connection to it, for every call of the control interface (``supctl idl``); for one thread."""
        return Client(self.socket_path, timeout_s=self.timeout_s)

    def status(self, unit: str) -> dict[str, Any]:
        """One unit, as ``supctl status --json`` has it.

        Raises:
            ControlError: There is no such unit.
        """
        with self.client() as client:
            (found,) = client.call("Status", units=[unit], lines=0)["units"]
        return {key: value.replace("_", "-") if key in _ENUMS else value for key, value in found.items()}

    def on(self, event: str, callback: Callback) -> None:
        """Call a function for each record of an event from the start of the supervisor on, in a thread of its own.

        Args:
            event: ``unit.failed``, or a glob: ``unit.*``; any other name or glob is what agents call events of theirs.
            callback: Takes the record. An exception in it is logged, and changes nothing else.
        """
        with self._lock:
            self._callbacks.append((event, callback))
            if self.is_running and self._follower is None:
                self._follow()

    def events(
        self,
        event: str | Sequence[str] = (),
        *,
        unit: str | Sequence[str] = (),
        severity: str | None = None,
        since: str | None = None,
        until: str | None = None,
        after: int | None = None,
        last: int | None = None,
        grep: str | None = None,
        invocation: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return records of the journal, oldest first; also when it has ended (but for those that are kept in a ring).

        Args:
            event: Names or globs, of our events or of what agents call theirs; none: every event.
            unit: Names or globs; none: every unit, and what is about none.
            severity: ``info``, ``warning`` or ``error``: that or worse.
            since: Not before this moment (RFC 3339, UTC).
            until: Not after this one.
            after: Only records with a higher number.
            last: At most so many, the newest; None: all.
            grep: A regular expression that is searched for in the line.
            invocation: One life of a unit.
        """
        if self.is_running:
            times = {"since": since, "until": until}
            # Whoever may not ask over the socket (``allowed_commands``) reads the files, as one who comes too late.
            with contextlib.suppress(ControlError, UnreachableError, ConnectionLostError), self.client() as client:
                return client.events(
                    event,
                    unit=unit,
                    severity=severity,
                    **times,
                    after=after,
                    last=last,
                    grep=grep,
                    invocation=invocation,
                )
        wanted = RecordFilter(
            units=(unit,) if isinstance(unit, str) else tuple(unit),
            events=(event,) if isinstance(event, str) else tuple(event),
            severity=severity,
            since=since,
            until=until,
            after=after,
            grep=grep,
            invocation=invocation,
        )
        reader = JournalReader(self.folder / "state" / "journal")
        query = compile_filter(wanted)
        found = reader.all(query) if last is None else reader.last(query, last)
        return [record for record in found if "event" in record]

    def _follow(self) -> None:
        self._follower = threading.Thread(target=self._call_back, name="supervisor-events", daemon=True)
        self._follower.start()

    def _call_back(self) -> None:
        for record in self._records():
            for pattern, callback in list(self._callbacks):
                if _is_meant(record, pattern):
                    try:
                        callback(record)
                    except BaseException:  # noqa: BLE001  it is the program's own, and others follow
                        _log.exception("a callback for %s failed", record["event"])

    def _records(self) -> Iterator[dict[str, Any]]:
        """Every record, in its order, without a hole where a manager is replaced, to the last one."""
        last_seq = 0
        may_follow = True
        while self.is_running:
            # Where ``allowed_commands`` leaves the journal to nobody on the socket, its files are the program's own.
            for record in self._followed(last_seq) if may_follow else self.events(after=last_seq):
                if record is None:
                    may_follow = False
                    continue
                last_seq = record["seq"] or last_seq
                yield record
            self._is_over.wait(POLL_S if may_follow else LOOK_S)
        yield from self.events(after=last_seq)

    def _followed(self, last_seq: int) -> Iterator[dict[str, Any] | None]:
        """Every record as the manager tells it, until it is gone; None: it may not tell."""
        wanted = {"units": [], "events": [], "after": last_seq}
        try:
            with self.client() as client:
                for reply in client.stream("Journal.Follow", filter=wanted, last=None):
                    # The last reply, which ends the stream, has no record.
                    record = reply["record"]
                    if reply.get("gone"):
                        _log.warning(
                            "records %d to %d are gone before a callback saw them", last_seq + 1, reply["gone"]
                        )
                    if reply["dropped"]:
                        # The callbacks are slow: the journal has what the stream could not wait with.
                        for missed in self.events(after=last_seq):
                            last_seq = missed["seq"] or last_seq
                            yield missed
                    if record and (record["seq"] or last_seq + 1) > last_seq:
                        last_seq = record["seq"] or last_seq
                        yield record
        except (ConnectionLostError, UnreachableError):
            pass
        except ControlError as refused:
            if refused.name == "NotPermitted":
                yield None


def _is_meant(record: Mapping[str, Any], pattern: str) -> bool:
    """Whether an event is meant by a name or glob: ours, or what an agent calls its own."""
    if fnmatch.fnmatchcase(record["event"], pattern):
        return True
    name = record.get("name") if record["event"] == "unit.message" else None
    return (
        isinstance(name, str)
        and not any(fnmatch.fnmatchcase(event, pattern) for event in EVENTS)
        and (fnmatch.fnmatchcase(name, pattern))
    )


_ENUMS = ("load_state", "active_state", "sub_state", "result")


def _home() -> str:
    return str(Path(__file__).parents[1])


def _merged(below: Tables, above: Tables) -> dict[str, Any]:
    """Merge nested tables; what is ``above`` wins."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _agent_table(cls: type, keys: Mapping[str, Any]) -> dict[str, Any]:
    """``[agent]`` of a class of this program."""
    spec, path = _class_and_path(cls)
    written = {key.replace("_", "-"): value for key, value in keys.items()}
    json.dumps(written)
    return {"class": spec, **({"path": path} if path else {}), **written}


def _stub_keys(spec: str, path: list[str]) -> dict[str, Any]:
    return {"stub-class": spec, **({"stub-path": path} if path else {})}


def _class_and_path(cls: type) -> tuple[str, list[str]]:
    """How another process finds a class of this program: its module is imported again there."""
    if not issubclass(cls, Agent):
        raise ValueError(f"{cls.__qualname__} is no subclass of supervisord_py.agent.Agent")
    if "<locals>" in cls.__qualname__:
        raise ValueError(f"{cls.__qualname__} is defined in a function: another process cannot import it")
    module = sys.modules[cls.__module__]
    file = getattr(module, "__file__", None)
    name = cls.__module__
    if name == "__main__":
        if file is None:
            raise ValueError(f"{cls.__qualname__} is defined on a command line: another process cannot import it")
        # As with multiprocessing: what the script does belongs below `if __name__ == "__main__"`.
        name = Path(file).stem
    spec = f"{name}:{cls.__qualname__}"
    if file is None:
        return spec, []
    folder = Path(file).absolute().parent
    depth = name.count(".") + (Path(file).name == "__init__.py")
    return spec, [str(folder if depth == 0 else folder.parents[depth - 1])]
