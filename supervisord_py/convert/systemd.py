"""``convert systemd``: services, sockets, timers and targets as unit files.

Theory of operation
-------------------
A service or a target becomes a unit. A socket and a timer have no unit of their own: they become ``[[socket]]`` and
``[timer]`` of the unit that they activate. Each assignment is looked up in the table of keys by systemd's name for it
(``systemd_rules``), its value is written as the key's type is written (``systemd_values``), and what is another thing
here than there is said in this module, key by key. At the end systemd's defaults are written out where ours differ, so
that the unit behaves as before.

Laws: every assignment has exactly one entry in the ledger; nothing is carried over that the reader of unit files
refuses (``convert.settle`` takes it out again, with the reason).
"""

import re
from collections.abc import Callable, Sequence

from supervisord_py.convert.draft import SECRET_KEYS, Conversion, Draft, Place, SourceFile, TableId
from supervisord_py.convert.systemd_input import DATA, TEXT, InputData
from supervisord_py.convert.systemd_relations import Relations
from supervisord_py.convert.systemd_rules import Rules, Target
from supervisord_py.convert.systemd_syntax import Assignment
from supervisord_py.convert.systemd_units import SystemdUnit, UnitId, context_of, our_name, read_units
from supervisord_py.convert.systemd_values import (
    UnitContext,
    boolean,
    command,
    environment,
    is_list,
    items,
    known_words,
    number_or_text,
    scalar,
    with_privileges,
)
from supervisord_py.model.decode import DECODERS
from supervisord_py.model.log import Rate
from supervisord_py.model.names import UnitName
from supervisord_py.model.problems import BadValue
from supervisord_py.model.specifiers import SpecifierContext, Specifiers
from supervisord_py.model.unit import SECOND_NS
from supervisord_py.model.values import format_rate, parse_timespan

_SECTION_OF = {"service": "Service", "socket": "Socket", "timer": "Timer", "target": "Target"}
_RELATION_TYPES = frozenset({"dependencies", "ordering", "names"})
_TRIGGERS = frozenset(
    {"OnActiveSec", "OnBootSec", "OnStartupSec", "OnUnitActiveSec", "OnUnitInactiveSec", "OnCalendar"}
)
_ANYWHERE = Specifiers(
    SpecifierContext("/root", "/run", "/var/lib", "/var/log", "root", 0, "h", "b"), UnitName("u", "1")
)
_OTHER_PHASES = (
    "exec-condition", "exec-start-pre", "exec-start-post", "exec-reload", "exec-stop", "exec-stop-post",
)  # fmt: skip


def convert_systemd(files: Sequence[SourceFile], rules: Rules, known: frozenset[str] = frozenset()) -> Conversion:
    """Convert unit files of systemd.

    Args:
        files: Unit files, by their names, and drop-ins (``NAME.d/X.conf``).
        rules: Which directive is which key.
        known: Units that are there besides, by our names.

    Raises:
        ConvertError: A file that is none of systemd's, or one that it refuses.
    """
    return _Converter(read_units(files), rules, known).convert()


class _Converter:
    def __init__(self, units: Sequence[SystemdUnit], rules: Rules, known: frozenset[str]) -> None:
        self._units = units
        self._rules = rules
        self._result = Conversion()
        self._names = self._name_all()
        self._relations = Relations(rules, self._names, known, self._result.ledger)
        self._of_users = {self._names[unit.name] for unit in units if unit.is_user and unit.name in self._names}

    def _name_all(self) -> dict[str, str]:
        """Our names by systemd's: a socket or timer is called as the unit that it activates."""
        names: dict[str, str] = {}
        for unit in self._units:
            if unit.suffix == "service":
                names[unit.name] = our_name(UnitId(unit.prefix, unit.instance, unit.suffix))
        taken = set(names.values())
        for unit in self._units:
            if unit.suffix == "target":
                name = our_name(UnitId(unit.prefix, unit.instance, unit.suffix))
                names[unit.name] = f"{name}.target" if name in taken else name
        for unit in self._units:
            activated = self._activated(unit)
            if activated in names and _accepts(unit) and activated.endswith("@.service"):
                # What is accepted makes instances of a plain unit here.
                plain = names[activated].removesuffix("@")
                names[activated] = plain if plain not in names.values() else f"{plain}.socket"
            if activated in names:
                names[unit.name] = names[activated]
        for unit in self._units:
            for word in " ".join(unit.values("Install", "Alias")).split():
                # Where another unit names the alias, it means this one.
                if unit.name in names:
                    names.setdefault(word, names[unit.name])
        return names

    @staticmethod
    def _activated(unit: SystemdUnit) -> str:
        """systemd's name of what a socket or a timer activates; empty for other units."""
        plain = UnitId(unit.prefix, unit.instance, unit.suffix)
        if unit.suffix == "timer":
            return _of_template(unit.last("Timer", "Unit")) or plain.named("service")
        if unit.suffix != "socket":
            return ""
        if _accepts(unit) and unit.instance is None:
            return f"{unit.prefix}@.service"
        return _of_template(unit.last("Socket", "Service")) or plain.named("service")

    def convert(self) -> Conversion:
        for unit in self._units:
            for line in unit.ignored:
                self._result.ledger.lost(Place(line.file, line.line, line.text), line.reason)
        for suffix in ("service", "target", "socket", "timer"):
            for unit in self._units:
                if unit.suffix == suffix:
                    self._convert_unit(unit)
        for unit in self._units:
            if unit.suffix not in _SECTION_OF:
                self._lose(unit, f"there are no {unit.suffix} units here")
        alone = {
            self._names[unit.name]
            for unit in self._units
            if unit.name in self._names and not boolean_of(unit.last("Unit", "DefaultDependencies") or "yes")
        }
        self._relations.write(self._result.drafts, alone)
        for draft in self._result.drafts.values():
            self._finish(draft)
        return self._result

    def _lose(self, unit: SystemdUnit, reason: str) -> None:
        for each in unit.assignments:
            self._result.ledger.lost(_place(each), reason)
        if not unit.assignments:
            self._result.ledger.lost(Place(unit.files[0], 0, ""), reason)

    def _convert_unit(self, unit: SystemdUnit) -> None:
        if not unit.assignments and unit.suffix == "service":
            self._lose(
                unit, "nothing is set in it: systemd takes an empty file for a masked unit, and refuses any other"
            )
            return
        name = self._names.get(unit.name)
        if name is None:
            self._lose(unit, f"it activates {self._activated(unit)}, which is not among the files")
            return
        draft = self._result.draft(name, unit.files[0])
        draft.origins += [file for file in unit.files[1:] if file not in draft.origins]
        if unit.suffix in ("service", "target") and name != UnitId(unit.prefix, unit.instance, "x").named("x")[:-2]:
            self._result.ledger.note(Place(unit.files[0], 0, ""), f"the unit {unit.name} is called {name} here")
        _UnitConverter(unit, draft, self._rules, self._relations, self._result).convert()

    def _finish(self, draft: Draft) -> None:
        """Write systemd's defaults out."""
        if ("target",) in draft.tables and ("service",) not in draft.tables:
            draft.table("unit").setdefault("enabled", False)
            return
        unit, service = draft.table("unit"), draft.table("service")
        unit.setdefault("enabled", False)
        if unit["enabled"] is True:
            del unit["enabled"]
        _one_text_a_command(service)
        service.setdefault("restart", "no")
        if service["restart"] != "no":
            service.setdefault("restart-steps", 0)
            service.setdefault("restart-jitter", 0)
        unit.setdefault("start-limit-interval-sec", "10s")
        unit.setdefault("start-limit-burst", 5)
        if draft.name not in self._of_users:
            # Of a service of the system; one of a user's manager inherits.
            draft.table("sandbox").setdefault("keyring-mode", "private")
        if service.get("root-directory") not in (None, "/"):
            draft.table("sandbox").setdefault("mount-apivfs", True)
        for table in ("limits", "sandbox"):
            if draft.tables.get((table,)):
                draft.table(table)["enforce"] = "best-effort"
        if ("timer",) in draft.tables:
            self._finish_timer(draft)
        if any(table.get("accept") for path, table in draft.tables.items() if path[0] == "socket"):
            self._tell_of_instances(draft)

    def _tell_of_instances(self, draft: Draft) -> None:
        """systemd's instances of a connection know its number and addresses by %i; ours are made of one text."""
        reason = "%i is empty here: REMOTE_ADDR and REMOTE_PORT are in the environment"
        for (path, key), places in draft.places.items():
            if re.search("(?<!%)(%%)*%[iI]", str(draft.get(path, key))):
                self._result.ledger.lose(places, reason)

    def _finish_timer(self, draft: Draft) -> None:
        timer, service = draft.table("timer"), draft.table("service")
        timer.setdefault("accuracy-sec", "1min")
        if timer.get("on-calendar"):
            timer["overrun"] = "queue"
        if service["restart"] in ("always", "on-success"):
            reason = f"with restart = {service['restart']} a run is never over; a timer has on-failure"
            self._result.ledger.lose(draft.drop(("service",), "restart"), reason)
            service["restart"] = "on-failure"
        if service.get("remain-after-exit"):
            reason = "a run that stays active is never over, and the next time never waited for"
            self._result.ledger.lose(draft.drop(("service",), "remain-after-exit"), reason)


def _accepts(unit: SystemdUnit) -> bool:
    return unit.suffix == "socket" and boolean_of(unit.last("Socket", "Accept"))


def _of_template(name: str) -> str:
    """The template of ``NAME@%i.service``, which a template names as its own instance."""
    return name.replace("@%i.", "@.")


def _place(assignment: Assignment) -> Place:
    return Place(assignment.file, assignment.line, assignment.name)


def _one_text_a_command(service: dict[str, object]) -> None:
    """Commands are collected in lists: one is a string, several are lines of one."""
    for key in ("exec-start", *_OTHER_PHASES):
        lines = service.get(key)
        if isinstance(lines, list):
            service[key] = "\n".join(lines)


class _UnitConverter:
    """Converts the assignments of one unit into a draft."""

    def __init__(self, unit: SystemdUnit, draft: Draft, rules: Rules, relations: Relations, result: Conversion) -> None:
        self._unit = unit
        self._draft = draft
        self._rules = rules
        self._relations = relations
        self._result = result
        self._context: UnitContext = context_of(unit, draft.name)
        self._section = _SECTION_OF[unit.suffix]
        self._table_of_socket = ("socket", sum(table[0] == "socket" for table in draft.tables))
        self._input = InputData(self._context)
        self._log_rates = (30 * SECOND_NS, 10_000)
        self._special: dict[tuple[str, str], Callable[[Assignment, Place], None]] = {
            ("Unit", "Description"): self._description,
            ("Service", "Type"): self._type,
            ("Service", "KillMode"): self._kill_mode,
            ("Service", "TimeoutSec"): self._timeout,
            ("Service", "PermissionsStartOnly"): self._start_only,
            ("Service", "StandardOutput"): self._output,
            ("Service", "StandardError"): self._output,
            ("Service", "CPUShares"): self._shares,
            ("Service", "MountAPIVFS"): self._interfaces,
            ("Service", "LogRateLimitIntervalSec"): self._log_rate,
            ("Service", "LogRateLimitBurst"): self._log_rate,
            ("Service", TEXT): self._input.take,
            ("Service", DATA): self._input.take,
            ("Socket", "Service"): self._activation,
            ("Timer", "Unit"): self._activation,
            ("Install", "Alias"): self._alias,
            ("Install", "WantedBy"): self._install,
            ("Install", "RequiredBy"): self._install,
            ("Install", "UpheldBy"): self._install,
        }

    def convert(self) -> None:
        self._draft.table({"Target": "target"}.get(self._section, "service"))
        if self._section == "Socket":
            accepts = _accepts(self._unit)
            # systemd's defaults: the name of a descriptor, and how often a socket may trigger.
            self._draft.put(
                self._table_of_socket, "name", "connection" if accepts else self._unit.name.replace("@.", "@%i.")
            )
            self._draft.put(self._table_of_socket, "trigger-limit-burst", 200 if accepts else 20)
            is_installed = bool(self._unit.values("Install", "WantedBy", "RequiredBy"))
            if is_installed and not accepts and self._draft.get("unit", "enabled"):
                self._draft.table("service")["activation"] = "start"
        for assignment in self._unit.assignments:
            place = _place(assignment)
            try:
                self._take(assignment, place)
            except BadValue as bad:
                self._result.ledger.lost(place, bad.message)
        self._input.write(self._draft, self._result.ledger)
        self._refuse_idle()
        if boolean_of(self._unit.last("Service", "PermissionsStartOnly")) and self._draft.get("service", "user"):
            for key in _OTHER_PHASES:
                lines = self._draft.get("service", key)
                if isinstance(lines, list):
                    lines[:] = [with_privileges(line) for line in lines]

    def _refuse_idle(self) -> None:
        """A timer without a time and a socket that listens on nothing are refused by systemd."""
        table: TableId = ("timer",) if self._section == "Timer" else self._table_of_socket
        prefix = {"Timer": "on-", "Socket": "listen-"}.get(self._section)
        if prefix is None or any(key.startswith(prefix) for key in self._draft.tables.get(table, {})):
            return
        for key in list(self._draft.tables.get(table, {})):
            self._draft.drop(table, key)
        self._draft.tables.pop(table, None)
        places = [_place(each) for each in self._unit.assignments if each.section == self._section]
        reason = "a timer without a time" if self._section == "Timer" else "a socket that listens on nothing"
        self._result.ledger.lose(places or [Place(self._unit.files[0], 0, "")], f"{reason}, which systemd refuses")

    def _take(self, assignment: Assignment, place: Place) -> None:
        section = assignment.section
        if section.startswith("X-") or assignment.name.startswith("X-"):
            self._result.ledger.needless(place, "systemd ignores what begins with X-")
            return
        if section not in ("Unit", "Install", self._section):
            self._result.ledger.lost(place, f"systemd ignores the section [{section}] in a {self._unit.suffix}")
            return
        name = self._rules.resolve(section, assignment.name)
        special = self._special.get((section, name))
        target = self._rules.target(section, name)
        if special is not None:
            special(assignment, place)
        elif target is not None:
            self._put(target, name, assignment.value, place)
        elif (reason := self._rules.needless(section, name)) is not None:
            self._result.ledger.needless(place, reason)
        else:
            self._result.ledger.lost(place, self._rules.missing(section, name))

    def _put(self, target: Target, name: str, text: str, place: Place) -> None:
        """Carry an assignment over to the key that it is."""
        table = self._table_of_socket if target.table == "socket" else (target.table,)
        spec, key = target.spec, target.key
        if spec.type in _RELATION_TYPES:
            self._relations.take(self._draft.name, self._unit, key, text, self._context, place)
            return
        if not text and name != "CapabilityBoundingSet":
            self._reset(table, key, name, place)
            return
        if not text:
            # Here nothing is a value: no capability at all.
            self._draft.put(table, key, "", place)
        elif spec.type == "commands":
            line = command(text, self._context)
            self._check(target, line)
            self._draft.table(*table).setdefault(key, []).append(line)
            self._draft.places.setdefault((table, key), []).append(place)
        elif spec.type == "environment":
            found = environment(text, self._context)
            self._check(target, found)
            self._draft.table(*table).setdefault(key, {}).update(found)
            self._draft.places.setdefault((table, key), []).append(place)
        elif is_list(spec, text):
            added, unknown = known_words(key, items(name, spec, text, self._context))
            self._check(target, added)
            self._draft.add(table, key, added, place)
            if unknown:
                self._result.ledger.lost(place, "; ".join(unknown))
                return
        else:
            value = scalar(name, spec, text, self._context)
            self._check(target, value)
            self._draft.put(table, key, value, place)
        self._result.ledger.carried(place)

    def _reset(self, table: tuple[str | int, ...], key: str, name: str, place: Place) -> None:
        """An empty value takes back what was said before, of conditions and of triggers all."""
        keys = {key}
        if key.startswith(("condition-", "assert-")):
            prefix = key.partition("-")[0]
            keys = {each for each in self._draft.table(*table) if each.startswith(f"{prefix}-")}
        elif name in _TRIGGERS:
            keys = {each for each in self._draft.table(*table) if each.startswith("on-")}
        for each in keys:
            self._draft.drop(table, each)
        self._result.ledger.carried(place)

    def _check(self, target: Target, value: object) -> None:
        """Refuse what the reader of unit files would refuse: systemd ignores it too, or it is not had here.

        Raises:
            BadValue: It would.
        """
        decoder = DECODERS.get(target.spec.type)
        if decoder is None or not target.spec.built:
            return
        try:
            decoder(value, target.spec, _ANYWHERE.expand)
        except BadValue as bad:
            is_secret = target.key in SECRET_KEYS
            raise BadValue("its value is refused here" if is_secret else bad.all()[0].message) from None

    def _description(self, assignment: Assignment, place: Place) -> None:
        if self._section != "Service" and self._section != "Target" and self._draft.get("unit", "description"):
            self._result.ledger.needless(place, "the service has a description, and is the same unit here")
            return
        target = self._rules.target("Unit", "Description")
        assert target is not None, "internal error: the table of keys has no description"
        self._put(target, "Description", assignment.value, place)

    def _type(self, assignment: Assignment, place: Place) -> None:
        if assignment.value == "dbus":
            self._draft.put("service", "type", "simple")
            self._result.ledger.lost(place, "the bus is not watched: the unit is up when its program runs")
            return
        target = self._rules.target("Service", "Type")
        assert target is not None, "internal error: the table of keys has no type"
        self._put(target, "Type", assignment.value, place)

    def _kill_mode(self, assignment: Assignment, place: Place) -> None:
        if assignment.value == "none":
            reason = 'no process of a unit is left behind; kill-mode = "process" spares all but the main one'
            self._result.ledger.lost(place, reason)
            return
        target = self._rules.target("Service", "KillMode")
        assert target is not None, "internal error: the table of keys has no kill-mode"
        self._put(target, "KillMode", assignment.value, place)

    def _log_rate(self, assignment: Assignment, place: Place) -> None:
        """So many messages in so much time, of two directives; with one of them 0 there is no limit."""
        # An interval alone goes with the other's default in journald.conf(5).
        interval, burst = self._log_rates
        if assignment.name.endswith("Burst"):
            if not re.fullmatch(r"[0-9]{1,9}", assignment.value):
                raise BadValue(f"{assignment.value!r} is no whole number, and systemd ignores it")
            burst = int(assignment.value)
        else:
            interval = parse_timespan(number_or_text(assignment.value)) or 0
        self._log_rates = (interval, burst)
        self._draft.drop(("log",), "rate-limit")
        if interval and burst:
            self._draft.put("log", "rate-limit", format_rate(Rate(burst, interval)), place)
        self._result.ledger.carried(place)

    def _timeout(self, assignment: Assignment, place: Place) -> None:
        for name in ("TimeoutStartSec", "TimeoutStopSec"):
            target = self._rules.target("Service", name)
            assert target is not None, "internal error: the table of keys has no time-outs"
            value = scalar(name, target.spec, assignment.value, self._context)
            self._check(target, value)
            self._draft.put("service", target.key, value, place)
        self._result.ledger.carried(place)

    def _start_only(self, assignment: Assignment, place: Place) -> None:
        boolean(assignment.value)
        self._result.ledger.carried(place)

    def _interfaces(self, assignment: Assignment, place: Place) -> None:
        if self._unit.last("Service", "RootDirectory") in ("", "/"):
            self._result.ledger.needless(place, "without RootDirectory= it changes nothing")
            return
        target = self._rules.target("Service", "MountAPIVFS")
        assert target is not None, "internal error: the table of keys has no mount-apivfs"
        self._put(target, "MountAPIVFS", assignment.value, place)

    def _shares(self, assignment: Assignment, place: Place) -> None:
        target = self._rules.target("Service", "CPUWeight")
        if target is None or not assignment.value.isdecimal():
            raise BadValue(f"{assignment.value!r} are no shares, and systemd ignores it")
        # 1024 shares are a weight of 100: systemd does the same.
        weight = max(1, min(int(assignment.value) * 100 // 1024, 10000))
        self._draft.put(target.table, target.key, weight, place)
        self._result.ledger.carried(place)

    def _output(self, assignment: Assignment, place: Place) -> None:
        """The journal of systemd is where output goes by default, and so is the unit's log here."""
        target = self._rules.target("Service", self._rules.resolve("Service", assignment.name))
        assert target is not None, "internal error: the table of keys has no output"
        value = {"syslog": "journal", "syslog+console": "journal+console"}.get(assignment.value, assignment.value)
        if value in ("kmsg", "journal+console", "kmsg+console"):
            self._draft.drop(("service",), target.key)
            self._result.ledger.lost(place, "neither the console nor the kernel's log is written to")
        elif value == "socket" and self._unit.last("Service", "StandardInput") == "socket":
            self._draft.drop(("service",), target.key)
            self._result.ledger.carried(place)
        elif value != "journal":
            self._put(target, assignment.name, value, place)
        elif target.key == "standard-error" and self._unit.last("Service", "StandardOutput") not in ("", "journal"):
            # Not the system's own journal: on a machine without one the unit could not start.
            self._draft.put("service", target.key, "journal", place)
            self._result.ledger.carried(place)
        else:
            self._draft.drop(("service",), target.key)
            self._result.ledger.needless(place, "the default: here it is the unit's log, which supctl logs reads")

    def _activation(self, assignment: Assignment, place: Place) -> None:
        self._result.ledger.carried(place)

    def _alias(self, assignment: Assignment, place: Place) -> None:
        name = self._draft.name
        self._result.ledger.carried(place)
        others = [word for word in assignment.value.split() if word.rpartition(".")[0] != name]
        if others:
            shown = ", ".join(others)
            self._result.ledger.note(place, f"{shown} means {name} in the other files; supctl knows it as {name} alone")

    def _install(self, assignment: Assignment, place: Place) -> None:
        if self._relations.install(self._draft.name, assignment, self._context, place):
            self._draft.table("unit")["enabled"] = True


def boolean_of(text: str) -> bool:
    """Whether a boolean is set; what is none is not."""
    try:
        return boolean(text)
    except BadValue:
        return False
