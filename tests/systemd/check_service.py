"""The service under a real systemd, installed from the wheel: `make test-systemd` (as root).

Each test has a freshly booted system. The file's name keeps it out of `make test`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.machine import ROOT, SERVICE, Machine, copied_root, machine, until, wheels

OLD, NEW = "0.0.9", "0.1.1"
OLD_COMMIT = os.environ.get("SUPERVISORD_PY_TEST_OLD", "448bd54")
"""What is upgraded from: a version with another keeper and another manager, which has a book already."""
UNITS = {
    "web": '[service]\nexec-start = ["/usr/bin/sleep", "100000"]\n',
    "tree": '[service]\nexec-start = ["/bin/sh", "-c", "sleep 100001 & exec sleep 100002"]\n',
    "ready": (
        '[service]\ntype = "notify"\nnotify-access = "all"\n'
        'exec-start = ["/bin/sh", "-c", "systemd-notify --ready --status=here; exec sleep 100003"]\n'
    ),
}
STATUS = "3 units: 3 active"
WATCHDOG_S = 3


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels(tmp_path_factory.mktemp("built") / "wheels", {OLD: OLD_COMMIT, NEW: None})


def prepared(running: Machine, version: str) -> None:
    """Make a user, and install a version as people do."""
    running.do("useradd", "--create-home", "--shell", "/bin/sh", "alice")
    running.do("python3", "-m", "venv", "/opt/spy")
    pip(running, f"supervisord-py=={version}")
    running.do("sh", "-c", "ln -s /opt/spy/bin/sup* /usr/local/bin")


@pytest.fixture
def booted(built: Path, tmp_path: Path) -> Iterator[Machine]:
    with machine(built, tmp_path) as running:
        prepared(running, NEW)
        yield running


@pytest.fixture
def booted_old(built: Path, tmp_path: Path) -> Iterator[Machine]:
    with machine(built, tmp_path) as running:
        prepared(running, OLD)
        yield running


@pytest.fixture(params=["system", "user"])
def whose(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def served(booted: Machine, whose: str) -> Machine:
    """The machine as root, or as a user who lingers, with the service installed and its three units active."""
    running = booted
    if whose == "user":
        let_linger(booted)
        running = booted.as_user("alice")
    started(running)
    return running


def let_linger(booted: Machine) -> None:
    # As a unit: logind wants to know the caller's control group, and nsenter leaves us outside of all of them.
    booted.do("systemd-run", "--quiet", "--wait", "loginctl", "enable-linger", "alice")
    until(lambda: booted.path("/run/user/1000/systemd/private").exists(), "alice's systemd")


def pip(running: Machine, *arguments: str) -> None:
    running.do("/opt/spy/bin/pip", "install", "-q", "--no-index", "--find-links", "/wheels", *arguments)


def write_units(running: Machine) -> Path:
    """Put the three units where this user's are, and return that folder."""
    places = "/home/alice/.config" if running.user else "/etc"
    folder = running.path(f"{places}/supervisord-py/units")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in UNITS.items():
        (folder / f"{name}.toml").write_text(text)
    if running.user:
        for path in (folder.parents[1], *folder.parents[1].rglob("*")):
            os.chown(path, 1000, 1000)
    return folder


def spy(running: Machine, *arguments: str) -> str:
    return running.do("/opt/spy/bin/supervisord-py", *arguments)


def supctl(running: Machine, *arguments: str) -> Any:
    return json.loads(running.do("/opt/spy/bin/supctl", "--json", *arguments))


def pids(running: Machine) -> dict[str, int]:
    return {unit["name"]: unit["pid"] for unit in supctl(running, "status")["units"]}


def sleepers(running: Machine) -> set[int]:
    """Every process of the units, in whatever state the supervisor is."""
    return {int(pid) for pid in running.call("pgrep", "-f", "sleep 10000").stdout.split()}


def manager_pid(running: Machine) -> int:
    return int(supctl(running, "version")["pid"])


def started(running: Machine) -> dict[str, int]:
    """Install the service with three units, and wait until they run; returns their pids."""
    write_units(running)
    spy(running, "install", "--now")
    return settled(running)


def settled(running: Machine) -> dict[str, int]:
    until(lambda: running.show("StatusText") == STATUS, f"{STATUS}\n{running.show('StatusText')}")
    return pids(running)


def files(running: Machine) -> set[str]:
    """Every path of the machine that is no cache of an interpreter."""
    places = ("/etc", "/home", "/root", "/run", "/srv", "/tmp", "/usr", "/var", "/dev/shm", "/sys/fs/cgroup")
    return set(running.do("find", *places, "-not", "-name", "__pycache__", "-not", "-name", "*.pyc").splitlines())


def test_install_says_all_and_does_it_once(booted: Machine) -> None:
    """--dry-run changes nothing, install says what the README shows and makes an active service, once."""
    before = files(booted)
    said = spy(booted, "install", "--now", "--dry-run")
    assert "would write /etc/systemd/system/supervisord-py.service" in said and "KillMode=process" in said
    assert files(booted) == before
    assert spy(booted, "install", "--now") in (ROOT / "README.md").read_text()
    assert booted.call("systemd-analyze", "--man=no", "verify", f"/etc/systemd/system/{SERVICE}").stderr == ""
    write_units(booted)
    booted.systemctl("reload", SERVICE)
    settled(booted)
    assert booted.show("ActiveState") == "active" and booted.systemctl("is-enabled", SERVICE) == "enabled"
    keeper = booted.show("MainPID")
    again = spy(booted, "install", "--now")
    assert not [line for line in again.splitlines() if line.startswith(("made", "wrote", "linked"))]
    assert booted.show("MainPID") == keeper and booted.show("NRestarts") == "0"
    groups = booted.do("systemd-cgls", "--no-pager", f"/system.slice/{SERVICE}")
    assert "web.unit" in groups and "supervisor" in groups


def test_a_stopped_keeper_is_replaced_and_a_working_one_is_not(booted: Machine) -> None:
    """The watchdog is fed for many periods; a keeper that hangs is killed by systemd, and its successor adopts."""
    drop_in = booted.path(f"/etc/systemd/system/{SERVICE}.d")
    drop_in.mkdir()
    (drop_in / "watchdog.conf").write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
    booted.systemctl("daemon-reload")
    units = started(booted)
    keeper = booted.show("MainPID")
    first = int(booted.show("WatchdogTimestampMonotonic"))
    periods = 3 * WATCHDOG_S * 1_000_000
    until(lambda: int(booted.show("WatchdogTimestampMonotonic")) > first + periods, "beats for three periods")
    assert (booted.show("MainPID"), booted.show("NRestarts")) == (keeper, "0")
    booted.do("kill", "-STOP", keeper)
    until(lambda: booted.show("NRestarts") == "1" and booted.show("ActiveState") == "active", "another keeper")
    assert settled(booted) == units


def test_no_death_of_ours_costs_a_unit(booted: Machine, whose: str) -> None:
    """The manager killed, the manager stopped, the keeper killed: same pids, and they are supervised afterwards."""
    service = served(booted, whose)
    units = pids(service)
    tree = sleepers(service)
    assert len(tree) == 4
    keeper, manager = service.show("MainPID"), manager_pid(service)
    service.do("kill", "-KILL", str(manager))
    until(lambda: manager_pid(service) != manager, "another manager")
    assert settled(service) == units
    manager = manager_pid(service)
    service.do("kill", "-STOP", str(manager))
    until(lambda: not service.path(f"/proc/{manager}").exists(), "the end of the manager that was stopped")
    assert settled(service) == units and manager_pid(service) != manager
    assert service.show("MainPID") == keeper and service.show("NRestarts") == "0"
    service.do("kill", "-KILL", keeper)
    until(lambda: service.show("NRestarts") == "1" and service.show("ActiveState") == "active", "another keeper")
    assert service.show("MainPID") != keeper
    assert settled(service) == units and sleepers(service) == tree
    service.do("kill", "-KILL", str(units["web"]))
    until(lambda: pids(service)["web"] not in (units["web"], None), "web once more")
    # What an operator has stopped stays so, and what is lost with the keeper is made again.
    supctl(service, "stop", "web")
    keeper = service.show("MainPID")
    service.do("kill", "-KILL", str(units["ready"]), keeper)
    until(lambda: service.show("NRestarts") == "2" and service.show("ActiveState") == "active", "a third keeper")
    until(lambda: pids(service)["ready"] not in (units["ready"], None), "another life of ready")
    assert (pids(service)["web"], pids(service)["tree"]) == (None, units["tree"])
    assert spy(service, "doctor", "--instance").endswith(", 0 wrong")
    service.systemctl("stop", SERVICE)
    assert not sleepers(service)


def test_an_upgrade_leaves_the_units_alone(booted_old: Machine, whose: str) -> None:
    """pip install -U and daemon-reexec: keeper and manager are the new version, the pids and the service the same."""
    service = served(booted_old, whose)
    units = pids(service)
    keeper = service.show("MainPID")
    assert supctl(service, "version")["keeper"] == OLD
    pip(booted_old, "-U", f"supervisord-py=={NEW}")
    service.do("/opt/spy/bin/supctl", "daemon-reexec")
    until(lambda: supctl(service, "version")["keeper"] == NEW, "the new keeper")
    assert supctl(service, "version")["manager"] == NEW
    assert settled(service) == units
    assert (service.show("MainPID"), service.show("NRestarts"), service.show("ActiveState")) == (keeper, "0", "active")
    service.do("kill", "-KILL", str(units["web"]))
    until(lambda: pids(service)["web"] not in (units["web"], None), "web once more")
    assert spy(service, "doctor", "--instance").endswith(", 0 wrong")
    service.systemctl("stop", SERVICE)
    assert not sleepers(service)


def test_an_upgrade_that_nobody_finished_is_one_of_deaths(booted_old: Machine) -> None:
    """pip install -U, and then the old manager and the old keeper die one after the other: a new manager works with the
    old keeper, a new keeper reads the old one's book, and no unit is touched."""
    service = served(booted_old, "system")
    units, tree = pids(service), sleepers(service)
    pip(booted_old, "-U", f"supervisord-py=={NEW}")
    service.do("kill", "-KILL", str(manager_pid(service)))
    until(lambda: supctl(service, "version")["manager"] == NEW, "the new manager")
    assert supctl(service, "version")["keeper"] == OLD and settled(service) == units
    service.do("kill", "-KILL", service.show("MainPID"))
    until(lambda: service.show("NRestarts") == "1" and service.show("ActiveState") == "active", "the new keeper")
    assert supctl(service, "version")["keeper"] == NEW
    assert settled(service) == units and sleepers(service) == tree
    service.do("kill", "-KILL", str(units["web"]))
    until(lambda: pids(service)["web"] not in (units["web"], None), "web once more")
    assert spy(service, "doctor", "--instance").endswith(", 0 wrong")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with copied_root(tmp_path) as found:
        yield found


def test_services_are_back_after_a_reboot_and_after_a_power_cut(built: Path, tmp_path: Path, root: Path) -> None:
    """The system's, and that of a user who lingers, each time with a journal whose chain holds."""
    with machine(built, tmp_path, root=root) as running:
        prepared(running, NEW)
        for whose in ("system", "user"):
            served(running, whose)
    for is_cut in (True, False):
        with machine(built, tmp_path, root=root, power_cut=is_cut) as running:
            for service in (running, running.as_user("alice")):
                until(lambda service=service: service.is_active(), "the service")
                settled(service)
                assert spy(service, "doctor", "--instance").endswith(", 0 wrong")


def test_reload_restart_stop_and_uninstall(booted: Machine) -> None:
    """systemctl reload takes up files and tells of bad ones, restart and stop end every process, uninstall keeps what
    people wrote, and with --purge leaves nothing."""
    before = files(booted)
    units = started(booted)
    more = booted.path("/etc/supervisord-py/units/more.toml")
    more.write_text(UNITS["web"])
    booted.systemctl("reload", SERVICE)
    until(lambda: booted.show("StatusText") == "4 units: 4 active", "the fourth unit")
    assert booted.show("ActiveState") == "active" and pids(booted).items() >= units.items()
    more.write_text("[service]\nexec-strat = 1\n")
    failed = booted.call("systemctl", "reload", SERVICE)
    assert failed.returncode != 0 and "exec-strat" in booted.do("journalctl", "--no-pager", "-u", SERVICE)
    assert booted.show("ActiveState") == "active" and pids(booted).items() >= units.items()
    more.unlink()
    tree = sleepers(booted)
    booted.systemctl("restart", SERVICE)
    assert not settled(booted).items() & units.items() and not sleepers(booted) & tree
    said = spy(booted, "uninstall")
    assert "kept: " in said and "--purge" in said
    assert not sleepers(booted) and booted.call("systemctl", "cat", SERVICE).returncode != 0
    assert booted.path("/etc/supervisord-py/units/web.toml").exists()
    spy(booted, "uninstall", "--purge")
    assert files(booted) == before
    assert spy(booted, "uninstall") == ""
    assert booted.systemctl("list-units", "--all", "--no-legend", SERVICE) == ""


def test_a_user_is_told_of_lingering(booted: Machine) -> None:
    """As a user: install says when lingering is off, and not when it is on; uninstall --purge leaves no trace."""
    alice = booted.as_user("alice")
    booted.do("systemctl", "start", "user@1000.service")
    before = files(booted)
    started(alice)
    said = spy(alice, "install")
    assert "lingering is off for alice" in said and "loginctl enable-linger alice" in said
    let_linger(booted)
    assert "lingering" not in spy(alice, "install")
    units = settled(alice)
    alice.systemctl("reload", SERVICE)
    assert settled(alice) == units
    spy(alice, "uninstall", "--purge")
    assert not sleepers(booted)
    # The user's services may linger still, and below /run/systemd is what systemd and logind note for themselves.
    changed = {path for path in files(booted) ^ before if not path.startswith("/run/systemd/")}
    assert changed == {"/var/lib/systemd/linger/alice"}
