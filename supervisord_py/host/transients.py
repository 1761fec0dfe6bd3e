"""Units that ``supctl run`` asks for: they have no file on disk, and are forgotten when they have ended.

Theory of operation
-------------------
The text of such a unit is a value in the sources of the units (``UnitFile.transient``), in the custody of the keeper
with all that was read from files. So it is there as long as anything of it may run: a manager that follows another, a
keeper that replaces itself and one that follows a killed one find it; a supervisor that ended in order has nothing left
that needs it. ``daemon-reload`` carries it over.

It is loaded as ``set`` loads its drop-ins, then started as any unit is, and is one for all other verbs. When it is at
rest it is *collected*: loaded no more, so the core forgets it. One that has failed stays until ``reset-failed`` (at
most ``FAILED_MAX`` do, the latest), unless it was asked for to be collected in any case. Somebody who waits for its end
holds it meanwhile, or the answer would be gone before it was read.

A name that was not chosen is made of the request's token: the same request again, after a lost connection, means the
same unit, and never a second one.

Source: systemd, systemd-run(1); systemd.unit(5), CollectMode=.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.events import CommandRequested
from supervisord_py.host.command_records import bug_record, command_record, with_fields
from supervisord_py.host.control_folder import Change as FileChange
from supervisord_py.host.control_folder import apply_changes
from supervisord_py.host.facade import Order, Peer, RunReport
from supervisord_py.host.places import Places
from supervisord_py.host.sources import Sources
from supervisord_py.host.spent_logs import clear_logs
from supervisord_py.host.tuning import CannotChangeError
from supervisord_py.host.tuning import Host as TuningHost
from supervisord_py.host.unit_files import CONTROL_PRIORITY, printable
from supervisord_py.model.names import is_unit_name
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind
from supervisord_py.store.redact import redact_words

FOLDER = "transient"
"""Where their files would lie; none do."""

FAILED_MAX = 100
"""So many that have failed are kept."""

TRANSIENT_MAX = 1000
OF_ONE_USER_MAX = 64
"""So many of one user who may run things as themselves only."""

FAILED_OF_ONE_USER_MAX = 8
"""So many of these that have failed are kept."""

OF_ONE_USER_A_MINUTE = 120
"""So many of these are begun in a minute: each is a dozen records of a journal that is everybody's."""

COLLECT_S = 0.2
"""How long after one has ended it is collected: several end together."""

_DIGITS = 12
_MINUTE_S = 60.0


class _Planned(Struct, frozen=True):
    before: Sources
    sources: Sources
    loaded: LoadResult
    file: UnitFile


def made_name(token: str, owner: str = "") -> str:
    """Return the name of a unit for which none was chosen: ``run-TOKEN``, of an ``owner`` (a uid) ``run-UID-TOKEN``."""
    digits = hashlib.sha256((token or os.urandom(16).hex()).encode()).hexdigest()[:_DIGITS]
    return f"run-{owner}-{digits}" if owner else f"run-{digits}"


def is_made_name(name: str) -> bool:
    """Tell whether a name is such a one."""
    head, _, digits = name.rpartition("-")
    owner = head.removeprefix("run-") if head != "run" else "0"
    is_ours = head == "run" or head.startswith("run-")
    return is_ours and owner.isdecimal() and len(digits) == _DIGITS and set(digits) <= set("0123456789abcdef")


class Transients:
    """Makes and collects them for the daemon.

    Args:
        host: The daemon.
        config: What ``run`` was told.
        places: Where the files are.
        lock: Held from the planning until what was planned is loaded.
    """

    def __init__(self, host: TuningHost, config: Any, places: Places, lock: asyncio.Lock) -> None:
        self._host, self._config, self._places, self._lock = host, config, places, lock
        self._held: Counter[str] = Counter()
        self._begun_s: dict[int, deque[float]] = {}
        """When those of each user were begun lately."""
        self._seen: Sources | None = None
        self._files: tuple[UnitFile, ...] = ()
        self._due: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # What there is

    @property
    def files(self) -> tuple[UnitFile, ...]:
        """Those that are loaded."""
        sources = self._host.sources
        if self._seen is not sources:
            self._seen, self._files = sources, sources.units.transient
        return self._files

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Keep a unit from being collected meanwhile."""
        self._held[name] += 1
        try:
            yield
        finally:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]
            self.look()

    # Running

    async def run(
        self, order: Order, peer: Peer, *, reason: str = "", plan: bool = False, wait: bool = True, token: str = ""
    ) -> RunReport:
        """Load a unit and start it; whoever asks holds it (``holding``).

        Raises:
            CannotChangeError: It cannot be, and nothing has changed.
        """
        host, name = self._host, order.name
        event = CommandRequested(0, "start", (name,), peer.origin(), reason, wait=wait, token=token)
        if token and not plan and view.knows_token(host.manager, token):
            # The same request as before, after a lost connection: its unit was there, and perhaps has ended.
            return RunReport(None, (), await host.request(event, None))
        async with self._lock:
            if not plan and self._is_there(order, token):
                planned, seq = None, None
            else:
                planned = await asyncio.to_thread(self._plan, order)
                warnings = tuple(
                    problem.message for problem in planned.loaded.problems if problem.file == planned.file.path
                )
                path = planned.file.path if order.save else None
                if plan:
                    return RunReport(path, warnings)
                self._refuse_while_refusing(order, peer, reason)
                if order.save:
                    await asyncio.to_thread(_write_new, Path(planned.file.path), order)
                record = command_record("run", [name], peer, reason)
                self._note_begin(order)
                seq = host.note_command(with_fields(record, result="done", argv=redact_words(order.argv)))
                host.load(*self._now(planned), read=(name,) if order.save else (), cause=seq)
                await host.changed()
        submission = await host.request(replace(event, cause=seq), None)
        if planned is None:
            return RunReport(None, (), submission)
        return RunReport(path, warnings, submission)

    async def ended(self, name: str) -> None:
        """Return when a unit is at rest, or forgotten."""
        while not view.is_at_rest(self._host.manager, name):
            await self._host.changed()

    def give_up(self, name: str, peer: Peer, reason: str) -> None:
        """Stop a unit, and wait for nothing."""
        record = command_record("stop", [name], peer, reason)
        event = CommandRequested(0, "stop", (name,), peer.origin(), reason, wait=False)

        async def stop() -> None:
            if view.is_known(self._host.manager, name):
                await self._host.request(event, record)

        self._spawn(stop())

    def _is_there(self, order: Order, token: str) -> bool:
        """Whether this very request has got as far as the load, and its manager no further."""
        return any(
            file.name == order.name and file.transient is not None and file.transient.token == token != ""
            for file in self.files
        )

    def _plan(self, order: Order) -> _Planned:
        sources, name = self._host.sources, order.name
        if not is_unit_name(name) or "@" in name:
            message = f"{name[:80]!r} cannot be the name of a unit that is run: letters, digits, and any of : _ . -"
            raise CannotChangeError("InvalidRequest", name, message)
        loaded = self._host.loaded
        if name in loaded.names or view.is_known(self._host.manager, name):
            raise CannotChangeError("JobFailed", name, f"there is a unit {name} already: choose another name")
        if not order.save:
            self._refuse_too_many(order)
        file = self._file(order)
        after = replace(sources, units=replace(sources.units, files=(*sources.units.files, file)))
        loaded = after.build()[1]
        known = frozenset(self._host.loaded.problems)
        wrong = [each for each in loaded.problems if each.severity == "error" and each not in known]
        if wrong:
            first = wrong[0]
            if first.file != file.path:
                raise CannotChangeError("BadUnit", name, first.headline())
            text = f"run: {first.key}: {first.message}" if first.key else f"run: {first.message}"
            raise CannotChangeError("InvalidRequest", name, f"{text} ({first.hint})" if first.hint else text)
        if name in loaded.unit_set.bad:
            raise CannotChangeError("BadUnit", name, loaded.unit_set.bad[name].reason)
        if order.objection is not None and (why := order.objection(loaded.unit_set.units[name])) is not None:
            raise CannotChangeError("NotPermitted", name, why)
        return _Planned(sources, after, loaded, file)

    def _refuse_too_many(self, order: Order) -> None:
        identity = order.transient.identity
        if len(self.files) >= TRANSIENT_MAX:
            message = f"{TRANSIENT_MAX} units that were run are there already: supctl reset-failed 'run-*'"
            raise CannotChangeError("Busy", order.name, message)
        if identity is None:
            return
        found = [file.transient.identity for file in self.files if file.transient is not None]
        if sum(each is not None and each.uid == identity.uid for each in found) >= OF_ONE_USER_MAX:
            message = f"uid {identity.uid} runs {OF_ONE_USER_MAX} units already, and may not run more"
            raise CannotChangeError("Busy", order.name, message)
        begun_s, now_s = self._begun_s.get(identity.uid, deque()), time.monotonic()
        if sum(now_s - at_s < _MINUTE_S for at_s in begun_s) >= OF_ONE_USER_A_MINUTE:
            message = f"uid {identity.uid} has run {OF_ONE_USER_A_MINUTE} units within a minute: try again later"
            raise CannotChangeError("Busy", order.name, message)

    def _note_begin(self, order: Order) -> None:
        if order.transient.identity is not None:
            uid = order.transient.identity.uid
            self._begun_s.setdefault(uid, deque(maxlen=OF_ONE_USER_A_MINUTE)).append(time.monotonic())

    def _file(self, order: Order) -> UnitFile:
        if not order.save:
            path = f"{FOLDER}/{order.name}.toml"
            return UnitFile(
                order.name, path, order.text, UnitFileKind.UNIT, FOLDER, CONTROL_PRIORITY, transient=order.transient
            )
        folders: Sequence[str] = self._config["unit_paths"] or [str(each) for each in self._places.unit_path]
        for rank, folder in enumerate(folders):
            if not self._config["unit_paths"] or os.path.isdir(folder):
                path = printable(os.path.join(folder, f"{order.name}.toml"))
                return UnitFile(order.name, path, order.text, UnitFileKind.UNIT, printable(folder), rank)
        raise CannotChangeError(
            "JobFailed", order.name, "there is no folder to save it in: the supervisor was started with files only"
        )

    def _refuse_while_refusing(self, order: Order, peer: Peer, reason: str) -> None:
        if (why := self._host.refusing) is not None:
            record = with_fields(command_record("run", [order.name], peer, reason), result="Busy")
            self._host.note_command(record)
            raise CannotChangeError("Busy", "", why)
        if view.is_stopping(self._host.manager):
            raise CannotChangeError("ShuttingDown", order.name, "the supervisor is shutting down")

    def _now(self, planned: _Planned) -> tuple[Sources, LoadResult]:
        """Return what is to be loaded: a rollout may have gone back since it was planned."""
        now = self._host.sources
        if now is planned.before:
            return planned.sources, planned.loaded
        change = FileChange(planned.file.name, planned.file.path, planned.file)
        sources = replace(now, units=apply_changes(now.units, [change]))
        return sources, sources.build()[1]

    # Collecting

    def look(self) -> None:
        """Collect a moment later, if there is anything; called whenever something has changed."""
        if self._due is None and not self._is_closed and self._gone():
            self._due = asyncio.get_running_loop().call_later(COLLECT_S, self._begin)

    async def close(self) -> None:
        """Collect nothing any more: the next manager does."""
        self._is_closed = True
        if self._due is not None:
            self._due.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self) -> None:
        self._spawn(self._collect())

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _gone(self) -> list[str]:
        """The units that are to be forgotten now."""
        manager = self._host.manager
        if not self.files or view.is_stopping(manager):
            return []
        gone: list[str] = []
        failed: list[tuple[int, str]] = []
        of_users: dict[int, list[tuple[int, str]]] = {}
        for file in self.files:
            if file.name in self._held or file.transient is None or not view.is_at_rest(manager, file.name):
                continue
            if not view.has_failed(manager, file.name) or file.transient.collect:
                gone.append(file.name)
                continue
            identity = file.transient.identity
            kept = failed if identity is None else of_users.setdefault(identity.uid, [])
            kept.append((view.since_ns(manager, file.name), file.name))
        gone += oldest(failed, FAILED_MAX)
        return gone + [name for each in of_users.values() for name in oldest(each, FAILED_OF_ONE_USER_MAX)]

    async def _collect(self) -> None:
        try:
            async with self._lock:
                await self._forget(self._gone())
        except Exception as error:  # noqa: BLE001  a bug of ours here is no reason to end with all units
            self._host.note_command(bug_record("the end of units that were run", error))
            return
        finally:
            self._due = None
        self.look()

    async def _forget(self, names: Sequence[str]) -> None:
        host, before = self._host, self._host.sources
        gone = set(names)
        if not gone:
            return

        def is_left(file: UnitFile) -> bool:
            # What was set of it for this time goes with it, or the next unit of the name would have it.
            is_set = file.kind is UnitFileKind.DROP_IN and file.path.startswith(f"{printable(str(self._places.set))}/")
            return file.name not in gone or not (file.transient is not None or is_set)

        units = replace(before.units, files=tuple(file for file in before.units.files if is_left(file)))
        sources = replace(before, units=units)
        loaded = (await asyncio.to_thread(sources.build))[1]
        if host.sources is not before or not gone <= set(self._gone()):
            return  # something has changed meanwhile: it is looked at again
        host.load(sources, loaded, read=())
        await host.changed()
        await asyncio.to_thread(self._clear, gone)

    def _clear(self, names: set[str]) -> None:
        """Remove what is left of units on disk: what was set for them, and the oldest of the output files."""
        for name in names:
            shutil.rmtree(self._places.set / f"{name}.toml.d", ignore_errors=True)
        clear_logs(self._places.log, lambda name: is_made_name(name) and name not in self._host.loaded.names)


def oldest(found: Sequence[tuple[int, str]], kept: int) -> list[str]:
    """Return the names of those (with their times) that are too many, the oldest."""
    return [name for _, name in sorted(found)[: max(0, len(found) - kept)]]


def _write_new(path: Path, order: Order) -> None:
    """Write a unit file whole or not at all, and never over another.

    Raises:
        CannotChangeError: It cannot be.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o644)
            file.write(order.text)
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise CannotChangeError("JobFailed", order.name, f"not saved: {path} is there already") from None
    except OSError as error:
        message = f"cannot write {path}: {(error.strerror or str(error)).lower()}"
        raise CannotChangeError("JobFailed", order.name, message) from None
