"""The hot directory of a real supervisor: what comes, what goes, what is refused, and what runs meanwhile."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.host.signing import make_key, sign
from supervisord_py.testing.wheels import wheel_bytes
from supervisord_py.wire.minisign import Claims, SecretKey, format_claims, format_public_key, format_signature
from tests.integration.supervisor_rig import AS_USER, RunningSupervisor, supervisor, until

MODULE = """
from supervisord_py.agent import Agent

class Echo(Agent):
    every = 0.1

    def run_cycle(self):
        self.status("echo {version}")

class Broken(Agent):
    def setup(self):
        raise RuntimeError("cannot begin")

    def run_cycle(self):
        pass
"""
ECHO = '[agent]\nclass = "echo_agents:Echo"\n[service]\nrestart-sec = "10ms"\n'
KEY = make_key()


class Hot:
    """The hot directory of one supervisor."""

    def __init__(self, running: RunningSupervisor) -> None:
        self.running = running
        self.folder = running.folder / "hot"

    def put(self, path: Path, data: bytes) -> None:
        """Bring a file as a careful person does: whole or not at all."""
        temporary = self.folder / f".{path.name}.part"
        temporary.write_bytes(data)
        temporary.replace(path)

    def wheel(
        self,
        version: str,
        *,
        units: dict[str, str] | None = None,
        key: SecretKey | None = KEY,
        timestamp: int = 1_700_000_000,
        **claimed: Any,
    ) -> Path:
        """Drop a wheel with its signature; ``claimed`` is what that says wrong."""
        units = {"echo": ECHO} if units is None else units
        path = self.folder / f"echo_agents-{version}-py3-none-any.whl"
        data = wheel_bytes("echo_agents", version, {"echo_agents.py": MODULE.format(version=version)}, units=units)
        claims = {"name": "echo-agents", "version": version, "units": tuple(units), "timestamp": timestamp} | claimed
        if key is not None:
            self.put(path.with_name(f"{path.name}.minisig"), signed(data, key, Claims(**claims)))
        self.put(path, data)
        return path

    def says(self, unit: str, text: str) -> Callable[[], bool]:
        return lambda: bool(listed(self.running).get(unit, {}).get("status_text") == text)

    def rejected(self, path: Path, why: str) -> None:
        """Wait until a file is listed as rejected, and say why."""
        (unit,) = until(
            lambda: [
                unit
                for unit in listed(self.running).values()
                if unit["load_state"] == "rejected" and unit["path"] == str(path) and why in unit["why"]
            ],
            f"{path.name} is rejected: {why}",
        )

        def told() -> list[dict[str, Any]]:
            records = [each for each in self.running.records() if each["event"] == "unit.rejected"]
            return [each for each in records if each["unit"] == unit["name"] and why in each["reason"]]

        until(told, f"the record of {unit['name']}")


def signed(data: bytes, key: SecretKey, claims: Claims) -> bytes:
    return format_signature(sign(data, key, format_claims(claims)), "made by a test").encode()


def listed(running: RunningSupervisor) -> dict[str, dict[str, Any]]:
    """All units by name."""
    with running.client() as client:
        return {unit["name"]: unit for unit in client.call("Status", units=[], lines=0)["units"]}


@contextmanager
def hot_directory(settings: str = "", units: dict[str, str] | None = None, **options: Any) -> Iterator[Hot]:
    def prepare(folder: Path) -> None:
        (folder / "hot").mkdir()
        (folder / "keys").mkdir(mode=0o755)
        (folder / "keys" / "tests.pub").write_text(format_public_key(KEY.public))
        own = f'[hot-directory]\npath = "{folder}/hot"\nprobation = "100ms"\n{settings}\n'
        (folder / "supervisord.toml").write_text(own)

    with supervisor(units or {}, prepare=prepare, **options) as running:
        yield Hot(running)


@pytest.mark.parametrize("uid", AS_USER)
def test_a_signed_wheel_runs_at_once_and_goes_with_its_file(uid: int | None) -> None:
    with hot_directory(uid=uid) as hot:
        path = hot.wheel("1.0")
        if uid is not None:
            os.chown(path, 0, 0)
        started = time.monotonic()
        until(hot.says("echo", "echo 1.0"), "its first cycle")
        assert time.monotonic() - started < 15, "it was noticed by the rescan only"
        path.unlink()
        until(lambda: "echo" not in listed(hot.running), "its end")
        until(lambda: not list((hot.running.folder / "s-wheels").iterdir()), "the end of its folder")


def test_what_is_not_signed_by_a_trusted_key_is_rejected_until_it_is() -> None:
    """The same file is taken once its signature is there, without the wheel being touched."""
    stranger = make_key()
    with hot_directory() as hot:
        path = hot.wheel("1.0", key=None)
        hot.rejected(path, "not signed: there is no echo_agents-1.0-py3-none-any.whl.minisig beside it")
        beside = path.with_name(f"{path.name}.minisig")
        claims = Claims(1, name="echo-agents", version="1.0", units=("echo",))
        hot.put(beside, signed(path.read_bytes(), stranger, claims))
        hot.rejected(path, f"signed by the key {stranger.public.name}, which is not trusted")
        hot.put(beside, signed(path.read_bytes() + b"x", KEY, claims))
        hot.rejected(path, "it was changed")
        hot.put(beside, signed(path.read_bytes(), KEY, Claims(1, name="echo-agents", version="1.1", units=("echo",))))
        hot.rejected(path, "the signature is for echo-agents 1.1, and this is echo-agents 1.0")
        hot.put(beside, signed(path.read_bytes(), KEY, Claims(1, name="echo-agents", version="1.0", units=("other",))))
        hot.rejected(path, "the signature is for other units: other, and here are echo")
        assert "echo" not in listed(hot.running)
        hot.put(beside, signed(path.read_bytes(), KEY, claims))
        until(hot.says("echo", "echo 1.0"), "its first cycle")


def test_a_bad_file_in_its_place_leaves_the_version_that_runs() -> None:
    with hot_directory() as hot:
        path = hot.wheel("1.0")
        until(hot.says("echo", "echo 1.0"), "its first cycle")
        pid = hot.running.status("echo")["pid"]
        hot.put(path, path.read_bytes() + b"more")
        hot.rejected(path, "it was changed")
        status = hot.running.status("echo")
        assert (status["pid"], status["load_state"]) == (pid, "loaded")
        hot.running.kill_manager()
        until(lambda: hot.running.status("echo")["pid"] == pid, "the same under the next manager")
        hot.rejected(path, "it was changed")
        assert hot.running.supctl("start", path.name).returncode == 6


def test_a_higher_version_replaces_one_instance_after_another_and_a_lower_one_nothing() -> None:
    """At every moment one of the two instances is up: the second of the old version goes when the first of the new
    one is ready."""
    units = {"echo@": ECHO + "[instances]\ncount = 2\n"}
    with hot_directory() as hot:
        old = hot.wheel("1.9", units=units)
        until(lambda: hot.says("echo@1", "echo 1.9")() and hot.says("echo@2", "echo 1.9")(), "both")
        hot.wheel("1.10", units=units)
        until(lambda: hot.says("echo@1", "echo 1.10")() and hot.says("echo@2", "echo 1.10")(), "both anew")
        lives = [
            (record["event"], record["unit"])
            for record in hot.running.records()
            if record["event"] in ("unit.ready", "unit.stopping") and record["unit"] in ("echo@1", "echo@2")
        ]
        assert lives[2:] == [
            ("unit.stopping", "echo@1"),
            ("unit.ready", "echo@1"),
            ("unit.stopping", "echo@2"),
            ("unit.ready", "echo@2"),
        ]
        pid = hot.running.status("echo@1")["pid"]
        assert not [unit for unit in listed(hot.running).values() if unit["load_state"] == "rejected"], "it is just old"
        (hot.folder / "echo_agents-1.10-py3-none-any.whl").unlink()
        hot.rejected(old, "version 1.9 is lower than 1.10, the highest that was ever installed")
        until(lambda: "echo@1" not in listed(hot.running), "the end of what was removed")
        assert hot.running.stop() == 0
        hot.running.start_again()
        hot.rejected(old, "version 1.9 is lower than 1.10, the highest that was ever installed")
        assert pid and "echo@1" not in listed(hot.running)


def test_a_version_that_does_not_stay_up_goes_back_and_is_refused_from_then_on() -> None:
    """Of the supervisor that begins anew, too."""
    with hot_directory('rescan = "2s"') as hot:
        hot.wheel("1.0")
        until(hot.says("echo", "echo 1.0"), "its first cycle")
        bad = hot.wheel("1.1", units={"echo": ECHO.replace("Echo", "Broken")})
        hot.rejected(bad, "it did not stay up")
        until(hot.says("echo", "echo 1.0"), "the one before")
        assert hot.running.stop() == 0
        hot.running.start_again()
        until(hot.says("echo", "echo 1.0"), "the one before, again")
        hot.rejected(bad, "it did not stay up")


def test_a_manager_that_is_killed_in_the_middle_changes_nothing_about_the_end() -> None:
    """Whenever it is killed while versions come: in the end the newest runs, once, and its folder alone is left."""
    with hot_directory() as hot:
        hot.wheel("1.0")
        until(hot.says("echo", "echo 1.0"), "its first cycle")
        for number in range(1, 7):
            hot.wheel(f"1.{number}")
            time_of_death = time.monotonic() + number * 0.15
            until(lambda at=time_of_death: time.monotonic() >= at, "a moment in the middle")
            hot.running.kill_manager()
        until(hot.says("echo", "echo 1.6"), "the newest")
        until(lambda: len(list((hot.running.folder / "s-wheels").iterdir())) == 1, "its folder alone", 40)
        assert hot.running.status("echo")["load_state"] == "loaded"


def test_a_unit_file_comes_changes_and_goes_and_an_old_one_does_not_come_back() -> None:
    def text(seconds: int) -> bytes:
        return f'[service]\nexec-start = ["/bin/sleep", "{seconds}"]\n'.encode()

    with hot_directory() as hot:
        path = hot.folder / "web.toml"

        def drop(seconds: int, timestamp: int) -> None:
            claims = Claims(timestamp, units=("web",))
            hot.put(path.with_name("web.toml.minisig"), signed(text(seconds), KEY, claims))
            hot.put(path, text(seconds))

        drop(1001, 10)
        pid = until(lambda: listed(hot.running).get("web", {}).get("pid"), "its process")
        drop(1002, 20)
        until(lambda: hot.running.status("web")["pid"] not in (None, pid), "the process of the new text")
        pid = hot.running.status("web")["pid"]
        drop(1001, 10)
        hot.rejected(path, "its signature is older")
        assert hot.running.status("web")["pid"] == pid
        assert hot.running.supctl("disable", "web").returncode == 0
        assert hot.running.supctl("daemon-reload").returncode == 0
        assert hot.running.status("web")["enabled"] is False, "the control folder has a word, as for every unit"
        path.unlink()
        until(lambda: "web" not in listed(hot.running), "its end")
        drop(1003, 30)
        status = until(lambda: listed(hot.running).get("web"), "the unit")
        assert (status["load_state"], status["active_state"], status["enabled"]) == ("loaded", "inactive", False)


def test_keys_that_others_may_write_sign_nothing_until_that_is_mended() -> None:
    with hot_directory() as hot:
        keys = hot.running.folder / "keys"
        keys.chmod(0o777)
        path = hot.wheel("1.0")
        hot.rejected(path, "may be written by everybody")
        health = hot.running.supctl("health", "--json").stdout
        assert "the keys in" in health
        keys.chmod(0o755)
        until(hot.says("echo", "echo 1.0"), "its first cycle")


def test_without_signatures_a_file_is_enough() -> None:
    with hot_directory("require-signature = false") as hot:
        hot.wheel("1.0", key=None)
        until(hot.says("echo", "echo 1.0"), "its first cycle")
        settings = hot.running.folder / "supervisord.toml"
        settings.write_text("")
        assert hot.running.supctl("daemon-reload").returncode == 0
        until(lambda: "echo" not in listed(hot.running), "the end of it with its folder")
        until(lambda: not list((hot.running.folder / "s-wheels").iterdir()), "the end of what was unpacked")


def test_the_key_of_the_environment_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies there when the supervisor begins is there with its units."""
    own = make_key()
    monkeypatch.setenv("AGENT_WHEEL_PUBKEY", format_public_key(own.public).splitlines()[1])
    with hot_directory(units={"last": '[unit]\nrequires = ["echo"]\nafter = ["echo"]\n[target]\n'}) as hot:
        hot.wheel("1.0", key=own)
        until(hot.says("echo", "echo 1.0"), "its first cycle")
        assert hot.running.stop() == 0
        hot.running.start_again()
        hot.running.wait_state("last", "active")


def test_what_came_from_the_hot_directory_lives_on_when_the_keeper_is_killed() -> None:
    """The next supervisor knows it from custody, and neither unpacks nor restarts anything."""
    with hot_directory() as hot:
        hot.wheel("1.0")
        until(hot.says("echo", "echo 1.0"), "its first cycle")
        pid = hot.running.status("echo")["pid"]
        (site,) = (hot.running.folder / "s-wheels").iterdir()
        hot.running.process.kill()
        hot.running.process.wait()
        hot.running.start_again()
        status = hot.running.wait_state("echo", "active")
        assert (status["pid"], status["load_state"]) == (pid, "loaded")
        hot.wheel("0.9")
        hot.wheel("1.1")
        until(hot.says("echo", "echo 1.1"), "the next version")
        until(lambda: not site.exists(), "the end of the folder of the one before")
