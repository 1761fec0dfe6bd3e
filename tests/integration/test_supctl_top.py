"""``supctl top`` against a fake supervisor: rates between looks, whom it shows, and who may not look."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supctl_fake import FakeSupervisor, not_there, unit
from tests.integration.supctl_run import Supctl

BUS = {"listening": True, "connections": 0, "totals": {}, "by_unit": {}}


@pytest.fixture
def supctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Supctl]:
    fake = FakeSupervisor(tmp_path / "control.sock")
    fake.on("Can", {"allowed": True, "why": ""})
    yield Supctl(fake, capsys)
    fake.close()


def use(name: str, cpu_s: float | None, **more: Any) -> dict[str, Any]:
    counted = {"cpu_ns": None if cpu_s is None else int(cpu_s * 1e9), "tasks": None if cpu_s is None else 1}
    counted |= {"memory_bytes": None, "read_bytes": None, "write_bytes": None, "restarts": 0, "failures": 0}
    return {"name": name, "active_state": "active", "counted_by": {}, **counted, **more}


def stats(*units: dict[str, Any]) -> dict[str, Any]:
    return {"supervisor": None, "units": list(units), "bus": BUS}


def test_rates_are_what_has_grown_since_the_look_before(supctl: Supctl) -> None:
    """A unit that was begun anew, or is new, has none; one without a process is not shown unless it is named."""
    looks = [stats(use("web", 1), use("db", 50)), stats(use("web", 1000, read_bytes=7), use("db", 2), use("off", None))]
    supctl.fake.on("Stats", *looks)
    ran = supctl("top", "-n", "1", "-d", "100ms", "--json")
    (look,) = map(json.loads, ran.lines)
    shown = {each["name"]: each for each in look["units"]}
    assert list(shown) == ["web", "db"]
    assert shown["web"]["cpu_percent"] > 100 and shown["web"]["read_bytes_per_s"] is None
    assert shown["db"]["cpu_percent"] is None
    supctl.fake.on("Stats", *looks)
    supctl.fake.on("List", {"units": [unit("off"), unit("db")]})
    lines = supctl("top", "-n", "1", "-d", "100ms", "off", "db").lines
    assert [line.split()[0] for line in lines] == ["UNIT", "db", "off"]


def test_the_largest_is_first_and_each_look_stands_behind_the_one_before(supctl: Supctl) -> None:
    """By the column that was asked for; what is not known is last."""
    units = [use("a", 1, memory_bytes=5), use("b", 1, memory_bytes=70), use("c", 1)]
    supctl.fake.on("Stats", stats(*units))
    lines = supctl("top", "-n", "2", "-d", "100ms", "-s", "memory").lines
    assert [line.split()[0] if line else "" for line in lines] == ["UNIT", "b", "a", "c", "", "UNIT", "b", "a", "c"]


def test_what_ends_it(supctl: Supctl) -> None:
    """A caller who may not (5), a unit that is not there (4), and the time that it was given (124)."""
    supctl.fake.on("Stats", stats(use("a", 1)))
    ran = supctl("top", "--timeout", "3s", "-d", "2900ms")
    assert (ran.code, ran.lines[-1].split()[0]) == (124, "a")
    supctl.fake.on("List", not_there("nope"))
    assert supctl("top", "nope").code == 4
    supctl.fake.on("Can", {"allowed": False, "why": "monitoring"})
    ran = supctl("top", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (5, "not-permitted")
