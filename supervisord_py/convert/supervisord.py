"""``convert supervisord``: the programs of a ``supervisord.conf`` as unit files.

What is another idea there: a program that lives longer than ``startsecs`` has started, and only ends before that count,
``startretries`` of them. Here that is ``restart-reset-sec`` and ``[quarantine] failures``. An end by a signal is
unexpected there, whichever signal it was. A stop signals the main process alone unless ``stopasgroup`` says otherwise;
what it leaves is killed here (``kill-mode = "mixed"``), there only with ``killasgroup``. ``priority`` orders the starts
without waiting for anything: ``after`` with ``until = "started"``.

Source: supervisor 4.3, options.py (process_groups_from_parser, expand) and datatypes.py.
"""

import re
import shlex
from collections.abc import Callable, Sequence

from supervisord_py.convert.draft import Conversion, Draft, Ledger, Place, SourceFile
from supervisord_py.convert.formats import Surroundings
from supervisord_py.convert.ini import IniKey, Sections, read_ini
from supervisord_py.convert.names import unit_name
from supervisord_py.convert.ranks import order_by_rank
from supervisord_py.convert.supervisord_expansion import FIELD, MARK, Scope, braced, expanded, with_changes
from supervisord_py.convert.supervisord_keys import ELSEWHERE, LOST_KEYS, NEEDLESS_KEYS, PROGRAM_KEYS
from supervisord_py.convert.text_forms import joined, quoted, truth
from supervisord_py.model.problems import BadValue

_PROGRAMS = ("program:", "fcgi-program:")
_MEMBERS = (*_PROGRAMS, "eventlistener:")
_DEFAULT_PRIORITY = 999
_NOWHERE = ("none", "off", "/dev/null")
_SUPERVISORS_OWN = re.compile(r"/dev/(stdout|stderr|fd/[12]|tty)|/proc/(1|self)/fd/[12]")
"""Files of output that are where supervisor's own output goes: in containers, mostly."""
_SHOWN = "supervisord-py run --output stdout shows the output of all units, as supervisor did; each has its log as well"


def convert(files: Sequence[SourceFile], around: Surroundings) -> Conversion:
    """Convert configurations of supervisor, each with what it includes.

    Raises:
        ConvertError: One of them cannot be read.
    """
    conversion = Conversion()
    for file in files:
        _Converter(file, around, conversion).convert()
    return conversion


class _Converter:
    def __init__(self, file: SourceFile, around: Surroundings, conversion: Conversion) -> None:
        self._file = file
        self._around = around
        self._conversion = conversion
        self._ledger: Ledger = conversion.ledger
        self._sections: Sections = read_ini(file, inline=(";", "#"))
        self._include()
        self._groups: dict[str, list[str]] = {}
        self._global = Scope(file.base)
        self._priorities: dict[str, tuple[int, Place | None]] = {}
        self._members: dict[str, list[str]] = {}

    def _include(self) -> None:
        key = self._sections.get("include", {}).get("files")
        if key is None:
            return
        lost: list[str] = []
        for pattern in key.value.split():
            try:
                text = expanded(pattern, Scope(self._file.base))
            except BadValue as bad:
                lost.append(bad.message)
                continue
            if "\ue000" in text or "%H" in text:
                lost.append(f"{pattern}: what this stands for is known to a running supervisor only")
                continue
            found = self._around.read(text.replace("%%", "%"), self._file.base)
            if not found:
                lost.append(f"{pattern} matches no file")
            for file in found:
                for section, keys in read_ini(file, inline=(";", "#")).items():
                    if section == "include":
                        places = [each.place for each in keys.values() if each.place.file != key.place.file]
                        self._ledger.lose(places, "supervisor reads no [include] of a file that is included")
                    else:
                        self._sections.setdefault(section, {}).update(keys)
        if lost:
            self._ledger.lost(key.place, "; ".join(lost))
        else:
            self._ledger.carried(key.place)

    def convert(self) -> None:
        self._read_global()
        for section, keys in self._sections.items():
            if section.startswith("group:"):
                self._read_group(section.partition(":")[2].strip(), keys)
        for section, keys in self._sections.items():
            if section.startswith(_PROGRAMS):
                self._program(section, keys)
            elif section.startswith("eventlistener:"):
                for key in keys.values():
                    reason = "no counterpart: supctl journal tail -f --json tells events, hooks run a command at one"
                    self._ledger.lost(key.place, reason)
            elif section not in ("supervisord", "include") and not section.startswith("group:"):
                self._elsewhere(section, keys)
        self._order()

    def _elsewhere(self, section: str, keys: dict[str, IniKey]) -> None:
        kind = section.partition(":")[0]
        for name, key in keys.items():
            is_needless, reason = ELSEWHERE.get(f"{kind}.{name}") or ELSEWHERE.get(kind) or (False, "")
            if is_needless:
                self._ledger.needless(key.place, reason)
            else:
                self._ledger.lost(key.place, reason or f"the section [{kind}] has no counterpart here")

    def _read_global(self) -> None:
        """``[supervisord]``: what it says of every program goes into each, the rest is elsewhere here."""
        keys = self._sections.get("supervisord", {})
        for name, key in keys.items():
            if name == "environment":
                try:
                    self._global = Scope(self._file.base, environment=self._pairs(key, self._global))
                    self._ledger.carried(key.place)
                except BadValue as bad:
                    self._ledger.lost(key.place, bad.message)
            elif name in ("user", "umask", "directory"):
                self._ledger.carried(key.place)
            elif f"supervisord.{name}" in NEEDLESS_KEYS:
                self._ledger.needless(key.place, NEEDLESS_KEYS[f"supervisord.{name}"])
            else:
                reason = LOST_KEYS.get(f"supervisord.{name}", "supervisor does not know it either")
                self._ledger.lost(key.place, reason)

    def _read_group(self, name: str, keys: dict[str, IniKey]) -> None:
        for option, key in keys.items():
            if option == "programs":
                programs = [program.strip() for program in key.value.split(",")]
                twice = [program for program in programs if program in self._groups]
                for program in programs:
                    self._groups.setdefault(program, []).append(unit_name(name))
                unknown = [name for name in programs if not any(f"{kind}{name}" in self._sections for kind in _MEMBERS)]
                if twice:
                    reason = f"{', '.join(twice)}: a unit that is in two groups runs once, there once for each"
                    self._ledger.lost(key.place, reason)
                elif unknown:
                    self._ledger.lost(key.place, f"there is no program {', '.join(unknown)}, and supervisor refuses it")
                else:
                    self._ledger.carried(key.place)
            elif option == "priority":
                for program in keys["programs"].value.split(",") if "programs" in keys else ():
                    self._priorities.setdefault(program.strip(), (_number(key.value, _DEFAULT_PRIORITY), key.place))
                self._ledger.carried(key.place)
            else:
                self._ledger.lost(key.place, "supervisor does not know it either")

    def _pairs(self, key: IniKey, scope: Scope) -> dict[str, str]:
        """``A="1",B=2`` as variables.

        Raises:
            BadValue: It is none, or refers to the environment of the supervisor.
        """
        text = expanded(key.value, scope)
        lexer = shlex.shlex(text)
        lexer.wordchars += "/.+-():\ue000\ue001%"
        try:
            tokens = list(lexer)
        except ValueError as error:
            raise BadValue(f"no list of NAME=VALUE: {str(error).lower()}") from None
        pairs: dict[str, str] = {}
        for index in range(0, len(tokens), 4):
            name, equals, *value = tokens[index : index + 3] if len(tokens) >= index + 3 else ("", "", "")
            if equals != "=" or not value:
                raise BadValue("no list of NAME=VALUE, and supervisor refuses it")
            if MARK.search(value[0]):
                raise BadValue(f"{name} refers to the environment of the supervisor: pass-environment hands that on")
            pairs[name] = value[0].strip("'\"")
        return pairs

    def _program(self, section: str, keys: dict[str, IniKey]) -> None:
        kind, _, name = section.partition(":")
        name = name.strip()
        count = _number(keys["numprocs"].value, 1) if "numprocs" in keys else 1
        start = _number(keys["numprocs_start"].value, 0) if "numprocs_start" in keys else 0
        if not 0 <= count <= 1000:
            for key in keys.values():
                self._ledger.lost(key.place, f"{count} processes are too many to be converted, or none")
            return
        group = self._groups.get(name, [unit_name(name)])[0]
        scope = Scope(self._file.base, name, group, count, start, environment=self._global.environment)
        wanted = unit_name(name)
        if wanted != name:
            self._ledger.note(Place(self._file.path, 0, section), f"the program {name} is called {wanted} here")
        if count == 1:
            self._unit(wanted, kind, keys, scope, is_first=True)
        elif self._is_uniform(keys, start):
            draft = self._unit(f"{wanted}@", kind, keys, with_changes(scope, is_template=True), is_first=True)
            if draft is not None:
                draft.put("instances", "count", count, keys["numprocs"].place)
        else:
            # Each process has words of its own: the numbers of instances are not those.
            for number in range(start, start + count):
                each = with_changes(scope, number=number)
                own = self._unit(f"{wanted}-{number:02}", kind, keys, each, is_first=number == start)
                if own is not None:
                    own.add("unit", "groups", [wanted])

    @staticmethod
    def _is_uniform(keys: dict[str, IniKey], start: int) -> bool:
        """Whether the processes differ by their names only, or by numbers that are those of instances here."""
        used = [
            match["format"]
            for name, key in keys.items()
            if name not in ("process_name", "stdout_logfile", "stderr_logfile")
            for match in FIELD.finditer(key.value)
            if match["name"] == "process_num"
        ]
        return not used or (start == 1 and set(used) <= {"d", "s"})

    def _unit(self, name: str, kind: str, keys: dict[str, IniKey], scope: Scope, *, is_first: bool) -> Draft | None:
        """Make one unit; what becomes of the keys is told for the first of several."""
        ledger = self._ledger if is_first else Ledger()
        if "command" not in keys:
            places = [key.place for key in keys.values()] or [Place(self._file.path, 0, f"{kind}:{scope.program}")]
            ledger.lose(places, "a program without a command, which supervisor refuses")
            return None
        taken = set(self._conversion.drafts)
        if name in taken:
            name = unit_name(name, taken) if not name.endswith("@") else f"{unit_name(name[:-1] + '-2')}@"
        draft = self._conversion.draft(name, self._file.path)
        draft.table("service")
        _Program(draft, kind, keys, scope, self._sections.get("supervisord", {}), ledger, self._pairs).convert()
        if scope.program in self._groups:
            draft.add("unit", "groups", self._groups[scope.program])
        if "priority" in keys:
            priority = _number(keys["priority"].value, _DEFAULT_PRIORITY)
            self._priorities[scope.program] = (priority, keys["priority"].place)
        self._members.setdefault(scope.program, []).append(name)
        return draft

    def _order(self) -> None:
        """Starts in the order of priorities, each after those of the next lower one."""
        if not self._priorities:
            return
        ranks = {
            name: self._priorities.get(program, (_DEFAULT_PRIORITY, None))[0]
            for program, names in self._members.items()
            for name in names
        }
        order_by_rank(self._conversion, ranks)


class _Program:
    """Converts the keys of one program."""

    def __init__(
        self,
        draft: Draft,
        kind: str,
        keys: dict[str, IniKey],
        scope: Scope,
        globals_: dict[str, IniKey],
        ledger: Ledger,
        pairs: Callable[[IniKey, Scope], dict[str, str]],
    ) -> None:
        self._draft = draft
        self._kind = kind
        self._keys = keys
        self._scope = scope
        self._globals = globals_
        self._ledger = ledger
        self._pairs = pairs
        self._passed: list[str] = []

    def convert(self) -> None:
        # Variables of the program itself may stand in its other keys.
        if "environment" in self._keys:
            self._take("environment", self._keys["environment"])
        elif self._scope.environment:
            self._draft.put("service", "environment", dict(self._scope.environment))
        for name in ("user", "umask", "directory"):
            if name in self._globals and name not in self._keys:
                self._take(name, self._globals[name], Ledger())
        for name, key in self._keys.items():
            if name != "environment":
                self._take(name, key)
        if self._passed:
            self._draft.put("service", "pass-environment", list(dict.fromkeys(self._passed)))
        if ("socket", 0) in self._draft.tables:
            self._hand_socket()
        service = self._draft.table("service")
        if service.get("standard-output") == "null" and not self._is_redirected():
            service.setdefault("standard-error", "journal")
        self._restarts()
        self._stops()

    def _hand_socket(self) -> None:
        """A FastCGI program accepts on its standard input; sockets are handed over as descriptors from 3 on."""
        command = self._draft.get("service", "exec-start")
        if isinstance(command, list):
            command[:0] = ["/bin/sh", "-c", 'exec "$@" <&3 3<&-', "sh"]
        elif isinstance(command, str):
            self._draft.table("service")["exec-start"] = f"/bin/sh -c 'exec \"$$@\" <&3 3<&-' sh {command}"

    def _take(self, name: str, key: IniKey, ledger: Ledger | None = None) -> None:
        ledger = self._ledger if ledger is None else ledger
        reader = getattr(self, f"_{name}", None) if name in PROGRAM_KEYS else None
        try:
            if reader is not None:
                reason = reader(key)
                if reason:
                    ledger.needless(key.place, reason)
                else:
                    ledger.carried(key.place)
            elif f"program.{name}" in NEEDLESS_KEYS:
                ledger.needless(key.place, NEEDLESS_KEYS[f"program.{name}"])
            else:
                ledger.lost(key.place, LOST_KEYS.get(f"program.{name}", "supervisor does not know it either"))
        except BadValue as bad:
            ledger.lost(key.place, bad.message)

    def _text(self, key: IniKey) -> str:
        """A value without references to the supervisor's environment.

        Raises:
            BadValue: It has one.
        """
        text = expanded(key.value, self._scope, key.base)
        mark = MARK.search(text)
        if mark is not None:
            raise BadValue(f"it refers to the variable {mark[1]} of the supervisor's environment: write its value")
        return text.strip()

    def _boolean(self, key: IniKey) -> bool:
        value = truth(self._text(key))
        if value is None:
            raise BadValue("no boolean, and supervisor refuses it")
        return value

    def _integer(self, key: IniKey) -> int:
        try:
            return int(self._text(key))
        except ValueError:
            raise BadValue("no whole number, and supervisor refuses it") from None

    def _command(self, key: IniKey) -> None:
        text = expanded(key.value, self._scope, key.base).strip()
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise BadValue(f"no command: {str(error).lower()}") from None
        if not words:
            raise BadValue("no command")
        if "/" in words[0] and not words[0].startswith(("/", "%h", "\ue000")):
            folder = self._keys.get("directory") or self._globals.get("directory")
            try:
                base = joined(key.base, self._text(folder)) if folder is not None else key.base
            except BadValue:
                base = key.base
            words[0] = joined(base, words[0])
        if not any(MARK.search(word) for word in words):
            self._draft.put("service", "exec-start", words, key.place)
            return
        if MARK.search(words[0]):
            # The program itself is never expanded: somebody has to be told its name.
            words.insert(0, "/usr/bin/env")
        self._passed += [name for word in words for name in MARK.findall(word)]
        whole = [MARK.sub(r"$\1", word) if MARK.fullmatch(word) else braced(word) for word in words]
        self._draft.put("service", "exec-start", " ".join(quoted(word) for word in whole), key.place)

    def _environment(self, key: IniKey) -> None:
        own = self._pairs(key, self._scope)
        variables = {**self._scope.environment, **own}
        self._scope = with_changes(self._scope, environment=variables)
        self._draft.put("service", "environment", variables, key.place)

    def _directory(self, key: IniKey) -> None:
        self._draft.put("service", "working-directory", joined(key.base, self._text(key)), key.place)

    def _user(self, key: IniKey) -> None:
        self._draft.put("service", "user", self._text(key), key.place)

    def _umask(self, key: IniKey) -> None:
        self._draft.put("service", "umask", self._text(key).zfill(4), key.place)

    def _autostart(self, key: IniKey) -> None:
        if not self._boolean(key):
            self._draft.put("unit", "enabled", False, key.place)

    def _autorestart(self, key: IniKey) -> None:
        text = self._text(key).lower()
        value = "unexpected" if text == "unexpected" else truth(text)
        if value is None:
            raise BadValue("neither true, false nor unexpected, and supervisor refuses it")
        restart = {True: "always", False: "no", "unexpected": "on-failure"}[value]
        self._draft.put("service", "restart", restart, key.place)

    def _exitcodes(self, key: IniKey) -> None:
        try:
            codes = [int(code) for code in self._text(key).split(",") if code.strip()]
        except ValueError:
            raise BadValue("no list of exit codes, and supervisor refuses it") from None
        self._draft.put("service", "success-exit-status", [code for code in codes if code], key.place)
        if 0 not in codes:
            self._draft.add("service", "restart-force-exit-status", [0], key.place)

    def _startsecs(self, key: IniKey) -> None:
        self._draft.put("service", "restart-reset-sec", self._integer(key), key.place)

    def _startretries(self, key: IniKey) -> None:
        self._draft.put("quarantine", "failures", self._integer(key) + 1, key.place)

    def _stopsignal(self, key: IniKey) -> None:
        name = self._text(key).upper()
        self._draft.put("service", "kill-signal", f"SIG{name.removeprefix('SIG')}" if not name.isdigit() else int(name),
                        key.place)  # fmt: skip

    def _stopwaitsecs(self, key: IniKey) -> None:
        self._draft.put("service", "timeout-stop-sec", self._integer(key), key.place)

    def _stopasgroup(self, key: IniKey) -> None:
        self._draft.put("service", "kill-mode", "control-group" if self._boolean(key) else "mixed", key.place)

    def _killasgroup(self, key: IniKey) -> str:
        self._boolean(key)
        return "what a unit has started is always killed with it"

    def _numprocs(self, key: IniKey) -> None:
        self._integer(key)

    def _numprocs_start(self, key: IniKey) -> str:
        self._integer(key)
        return "" if self._scope.count > 1 else "there is one process"

    def _process_name(self, key: IniKey) -> str:
        return "processes are called as their unit, or as its instances"

    def _priority(self, key: IniKey) -> None:
        self._integer(key)

    def _redirect_stderr(self, key: IniKey) -> str:
        self._boolean(key)
        return "both go into the unit's log, in the order in which they were written"

    def _is_redirected(self) -> bool:
        key = self._keys.get("redirect_stderr")
        return key is not None and truth(key.value) is True

    def _log_file(self, name: str) -> str:
        key = self._keys.get(name)
        return "" if key is None else MARK.sub("", expanded(key.value, self._scope, key.base)).strip()

    def _stdout_logfile(self, key: IniKey) -> str:
        text = self._log_file("stdout_logfile")
        if text.lower() in _NOWHERE:
            self._draft.put("service", "standard-output", "null", key.place)
            return ""
        if text.lower() == "syslog":
            self._draft.put("service", "standard-output", "journald", key.place)
            return ""
        if text.lower() == "auto":
            return "output goes to the unit's log by itself"
        if _SUPERVISORS_OWN.fullmatch(text):
            if all(note.reason != _SHOWN for note in self._ledger.notes):
                self._ledger.note(key.place, _SHOWN)
            return "run --output stdout shows the output of all units"
        raise BadValue("output goes to the unit's own log, NAME.log in the log folder: supctl logs reads it")

    def _stderr_logfile(self, key: IniKey) -> str:
        if self._log_file("stderr_logfile").lower() in _NOWHERE and not self._is_redirected():
            self._draft.put("service", "standard-error", "null", key.place)
            return ""
        return "standard error goes into the unit's log too"

    def _stdout_logfile_maxbytes(self, key: IniKey) -> str:
        if self._text(key) == "0" and _SUPERVISORS_OWN.fullmatch(self._log_file("stdout_logfile")):
            # What is no file cannot be rotated; the unit's own log is one, and nobody wants it to grow for ever.
            return "the unit's own log begins a new file above 50M"
        self._draft.put("log", "max-bytes", self._text(key).upper(), key.place)
        return ""

    def _stdout_logfile_backups(self, key: IniKey) -> None:
        self._draft.put("log", "backups", self._integer(key), key.place)

    def _stdout_syslog(self, key: IniKey) -> str:
        if not self._boolean(key):
            return "so it is"
        self._draft.put("service", "standard-output", "journald", key.place)
        return ""

    def _depend(self, key: IniKey) -> None:
        names = [unit_name(name.strip()) for name in re.split(r"[,\s]+", self._text(key)) if name.strip()]
        self._draft.add("unit", "requires", names, key.place)

    def _serverurl(self, key: IniKey) -> str:
        return "programs find the control socket in $SUPERVISORD_PY_SOCKET"

    def _socket(self, key: IniKey) -> None:
        text = self._text(key)
        path = text.removeprefix("unix://") if text.startswith("unix://") else text.removeprefix("tcp://")
        self._draft.put(("socket", 0), "listen-stream", path, key.place)
        self._draft.put("service", "activation", "start")

    def _socket_mode(self, key: IniKey) -> None:
        self._draft.put(("socket", 0), "socket-mode", self._text(key).zfill(4), key.place)

    def _socket_backlog(self, key: IniKey) -> None:
        self._draft.put(("socket", 0), "backlog", self._integer(key), key.place)

    def _socket_owner(self, key: IniKey) -> None:
        user, _, group = self._text(key).partition(":")
        self._draft.put(("socket", 0), "socket-user", user, key.place)
        if group:
            self._draft.put(("socket", 0), "socket-group", group, key.place)

    def _restarts(self) -> None:
        """What supervisor does when nothing is said: it starts again after an unexpected end, at once and after one
        that came too early three times more, a second later each time."""
        draft = self._draft
        if draft.get("service", "restart") is None:
            draft.put("service", "restart", "on-failure")
        restart = draft.get("service", "restart")
        if restart == "no":
            draft.drop(("service",), "restart-force-exit-status")
        elif restart == "on-failure":
            signals = ["SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM"]
            draft.add("service", "restart-force-exit-status", signals)
        if draft.get("service", "restart-reset-sec") is None:
            draft.put("service", "restart-reset-sec", 1)
        failures = draft.get("quarantine", "failures")
        if draft.get("service", "restart-reset-sec") == 0:
            failures = 0
        draft.put("quarantine", "failures", 4 if failures is None else failures)
        if restart != "no":
            draft.put("service", "restart-sec", 1)
            draft.put("service", "restart-steps", max((failures if failures is not None else 4) - 2, 0))
            draft.put("service", "restart-max-delay-sec", max((failures if failures is not None else 4) - 1, 1))
            draft.put("service", "restart-jitter", 0)

    def _stops(self) -> None:
        if self._draft.get("service", "timeout-stop-sec") is None:
            self._draft.put("service", "timeout-stop-sec", 10)
        if self._draft.get("service", "kill-mode") is None:
            self._draft.put("service", "kill-mode", "mixed")


def _number(text: str, default: int) -> int:
    try:
        return int(text)
    except ValueError:
        return default
