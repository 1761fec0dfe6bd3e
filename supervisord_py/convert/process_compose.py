"""``convert process-compose``: the processes of a ``process-compose.yaml`` as unit files.

Commands are run by a shell. Nothing is restarted unless ``availability`` says so. ``depends_on`` waits: until the other
has been started, is healthy, or has ended (well). A process whose dependency failed is skipped there for good
(``on-dependency-failure = "fail"``). ``${X}`` is replaced there when the file is read, and left to the shell here.

Source: process-compose 1.122, www/docs/ and src/types/process.go.
"""

import re
from collections.abc import Sequence
from typing import Any

from supervisord_py.convert.draft import Conversion, ConvertError, Draft, SourceFile
from supervisord_py.convert.formats import Surroundings
from supervisord_py.convert.names import unit_name
from supervisord_py.convert.text_forms import argv, joined, literal, seconds
from supervisord_py.convert.tree import Item, Lines, cron_calendar, go_through, span_seconds
from supervisord_py.model.problems import BadValue

_OWN_LOG = "output goes to the unit's own log, NAME.log in the log folder: supctl logs reads it"
_TERMINAL = "a unit has no terminal"
_TOP_NEEDLESS = {
    "version": "unit files have no version",
    "is_strict": "a mistake is always an error here",
    "ordered_shutdown": "units always stop in the reverse order of their starts",
    "log_level": "the supervisor's own records are its journal",
    "log_length": "the supervisor's own records are its journal",
    "log_format": "the supervisor's own records are its journal",
    "is_tui_disabled": "there is no user interface that takes the terminal",
    "disable_env_expansion": "nothing is replaced when a unit file is read",
    "name": "a folder of unit files has no name",
}
_TOP_LOST = {
    "log_location": _OWN_LOG,
    "log_configuration": _OWN_LOG,
    "vars": "templates are not filled in: write the values",
    "extends": "convert the other file as well, or merge them",
    "env_cmds": "commands are not run to make variables",
    "mcp_server": "it has no counterpart here",
}
_LOST = {
    "log_location": _OWN_LOG,
    "log_configuration": _OWN_LOG,
    "is_interactive": _TERMINAL,
    "is_tty": _TERMINAL,
    "is_foreground": _TERMINAL,
    "is_elevated": "write user",
    "mcp": "it has no counterpart here",
    "vars": "templates are not filled in: write the values",
    "watch": "files are not watched: [health.NAME] file, or a hook",
    "monitor_for": "silence is not watched: progress-sec, or [health.NAME] log",
    "monitor_silence_threshold": "silence is not watched: progress-sec, or [health.NAME] log",
    "send_keys": _TERMINAL,
    "max_concurrent": "there is one run at a time: overrun says what becomes of the next",
}
_NEEDLESS = {
    "disable_ansi_colors": "output is kept as it was written",
    "is_dotenv_disabled": "there is no .env that is read without being named",
    "exit_on_skipped": "a unit that was skipped ends nothing",
}
_RESTARTS = {"no": "no", "always": "always", "on_failure": "on-failure", "exit_on_failure": "no", "false": "no"}
_CONDITIONS = {
    "process_started": "started", "process_healthy": "ready", "process_log_ready": "ready",
    "process_completed": "exited", "process_completed_successfully": "exited",
}  # fmt: skip


def convert(files: Sequence[SourceFile], around: Surroundings) -> Conversion:
    """Convert configurations of process-compose.

    Raises:
        ConvertError: One of them is no YAML, or is none of process-compose.
    """
    conversion = Conversion()
    for file in files:
        document, lines = around.load_yaml(file.text, file.path)
        if not isinstance(document, dict):
            raise ConvertError(f"{file.path}: this is no configuration of process-compose")
        _Project(file, document, lines, conversion).convert()
    return conversion


class _Project:
    def __init__(self, file: SourceFile, document: dict[Any, Any], lines: Lines, conversion: Conversion) -> None:
        self._file = file
        self._root = Item(document, (), file.path, lines)
        self._conversion = conversion
        self._ledger = conversion.ledger
        self._environment: dict[str, str] = {}
        self._shell = ["/bin/bash", "-c"]

    def convert(self) -> None:
        items = self._root.mapping()
        processes = items.pop("processes", None)
        readers = {"environment": self._variables, "shell": self._read_shell}
        go_through(items, readers, self._ledger, needless=_TOP_NEEDLESS, lost=_TOP_LOST)
        if processes is None or not isinstance(processes.value, dict):
            return
        found = processes.mapping()
        names: dict[str, str] = {}
        for name in found:
            taken = {each.removesuffix("@") for each in (*self._conversion.drafts, *names.values())}
            names[name] = unit_name(name, taken)
        for name, item in found.items():
            if names[name] != name:
                self._ledger.note(item.place, f"the process {name} is called {names[name]} here")
        replicated = {name for name, item in found.items() if _replicas(item) > 1}
        for name, item in found.items():
            if not isinstance(item.value, dict):
                self._ledger.lost(item.place, "no process: it has no keys")
                continue
            process = _Process(item, names[name], self._file, self._conversion, self._environment, self._shell)
            process.convert(found, names, replicated)

    def _variables(self, item: Item) -> None:
        self._environment = item.pairs()

    def _read_shell(self, item: Item) -> None:
        keys = item.mapping()
        command = keys["shell_command"].text() if "shell_command" in keys else "/bin/bash"
        argument = keys["shell_argument"].text() if "shell_argument" in keys else "-c"
        self._shell = [command, argument]


def _replicas(item: Item) -> int:
    found = item.value.get("replicas", 1) if isinstance(item.value, dict) else 1
    return found if isinstance(found, int) else 1


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


class _Process:
    def __init__(
        self, item: Item, name: str, file: SourceFile, conversion: Conversion, environment: dict[str, str],
        shell: list[str],
    ) -> None:  # fmt: skip
        self._item = item
        self._file = file
        self._conversion = conversion
        self._ledger = conversion.ledger
        self._environment = environment
        self._shell = shell
        self._name = name
        self._draft = Draft(name, [file.path])
        self._names: dict[str, str] = {}
        self._replicated: set[str] = set()
        self._run_on_start = True

    def convert(self, processes: dict[str, Item], names: dict[str, str], replicated: set[str]) -> None:
        self._names, self._replicated = names, replicated
        base = self._item.value.get("extends")
        if isinstance(base, str) and base in processes and isinstance(processes[base].value, dict):
            # A base of a base is rare enough to be told.
            merged = _merged({k: v for k, v in processes[base].value.items() if k != "extends"}, self._item.value)
            self._item = Item(merged, self._item.path, self._item.file, self._item.lines)
        draft = self._draft
        draft.table("service")
        readers = {
            "command": self._command, "entrypoint": self._entrypoint, "extends": self._extends,
            "working_dir": self._directory, "environment": self._variables, "env_file": self._env_file,
            "description": self._description, "disabled": self._disabled, "namespace": self._namespace,
            "depends_on": self._depends, "availability": self._availability, "shutdown": self._shutdown,
            "readiness_probe": self._probe, "liveness_probe": self._probe, "ready_log_line": self._ready_line,
            "is_daemon": self._daemon, "launch_timeout_seconds": self._launch, "replicas": self._replicate,
            "success_exit_codes": self._codes, "schedule": self._schedule,
        }  # fmt: skip
        go_through(self._item.mapping(), readers, self._ledger, needless=_NEEDLESS, lost=_LOST)
        if draft.get("service", "exec-start") is None:
            reason = "a process without a command"
            places = [place for places in draft.places.values() for place in places]
            self._ledger.lose(places or [self._item.place], reason)
            return
        if self._environment or draft.get("service", "environment"):
            own = draft.get("service", "environment", {})
            variables = {name: literal(value) for name, value in self._environment.items()} | own
            draft.put("service", "environment", variables)
        if draft.get("service", "working-directory") is None:
            draft.put("service", "working-directory", literal(self._file.base))
        self._finish()
        if draft.get("instances", "count") is not None:
            draft.name = f"{draft.name}@"
        self._conversion.drafts[draft.name] = draft

    def _finish(self) -> None:
        """What process-compose does when nothing is said."""
        draft = self._draft
        service = draft.table("service")
        service.setdefault("restart", "no")
        if service["restart"] != "no":
            service.setdefault("restart-sec", 1)
            draft.put("service", "restart-steps", 0)
            draft.put("service", "restart-jitter", 0)
        if draft.get("quarantine", "failures") is None:
            draft.put("quarantine", "failures", 0)
        service.setdefault("timeout-stop-sec", 10)
        if draft.get("unit", "requires"):
            draft.put("unit", "on-dependency-failure", "fail")
        if ("timer",) in draft.tables and service["restart"] == "always":
            self._ledger.lose(draft.drop(("service",), "restart"), "with a schedule each run ends by itself")
            service["restart"] = "no"

    def _line(self, item: Item) -> list[str]:
        """A command line for the shell: ``$$`` was a dollar there."""
        text = item.text().strip()
        if not text:
            raise BadValue("no command")
        if "{{" in text:
            raise BadValue("templates are not filled in: write the values")
        return [*self._shell, literal(text.replace("$$", "$"))]

    def _command(self, item: Item) -> None:
        if "entrypoint" in self._item.value:
            raise BadValue("the entrypoint is there as well")
        self._draft.put("service", "exec-start", self._line(item), item.place)

    def _entrypoint(self, item: Item) -> None:
        self._draft.put("service", "exec-start", argv(item.words()), item.place)

    def _extends(self, item: Item) -> None:
        if item.text() not in self._names:
            raise BadValue(f"there is no process {item.text()}")

    def _directory(self, item: Item) -> None:
        text = item.text()
        if "$" in text:
            raise BadValue("it refers to the environment of process-compose: write its value")
        self._draft.put("service", "working-directory", joined(self._file.base, literal(text)), item.place)

    def _variables(self, item: Item) -> None:
        variables = {name: literal(value.replace("$$", "$")) for name, value in item.pairs().items()}
        self._draft.put("service", "environment", variables, item.place)

    def _env_file(self, item: Item) -> None:
        path = joined(self._file.base, literal(item.text()))
        self._draft.put("service", "environment-file", [f"-{path}"], item.place)

    def _description(self, item: Item) -> None:
        self._draft.put("unit", "description", literal(" ".join(item.text().split())), item.place)

    def _disabled(self, item: Item) -> str | None:
        if not item.boolean():
            return "so it is"
        self._draft.put("unit", "enabled", False, item.place)
        return None

    def _namespace(self, item: Item) -> None:
        self._draft.put("unit", "groups", [unit_name(item.text())], item.place)

    def _depends(self, item: Item) -> None:
        depends = item.mapping() if isinstance(item.value, dict) else dict.fromkeys(item.texts())
        requires: list[Any] = []
        wants: list[Any] = []
        lost: list[str] = []
        for name, how in depends.items():
            if name not in self._names:
                lost.append(f"there is no process {name}")
                continue
            said = how.value.get("condition") if how is not None and isinstance(how.value, dict) else None
            condition = said if isinstance(said, str) else "process_started"
            until = _CONDITIONS.get(condition)
            if until is None:
                lost.append(f"{condition} is no condition")
                continue
            unit = self._names[name] + ("@" if name in self._replicated else "")
            written = {"unit": unit} if until == "ready" else {"unit": unit, "until": until}
            (wants if condition == "process_completed" else requires).append(written)
        if requires:
            self._draft.put("unit", "requires", requires, item.place)
        if wants:
            self._draft.put("unit", "wants", wants, item.place)
        if lost:
            raise BadValue("; ".join(lost))

    def _availability(self, item: Item) -> None:
        readers = {"restart": self._restart, "backoff_seconds": self._backoff, "max_restarts": self._restarts,
                   "exit_on_end": self._exit_on_end}  # fmt: skip
        go_through(item.mapping(), readers, self._ledger, needless=_NEEDLESS)

    def _restart(self, item: Item) -> None:
        word = str(item.value).lower().replace("-", "_")
        if word not in _RESTARTS:
            raise BadValue("neither no, always, on_failure nor exit_on_failure")
        self._draft.put("service", "restart", _RESTARTS[word], item.place)
        if word == "exit_on_failure":
            self._draft.put("unit", "exit-supervisor-on", "failure", item.place)

    def _backoff(self, item: Item) -> None:
        self._draft.put("service", "restart-sec", seconds(item.number()), item.place)

    def _restarts(self, item: Item) -> None:
        count = item.integer()
        self._draft.put("quarantine", "failures", count + 1 if count > 0 else 0, item.place)

    def _exit_on_end(self, item: Item) -> str | None:
        if not item.boolean():
            return "so it is"
        self._draft.put("unit", "exit-supervisor-on", "exit", item.place)
        return None

    def _shutdown(self, item: Item) -> None:
        readers = {"command": self._stop_command, "signal": self._signal, "timeout_seconds": self._stop_timeout,
                   "parent_only": self._parent_only}  # fmt: skip
        go_through(item.mapping(), readers, self._ledger, lost=_LOST)

    def _stop_command(self, item: Item) -> None:
        self._draft.put("service", "exec-stop", self._line(item), item.place)

    def _signal(self, item: Item) -> None:
        self._draft.put("service", "kill-signal", item.integer(), item.place)

    def _stop_timeout(self, item: Item) -> None:
        self._draft.put("service", "timeout-stop-sec", seconds(item.number()), item.place)

    def _parent_only(self, item: Item) -> str | None:
        if not item.boolean():
            return "so it is"
        self._draft.put("service", "kill-mode", "mixed", item.place)
        return None

    def _probe(self, item: Item) -> None:
        kind = str(item.path[-1]).partition("_")[0]
        table = ("health", kind)
        keys = item.mapping()
        if "http_get" in keys:
            self._http(keys["http_get"], table)
        elif "exec" in keys:
            self._exec(keys["exec"], table)
        else:
            raise BadValue("a probe that looks at nothing")
        self._draft.put(table, "kind", kind, item.place)
        for name, key in (("initial_delay_seconds", "initial-delay"), ("period_seconds", "interval"),
                          ("timeout_seconds", "timeout")):  # fmt: skip
            if name in keys:
                value = keys[name].number()
                if value or key == "initial-delay":
                    self._draft.put(table, key, seconds(value), keys[name].place)
        for name, key in (("success_threshold", "success-threshold"), ("failure_threshold", "failure-threshold")):
            if name in keys and (kind == "readiness" or key == "failure-threshold"):
                self._draft.put(table, key, max(keys[name].integer(), 1), keys[name].place)

    def _http(self, item: Item, table: tuple[str, ...]) -> None:
        keys = item.mapping()
        values = {name: keys[name].text() for name in keys if name in ("scheme", "host", "path", "port")}
        host, path = values.get("host", "127.0.0.1"), values.get("path", "/")
        port = f":{values['port']}" if "port" in values else ""
        url = f"{values.get('scheme', 'http')}://{host}{port}/{path.lstrip('/')}"
        self._draft.put(table, "http", literal(url), item.place)

    def _exec(self, item: Item, table: tuple[str, ...]) -> None:
        keys = item.mapping()
        if "command" not in keys:
            raise BadValue("a probe without a command")
        command = self._line(keys["command"])
        if "working_dir" in keys:
            folder = joined(self._file.base, literal(keys["working_dir"].text()))
            command[-1] = f"cd '{folder}' && {command[-1]}"
        self._draft.put(table, "exec", command, item.place)

    def _ready_line(self, item: Item) -> None:
        self._draft.put(("health", "log"), "kind", "readiness", item.place)
        self._draft.put(("health", "log"), "log", literal(re.escape(item.text())), item.place)
        self._draft.put(("health", "log"), "interval", 1)

    def _daemon(self, item: Item) -> str | None:
        if not item.boolean():
            return "so it is"
        # The command ends when the daemon is up, and shutdown.command ends that.
        self._draft.put("service", "type", "oneshot", item.place)
        self._draft.put("service", "remain-after-exit", True, item.place)
        return None

    def _launch(self, item: Item) -> None:
        self._draft.put("service", "timeout-start-sec", seconds(item.number()), item.place)

    def _replicate(self, item: Item) -> str | None:
        count = item.integer()
        if count == 1:
            return "so it is"
        self._draft.put("instances", "count", count, item.place)
        self._ledger.note(item.place, "PC_REPLICA_NUM is %i here, and numbers begin with 1")
        return None

    def _codes(self, item: Item) -> None:
        codes = (
            [item.below(index).integer() for index in range(len(item.value))] if isinstance(item.value, list) else []
        )
        self._draft.put("service", "success-exit-status", [code for code in codes if code], item.place)

    def _schedule(self, item: Item) -> None:
        keys = item.mapping()
        readers = {"cron": self._cron, "interval": self._interval, "run_on_start": self._on_start}
        go_through(keys, readers, self._ledger, lost=_LOST)
        if "timezone" in keys and self._draft.get("timer", "on-calendar"):
            self._draft.table("timer")["on-calendar"] += f" {keys['timezone'].text()}"

    def _cron(self, item: Item) -> None:
        self._draft.put("timer", "on-calendar", cron_calendar(item.text()), item.place)

    def _interval(self, item: Item) -> None:
        self._draft.put("timer", "every", seconds(span_seconds(item.text())), item.place)

    def _on_start(self, item: Item) -> str | None:
        if not item.boolean() or self._draft.get("timer", "every") is not None:
            return "the first run of every is when it is armed"
        self._draft.put("timer", "on-active-sec", 0, item.place)
        return None
