"""What the machine offers, as units find it."""

import pytest

from supervisord_py.doctor import machine
from supervisord_py.doctor.findings import Level
from supervisord_py.host.resources import Controller


def test_limits_by_the_older_control_groups_were_told_to_be_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where units have their bounds by cgroup v1, nothing is degraded; where one lacks, it is named."""
    monkeypatch.setattr(machine, "find_v1", lambda: dict.fromkeys(Controller, "/sys/fs/cgroup"))
    (found,) = machine._controllers()
    assert found.level is Level.OK
    monkeypatch.setattr(machine, "find_v1", dict)
    (found,) = machine._controllers()
    assert found.level is Level.OK or ("without" in found.fact and found.cure)
