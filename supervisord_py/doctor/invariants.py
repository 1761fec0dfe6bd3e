"""The laws of a running supervisor, each a function of one look: no child lost, doubled or left behind, and no status
that is not so.

Each law yields what breaks it, under a key: who it is about. What breaks a law in one look only was in motion; what
does so under the same key in every look is a finding (``instance``).
"""

import os
import pwd
from collections.abc import Callable, Iterator, Mapping

from supervisord_py.doctor.evidence import BETWEEN_LIVES, Evidence, Process, UnitWord
from supervisord_py.doctor.findings import Finding, degraded, wrong
from supervisord_py.model.names import base_unit, is_aux_owner

DESCRIPTORS_OF_ITS_OWN = 96
DESCRIPTORS_A_UNIT = 8
DESCRIPTORS_A_PROCESS = 2
"""What keeper and manager may hold at most (measured: two to five a unit, one a followed process)."""
COMMAND_SHOWN = 60

Law = Callable[[Evidence], Iterator[tuple[str, Finding]]]
REPORT = "please report it, with what supctl journal query prints"


def broken(evidence: Evidence) -> dict[str, Finding]:
    """Return what breaks a law in this look, by key."""
    return {f"{law.__name__}: {key}": finding for law in LAWS for key, finding in law(evidence)}


def unit_of(process: Process, evidence: Evidence) -> str | None:
    """Return the unit whose process it is: by the tag and the keeper's book, else by its cgroup."""
    if evidence.book is not None and process.spawn_id is not None:
        known = evidence.book.units.get(process.spawn_id)
        if known is not None:
            return known
    return process.group


def _name(process: Process) -> str:
    return f"pid {process.pid} ({process.command[:COMMAND_SHOWN] or '?'})"


def every_process_has_a_living_unit(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """What carries our tag is a process of a unit that is not at rest."""
    for process in evidence.processes.values():
        if process.spawn_id is None and process.group is None:
            continue
        unit = unit_of(process, evidence)
        key = str(process.pid)
        if unit is None:
            if evidence.book is not None:
                fact = f"{_name(process)} carries our tag, and the keeper knows of no unit that it is of"
                yield key, wrong("processes", fact, f"look at it, then kill it; {REPORT}")
            continue
        # A hook may run for a unit that is at rest, or for none.
        word = evidence.units.get(base_unit(unit))
        if is_aux_owner(unit):
            pass
        elif word is None:
            fact = f"{_name(process)} is a process of {unit}, which the supervisor does not know any more"
            yield key, wrong("processes", fact, f"kill it; {REPORT}")
        elif not word.moving and (word.is_at_rest or word.sub in BETWEEN_LIVES):
            fact = f"{_name(process)} is a process of {unit}, which is said to be {word.active} ({word.sub})"
            if word.may_leave:
                yield (
                    key,
                    degraded(
                        "processes",
                        f"{fact}; its kill-mode leaves it alone",
                        f'kill {process.pid}, or kill-mode = "control-group"',
                    ),
                )
            else:
                yield key, wrong("processes", fact, f"supctl kill {unit}; {REPORT}")
        if process.group is not None and process.group != unit:
            fact = f"{_name(process)} is in the cgroup of {process.group}, and by its tag of {unit}"
            yield f"{key} group", wrong("processes", fact, REPORT)


def every_main_process_lives(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """The pid that status tells lives, is the keeper's (or one that it follows), is tagged and is of that life."""
    for word in _settled(evidence):
        if word.pid is None:
            continue
        key = f"{word.name} {word.pid}"
        process = evidence.processes.get(word.pid)
        is_followed = _is_followed(word, evidence)
        if process is None:
            if not is_followed or not os.path.exists(f"/proc/{word.pid}/stat"):
                fact = f"status says that {word.name} runs as pid {word.pid}, and no such process of ours lives"
                yield key, wrong("status", fact, REPORT)
            continue
        if not process.descends and not is_followed and evidence.book is not None:
            fact = (
                f"the main process of {word.name}, {_name(process)}, is not below the keeper, which does not follow it"
            )
            yield f"{key} parent", wrong("status", fact, REPORT)
        if process.spawn_id is None and process.descends and evidence.instance.number is not None:
            if process.may_be_tagged:
                fact = f"the main process of {word.name}, {_name(process)}, carries no tag: what it starts may flee"
                yield f"{key} tag", wrong("tag", fact, f"does it change its own RLIMIT_RTTIME? If not, {REPORT}")
            else:
                fact = f"the main process of {word.name}, {_name(process)}, cannot carry the tag"
                yield (
                    f"{key} tag",
                    degraded("tag", fact, "take rttime out of its [limits], or raise the supervisor's own"),
                )
        unit = unit_of(process, evidence)
        if unit is not None and unit != word.name:
            fact = f"status says that {word.name} runs as pid {word.pid}, which carries the tag of {unit}"
            yield f"{key} unit", wrong("status", fact, REPORT)
        said = evidence.invocations.get(word.pid)
        if said is not None and word.invocation is not None and said != word.invocation and not is_followed:
            fact = f"{word.name} is said to be in life {word.invocation}, and its pid {word.pid} was made in {said}"
            yield f"{key} life", wrong("status", fact, REPORT)


def _is_followed(word: UnitWord, evidence: Evidence) -> bool:
    """Whether the keeper's book names this process as the main one in the place of the one that was made."""
    return evidence.book is not None and any(
        spawn.unit == word.name and spawn.main_pid == word.pid and not spawn.over and spawn.main_start
        for spawn in evidence.book.spawns.values()
    )


def no_unit_runs_without_a_process(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """A unit that is said to run has a process (one that is ``exited`` needs none, nor does a target)."""
    with_process = {unit_of(process, evidence) for process in evidence.processes.values()}
    for word in _settled(evidence):
        if word.sub == "running" and word.has_command and word.pid is None and word.name not in with_process:
            fact = f"{word.name} is said to run, and has no process"
            yield word.name, wrong("status", fact, f"supctl restart {word.name}; {REPORT}")


def no_unit_runs_twice(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """Of a unit's main processes at most one lives."""
    if evidence.book is None:
        return
    living: dict[str, list[int]] = {}
    for spawn in evidence.book.spawns.values():
        process = evidence.processes.get(spawn.pid)
        is_first = process is not None and process.spawn_id == spawn.id
        other = evidence.processes.get(spawn.main_pid)
        is_other = spawn.main_start != 0 and other is not None and other.start == spawn.main_start
        if spawn.role == "main" and not spawn.over and (is_first or is_other):
            living.setdefault(spawn.unit, []).append(spawn.main_pid)
    for unit, pids in living.items():
        if len(pids) > 1:
            fact = f"{unit} has {len(pids)} main processes: {', '.join(map(str, sorted(pids)))}"
            yield unit, wrong("processes", fact, f"supctl restart {unit}; {REPORT}")


def strays_are_named(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """A child of the keeper that belongs to no unit is told; it is killed at the shutdown.

    Process 1 of a container is given every orphan: there it is no news.
    """
    if evidence.book is None or evidence.instance.keeper == 1:
        return
    spawns = {spawn.pid for spawn in evidence.book.spawns.values()}
    invocations = {spawn.invocation for spawn in evidence.book.spawns.values() if spawn.invocation}
    for process in evidence.processes.values():
        if process.ppid != evidence.instance.keeper or process.spawn_id is not None or process.group is not None:
            continue
        if process.pid in spawns or evidence.invocations.get(process.pid) in invocations:
            continue
        fact = f"{_name(process)} is a child of the keeper and of no unit"
        yield str(process.pid), degraded("strays", fact, f"kill {process.pid}, or let the shutdown do it")


def there_is_one_manager(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """The keeper has one manager, and that is the one that answers."""
    if evidence.managers != [evidence.instance.manager]:
        pids = ", ".join(map(str, evidence.managers)) or "none"
        fact = f"the keeper's managers: {pids}; pid {evidence.instance.manager} answers"
        yield "manager", wrong("manager", fact, f"supctl daemon-restart; {REPORT}")


def nothing_is_left_of_lives(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """Notify sockets and cgroup folders are those of units that are not at rest."""
    held = sum(not word.is_at_rest for word in evidence.units.values())
    for path, is_bound in evidence.mailboxes.items():
        if not is_bound:
            yield path, wrong("leftovers", f"nobody listens on the notify socket {path}", f"rm {path}; {REPORT}")
    if sum(evidence.mailboxes.values()) > held + evidence.has_relay:
        fact = f"{sum(evidence.mailboxes.values())} notify sockets are open for {held} units that are not at rest"
        yield "mailboxes", wrong("leftovers", fact, REPORT)
    for folder, unit in evidence.groups.items():
        word = evidence.units.get(unit)
        is_lived_in = any(process.group == unit for process in evidence.processes.values())
        if not is_lived_in and (word is None or (word.is_at_rest and not word.moving)):
            state = "the supervisor does not know" if word is None else f"is {word.active}"
            yield (
                folder,
                wrong("leftovers", f"{folder} is an empty cgroup of a unit that {state}", f"rmdir it; {REPORT}"),
            )


def descriptors_are_in_proportion(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """Keeper and manager hold a few descriptors a unit and not more with time."""
    most = (
        DESCRIPTORS_OF_ITS_OWN
        + DESCRIPTORS_A_UNIT * len(evidence.units)
        + DESCRIPTORS_A_PROCESS * len(evidence.processes)
    )
    for who, count in (("keeper", evidence.keeper_descriptors), ("manager", evidence.manager_descriptors)):
        if count is not None and count > most:
            fact = f"the {who} holds {count} descriptors for {len(evidence.units)} units"
            cure = "supctl daemon-restart" if who == "manager" else "supctl daemon-reexec"
            yield who, wrong("descriptors", fact, f"{cure}; {REPORT}")


def the_keeper_holds_its_locks(evidence: Evidence) -> Iterator[tuple[str, Finding]]:
    """Nobody else can start in the same folders."""
    for path, problem in evidence.locks.items():
        if problem:
            fact = f"{path} {problem}: a second supervisor could start in it"
            yield path, wrong("lock", fact, f"supctl shutdown, then start it again; {REPORT}")


def _settled(evidence: Evidence) -> Iterator[UnitWord]:
    return (word for word in evidence.units.values() if not word.moving)


LAWS: tuple[Law, ...] = (
    every_process_has_a_living_unit,
    every_main_process_lives,
    no_unit_runs_without_a_process,
    no_unit_runs_twice,
    strays_are_named,
    there_is_one_manager,
    nothing_is_left_of_lives,
    descriptors_are_in_proportion,
    the_keeper_holds_its_locks,
)


def who_can_signal_whom(evidence: Evidence) -> list[Finding]:
    """Say which units run under one uid: each of them can signal the others, and what a supervisor of that uid is."""
    keeper_uid = _uid(evidence.instance.keeper)
    units: dict[int, set[str]] = {}
    for process in evidence.processes.values():
        unit = unit_of(process, evidence)
        if unit is not None:
            units.setdefault(process.uid, set()).add(unit)
    found = []
    for uid, names in sorted(units.items()):
        is_ours = uid == keeper_uid or uid == 0
        if len(names) < 2 and not is_ours:
            continue
        shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        victims = " and ".join((["each other"] if len(names) > 1 else []) + (["the supervisor"] if is_ours else []))
        cure = "give each a user of its own ([service] user)"
        if keeper_uid != 0:
            cure += ", which takes a supervisor of root; or keep them apart by a pid namespace"
        found.append(degraded("signals", f"{shown} run as {_user(uid)}: they can signal {victims}", cure))
    return found


def _uid(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def counts(evidence: Evidence) -> Mapping[str, int]:
    """Return what was looked at, for the line that says that all is well."""
    return {"units": len(evidence.units), "processes": len(evidence.processes)}
