"""What people are shown."""

from core_rig import WALL_NS, Rig, needs, notify, service, target

from supervisord_py.core import view
from supervisord_py.model.states import Restart
from supervisord_py.model.unit import SECOND_NS, BadUnit, Dependency, LoadedFrom, RestartPolicy, UnitSet

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def test_a_unit_that_nothing_happened_to() -> None:
    """Loaded, inactive, dead, and why: nobody has started it."""
    rig = Rig(service("web", relations={"description": "the web"}))
    status = rig.status("web")
    assert (status.load_state, rig.shown("web")) == ("loaded", "inactive/dead/success")
    assert (status.description, status.since, status.why) == ("the web", None, "nobody has started it")


def test_a_name_that_nothing_defines() -> None:
    """not-found, and not in the list."""
    rig = Rig(service("web"))
    assert rig.status("ghost").load_state == "not-found"
    assert view.list_units(rig.manager) == ["web"]


def test_the_file_of_a_unit_is_shown_where_there_is_one() -> None:
    """The one that defines it, be it good or bad; None for a unit that no file defines."""
    rig = Rig(service("web", relations={"source": LoadedFrom("units/web.toml")}), service("log"))
    assert [rig.status(name).path for name in ("web", "log", "ghost")] == ["units/web.toml", None, None]
    rig.load(bad=UnitSet(bad={"bad": BadUnit("bad", "units/bad.toml", "units/bad.toml:1:1: no")}))
    assert rig.status("bad").path == "units/bad.toml"


def test_since_is_the_last_change_of_the_active_state() -> None:
    """Moving between sub states of one active state does not count."""
    rig = Rig(service("web", exec_start_pre=service("x").service.exec_start))  # type: ignore[union-attr]
    rig.ask("start", "web")
    begun = rig.status("web").since
    rig.later(1)
    rig.exited("web", 0)
    assert rig.status("web").since == begun
    rig.later(1)
    rig.spawned("web")
    assert begun is not None
    assert rig.status("web").since != begun
    assert begun.endswith("Z") and "T" in begun and WALL_NS


def test_what_a_process_says_is_shown_for_its_life() -> None:
    """STATUS is shown, and forgotten with the next life."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", STATUS="serving 3 clients")
    assert rig.status("web").status_text == "serving 3 clients"
    rig.crash("web")
    rig.later(1)
    assert rig.status("web").status_text is None


def test_why_follows_the_chain_to_its_end() -> None:
    """edge waits for web, web waits for db, db is starting: all three, nearest first."""
    rig = Rig(notify("db"), service("web", relations=needs("db")), service("edge", relations=needs("web")))
    rig.ask("start", "edge")
    lines = view.why(rig.manager, "edge")
    assert [(line.about, line.kind, line.unit) for line in lines] == [
        ("edge", "dependency", "web"),
        ("web", "dependency", "db"),
        ("db", "starting", None),
        ("db", "starting", None),
    ]
    assert lines[0].seq is not None


def test_why_names_the_dependency_that_failed() -> None:
    """The unit, what it waits for, and what became of that."""
    rig = Rig(notify("db", restart=NEVER), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.crash("db", 3)
    lines = view.why(rig.manager, "web")
    assert [line.kind for line in lines] == ["dependency", "failed"]
    assert lines[1].message == (
        'it failed (exit-code), and restart = "no" leaves it down: its main process exited with code 3'
    )
    assert [line.about for line in lines] == ["web", "db"]
    assert rig.status("web").why == "it waits for db to be ready"


def test_why_of_the_other_states() -> None:
    """Back-off, running, stopped, disabled, bad: each has its kind and an advice where one helps."""
    rig = Rig(service("web", restart=RestartPolicy(delay_ns=9 * SECOND_NS, jitter=0.0)))
    rig.load(
        service("web", restart=RestartPolicy(delay_ns=9 * SECOND_NS, jitter=0.0)),
        service("off", relations={"enabled": False}),
        bad=UnitSet(bad={"x": BadUnit("x", "x.toml", "x.toml:1:1: no")}),
    )
    kind = lambda name: view.why(rig.manager, name)[0].kind  # noqa: E731
    assert (kind("off"), kind("x")) == ("disabled", "bad-setting")
    rig.ask("start", "web")
    rig.spawned("web")
    assert kind("web") == "running"
    assert rig.status("web").why is None
    rig.crash("web")
    assert kind("web") == "backoff"
    rig.ask("stop", "web")
    assert kind("web") == "operator"


def test_jobs_are_listed_with_what_they_wait_for() -> None:
    """Number, unit, type, state, and the units that go first."""
    rig = Rig(notify("a"), notify("b"), target("all", **needs("a", "b")))
    rig.ask("start", "all")
    listed = [(job.unit, job.type, job.state, job.waiting_for) for job in view.jobs(rig.manager)]
    assert listed == [
        ("all", "start", "waiting", ("a", "b")),
        ("a", "start", "running", ()),
        ("b", "start", "running", ()),
    ]


def test_deps_both_ways() -> None:
    """What a unit needs, with until, state and depth; and who needs it."""
    rig = Rig(
        service("db"),
        service("cache"),
        service("web", relations={**needs("db"), "wants": (Dependency("cache", ordered=False),)}),
        service("edge", relations={"binds_to": (Dependency("web"),), "conflicts": ("old",)}),
    )
    assert view.deps(rig.manager, "edge") == [
        ("web", "binds-to", "ready", "inactive", 1),
        ("db", "requires", "ready", "inactive", 2),
        ("cache", "wants", "ready", "inactive", 2),
        ("old", "conflicts", None, "inactive", 1),
    ]
    assert view.deps(rig.manager, "db", reverse=True) == [
        ("web", "required-by", None, "inactive", 1),
        ("edge", "bound-by", None, "inactive", 2),
    ]


def test_why_of_a_restarted_unit_tells_the_end_of_the_life_before() -> None:
    """The signal, the code, or, where the kernel no longer tells, neither: never an exit code None."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    told = []
    for code, signal in ((3, None), (None, 11), (None, None)):
        rig.exited("web", code, signal=signal)
        rig.later(5)
        rig.spawned("web")
        told.append(view.why(rig.manager, "web")[-1].message.partition(" after ")[0])
    ended = ("exit-code: exit code 3", "signal: killed by SIGSEGV", "unknown")
    assert told == [f"the life before ended ({end})" for end in ended]
