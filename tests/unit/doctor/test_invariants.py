"""Each law of a running supervisor finds the bug that is planted for it, and nothing where all is well."""

from collections.abc import Callable

import msgspec
import pytest

from supervisord_py.doctor.evidence import Evidence, Instance, Process, UnitWord
from supervisord_py.doctor.findings import Level
from supervisord_py.doctor.invariants import broken, who_can_signal_whom
from supervisord_py.host.book import Book, Spawn

KEEPER, MANAGER, MAIN, CHILD = 9_000_100, 101, 110, 111


def healthy() -> Evidence:
    """A supervisor of three units: web runs with a child, db is stopped, once has done its work and stays."""
    return Evidence(
        instance=Instance("main", KEEPER, MANAGER, 7, "/r", "/s", "/l"),
        units={
            "web": UnitWord("web", "active", "running", MAIN, "aa"),
            "db": UnitWord("db", "inactive", "dead", None, None),
            "once": UnitWord("once", "active", "exited", None, "bb"),
        },
        processes={
            MAIN: Process(MAIN, KEEPER, 5, 1000, "web", True, spawn_id=3, group="web"),
            CHILD: Process(CHILD, MAIN, 6, 1000, "web worker", True, spawn_id=3, group="web"),
        },
        managers=[MANAGER],
        invocations={MAIN: "aa"},
        book=Book(spawns={3: Spawn(3, "web", "main", MAIN, MAIN)}, units={3: "web"}),
        mailboxes={"/r/n/0a": True},
        groups={"/g/web.unit": "web"},
        keeper_descriptors=30,
        manager_descriptors=30,
        locks={"/r/lock": "", "/s": ""},
    )


def change(evidence: Evidence, pid: int, **fields: object) -> None:
    evidence.processes[pid] = msgspec.structs.replace(evidence.processes[pid], **fields)


def say(evidence: Evidence, unit: str, **fields: object) -> None:
    evidence.units[unit] = msgspec.structs.replace(evidence.units[unit], **fields)


def add(evidence: Evidence, process: Process) -> None:
    evidence.processes[process.pid] = process


def test_all_is_well() -> None:
    """Nothing is found where nothing is planted."""
    assert broken(healthy()) == {}


def test_a_hook_may_run_for_a_unit_that_is_at_rest_or_for_none() -> None:
    """What runs beside a unit's life is not lost; in the group of another it is wrong as everything is."""
    evidence = healthy()
    assert evidence.book is not None
    for pid, owner in ((120, "db!8"), (121, "!9")):
        number = int(owner.partition("!")[2])
        add(evidence, Process(pid, KEEPER, 7, 1000, "page", True, spawn_id=number, group=owner))
        evidence.book.units[number] = owner
        evidence.groups[f"/g/{owner}.unit"] = owner
    assert broken(evidence) == {}
    change(evidence, 120, group="web")
    assert [key.partition(":")[0] for key in broken(evidence)] == [
        "every_process_has_a_living_unit",
        "nothing_is_left_of_lives",
    ], "it is in a group of another, and its own is empty"


def test_a_target_that_is_up_was_told_to_have_lost_its_process() -> None:
    """What has nothing to run is up without a process; a service is not."""
    evidence = healthy()
    evidence.units["all"] = UnitWord("all", "active", "running", None, "cc", has_command=False)
    assert broken(evidence) == {}
    say(evidence, "all", has_command=True)
    assert len(broken(evidence)) == 1


def left_behind(evidence: Evidence) -> None:
    say(evidence, "web", active="inactive", sub="dead", pid=None)
    del evidence.processes[MAIN]
    evidence.mailboxes = {}


def between_lives(evidence: Evidence) -> None:
    say(evidence, "web", active="activating", sub="auto-restart", pid=None)


def of_a_removed_unit(evidence: Evidence) -> None:
    del evidence.units["web"]
    evidence.mailboxes = {}


def of_a_forgotten_spawn(evidence: Evidence) -> None:
    add(evidence, Process(120, KEEPER, 9, 1000, "who", True, spawn_id=99))


def in_the_wrong_group(evidence: Evidence) -> None:
    change(evidence, CHILD, group="db")
    say(evidence, "db", active="active", sub="exited")


def dead_main(evidence: Evidence) -> None:
    del evidence.processes[MAIN]


def foreign_main(evidence: Evidence) -> None:
    change(evidence, MAIN, descends=False, ppid=1)


def untagged_main(evidence: Evidence) -> None:
    change(evidence, MAIN, spawn_id=None)


def main_of_another(evidence: Evidence) -> None:
    assert evidence.book is not None
    evidence.book.units[3] = "once"


def another_life(evidence: Evidence) -> None:
    evidence.invocations[MAIN] = "cc"


def no_process(evidence: Evidence) -> None:
    say(evidence, "db", active="active", sub="running")


def doubled(evidence: Evidence) -> None:
    assert evidence.book is not None
    evidence.book.spawns[4] = Spawn(4, "web", "main", 112, 112)
    evidence.book.units[4] = "web"
    add(evidence, Process(112, KEEPER, 8, 1000, "web", True, spawn_id=4, group="web"))


def two_managers(evidence: Evidence) -> None:
    evidence.managers = [MANAGER, 102]


def no_manager_of_the_keeper(evidence: Evidence) -> None:
    evidence.managers = []


def dead_mailbox(evidence: Evidence) -> None:
    evidence.mailboxes["/r/n/0b"] = False


def too_many_mailboxes(evidence: Evidence) -> None:
    evidence.mailboxes |= {"/r/n/0b": True, "/r/n/0c": True}


def group_of_a_stopped_unit(evidence: Evidence) -> None:
    evidence.groups["/g/db.unit"] = "db"


def group_of_no_unit(evidence: Evidence) -> None:
    evidence.groups["/g/old.unit"] = "old"


def keeper_leaks(evidence: Evidence) -> None:
    evidence.keeper_descriptors = 500


def manager_leaks(evidence: Evidence) -> None:
    evidence.manager_descriptors = 500


def unlocked(evidence: Evidence) -> None:
    evidence.locks["/s"] = "is locked by nobody"


PLANTED = {
    left_behind: "every_process_has_a_living_unit: 111",
    between_lives: "every_process_has_a_living_unit: 110",
    of_a_removed_unit: "every_process_has_a_living_unit: 110",
    of_a_forgotten_spawn: "every_process_has_a_living_unit: 120",
    in_the_wrong_group: "every_process_has_a_living_unit: 111 group",
    dead_main: "every_main_process_lives: web 110",
    foreign_main: "every_main_process_lives: web 110 parent",
    untagged_main: "every_main_process_lives: web 110 tag",
    main_of_another: "every_main_process_lives: web 110 unit",
    another_life: "every_main_process_lives: web 110 life",
    no_process: "no_unit_runs_without_a_process: db",
    doubled: "no_unit_runs_twice: web",
    two_managers: "there_is_one_manager: manager",
    no_manager_of_the_keeper: "there_is_one_manager: manager",
    dead_mailbox: "nothing_is_left_of_lives: /r/n/0b",
    too_many_mailboxes: "nothing_is_left_of_lives: mailboxes",
    group_of_a_stopped_unit: "nothing_is_left_of_lives: /g/db.unit",
    group_of_no_unit: "nothing_is_left_of_lives: /g/old.unit",
    keeper_leaks: "descriptors_are_in_proportion: keeper",
    manager_leaks: "descriptors_are_in_proportion: manager",
    unlocked: "the_keeper_holds_its_locks: /s",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Callable[[Evidence], None]) -> None:
    """A law that is broken is told as wrong, under a key that says whom it is about, with what to do."""
    evidence = healthy()
    plant(evidence)
    found = broken(evidence)[PLANTED[plant]]
    assert found.level is Level.WRONG and found.fact and found.cure


def test_a_unit_in_motion_is_not_judged() -> None:
    """What status said differently a moment later is no lie."""
    evidence = healthy()
    dead_main(evidence)
    say(evidence, "web", moving=True)
    assert broken(evidence) == {}


def test_what_kill_mode_process_leaves_is_not_wrong() -> None:
    """Processes that the unit's text leaves alone are told, and are no broken law."""
    evidence = healthy()
    left_behind(evidence)
    say(evidence, "web", may_leave=True)
    assert [finding.level for finding in broken(evidence).values()] == [Level.DEGRADED]


def test_a_main_process_that_the_keeper_follows_may_be_anywhere() -> None:
    """What MAINPID or an adoption made the main process need not be below the keeper nor of its making."""
    evidence = healthy()
    assert evidence.book is not None
    foreign_main(evidence)
    evidence.book.spawns[3] = Spawn(3, "web", "main", 109, MAIN, main_start=5)
    another_life(evidence)
    assert broken(evidence) == {}


def test_a_limit_that_takes_the_tag_away_is_told_with_its_cure() -> None:
    """A main process that cannot carry the tag is degraded: its unit said so."""
    evidence = healthy()
    change(evidence, MAIN, spawn_id=None, may_be_tagged=False)
    (found,) = broken(evidence).values()
    assert found.level is Level.DEGRADED and "rttime" in found.cure


def test_a_stray_is_named_with_its_command() -> None:
    """A child of the keeper without tag, cgroup and unit is told, and where to send the kill."""
    evidence = healthy()
    add(evidence, Process(130, KEEPER, 9, 1000, "sneaky --daemon", True))
    (found,) = broken(evidence).values()
    assert found.level is Level.DEGRADED and "sneaky --daemon" in found.fact and "130" in found.cure


def test_the_children_of_units_are_no_strays() -> None:
    """A process below a unit's process is that unit's, whatever it did to its tag."""
    evidence = healthy()
    change(evidence, CHILD, spawn_id=None, group=None)
    assert broken(evidence) == {}


def test_the_relay_to_the_service_manager_is_no_leftover() -> None:
    """Under a service manager one notify socket is the keeper's own; one more than that is left of a unit."""
    evidence = healthy()
    evidence.has_relay = True
    evidence.mailboxes |= {"/r/n/0b": True, "/r/n/0c": True}
    assert broken(evidence) == {}
    evidence.mailboxes["/r/n/0d"] = True
    assert [finding.topic for finding in broken(evidence).values()] == ["leftovers"]


def test_without_the_book_only_what_can_be_known_is_said() -> None:
    """Another user sees less, and that is no broken law."""
    evidence = healthy()
    evidence.book = None
    add(evidence, Process(120, KEEPER, 9, 1000, "who", True, spawn_id=99))
    assert broken(evidence) == {}


def test_equal_uids_are_told() -> None:
    """Units of one uid, and units of root, are named with whom they can signal; a uid of its own is silent."""
    evidence = healthy()
    assert who_can_signal_whom(evidence) == []
    change(evidence, CHILD, group="once", spawn_id=None)
    (found,) = who_can_signal_whom(evidence)
    assert "once, web" in found.fact and "each other" in found.fact and "user" in found.cure
    change(evidence, CHILD, uid=0)
    (found,) = who_can_signal_whom(evidence)
    assert "the supervisor" in found.fact and "once" in found.fact
