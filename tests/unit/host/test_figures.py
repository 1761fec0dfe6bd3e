"""Numbers of units: the kernel's where a group counts them, else the sum over processes, and never one for another."""

import os
from pathlib import Path

from supervisord_py.host.figures import TREE, folder_bytes, read_counters, unit_figures
from supervisord_py.host.resources import Controller

V2, V1 = "cgroup v2", "cgroup v1"


def group(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_what_a_group_counts_is_told_with_its_mechanism(tmp_path: Path) -> None:
    """Each number by itself, for a unit may have one group in v1 and another in v2; a file that is not there, or says
    something else, counts nothing."""
    v2 = group(
        tmp_path / "v2",
        memory__current="4096\n",
        cpu__stat="usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
        pids__current="3\n",
        io__stat="8:0 rbytes=100 wbytes=200 rios=1\n253:0 rbytes=10 wbytes=20 rios=1\n",
    )
    v1 = group(tmp_path / "v1", memory__usage_in_bytes="8192\n", cpu__stat="nr_periods 0\nnr_throttled 0\n")
    found = read_counters(lambda controller: (str(v2), V2))
    assert found == {
        "memory": (4096, V2), "cpu": (1_500_000, V2), "tasks": (3, V2), "read": (110, V2), "write": (220, V2),
    }  # fmt: skip
    assert read_counters(lambda controller: (str(v1), V1)) == {"memory": (8192, V1)}
    mixed = {Controller.MEMORY: (str(v1), V1), Controller.CPU: (str(v2), V2), Controller.TASKS: ("/nonexistent", V2)}
    assert read_counters(mixed.get) == {"memory": (8192, V1), "cpu": (1_500_000, V2)}


def test_the_rest_is_summed_over_processes() -> None:
    """Of what no group counts; a unit without a process has no numbers, and nobody has counted them."""
    own = unit_figures([os.getpid()], {"cpu": (7, V2)})
    assert own.cpu_ns == 7 and (own.memory_bytes or 0) > 1 << 20 and (own.tasks or 0) >= 1
    assert own.read_bytes is not None
    assert own.counted_by == {"memory": TREE, "cpu": V2, "tasks": TREE, "read": TREE, "write": TREE}
    nobody = unit_figures([], {"cpu": (7, V2)})
    assert (nobody.cpu_ns, nobody.counted_by) == (None, {})
    gone = unit_figures([2**22 - 1], {})
    assert (gone.memory_bytes, "memory" in gone.counted_by) == (None, False)


def test_the_reserve_of_the_journal_is_no_part_of_it(tmp_path: Path) -> None:
    """16 MB of nothing were told as what the journal holds."""
    (tmp_path / "a").write_bytes(bytes(10))
    (tmp_path / "reserve").write_bytes(bytes(1000))
    assert folder_bytes(tmp_path, without="reserve") == 10
    assert folder_bytes(tmp_path / "no") == 0
