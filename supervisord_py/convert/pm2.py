"""``convert pm2``: the apps of an ecosystem file as unit files.

An app is started by an interpreter that follows from the suffix of its script, and started again whenever it ends. One
that lives shorter than ``min_uptime`` ``max_restarts`` times in a row is given up (``errored``). It is asked to end by
SIGINT and killed after ``kill_timeout``, its children with it.

Source: pm2 7, lib/API/schema.json, lib/Common.js (sink), lib/God.js, lib/God/Methods.js (killProcess).
"""

import re
from collections.abc import Sequence
from typing import Any

from supervisord_py.convert.draft import Conversion, ConvertError, SourceFile
from supervisord_py.convert.formats import Surroundings
from supervisord_py.convert.literals import parse_literals
from supervisord_py.convert.names import unit_name
from supervisord_py.convert.text_forms import argv, joined, literal
from supervisord_py.convert.tree import Item, go_through
from supervisord_py.model.problems import BadValue

_INTERPRETERS = {
    ".js": "node", ".mjs": "node", ".cjs": "node", ".json": "node", ".ts": "bun", ".tsx": "bun", ".py": "python3",
    ".rb": "ruby", ".sh": "bash", ".bash": "bash", ".pl": "perl", ".php": "php", ".coffee": "coffee", ".ls": "lsc",
}  # fmt: skip
_OWN_LOG = "output goes to the unit's own log, NAME.log in the log folder: supctl logs reads it"
_WATCH = "files are not watched"
_CLUSTER = "processes are not made by node's cluster module, so they do not share a port"
_DEPLOYMENT = "there is one environment a unit: drop-ins (NAME.toml.d) make others"
_NODE = 'it is told over node\'s own channel: sd_notify (READY=1, type = "notify") is what is listened to here'
_SPANS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_NEEDLESS = {
    "merge_logs": "each unit has one log",
    "combine_logs": "each unit has one log",
    "time": "supctl logs tells times by the lives of a unit",
    "vizion": "version control is not looked at",
    "autostart": "the units that are enabled start with the supervisor",
    "pid_file": "supctl show tells the pid",
    "pid": "supctl show tells the pid",
    "force": "a unit is there once",
    "automation": "there is no module to be injected",
    "pmx": "there is no module to be injected",
    "source_map_support": "there is no module to be injected",
    "disable_source_map_support": "there is no module to be injected",
    "exec_interpreter": "the interpreter is told",
    "error_file": "standard error goes into the unit's log too",
    "error": "standard error goes into the unit's log too",
    "err_file": "standard error goes into the unit's log too",
    "ignore_watch": _WATCH,
    "watch_delay": _WATCH,
    "watch_options": _WATCH,
}
_LOST = {
    "out_file": _OWN_LOG, "output": _OWN_LOG, "out": _OWN_LOG, "log_file": _OWN_LOG, "log": _OWN_LOG,
    "log_date_format": "output is kept as it was written", "log_type": "output is kept as it was written",
    "listen_timeout": _NODE, "shutdown_with_message": _NODE, "instance_var": "the number of an instance is %i",
    "increment_var": "the number of an instance is %i: write it where it is wanted",
    "filter_env": "the environment is clean; pass-environment passes variables on",
    "cron_restart": "a restart at times: let a unit with a [timer] run supctl restart",
    "cron": "a restart at times: let a unit with a [timer] run supctl restart",
    "post_update": "deployments are not made from here", "deploy": "deployments are not made from here",
    "wait_ready": _NODE, "append_env_to_name": _DEPLOYMENT,
}  # fmt: skip


def convert(files: Sequence[SourceFile], around: Surroundings) -> Conversion:
    """Convert ecosystem files of pm2.

    Raises:
        ConvertError: One of them is none, or has to be executed to be known.
    """
    conversion = Conversion()
    for file in files:
        if file.path.endswith((".yaml", ".yml")):
            document, lines = around.load_yaml(file.text, file.path)
        else:
            document, lines = parse_literals(file.text, file.path)
        root = Item(document, (), file.path, lines)
        if isinstance(document, dict) and isinstance(document.get("apps"), list | dict):
            items = root.mapping()
            apps = items.pop("apps")
            go_through(items, {}, conversion.ledger, lost=_LOST)
        elif isinstance(document, list) or (isinstance(document, dict) and "script" in document):
            apps = root
        else:
            raise ConvertError(f"{file.path}: no apps are in it")
        each = [apps.below(index) for index in range(len(apps.value))] if isinstance(apps.value, list) else [apps]
        for index, item in enumerate(each):
            if isinstance(item.value, dict):
                _App(item, file, index, conversion).convert()
            else:
                conversion.ledger.lost(item.place, "no app: it has no keys")
    return conversion


class _App:
    def __init__(self, item: Item, file: SourceFile, index: int, conversion: Conversion) -> None:
        self._item = item
        self._file = file
        self._conversion = conversion
        self._ledger = conversion.ledger
        script = item.value.get("script")
        stem = str(script).rpartition("/")[2].partition(".")[0] if isinstance(script, str) else f"app-{index}"
        name = item.value.get("name")
        self._said = name if isinstance(name, str) and name else stem
        taken = {each.removesuffix("@") for each in conversion.drafts}
        self._name = unit_name(self._said, taken)
        self._unit = f"{self._name}@" if _count(item.value.get("instances")) > 1 else self._name
        self._draft = conversion.draft(self._unit, file.path)

    def convert(self) -> None:
        draft = self._draft
        draft.table("service")
        if self._name != self._said:
            self._ledger.note(self._item.place, f"the app {self._said} is called {self._name} here")
        readers = {
            "name": self._nothing, "script": self._script, "cwd": self._cwd, "args": self._part,
            "interpreter": self._part, "interpreter_args": self._part, "node_args": self._part,
            "instances": self._instances, "exec_mode": self._mode, "env": self._env, "autorestart": self._restart,
            "max_restarts": self._max_restarts, "min_uptime": self._uptime, "restart_delay": self._delay,
            "exp_backoff_restart_delay": self._backoff, "kill_timeout": self._kill_timeout, "uid": self._user,
            "user": self._user, "gid": self._group, "max_memory_restart": self._memory,
            "stop_exit_codes": self._codes, "namespace": self._namespace, "treekill": self._tree,
            "watch": self._watch, "disable_logs": self._no_logs,
        }  # fmt: skip
        items = self._item.mapping()
        deployments = {name: item for name, item in items.items() if name.startswith("env_")}
        for item in deployments.values():
            self._ledger.lost(item.place, _DEPLOYMENT)
        plain = {name: item for name, item in items.items() if name not in deployments}
        go_through(plain, readers, self._ledger, needless=_NEEDLESS, lost=_LOST)
        if draft.get("service", "exec-start") is None:
            places = [place for places in draft.places.values() for place in places]
            self._ledger.lose(places, "an app without a script")
            if not places:
                self._ledger.lost(self._item.place, "an app without a script")
            del self._conversion.drafts[self._unit]
            return
        self._finish()

    def _finish(self) -> None:
        """What pm2 does when nothing is said."""
        service = self._draft.table("service")
        service.setdefault("restart", "always")
        service.setdefault("working-directory", literal(self._file.base))
        if service["restart"] != "no":
            service.setdefault("restart-sec", 0)
            service.setdefault("restart-steps", 0)
            service["restart-jitter"] = 0
            service.setdefault("restart-reset-sec", "1s")
        if self._draft.get("quarantine", "failures") is None:
            self._draft.put("quarantine", "failures", 16)
        service.setdefault("kill-signal", "SIGINT")
        service.setdefault("timeout-stop-sec", "1600ms")
        if ("limits",) in self._draft.tables:
            self._draft.put("limits", "enforce", "best-effort")

    def _nothing(self, item: Item) -> None:
        item.text()

    def _part(self, item: Item) -> None:
        """A part of the command, which the script puts together."""
        item.words()

    def _folder(self) -> str:
        cwd = self._item.value.get("cwd")
        return joined(self._file.base, cwd) if isinstance(cwd, str) else self._file.base

    def _script(self, item: Item) -> None:
        script = item.text()
        keys = self._item.mapping()
        args = keys["args"].words() if "args" in keys else []
        given = [keys[key].words() for key in ("interpreter_args", "node_args") if key in keys]
        options = [word for words in given for word in words]
        said = keys["interpreter"].text() if "interpreter" in keys else None
        if " " in script and said is None:
            # A command line: pm2 hands it to a shell.
            line = " ".join([script, *args])
            self._draft.put("service", "exec-start", ["bash", "-c", literal(line)], item.place)
            return
        suffix = re.search(r"\.[a-z]+$", script)
        interpreter = said or (_INTERPRETERS.get(suffix[0], "none") if suffix else "none")
        path = script
        if "/" in script or interpreter != "none" or suffix is not None:
            path = joined(self._folder(), script)
        words = [path, *args] if interpreter == "none" else [interpreter, *options, path, *args]
        if "/" in words[0]:
            words[0] = joined(self._folder(), words[0])
        self._draft.put("service", "exec-start", argv(words), item.place)

    def _cwd(self, item: Item) -> None:
        self._draft.put("service", "working-directory", joined(self._file.base, literal(item.text())), item.place)

    def _instances(self, item: Item) -> None:
        count = _count(item.value)
        if count < 1:
            raise BadValue("as many as there are processors: write [instances] count into a template")
        if count > 1:
            self._draft.put("instances", "count", count, item.place)
            self._ledger.note(item.place, "NODE_APP_INSTANCE is %i here, and numbers begin with 1")

    def _mode(self, item: Item) -> str:
        if item.text() in ("cluster", "cluster_mode"):
            raise BadValue(_CLUSTER)
        return "processes are made by fork"

    def _env(self, item: Item) -> None:
        variables = {name: literal(value) for name, value in item.pairs().items()}
        if variables:
            self._draft.put("service", "environment", variables, item.place)

    def _restart(self, item: Item) -> None:
        self._draft.put("service", "restart", "always" if item.boolean() else "no", item.place)

    def _max_restarts(self, item: Item) -> None:
        self._draft.put("quarantine", "failures", max(item.integer(), 1), item.place)

    def _uptime(self, item: Item) -> None:
        self._draft.put("service", "restart-reset-sec", _span(item), item.place)

    def _delay(self, item: Item) -> None:
        self._draft.put("service", "restart-sec", _span(item), item.place)

    def _backoff(self, item: Item) -> None:
        self._draft.put("service", "restart-sec", _span(item), item.place)
        self._draft.put("service", "restart-steps", 8)
        self._draft.put("service", "restart-max-delay-sec", "15s")

    def _kill_timeout(self, item: Item) -> None:
        self._draft.put("service", "timeout-stop-sec", _span(item), item.place)

    def _user(self, item: Item) -> None:
        self._draft.put("service", "user", literal(item.text()), item.place)

    def _group(self, item: Item) -> None:
        self._draft.put("service", "group", literal(item.text()), item.place)

    def _memory(self, item: Item) -> None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGkmg]?)[bB]?", item.text())
        if match is None:
            raise BadValue("no size")
        self._draft.put("limits", "memory-max", f"{match[1]}{match[2].upper()}", item.place)

    def _codes(self, item: Item) -> None:
        values = item.value if isinstance(item.value, list) else [item.value]
        codes = [Item(value, item.path, item.file, item.lines).integer() for value in values]
        self._draft.put("service", "restart-prevent-exit-status", codes, item.place)

    def _namespace(self, item: Item) -> None:
        self._draft.put("unit", "groups", [unit_name(item.text())], item.place)

    def _tree(self, item: Item) -> str | None:
        if item.boolean():
            return "what a unit has started is always stopped with it"
        self._draft.put("service", "kill-mode", "mixed", item.place)
        return None

    def _watch(self, item: Item) -> str:
        if item.value is False or item.value == []:
            return _WATCH
        raise BadValue(f"{_WATCH}: restart the unit, or let a hook do it")

    def _no_logs(self, item: Item) -> str | None:
        if not item.boolean():
            return "so it is"
        self._draft.put("service", "standard-output", "null", item.place)
        return None


def _count(value: Any) -> int:
    """How many instances; 0 for as many as there are processors."""
    if value is None:
        return 1
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,6}", value):
        value = int(value)
    return max(value, 0) if isinstance(value, int) and not isinstance(value, bool) else 0


def _span(item: Item) -> str:
    """A number of milliseconds, or text such as ``10s``."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)(ms|s|m|h)?", str(item.value))
    if match is None or isinstance(item.value, bool):
        raise BadValue("no time")
    return f"{round(float(match[1]) * _SPANS[match[2] or 'ms'])}ms"
