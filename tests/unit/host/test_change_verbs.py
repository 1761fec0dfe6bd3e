"""Enable to Apply over the control interface: rights, refusals, what is answered."""

import os
from pathlib import Path
from typing import Any

from supervisord_py.model.settings import AllowRule, ControlSettings, Settings
from tests.integration.control_rig import Owner, drive, running

UID = os.getuid()
SLEEP = '[service]\nexec-start = ["work"]\n'


def change(*units: str, **more: Any) -> dict[str, Any]:
    return {"units": list(units), "now": False, "wait": True, "plan": False} | more


def applying(*units: str, **more: Any) -> dict[str, Any]:
    return {"units": list(units), "wait": True, "plan": False} | more


def test_enable_disable_and_mask_are_in_force_at_once(tmp_path: Path) -> None:
    """List says so, a masked unit cannot be started, and nothing is started by the way."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            await rig.call("Disable", **change("db"))
            await rig.call("Mask", **change("worker@"))
            units = {unit["name"]: unit for unit in (await rig.call("List", units=[], failed=False))["units"]}
            assert (units["db"]["enabled"], units["web"]["enabled"]) == (False, True)
            assert {name: units[name]["load_state"] for name in ("worker@1", "worker@2")} == {
                "worker@1": "masked",
                "worker@2": "masked",
            }
            error, parameters = await rig.refusal("Start", units=["worker@1"], wait=True, plan=False)
            assert (error, parameters["unit"]) == ("UnitMasked", "worker@1")
            assert (await rig.refusal("Enable", **change("worker@1")))[0] == "UnitMasked"
            reply = await rig.call("Unmask", **change("worker@", now=True))
            assert [(each["unit"], each["type"], each["result"]) for each in reply["outcomes"]] == [
                ("worker@1", "unmask", "done"),
                ("worker@2", "unmask", "done"),
                ("worker@1", "start", "done"),
                ("worker@2", "start", "done"),
            ]
            assert reply["job"] is not None

    drive(main())


def test_a_bad_name_changes_nothing(tmp_path: Path) -> None:
    """One of two names does not exist: neither is changed, and the refusal is in the journal."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            assert (await rig.refusal("Disable", **change("db", "nope")))[0] == "NoSuchUnit"
            assert (await rig.refusal("Disable", **change()))[0] == "InvalidRequest"
            assert rig.supervisor.manager.ledger.set.units["db"].enabled

    drive(main())


def test_only_who_may(tmp_path: Path) -> None:
    """``now`` needs the right to start or stop too, and apply without names is for who may apply all."""
    rule = AllowRule(unit="web", commands=("enable", "disable", "apply"), units=("db",))

    async def main() -> None:
        async with running(tmp_path, own_uid=UID, settings=Settings(control=ControlSettings(allow=(rule,)))) as rig:
            rig.supervisor.owner = Owner(unit="web", descendant=True)
            assert (await rig.call("Disable", **change("db")))["outcomes"][0]["result"] == "done"
            assert (await rig.refusal("Disable", **change("db", now=True)))[0] == "NotPermitted"
            assert (await rig.refusal("Disable", **change("once")))[0] == "NotPermitted"
            assert (await rig.refusal("Mask", **change("db")))[0] == "NotPermitted"
            assert (await rig.refusal("Apply", **applying()))[0] == "NotPermitted"
            assert (await rig.refusal("Apply", **applying("web")))[0] == "NotPermitted"
            assert (await rig.call("Apply", **applying("db")))["restarts"] == []
            path = str(tmp_path / "units" / "db.toml")
            assert (await rig.refusal("CheckText", path=path, text=""))[0] == "NotPermitted"
            denied = [record["verb"] for record in rig.supervisor.events("command.denied")]
            assert denied == ["stop", "disable", "mask", "apply", "apply", "edit"]

    drive(main())


def test_apply_loads_and_restarts(tmp_path: Path) -> None:
    """What changed and runs is restarted, what changed and is down is loaded; the reply says both."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            await rig.call("Start", units=["db"], wait=True, plan=False)
            rig.supervisor.write_units({"db": SLEEP, "once": SLEEP})
            planned = await rig.call("Apply", **applying(plan=True))
            assert (planned["restarts"], planned["outcomes"]) == (["db"], [])
            assert {each["unit"]: each["effect"] for each in planned["changes"]} == {"db": "restart", "once": "none"}
            before = rig.supervisor.manager.ledger.state("db").invocation
            done = await rig.call("Apply", **applying())
            assert [(each["unit"], each["result"]) for each in done["outcomes"]] == [("db", "done")]
            assert rig.supervisor.manager.ledger.state("db").invocation != before
            again = await rig.call("Apply", **applying())
            assert (again["outcomes"], again["changes"]) == ([], [])

    drive(main())


def test_apply_of_a_new_file_by_its_name(tmp_path: Path) -> None:
    """A file that nobody has loaded yet is taken up; a name without one is none."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            rig.supervisor.write_units({"fresh": SLEEP, "other": SLEEP})
            reply = await rig.call("Apply", **applying("fresh"))
            assert [(each["unit"], each["change"]) for each in reply["changes"]] == [("fresh", "added")]
            assert "other" not in rig.supervisor.loaded.unit_set.units
            assert (await rig.refusal("Apply", **applying("nope")))[0] == "NoSuchUnit"
            (tmp_path / "units" / "fresh.toml").unlink()
            gone = await rig.call("Apply", **applying("fresh"))
            assert [each["change"] for each in gone["changes"]] == ["removed"]

    drive(main())


def test_nothing_changes_while_the_journal_refuses(tmp_path: Path) -> None:
    """Where the settings want that no command is taken that cannot be written down."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            rig.supervisor.refusing = "the disk is full"
            assert (await rig.refusal("Disable", **change("db")))[0] == "Busy"
            assert (await rig.refusal("Apply", **applying()))[0] == "Busy"
            assert rig.supervisor.manager.ledger.set.units["db"].enabled

    drive(main())


def test_a_file_that_became_invalid_refuses_apply(tmp_path: Path) -> None:
    """One that was invalid before does not, unless it is named."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            await rig.call("Apply", **applying())
            assert (await rig.refusal("Apply", **applying("bad")))[0] == "BadUnit"
            rig.supervisor.write_units({"once": "[service]\n", "db": SLEEP})
            error, parameters = await rig.refusal("Apply", **applying())
            assert (error, parameters["unit"]) == ("BadUnit", "once")
            assert rig.supervisor.loaded.unit_set.units["db"].service != SLEEP
            assert [each["unit"] for each in (await rig.call("Apply", **applying("db")))["changes"]] == ["db"]

    drive(main())


def test_values_that_make_no_sense(tmp_path: Path) -> None:
    """Nobody can be unavailable none at a time, nor watched for less than no time."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            for more in ({"max_unavailable": 0}, {"probation_ms": -1}):
                assert (await rig.refusal("Apply", **applying(**more)))[0] == "InvalidRequest"
            restart = {"units": ["db"], "wait": True, "plan": False, "max_unavailable": 0}
            assert (await rig.refusal("Restart", **restart))[0] == "InvalidRequest"

    drive(main())


def test_a_text_is_checked_as_the_file_that_it_would_be(tmp_path: Path) -> None:
    """Only what this text makes wrong is told; a new drop-in is checked too; a file that nobody reads is refused."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            folder = tmp_path / "units"

            async def check(path: Path, text: str) -> list[str]:
                reply = await rig.call("CheckText", path=str(path), text=text)
                return [f"{problem['line']} {problem['key']}" for problem in reply["problems"]]

            assert await check(folder / "db.toml", SLEEP) == []
            assert await check(folder / "db.toml", "[service]\nexec-strat = 'x'\nexec-start = 'x'\n") == [
                "2 service.exec-strat"
            ]
            assert await check(folder / "db.toml.d" / "override.toml", "[unit]\nrequires = ['nope']\n") == [
                "2 unit.requires"
            ]
            assert not (folder / "db.toml.d").exists()
            assert (await rig.refusal("CheckText", path="/etc/passwd", text=""))[0] == "InvalidRequest"

    drive(main())


def test_a_plan_of_mask_said_that_it_wrote(tmp_path: Path) -> None:
    """A plan says what would be written; enabling what is masked says why it cannot be, and the way."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            (planned,) = (await rig.call("Mask", **change("db", plan=True)))["outcomes"]
            assert planned["message"].startswith("writes /")
            (done,) = (await rig.call("Mask", **change("db")))["outcomes"]
            assert done["message"] == planned["message"].replace("writes", "wrote")
            error, parameters = await rig.refusal("Enable", **change("db"))
            assert error == "UnitMasked"
            assert parameters["message"] == "cannot enable db, it is masked: supctl unmask db, then supctl enable db"

    drive(main())


def scaling(count: int, template: str = "worker@", **more: Any) -> dict[str, Any]:
    return {"template": template, "count": count, "wait": True, "plan": False} | more


def test_the_same_scale_again_is_the_same(tmp_path: Path) -> None:
    """A token attaches to the jobs of the first call; without one nothing is left to do."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            first = await rig.call("Scale", **scaling(4, token="t"))
            assert [(each["unit"], each["type"]) for each in first["outcomes"]] == [
                ("worker@3", "start"),
                ("worker@4", "start"),
            ]
            assert await rig.call("Scale", **scaling(4, token="t")) == first
            assert (await rig.call("Scale", **scaling(4)))["outcomes"][0]["message"] == "4 instances"

    drive(main())


def test_a_file_that_says_otherwise_is_named(tmp_path: Path) -> None:
    """What is written for the user would not count: it is refused, with the place that does."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            drop_ins = tmp_path / "units" / "worker@.toml.d"
            drop_ins.mkdir()
            (drop_ins / "99-mine.toml").write_text("[instances]\ncount = 2\n[pool]\npriority = 3\n")
            await rig.call("Apply", **applying("worker@1"))
            for call, parameters in (
                ("Scale", scaling(4)),
                ("Set", {"unit": "worker@", "settings": ["pool.priority=4"], "persist": False, "plan": False}),
            ):
                error, told = await rig.refusal(call, **parameters)
                assert (error, "99-mine.toml:" in told["message"]) == ("JobFailed", True)

    drive(main())


def test_who_may_scale_and_set(tmp_path: Path) -> None:
    """scale is for the units of a rule's globs, set needs a word of its own, and refusals are in the journal."""
    rule = AllowRule(unit="web", commands=("operator",), units=("worker@*",))

    async def main() -> None:
        async with running(tmp_path, own_uid=UID, settings=Settings(control=ControlSettings(allow=(rule,)))) as rig:
            rig.supervisor.owner = Owner(unit="web", descendant=True)
            assert (await rig.call("Scale", **scaling(1)))["outcomes"][0]["result"] == "done"
            assert (await rig.refusal("Scale", **scaling(1, "other@")))[0] == "NotPermitted"
            set_one = {"unit": "worker@1", "settings": ["pool.priority=4"], "persist": False, "plan": False}
            assert (await rig.refusal("Set", **set_one))[0] == "NotPermitted"
            assert len(rig.supervisor.events("command.denied")) == 2

    drive(main())
