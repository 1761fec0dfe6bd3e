"""Bounds as the kernel reads them: which files say what, and what nothing can say."""

from collections.abc import Collection
from pathlib import Path

import pytest

from supervisord_py.host import resources as host_resources
from supervisord_py.host.cgroups import Finding, UnitGroups
from supervisord_py.host.resources import Mechanism, Plan, UnitResources, io_weighers
from supervisord_py.model.context import Amount, Resources


class AllControllers(UnitGroups):
    def controllers(self, wanted: Collection[str]) -> set[str]:
        return set(wanted)


def plan(wanted: Resources) -> Plan:
    return UnitResources(AllControllers(Finding(None, ()), "test", 1), has_systemd=True).plan(wanted)


def files(wanted: Resources) -> dict[str, str]:
    return {write.name: write.text for writes in plan(wanted).writes.values() for write in writes}


def test_all_bounds_are_files_of_cgroup_v2() -> None:
    wanted = Resources(
        memory_max=Amount(4096), memory_high=Amount(), memory_swap_max=Amount(0), cpu_quota=15000, cpu_weight=7,
        tasks_max=Amount(9),
    )  # fmt: skip
    assert files(wanted) == {
        "memory.max": "4096", "memory.high": "max", "memory.swap.max": "0", "cpu.max": "150000 100000",
        "cpu.weight": "7", "pids.max": "9",
    }  # fmt: skip
    assert set(plan(wanted).how.values()) == {Mechanism.V2}


@pytest.mark.parametrize(
    ("permyriad", "text"), [(2000, "20000 100000"), (50, "1000 200000"), (30, "1000 333334"), (10, "1000 1000000")]
)
def test_a_quota_too_small_for_the_kernel_has_a_longer_period(permyriad: int, text: str) -> None:
    """Below a millisecond the kernel takes none: as in systemd, as far as a period of a second goes."""
    assert files(Resources(cpu_quota=permyriad)) == {"cpu.max": text}


def test_a_weight_of_io_needs_a_disk_that_weighs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written, and status said that it was applied, on machines where no disk looks at it."""
    (tmp_path / "vda/queue").mkdir(parents=True)
    scheduler = tmp_path / "vda/queue/scheduler"
    scheduler.write_text("none [mq-deadline] bfq\n")
    disks, root = str(tmp_path), str(tmp_path)
    assert io_weighers(disks, root) == set()
    (tmp_path / "io.cost.qos").write_text("254:0 enable=0 ctrl=auto\n")
    assert io_weighers(disks, root) == set()
    (tmp_path / "io.cost.qos").write_text("254:0 enable=1 ctrl=user\n")
    scheduler.write_text("none mq-deadline [bfq]\n")
    assert io_weighers(disks, root) == {"bfq", "iocost"}
    for weighers, wanted in (
        (set(), {}),
        ({"iocost"}, {"io.weight": "default 1000"}),
        ({"bfq"}, {"io.bfq.weight": "default 181"}),
    ):
        monkeypatch.setattr(host_resources, "io_weighers", lambda found=weighers: found)
        assert files(Resources(io_weight=1000)) == wanted
        assert ("io-weight" in plan(Resources(io_weight=1000)).impossible) is (not weighers)
