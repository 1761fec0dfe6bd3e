"""``convert circus``: the watchers of a ``circus.ini`` as unit files.

Ends are no failures there: what ends is started again, for ever. A stop signals the main process, and its children
with ``stop_children``; what is left after ``graceful_timeout`` is killed. Watchers start in the order of their
``priority``, the greatest first. ``$(circus.env.X)`` stands for a variable of ``[env]``, of ``[env:WATCHER]``, or of
circus's own environment; ``$(circus.wid)`` for the number of a process, which is that of an instance here.

Source: circus 0.19, config.py (get_config), util.py (StrictConfigParser, replace_gnu_args), watcher.py.
"""

import re
import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase

from supervisord_py.convert.draft import Conversion, ConvertError, Draft, Ledger, Place, SourceFile
from supervisord_py.convert.formats import Surroundings
from supervisord_py.convert.ini import IniKey, Sections
from supervisord_py.convert.names import unit_name
from supervisord_py.convert.ranks import order_by_rank
from supervisord_py.convert.text_forms import joined, literal, seconds, truth
from supervisord_py.model.assemble_context import RLIMITS
from supervisord_py.model.problems import BadValue

_HEADER = re.compile(r"\[(?P<header>.+)\]")
_OPTION = re.compile(r"(?P<option>.*?)\s*(?:(?P<vi>[:=])\s*(?P<value>.*))$")
_VARIABLE = re.compile(r"\$\(circus\.([\w.-]+)\)|\(\(circus\.([\w.-]+)\)\)", re.IGNORECASE)
_OWN_LOG = "output goes to the unit's own log, NAME.log in the log folder: supctl logs reads it"
_ENDPOINTS = "the control socket is a Unix socket in the runtime folder"
_NEEDLESS = {
    "circus.check_delay": "an end is seen at once",
    "circus.endpoint": _ENDPOINTS,
    "circus.pubsub_endpoint": "supctl journal tail -f tells what happens",
    "circus.pidfile": "supctl version tells the pid",
    "circus.loglevel": "the supervisor's own records are its journal",
    "circus.logoutput": "the supervisor's own records are its journal",
    "circus.loggerconfig": "the supervisor's own records are its journal",
    "circus.statsd": "supctl stats and top tell what units use",
    "circus.stats_endpoint": "supctl stats and top tell what units use",
    "circus.debug": "supctl why tells what it is about",
    "circus.debug_gc": "supctl why tells what it is about",
}
_LOST = {
    "circus.httpd": "nothing listens on a port",
    "circus.httpd_host": "nothing listens on a port",
    "circus.httpd_port": "nothing listens on a port",
    "circus.warmup_delay": "starts follow each other at once",
    "circus.multicast_endpoint": "nothing listens on a port",
    "watcher.warmup_delay": "starts follow each other at once",
    "watcher.max_retry": "a program that cannot be executed is a failed start",
    "watcher.copy_path": "write PYTHONPATH into [service.environment]",
    "watcher.virtualenv": "let exec-start name the interpreter of the virtual environment",
    "watcher.max_age_variance": "runtime-max-sec is exact",
    "watcher.close_child_stdin": "standard input is /dev/null",
    "watcher.close_child_stdout": 'write standard-output = "null"',
    "watcher.close_child_stderr": 'write standard-error = "null"',
    "watcher.stdin_socket": 'write standard-input = "socket"',
}
_OPTIONS = frozenset(
    {
        "cmd", "args", "shell", "executable", "working_dir", "uid", "gid", "numprocesses", "singleton", "send_hup",
        "stop_signal", "stop_children", "graceful_timeout", "respawn", "autostart", "copy_env", "max_age", "priority",
        "use_sockets", "on_demand",
    }
)  # fmt: skip


def convert(files: Sequence[SourceFile], around: Surroundings) -> Conversion:
    """Convert configurations of circus, each with what it includes.

    Raises:
        ConvertError: One of them cannot be read.
    """
    conversion = Conversion()
    for file in files:
        _Converter(file, around, conversion).convert()
    return conversion


def read_circus_ini(file: SourceFile, into: Sections) -> None:
    """Read a file as circus does: the first of two keys of one name wins, across includes too.

    Raises:
        ConvertError: It cannot be read.
    """
    section: dict[str, IniKey] | None = None
    header = option = ""
    if any("\ud800" <= character <= "\udfff" for character in file.text):
        raise ConvertError(f"{file.path}: this is no UTF-8")
    for number, line in enumerate(file.text.split("\n"), 1):
        if not line.strip() or line[0] in "#;" or re.match(r"[rR][eE][mM]\s", line):
            continue
        if line[0].isspace() and section is not None and option:
            before = section[option]
            section[option] = IniKey(f"{before.value}\n{line.strip()}", before.place, before.base)
            continue
        match = _HEADER.match(line)
        if match is not None:
            header, option = match["header"], ""
            section = into.setdefault(header, {})
            continue
        found = _OPTION.match(line)
        if section is None or found is None or not found["option"].strip():
            raise ConvertError(f"{file.path}:{number}: neither a section nor KEY = VALUE, and circus refuses the file")
        name, value = found["option"].rstrip(), found["value"]
        if name in section:
            option = ""
            continue
        comment = value.find(";")
        if comment > 0 and value[comment - 1].isspace():
            value = value[:comment]
        value = value.strip()
        option = name
        place = Place(file.path, number, f"{header}.{name}")
        section[name] = IniKey("" if value == '""' else value, place, file.base)


class _Converter:
    def __init__(self, file: SourceFile, around: Surroundings, conversion: Conversion) -> None:
        self._file = file
        self._around = around
        self._conversion = conversion
        self._ledger: Ledger = conversion.ledger
        self._sections: Sections = {}
        read_circus_ini(file, self._sections)
        self._environment: dict[str, str] = {}
        self._sockets: dict[str, dict[str, IniKey]] = {}
        self._socket_users: dict[str, str] = {}

    def convert(self) -> None:
        self._include()
        self._environment = {name: key.value for name, key in self._sections.get("env", {}).items()}
        ranks: dict[str, int] = {}
        for section, keys in self._sections.items():
            if section.startswith("socket:"):
                self._sockets[section.partition(":")[2].lower()] = keys
        for section, keys in self._sections.items():
            kind, _, name = section.partition(":")
            if kind == "watcher":
                made = self._watcher(name, keys)
                if made is not None:
                    ranks[made] = -_integer(keys["priority"].value, 0) if "priority" in keys else 0
            elif kind == "circus":
                for option, key in keys.items():
                    self._circus(option, key)
            elif kind == "plugin":
                for key in keys.values():
                    self._ledger.lost(key.place, "plugins of circus do not run here")
            elif kind not in ("env", "socket"):
                for key in keys.values():
                    self._ledger.lost(key.place, f"the section [{kind}] has no counterpart here")
        for name, keys in self._sockets.items():
            if name not in self._socket_users:
                for key in keys.values():
                    self._ledger.lost(key.place, "no watcher uses the socket")
        self._judge_environments()
        if len(set(ranks.values())) > 1:
            order_by_rank(self._conversion, ranks)

    def _include(self) -> None:
        for option, suffix in (("include", ""), ("include_dir", "/*.ini")):
            key = self._sections.get("circus", {}).get(option)
            if key is None:
                continue
            lost: list[str] = []
            for pattern in key.value.split():
                found = self._around.read(f"{pattern}{suffix}", self._file.base)
                if not found:
                    lost.append(f"{pattern} matches no file")
                for file in found:
                    # Everything in an included file is seen from the folder of the main one.
                    read_circus_ini(SourceFile(file.path, file.text, self._file.base), self._sections)
            if lost:
                self._ledger.lost(key.place, "; ".join(lost))
            else:
                self._ledger.carried(key.place)

    def _circus(self, option: str, key: IniKey) -> None:
        name = f"circus.{option}"
        if option in ("include", "include_dir"):
            return
        if option == "umask":
            self._ledger.carried(key.place)
        elif name in _NEEDLESS:
            self._ledger.needless(key.place, _NEEDLESS[name])
        else:
            self._ledger.lost(key.place, _LOST.get(name, "it has no counterpart here"))

    def _judge_environments(self) -> None:
        watchers = [section.partition(":")[2] for section in self._sections if section.startswith("watcher:")]
        for section, keys in self._sections.items():
            if section != "env" and not section.startswith("env:"):
                continue
            patterns = [each.strip() for each in section.partition(":")[2].split(",")] if ":" in section else ["*"]
            reaches = any(fnmatchcase(name, pattern) for name in watchers for pattern in patterns)
            for name, key in keys.items():
                if not reaches:
                    self._ledger.needless(key.place, "no watcher has this environment")
                elif re.search(r"\$\w", key.value):
                    reason = f"{name} refers to circus's own environment: write its value"
                    self._ledger.lost(key.place, reason)
                else:
                    self._ledger.carried(key.place)

    def _own_environment(self, watcher: str) -> dict[str, str]:
        found = dict(self._environment)
        for section, keys in self._sections.items():
            if section.startswith("env:"):
                for pattern in section.partition(":")[2].split(","):
                    if fnmatchcase(watcher, pattern.strip()):
                        found |= {name: key.value for name, key in keys.items()}
        return found

    def _watcher(self, name: str, keys: dict[str, IniKey]) -> str | None:
        if not keys.get("cmd") or not keys["cmd"].value:
            places = [key.place for key in keys.values()] or [Place(self._file.path, 0, f"watcher:{name}")]
            self._ledger.lose(places, "a watcher without cmd")
            return None
        environment = self._own_environment(name)
        count = _integer(keys["numprocesses"].value, 1) if "numprocesses" in keys else 1
        if "singleton" in keys and truth(keys["singleton"].value):
            count = min(count, 1)
        wanted = unit_name(name, {each.removesuffix("@") for each in self._conversion.drafts})
        if wanted != name:
            self._ledger.note(keys["cmd"].place, f"the watcher {name} is called {wanted} here")
        unit = f"{wanted}@" if count > 1 else wanted
        draft = self._conversion.draft(unit, self._file.path)
        watcher = _Watcher(draft, keys, environment, self._ledger, self._sockets, self._socket_users, count)
        watcher.convert()
        umask = self._sections.get("circus", {}).get("umask")
        if umask is not None and umask.value:
            draft.put("service", "umask", umask.value.zfill(4), umask.place)
        return unit


class _Watcher:
    def __init__(
        self,
        draft: Draft,
        keys: dict[str, IniKey],
        environment: dict[str, str],
        ledger: Ledger,
        sockets: dict[str, dict[str, IniKey]],
        socket_users: dict[str, str],
        count: int,
    ) -> None:
        self._draft = draft
        self._keys = keys
        self._variables = environment
        self._ledger = ledger
        self._sockets = sockets
        self._socket_users = socket_users
        self._count = count

    def convert(self) -> None:
        draft = self._draft
        kept = {name: literal(value) for name, value in self._variables.items() if not re.search(r"\$\w", value)}
        if kept:
            draft.put("service", "environment", kept)
        for option, key in self._keys.items():
            try:
                reason = self._take(option, key)
            except BadValue as bad:
                self._ledger.lost(key.place, bad.message)
            else:
                if reason:
                    self._ledger.needless(key.place, reason)
                else:
                    self._ledger.carried(key.place)
        draft.table("service").setdefault("restart", "always")
        if draft.get("service", "restart") != "no":
            draft.put("service", "restart-sec", 1)
            draft.put("service", "restart-steps", 0)
            draft.put("service", "restart-jitter", 0)
        draft.put("quarantine", "failures", 0)
        draft.table("service").setdefault("timeout-stop-sec", 30)
        draft.table("service").setdefault("kill-mode", "mixed")
        if ("limits",) in draft.tables:
            draft.put("limits", "enforce", "best-effort")
        if self._count > 1:
            draft.put("instances", "count", self._count)
        elif self._count < 1:
            draft.put("unit", "enabled", False)

    def _expanded(self, text: str) -> str:
        """Put variables in; a percent sign is doubled.

        Raises:
            BadValue: One is not known before circus runs.
        """
        known = {name.lower(): value for name, value in self._variables.items()}

        def one(match: re.Match[str]) -> str:
            name = (match[1] or match[2]).lower()
            if name == "wid":
                return "%i" if self._count > 1 else "1"
            if name.startswith("env."):
                variable = name.removeprefix("env.")
                if variable in known:
                    return literal(known[variable])
                if variable == "home":
                    return "%h"
                raise BadValue(f"{variable} is a variable of circus's own environment: write its value")
            if name.startswith("sockets."):
                place = list(self._sockets).index(name[8:]) if name[8:] in self._sockets else None
                if place is not None and self._uses_sockets():
                    return str(3 + place)
            raise BadValue(f"{match[0]} is known to a running circus only")

        return _VARIABLE.sub(one, literal(text)).replace("$WID", "%i" if self._count > 1 else "1")

    def _uses_sockets(self) -> bool:
        return "use_sockets" in self._keys and truth(self._keys["use_sockets"].value) is True

    def _boolean(self, key: IniKey) -> bool:
        found = truth(self._expanded(key.value))
        if found is None:
            raise BadValue("no boolean, and circus refuses it")
        return found

    def _number(self, key: IniKey) -> float:
        try:
            found = float(self._expanded(key.value))
        except ValueError:
            raise BadValue("no number, and circus refuses it") from None
        if not 0 <= found < 1e9:
            raise BadValue("no time")
        return found

    def _take(self, option: str, key: IniKey) -> str | None:
        if option in _OPTIONS:
            found = getattr(self, f"_{option}")(key)
            return found if isinstance(found, str) else None
        if option.startswith("rlimit_"):
            value, name = self._expanded(key.value), option[7:].lower()
            if name not in RLIMITS:
                raise BadValue("there is no such limit")
            self._draft.put("limits", name, int(value) if value.isdecimal() else "infinity", key.place)
            return None
        if option.startswith("stdout_stream."):
            return self._stream(option.partition(".")[2], key)
        if option.startswith("stderr_stream."):
            return "standard error goes into the unit's log too"
        if option.startswith("hooks."):
            raise BadValue("hooks are functions in circus's own process: exec-start-pre and its kin run commands")
        raise BadValue(_LOST.get(f"watcher.{option}", "options of plugins mean nothing here"))

    def _stream(self, option: str, key: IniKey) -> str | None:
        value = self._expanded(key.value)
        if option == "class":
            if value.rpartition(".")[2] == "StdoutStream":
                return "run --output stdout shows the output of all units"
            if value.rpartition(".")[2] in ("FileStream", "WatchedFileStream", "TimedRotatingFileStream"):
                return "output goes to the unit's log"
            raise BadValue("streams are classes in circus's own process")
        if option == "filename":
            raise BadValue(_OWN_LOG)
        if option in ("max_bytes", "backup_count"):
            if not value.isdecimal():
                raise BadValue("no number")
            self._draft.put("log", "max-bytes" if option == "max_bytes" else "backups", int(value), key.place)
            return None
        raise BadValue("lines of output are kept as they were written")

    def _cmd(self, key: IniKey) -> None:
        line = key.value
        if "args" in self._keys:
            line = f"{line} {self._keys['args'].value}"
        text = self._expanded(line)
        shell = self._keys.get("shell")
        if shell is not None and self._boolean(shell):
            self._draft.put("service", "exec-start", ["/bin/sh", "-c", text], key.place)
            return
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise BadValue(f"no command: {str(error).lower()}") from None
        if not words:
            raise BadValue("no command")
        folder = self._keys.get("working_dir")
        base = joined(key.base, self._expanded(folder.value)) if folder is not None else key.base
        executable = self._keys.get("executable")
        program = self._expanded(executable.value) if executable is not None else words[0]
        if "/" in program:
            program = joined(base, program)
        if executable is not None and program != words[0]:
            command = {"command": [program, *words[1:]], "argv0": words[0]}
            self._draft.put("service", "exec-start", [command], key.place)
        else:
            self._draft.put("service", "exec-start", [program, *words[1:]], key.place)

    def _args(self, key: IniKey) -> None:
        self._expanded(key.value)

    def _shell(self, key: IniKey) -> None:
        self._boolean(key)

    def _executable(self, key: IniKey) -> None:
        self._expanded(key.value)

    def _working_dir(self, key: IniKey) -> None:
        self._draft.put("service", "working-directory", joined(key.base, self._expanded(key.value)), key.place)

    def _uid(self, key: IniKey) -> None:
        self._draft.put("service", "user", self._expanded(key.value), key.place)

    def _gid(self, key: IniKey) -> None:
        self._draft.put("service", "group", self._expanded(key.value), key.place)

    def _numprocesses(self, key: IniKey) -> None:
        if _integer(key.value, -1) < 0:
            raise BadValue("no number of processes")

    def _singleton(self, key: IniKey) -> None:
        self._boolean(key)

    def _send_hup(self, key: IniKey) -> str | None:
        if not self._boolean(key):
            return "there is nothing to reload"
        self._draft.put("service", "exec-reload", "kill -HUP $MAINPID", key.place)
        return None

    def _stop_signal(self, key: IniKey) -> None:
        name = self._expanded(key.value).upper()
        signal = int(name) if name.isdecimal() else f"SIG{name.removeprefix('SIG')}"
        self._draft.put("service", "kill-signal", signal, key.place)

    def _stop_children(self, key: IniKey) -> None:
        self._draft.put("service", "kill-mode", "control-group" if self._boolean(key) else "mixed", key.place)

    def _graceful_timeout(self, key: IniKey) -> None:
        self._draft.put("service", "timeout-stop-sec", seconds(self._number(key)) or "1ms", key.place)

    def _respawn(self, key: IniKey) -> None:
        self._draft.put("service", "restart", "always" if self._boolean(key) else "no", key.place)

    def _autostart(self, key: IniKey) -> None:
        if not self._boolean(key):
            self._draft.put("unit", "enabled", False, key.place)

    def _copy_env(self, key: IniKey) -> str:
        if self._boolean(key):
            raise BadValue('write pass-environment = "all" into [supervisor] of supervisord.toml, or name variables')
        return "the environment is clean"

    def _max_age(self, key: IniKey) -> str | None:
        age = self._number(key)
        if not age:
            return "there is no limit"
        self._draft.put("service", "runtime-max-sec", seconds(age), key.place)
        return None

    def _priority(self, key: IniKey) -> None:
        if re.fullmatch(r"-?\d+", key.value.strip()) is None:
            raise BadValue("no whole number")

    def _on_demand(self, key: IniKey) -> None:
        self._draft.put("service", "activation", "demand" if self._boolean(key) else "start", key.place)

    def _use_sockets(self, key: IniKey) -> str | None:
        if not self._boolean(key):
            return "it has no sockets"
        lost: list[str] = []
        if self._draft.get("service", "activation") is None:
            self._draft.put("service", "activation", "start")
        for index, (name, keys) in enumerate(self._sockets.items()):
            if self._socket_users.setdefault(name, self._draft.name) != self._draft.name:
                lost.append(f"the socket {name} is held for {self._socket_users[name]}")
            else:
                self._socket(("socket", index), name, keys)
        if lost:
            raise BadValue("; ".join(lost))
        return None

    def _socket(self, table: tuple[str | int, ...], name: str, keys: dict[str, IniKey]) -> None:
        """One ``[socket:NAME]``; several processes share a port by ``reuse-port``."""
        port, path = keys.get("port"), keys.get("path")
        is_datagram = keys["type"].value.upper() == "SOCK_DGRAM" if "type" in keys else False
        address = None
        if path is not None:
            address = literal(path.value)
        elif port is not None:
            host = keys["host"].value if "host" in keys else "127.0.0.1"
            host = {"localhost": "127.0.0.1"}.get(host, host)
            address = f"{host}:{port.value}" if host else port.value
        for option, key in keys.items():
            if option in ("port", "path", "host", "type", "family", "umask", "backlog", "so_reuseport"):
                self._ledger.carried(key.place)
            else:
                self._ledger.lost(key.place, "it has no counterpart here")
        if address is None:
            raise BadValue(f"the socket {name} has neither port nor path")
        place = (port or path or keys[next(iter(keys))]).place
        self._draft.put(table, "name", literal(name))
        self._draft.put(table, "listen-datagram" if is_datagram else "listen-stream", address, place)
        if "backlog" in keys and keys["backlog"].value.isdecimal():
            self._draft.put(table, "backlog", int(keys["backlog"].value), keys["backlog"].place)
        if self._count > 1 and path is None:
            self._draft.put(table, "reuse-port", True)


def _integer(text: str, default: int) -> int:
    try:
        return int(text)
    except ValueError:
        return default
