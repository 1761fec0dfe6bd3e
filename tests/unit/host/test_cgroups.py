"""Control groups: where they may be made, and what becomes of them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisord_py.host.cgroups import (
    Finding,
    Hierarchy,
    Place,
    UnitGroups,
    base_name,
    choose,
    find_place,
    is_base_of,
    parse_mounts,
    take_leaf,
)

HYBRID = """\
29 23 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
30 23 0:27 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
31 23 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
"""
UNIFIED = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
READ_ONLY = "29 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
OWN = "9:name=systemd:/v1/own\n4:memory:/else\n0::/v2/own\n"
UNIFIED_PLACE = Place(Hierarchy.UNIFIED, "/sys/fs/cgroup/unified/v2/own")
NAMED_PLACE = Place(Hierarchy.NAMED, "/sys/fs/cgroup/systemd/v1/own")


def decide(
    proc_cgroup: str = OWN,
    mountinfo: str = HYBRID,
    *,
    has_systemd: bool = False,
    delegated: tuple[str, ...] = (),
    refusal: Callable[[str], str | None] = lambda folder: None,
) -> Finding:
    return choose(
        proc_cgroup,
        mountinfo,
        has_systemd=has_systemd,
        is_delegated=lambda folder: folder in delegated,
        refusal=refusal,
    )


def test_without_systemd_our_own_group_is_ours() -> None:
    """Where no service manager owns the tree, the unified hierarchy is taken, with or without controllers."""
    assert decide() == Finding(UNIFIED_PLACE, ())


def test_the_named_hierarchy_is_the_second_choice() -> None:
    """What speaks against the unified one is told beside the one that is used."""

    def refusal(folder: str) -> str | None:
        return "no right" if "unified" in folder else None

    assert decide(refusal=refusal) == Finding(NAMED_PLACE, ("cgroup2 at /sys/fs/cgroup/unified: no right",))


def test_what_systemd_did_not_delegate_is_left_alone() -> None:
    """Under systemd even root makes no groups without Delegate=yes, and the reason names it."""
    finding = decide(has_systemd=True)
    assert finding.place is None
    assert len(finding.reasons) == 2
    assert all("did not delegate" in reason and "Delegate=yes" in reason for reason in finding.reasons)
    assert decide(has_systemd=True, delegated=(UNIFIED_PLACE.folder,)).place == UNIFIED_PLACE


def test_units_are_siblings_of_the_leaf_that_holds_the_keeper() -> None:
    """In the leaf ``supervisor`` of a delegated group, that group is the place; in any other leaf it is not."""
    above = "/sys/fs/cgroup/s.service"
    for leaf, place in (("supervisor", Place(Hierarchy.UNIFIED, above, f"{above}/supervisor")), ("other", None)):
        finding = decide(f"0::/s.service/{leaf}\n", UNIFIED, has_systemd=True, delegated=(above,))
        assert finding.place == place
        assert UnitGroups(finding, "main", 1).home == (None if place is None else f"{above}/supervisor")


@pytest.mark.parametrize(
    ("proc_cgroup", "mountinfo", "reason"),
    [
        (OWN, READ_ONLY, "read-only"),
        ("0::/../outside\n", UNIFIED, "not in it"),
        ("0::/x\n", UNIFIED.replace(" / /sys", " /docker/abc /sys"), "not in it"),
        ("", UNIFIED, "not in it"),
        (OWN, "", "not mounted"),
    ],
)
def test_where_there_are_no_groups_the_reason_is_told(proc_cgroup: str, mountinfo: str, reason: str) -> None:
    """A mount that is read-only, elsewhere or missing is no place, and each is named."""
    finding = decide(proc_cgroup, mountinfo)
    assert finding.place is None
    assert any(reason in text for text in finding.reasons)
    assert "their tag" in UnitGroups(finding, "main", 1).describe()


def test_a_mounted_part_of_a_hierarchy() -> None:
    """In a container that sees only its own part, our path is taken relative to that part."""
    finding = decide("0::/docker/abc/x\n", UNIFIED.replace(" / /sys", " /docker/abc /sys"))
    assert finding.place == Place(Hierarchy.UNIFIED, "/sys/fs/cgroup/x")


def test_mount_points_with_spaces() -> None:
    """Escapes of the kernel's mount table are read."""
    assert parse_mounts(UNIFIED.replace("/sys/fs/cgroup ", "/mnt/my\\040groups "))[0].point == "/mnt/my groups"


def test_names_of_base_folders() -> None:
    """An instance knows the folders of its own name only, also where one name begins with the other."""
    assert is_base_of(base_name("main", 0xABCDE), "main")
    assert not is_base_of(base_name("main-2", 1), "main")
    assert not is_base_of("supervisord-py.main-", "main")
    assert not is_base_of("supervisord-py.probe-1", "main")


@pytest.fixture
def finding() -> Iterator[Finding]:
    """Where this machine lets us make groups."""
    found = find_place()
    if found.place is None:
        pytest.skip(f"no writable control groups: {found.reasons}")
    yield found
    for instance in (1, 2):
        UnitGroups(found, f"test{os.getpid()}", instance).close(remove=True)


@pytest.mark.cgroup
def test_a_process_joins_and_the_group_goes_when_it_is_empty(finding: Finding) -> None:
    """A group is made on demand, tells its members, stays while one lives, and goes with what was made below it."""
    groups = UnitGroups(finding, f"test{os.getpid()}", 1)
    assert groups.members("tasks") == []
    (folder,) = groups.create("tasks")
    assert groups.create("tasks") == (folder,)
    assert folder in groups.describe() or str(groups.base) in groups.describe()
    inner = Path(folder, "inner")
    inner.mkdir()
    process = subprocess.Popen(["sleep", "60"])
    try:
        (inner / "cgroup.procs").write_text(str(process.pid))
        assert groups.members("tasks") == [process.pid]
        assert not groups.remove("tasks")
        assert Path(folder).is_dir()
    finally:
        process.kill()
        process.wait()
    assert groups.remove("tasks")
    assert not Path(folder).exists()
    assert groups.remove("tasks")
    groups.close(remove=True)
    assert not Path(str(groups.base)).exists()


@pytest.mark.cgroup
def test_what_a_killed_keeper_left_empty_goes_when_the_next_one_begins(finding: Finding) -> None:
    """The next keeper goes on under the number of the old one: nobody else would ever look at its folder."""
    groups = UnitGroups(finding, f"test{os.getpid()}", 1)
    groups.create("empty")
    groups.create("full")
    process = subprocess.Popen(["sleep", "60"])
    try:
        Path(str(groups.folder("full")), "cgroup.procs").write_text(str(process.pid))
        groups.sweep_own()
        assert not Path(str(groups.folder("empty"))).exists()
        assert Path(str(groups.folder("full"))).is_dir()
    finally:
        process.kill()
        process.wait()
    assert groups.remove("full")
    groups.close(remove=True)


@pytest.mark.cgroup
def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(finding: Finding) -> None:
    """Empty groups of a dead instance go; one with a process is reported; a living instance's are not touched."""
    name = f"test{os.getpid()}"
    old, new = UnitGroups(finding, name, 1), UnitGroups(finding, name, 2)
    for unit in ("empty", "full"):
        old.create(unit)
    new.create("web")
    assert new.sweep() == []
    assert Path(str(old.folder("empty"))).is_dir()
    process = subprocess.Popen(["sleep", "60"])
    try:
        Path(str(old.folder("full")), "cgroup.procs").write_text(str(process.pid))
        old.close(remove=False)
        (leftover,) = new.sweep()
        assert (leftover.unit, leftover.pids, leftover.folder) == ("full", (process.pid,), old.folder("full"))
        assert not Path(str(old.folder("empty"))).exists()
    finally:
        process.kill()
        process.wait()
    assert new.sweep() == []
    assert not Path(str(old.base)).exists()
    assert Path(str(new.folder("web"))).is_dir()
    assert new.remove("web")


@pytest.mark.cgroup
def test_a_manager_that_took_over_holds_the_lock_again(finding: Finding) -> None:
    """After the first manager is gone, the second one's groups are not leftovers to anybody."""
    name = f"test{os.getpid()}"
    first, second, other = (UnitGroups(finding, name, instance) for instance in (1, 1, 2))
    first.create("web")
    second.create("web")
    first.close(remove=False)
    second.create("web")
    assert other.sweep() == []
    assert Path(str(second.folder("web"))).is_dir()
    assert second.remove("web")


def test_a_place_that_vanished_costs_the_group_only(tmp_path: Path) -> None:
    """Where a group cannot be made the process is spawned without one, and ``describe`` tells why."""
    groups = UnitGroups(Finding(Place(Hierarchy.UNIFIED, str(tmp_path / "gone")), ()), "main", 1)
    assert groups.create("web") == ()
    assert "cannot make the group" in groups.describe()
    assert groups.sweep() == []
    assert groups.remove("web")


def a_group(folder: Path, *, procs: str, controllers: str = "cpu memory pids", is_root: bool = False) -> Finding:
    """What a group looks like, in a plain folder."""
    folder.mkdir()
    (folder / "cgroup.procs").write_text(procs)
    (folder / "cgroup.controllers").write_text(controllers)
    if not is_root:
        (folder / "cgroup.type").write_text("domain\n")
    return Finding(Place(Hierarchy.UNIFIED, str(folder)), ())


def test_keeper_and_manager_make_room_for_controllers(tmp_path: Path) -> None:
    """Alone in their group they go into a leaf of it; from there the group above is the place again."""
    finding = a_group(tmp_path / "a", procs="10\n11\n")
    found = take_leaf(finding, frozenset({10, 11}), ["memory"])
    leaf = f"{tmp_path}/a/supervisord-py.keeper"
    assert found == Finding(Place(Hierarchy.UNIFIED, f"{tmp_path}/a", leaf), ())
    assert Path(leaf, "cgroup.procs").read_text() == "11"
    for has_systemd in (False, True):
        again = decide(
            "0::/a/supervisord-py.keeper\n", UNIFIED, has_systemd=has_systemd, delegated=("/sys/fs/cgroup/a",)
        )
        assert again.place == Place(Hierarchy.UNIFIED, "/sys/fs/cgroup/a", "/sys/fs/cgroup/a/supervisord-py.keeper")
    assert not is_base_of("supervisord-py.keeper", "keeper")


def test_nobody_else_is_moved(tmp_path: Path) -> None:
    """With others in the group units go without controllers, and the reason names one; nor where nothing is gained."""
    finding = a_group(tmp_path / "a", procs="10\n12\n11\n")
    found = take_leaf(finding, frozenset({10, 11}), ["memory"])
    assert found.place == finding.place
    groups = UnitGroups(found, "main", 1)
    assert groups.why_not("memory") == f"no controllers for units: process 12 is in {tmp_path}/a too"
    assert groups.why_not("io") == "no control group has the controller io"
    for name, made in (
        ("b", a_group(tmp_path / "b", procs="10\n", controllers="hugetlb")),
        ("c", a_group(tmp_path / "c", procs="10\n", is_root=True)),
    ):
        assert take_leaf(made, frozenset({10}), ["memory"]) == made
        assert not (tmp_path / name / "supervisord-py.keeper").exists()


def test_without_groups_the_reasons_are_told() -> None:
    """Whoever asked for a bound learns what to do about it."""
    groups = UnitGroups(decide(has_systemd=True), "main", 1)
    assert "there are no control groups (" in groups.why_not("memory")
    assert "Delegate=yes" in groups.why_not("memory")


@pytest.mark.cgroup
def test_groups_were_swept_between_two_managers_of_a_living_keeper(finding: Finding) -> None:
    """Another instance of the name took what the dead manager had locked for what a dead instance had left."""
    name = f"test{os.getpid()}"
    keeper = subprocess.Popen(["sleep", "60"])
    try:
        groups, other = UnitGroups(finding, name, 1, keeper.pid), UnitGroups(finding, name, 2)
        groups.create("web")
        groups.close(remove=False)
        assert other.sweep() == []
        assert Path(str(groups.folder("web"))).is_dir()
    finally:
        keeper.kill()
        keeper.wait()
    assert other.sweep() == []
    assert not Path(str(groups.base)).exists()
