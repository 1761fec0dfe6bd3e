"""The older files of running units are kept as long as they may be wanted, and given back as they were."""

from supervisord_py.host.last_good import LastGood
from supervisord_py.host.unit_changes import with_files_of
from supervisord_py.host.unit_files import CONTROL_PRIORITY, UnitSources, build
from supervisord_py.model.unit import Unit
from tests.unit.model.unitset_rig import CONTEXT, unit_files


def sources(**texts: str) -> UnitSources:
    return UnitSources(tuple(unit_files({name.replace("_at", "@"): text for name, text in texts.items()})), (), CONTEXT)


def sleep(seconds: int, unit: str = "") -> str:
    return f'{unit}[service]\nexec-start = ["/bin/sleep", "{seconds}"]\n'


def lives_of(loaded: UnitSources, *names: str) -> dict[str, Unit]:
    units = build(loaded).unit_set.units
    return {name: units[name] for name in names or units}


def test_the_files_that_a_life_began_with_come_back() -> None:
    """However often something newer was loaded since, drop-ins that are new go, and the others' files stay."""
    one = sources(web=sleep(1), db=sleep(1))
    two = sources(web=sleep(2), db=sleep(1))
    three = UnitSources(
        (*sources(web=sleep(3), db=sleep(5)).files, *unit_files({"web.d/9": "[limits]\nnice = 2\n"})), (), CONTEXT
    )
    lives = lives_of(one)
    kept = LastGood()
    kept.note_load(build(one), build(two), lives, read=None)
    kept.note_load(build(two), build(three), lives, read=None, applied=["web"])
    kept = LastGood(kept.pack())
    back = kept.go_back(["web"], "it was refused by apply: exit 1", three, build(three))
    assert build(back).unit_set.units["web"] == lives["web"]
    assert build(back).unit_set.units["db"] == build(three).unit_set.units["db"]
    assert (kept.refused("web"), kept.refused("db")) == ("it was refused by apply: exit 1", None)


def test_what_was_said_of_a_unit_meanwhile_stays() -> None:
    """A unit that was disabled during the rollout is disabled after it, by whichever text."""
    one, two = sources(web=sleep(1)), sources(web=sleep(2))
    kept = LastGood()
    kept.note_load(build(one), build(two), lives_of(one), read=None, applied=["web"])
    said = unit_files({"web.d/50-enabled": "[unit]\nenabled = false\n"}, "control", CONTROL_PRIORITY)
    disabled = UnitSources((*two.files, *said), (), CONTEXT)
    kept.note_load(build(two), build(disabled), lives_of(one), read=[], in_rollout=["web"])
    unit = build(kept.go_back(["web"], "", disabled, build(disabled))).unit_set.units["web"]
    assert (unit.enabled, unit.service) == (False, lives_of(one)["web"].service)


def test_what_needs_no_restart_goes_back_with_the_rest_of_its_apply() -> None:
    """A unit of which only other words changed belongs to the same release."""
    one, two = sources(a=sleep(1), b=sleep(1)), sources(a=sleep(2), b=sleep(1, '[unit]\ndescription = "two"\n'))
    kept = LastGood()
    kept.note_load(build(one), build(two), lives_of(one), read=None, applied=["a", "b"])
    assert build(kept.go_back(["a"], "", two, build(two))).unit_set == build(one).unit_set


def test_nothing_is_kept_for_a_unit_that_runs_by_what_is_loaded() -> None:
    """After its restart there is nothing to go back to; a unit that is down never had."""
    one, two, three = (sources(web=sleep(number), off=sleep(number)) for number in (1, 2, 3))
    kept = LastGood()
    kept.note_load(build(one), build(two), lives_of(one, "web"), read=None)
    kept.note_load(build(two), build(two), lives_of(two, "web"), read=None)
    assert kept.go_back(["web", "off"], "", two, build(two)) == two
    kept.note_load(build(two), build(three), lives_of(two, "web"), read=None)
    assert build(kept.go_back(["web"], "", three, build(three))).unit_set.units["web"] == lives_of(two)["web"]


def test_a_template_comes_back_for_all_of_its_instances() -> None:
    """They share one file."""
    one, two = (sources(w_at=sleep(number) + "[instances]\ncount = 2\n") for number in (1, 2))
    kept = LastGood()
    kept.note_load(build(one), build(two), lives_of(one), read=None, applied=["w@1", "w@2"])
    assert build(kept.go_back(["w@1", "w@2"], "", two, build(two))).unit_set == build(one).unit_set


def test_the_mark_goes_when_the_file_is_read_again() -> None:
    """By a reload of everything, or of that unit; not by a change of another one."""
    one, two = sources(web=sleep(1)), sources(web=sleep(2))
    for read, gone in ((None, True), (["web"], True), (["db"], False), ([], False)):
        kept = LastGood()
        kept.note_load(build(one), build(two), lives_of(one), read=None)
        kept.go_back(["web"], "because", two, build(two))
        kept.note_load(build(one), build(one), lives_of(one), read=read)
        assert (kept.refused("web") is None) is gone, read


def test_files_of_named_units_only() -> None:
    """Their own and their template's are taken from disk, with drop-ins; others and defaults.toml stay as they were."""
    old = sources(web=sleep(1), db=sleep(1), defaults="[limits]\nnice = 1\n", w_at=sleep(1))
    fresh = sources(web=sleep(2), db=sleep(2), defaults="[limits]\nnice = 2\n", w_at=sleep(2), new=sleep(2))
    taken = {file.path: file.text for file in with_files_of(old, fresh, ["web", "w@1"]).files}
    expected = {file.path: file.text for file in old.files} | {"u/web.toml": sleep(2), "u/w@.toml": sleep(2)}
    assert taken == expected
    assert [file.name for file in with_files_of(old, sources(db=sleep(1)), ["web"]).files].count("web") == 0
