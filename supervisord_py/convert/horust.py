"""``convert horust``: services of Horust, one a file.

Its health decides there both when a service is running and whether it still is: a readiness and a liveness check here.
``start-after`` waits until the others run, and needs them no further. Older versions wrote ``_`` for ``-`` and put
everything below ``[service]``.

Source: Horust 0.1.12, docs of the service file and src/horust/formats/service.rs.
"""

import re
from collections.abc import Sequence
from typing import Any

import tomli

from supervisord_py.convert.draft import Conversion, ConvertError, Draft, Place, SourceFile
from supervisord_py.convert.formats import Surroundings
from supervisord_py.convert.names import unit_name
from supervisord_py.convert.text_forms import argv, joined, literal, seconds
from supervisord_py.convert.tree import Item, Lines, Path, go_through, span_seconds
from supervisord_py.model.positions import SourceText
from supervisord_py.model.problems import BadValue

_OWN_LOG = "output goes to the unit's own log, NAME.log in the log folder: supctl logs reads it"
_NEEDLESS = {"stderr-rotate-size": "standard error goes into the unit's log too"}
_OLD = {"successfull-exit-code": "successful-exit-code", "exit-code": "successful-exit-code", "file": "file-path"}
_TOP_OLD = {"path": "command", "wd": "working-directory", "healthness": "healthiness", "resource": "resource-limit"}
_STRATEGIES = {"always": "always", "on-failure": "on-failure", "never": "no"}


def convert(files: Sequence[SourceFile], around: Surroundings) -> Conversion:
    """Convert service files of Horust; the name of a service is that of its file unless it says another.

    Raises:
        ConvertError: One of them is no TOML.
    """
    conversion = Conversion()
    read = [(file, *_read(file)) for file in files]
    names: dict[str, str] = {}
    for file, document, _ in read:
        own = document.get("name")
        stem = file.path.rpartition("/")[2].removesuffix(".toml")
        name = own if isinstance(own, str) and own else stem
        names[file.path] = unit_name(name, set(names.values()))
    for file, document, lines in read:
        _Service(file, document, lines, names[file.path], conversion).convert()
    return conversion


def _read(file: SourceFile) -> tuple[dict[str, Any], Lines]:
    try:
        document = tomli.loads(file.text)
    except (tomli.TOMLDecodeError, ValueError, RecursionError) as error:
        raise ConvertError(f"{file.path}: no TOML: {str(error).lower()}") from None
    lines: dict[Path, int] = {}
    source = SourceText(file.path, file.text)

    def modern(table: dict[str, Any], old: dict[str, str], read_at: Path, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            name = key.replace("_", "-")
            name = old.get(name, name)
            lines[(*path, name)] = source.line((*read_at, key)) or 0
            found[name] = value
        return found

    below = document.pop("service", None)
    top = modern(document, _TOP_OLD, (), ())
    if isinstance(below, dict):
        top = {**modern(below, _TOP_OLD, ("service",), ()), **top}
    elif below is not None:
        top["service"] = below
    for key, value in top.items():
        if isinstance(value, dict):
            place = (key,) if key in document else (next((k for k in document if k.replace("_", "-") == key), key),)
            top[key] = modern(value, _OLD, place, (key,))
    return top, lines


class _Service:
    def __init__(
        self, file: SourceFile, document: dict[str, Any], lines: Lines, name: str, conversion: Conversion
    ) -> None:
        self._file = file
        self._root = Item(document, (), file.path, lines)
        self._conversion = conversion
        self._ledger = conversion.ledger
        self._draft: Draft = Draft(name, [file.path])
        self._probes: dict[str, tuple[object, Place]] = {}
        self._max_failed: int | None = None

    def convert(self) -> None:
        draft = self._draft
        draft.table("service")
        readers = {
            "name": self._name, "command": self._command, "start-delay": self._delay, "start-after": self._after,
            "shutdown-after": self._shutdown_after, "stdout": self._output, "stderr": self._output,
            "stdout-rotate-size": self._rotate, "user": self._user, "working-directory": self._directory,
            "stdout-should-append-timestamp-to-filename": self._stamp, "restart": self._restart,
            "healthiness": self._health, "failure": self._failure, "termination": self._termination,
            "environment": self._environment, "resource-limit": self._resources, "signal-rewrite": self._lost_signals,
        }  # fmt: skip
        tables = {"restart", "healthiness", "failure", "termination", "environment", "resource-limit"}
        items = self._root.mapping()
        plain = {key: item for key, item in items.items() if not (key in tables and isinstance(item.value, dict))}
        go_through(plain, readers, self._ledger, needless=_NEEDLESS)
        for key, item in items.items():
            if key in tables and isinstance(item.value, dict):
                readers[key](item)
        self._write_probes()
        if draft.get("service", "exec-start") is None:
            self._ledger.lose([use.place for use in self._ledger.uses if use.place.file == self._file.path],
                              "a service without a command")  # fmt: skip
            if not items:
                self._ledger.lost(Place(self._file.path, 0, ""), "a service without a command")
            return
        if draft.get("service", "restart") is None:
            draft.put("service", "restart", "no")
        if draft.get("service", "restart") != "no":
            draft.table("service").setdefault("restart-sec", 0)
            draft.put("service", "restart-steps", 0)
            draft.put("service", "restart-jitter", 0)
        if draft.get("quarantine", "failures") is None:
            draft.put("quarantine", "failures", 0)
        draft.table("service").setdefault("timeout-stop-sec", 10)
        if ("limits",) in draft.tables:
            draft.put("limits", "enforce", "best-effort")
        self._conversion.drafts[draft.name] = draft

    def _name(self, item: Item) -> None:
        if item.text() != self._draft.name:
            self._ledger.note(item.place, f"the service {item.text()} is called {self._draft.name} here")

    def _command(self, item: Item) -> None:
        words = item.words()
        if not words:
            raise BadValue("no command")
        if any("$" in word or "{{" in word for word in words):
            self._ledger.note(item.place, "variables of Horust's own environment are not put in here")
        if "/" in words[0]:
            words[0] = joined(self._file.base, words[0])
        self._draft.put("service", "exec-start", argv(words), item.place)

    def _delay(self, item: Item) -> str | None:
        delay = span_seconds(item.text())
        if not delay:
            return "there is no delay"
        self._draft.put("service", "exec-start-pre", [["sleep", f"{delay:g}"]], item.place)
        return None

    def _names(self, item: Item) -> list[str]:
        return [unit_name(name.removesuffix(".toml")) for name in item.texts()]

    def _after(self, item: Item) -> None:
        names = [name for name in self._names(item) if name != self._draft.name]
        self._draft.add("unit", "after", names, item.place)

    def _shutdown_after(self, item: Item) -> None:
        both = set(self._names(item)) & set(self._draft.get("unit", "after", []))
        if both:
            raise BadValue(f"units stop in the reverse order of their starts: {', '.join(sorted(both))} starts before")
        self._draft.add("unit", "before", self._names(item), item.place)

    def _output(self, item: Item) -> str:
        if item.text() in ("STDOUT", "STDERR"):
            return "run --output stdout shows the output of all units"
        raise BadValue(_OWN_LOG)

    def _rotate(self, item: Item) -> None:
        self._draft.put("log", "max-bytes", _size(item), item.place)

    def _stamp(self, item: Item) -> str:
        if item.boolean():
            raise BadValue(_OWN_LOG)
        return "so it is"

    def _user(self, item: Item) -> None:
        self._draft.put("service", "user", literal(item.text()), item.place)

    def _directory(self, item: Item) -> None:
        self._draft.put("service", "working-directory", joined(self._file.base, literal(item.text())), item.place)

    def _lost_signals(self, item: Item) -> str | None:
        raise BadValue("signals are passed on as they are")

    def _restart(self, item: Item) -> None:
        if not isinstance(item.value, dict):
            self._strategy(item)
            return
        readers = {"strategy": self._strategy, "backoff": self._backoff, "attempts": self._attempts,
                   "trials": self._attempts}  # fmt: skip
        go_through(item.mapping(), readers, self._ledger)

    def _strategy(self, item: Item) -> None:
        strategy = _STRATEGIES.get(item.text().lower())
        if strategy is None:
            raise BadValue("neither always, on-failure nor never")
        self._draft.put("service", "restart", strategy, item.place)

    def _backoff(self, item: Item) -> None:
        self._draft.put("service", "restart-sec", seconds(span_seconds(item.text())), item.place)

    def _attempts(self, item: Item) -> None:
        count = item.integer()
        self._draft.put("quarantine", "failures", count + 1 if count else 0, item.place)

    def _health(self, item: Item) -> None:
        if not isinstance(item.value, dict):
            raise BadValue("no table of keys")
        readers = {"http-endpoint": self._probe, "file-path": self._probe, "command": self._probe,
                   "max-failed": self._failed}  # fmt: skip
        go_through(item.mapping(), readers, self._ledger)

    def _probe(self, item: Item) -> None:
        key = str(item.path[-1])
        if key == "command":
            self._probes["exec"] = (argv(item.words()), item.place)
        else:
            self._probes["http" if key == "http-endpoint" else "file"] = (literal(item.text()), item.place)

    def _failed(self, item: Item) -> None:
        self._max_failed = item.integer()

    def _write_probes(self) -> None:
        for check, (value, place) in self._probes.items():
            for kind in ("readiness", "liveness"):
                table = ("health", f"{check}-{kind}")
                self._draft.put(table, "kind", kind, place)
                self._draft.put(table, check, value, place)
                self._draft.put(table, "interval", 2)
            threshold = 3 if self._max_failed is None else max(self._max_failed, 1)
            self._draft.put(("health", f"{check}-liveness"), "failure-threshold", threshold)

    def _failure(self, item: Item) -> None:
        if not isinstance(item.value, dict):
            raise BadValue("no table of keys")
        readers = {"successful-exit-code": self._codes, "strategy": self._failure_strategy}
        go_through(item.mapping(), readers, self._ledger)

    def _codes(self, item: Item) -> None:
        texts = item.texts() if isinstance(item.value, list) else item.text().split(",")
        try:
            codes = [int(text) for text in texts]
        except ValueError:
            raise BadValue("no exit codes") from None
        self._draft.put("service", "success-exit-status", [code for code in codes if code], item.place)

    def _failure_strategy(self, item: Item) -> str | None:
        strategy = item.text().lower()
        if strategy == "ignore":
            return "the others go on"
        if strategy not in ("shutdown", "kill-all"):
            raise BadValue("neither ignore, shutdown nor kill-all")
        self._draft.put("unit", "exit-supervisor-on", "failure", item.place)
        return None

    def _termination(self, item: Item) -> None:
        if not isinstance(item.value, dict):
            raise BadValue("no table of keys")
        lost = {"die-if-failed": "write binds-to, if this one is to need the other to start as well"}
        readers = {"signal": self._signal, "wait": self._wait}
        go_through(item.mapping(), readers, self._ledger, lost=lost)

    def _signal(self, item: Item) -> None:
        self._draft.put("service", "kill-signal", f"SIG{item.text().upper().removeprefix('SIG')}", item.place)

    def _wait(self, item: Item) -> None:
        wait = span_seconds(item.text())
        self._draft.put("service", "timeout-stop-sec", seconds(wait) if wait else "1ms", item.place)

    def _environment(self, item: Item) -> None:
        if not isinstance(item.value, dict):
            raise BadValue("no table of keys")
        readers = {"keep-env": self._keep, "re-export": self._export, "additional": self._additional}
        go_through(item.mapping(), readers, self._ledger)

    def _keep(self, item: Item) -> str:
        if item.boolean():
            raise BadValue('write pass-environment = "all" into [supervisor] of supervisord.toml, or name variables')
        return "the environment is clean"

    def _export(self, item: Item) -> None:
        self._draft.put("service", "pass-environment", item.texts(), item.place)

    def _additional(self, item: Item) -> None:
        variables = {name: literal(value) for name, value in item.pairs().items()}
        self._draft.put("service", "environment", variables, item.place)

    def _resources(self, item: Item) -> None:
        readers = {"cpu": self._cpu, "memory": self._memory, "pids-max": self._pids, "cpu-percent": self._percent}
        go_through(item.mapping(), readers, self._ledger)

    def _cpu(self, item: Item) -> None:
        self._draft.put("limits", "cpu-quota", f"{max(round(item.number() * 100), 1)}%", item.place)

    def _percent(self, item: Item) -> None:
        self._draft.put("limits", "cpu-quota", f"{item.integer()}%", item.place)

    def _memory(self, item: Item) -> None:
        self._draft.put("limits", "memory-max", _size(item), item.place)

    def _pids(self, item: Item) -> None:
        self._draft.put("limits", "tasks-max", item.integer(), item.place)


def _size(item: Item) -> str:
    """``100 MiB`` as ``100M``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGTP]?)(?:i?B)?\s*", item.text())
    if match is None:
        raise BadValue("no size")
    return f"{match[1]}{match[2].upper()}"
