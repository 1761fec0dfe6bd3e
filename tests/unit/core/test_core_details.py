"""Details of what is decided, told and timed that no story is about: each was found by a slip that nobody noticed (see
``docs/mutation.md``).
"""

from typing import Any

import pytest
from core_rig import Rig, commands, needs, notify, oneshot, service, target

from supervisord_py.core import view
from supervisord_py.core.actions import ExitSupervisor, KillTree
from supervisord_py.core.events import NotifyReceived, ShutdownForced
from supervisord_py.model.states import (
    ExitSupervisorOn,
    JobMode,
    KillMode,
    OnDependencyFailure,
    Restart,
    Role,
    ServiceType,
)
from supervisord_py.model.unit import (
    SECOND_NS,
    BadUnit,
    Condition,
    Dependency,
    KillPolicy,
    RestartPolicy,
    Unit,
    UnitSet,
)

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)
SLOWLY = RestartPolicy(restart=Restart.ALWAYS, delay_ns=60 * SECOND_NS, jitter=0.0)


def test_a_shutdown_waits_a_tenth_as_long_after_the_final_signal() -> None:
    """What SIGKILL does not end is given up after a share of the stop time-out, so that the others get their time."""
    rig = Rig(service("web", timeout_stop_ns=20 * SECOND_NS, kill=KillPolicy(mode=KillMode.CONTROL_GROUP)))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down(90)
    rig.later(20)
    assert rig.shown("web") == "deactivating/stop-sigkill/timeout"
    waits_ns = 0
    while rig.status("web").sub_state == "stop-sigkill":
        assert waits_ns < 20 * SECOND_NS
        rig.later(0.5)
        waits_ns += SECOND_NS // 2
    assert SECOND_NS <= waits_ns <= 10 * SECOND_NS


def test_what_an_exec_condition_skips_satisfies_requires() -> None:
    """A unit that requires one whose exec-condition said no starts, as with a condition; one bound to it does not."""
    db = service("db", exec_condition=commands("/bin/may-it"))
    rig = Rig(db, service("web", relations=needs("db")), service("log", relations={"binds_to": (Dependency("db"),)}))
    web, log = rig.ask("start", "web"), rig.ask("start", "log")
    rig.spawned("db")
    rig.exited("db", 1, role=Role.CONDITION)
    assert rig.launched() == ["web"]
    rig.spawned("web")
    assert rig.outcome(web)["web"] == "done"
    assert rig.outcome(log)["log"] == "dependency"


def test_a_plan_names_no_jobs() -> None:
    """There are no jobs of a plan: neither of what is asked for, nor of what follows, nor of what is so already."""
    rig = Rig(service("db"), service("web", relations=needs("db")), service("log"))
    rig.ask("start", "log")
    rig.spawned("log")
    reply = rig.replies[rig.ask("start", "web", "log", plan=True)]
    assert [(each.unit, each.job) for each in reply.outcomes] == [("web", 0), ("log", 0), ("db", 0)]


def test_a_hook_that_contradicts_an_order_is_canceled() -> None:
    """db fails and names page, whose stop is irreversible: the start of page is told as called off, not as timed out
    or as lacking something.
    """
    rig = Rig(oneshot("db", relations={"on_failure": ("page",)}), service("page"))
    rig.ask("start", "page")
    rig.spawned("page")
    rig.ask("stop", "page", mode=JobMode.REPLACE_IRREVERSIBLY)
    rig.ask("start", "db")
    rig.failed_to_spawn("db")
    assert rig.record("job.finished", "page").fields["result"] == "canceled"


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_life_is_told_as_long_as_it_was(seconds: int) -> None:
    """The record of the end says how long the life was, and no millisecond more."""
    rig = Rig(service("web", restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.later(seconds)
    rig.exited("web", 0)
    assert rig.record("unit.stopped").fields["runtime_ms"] == seconds * 1000


def test_a_forced_shutdown_tells_of_each_unit_that_it_ends() -> None:
    """Nothing is killed without a word."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.happen(ShutdownForced())
    assert rig.did(KillTree) == [KillTree("web", 9)]
    assert rig.record("unit.stopping", "web").fields["reason"] == "the shutdown was forced"


@pytest.mark.parametrize(("before", "after", "ends_s"), [(10, 20, 20), (None, 20, 20), (20, 10, 10), (10, None, None)])
def test_a_longest_run_time_that_changes_counts_from_the_beginning(
    before: int | None, after: int | None, ends_s: int | None
) -> None:
    """runtime-max-sec changed by a reload after four seconds: the end is so long after the beginning of the life."""

    def web(seconds: int | None) -> object:
        return service("web", runtime_max_ns=None if seconds is None else seconds * SECOND_NS)

    rig = Rig(web(before))  # type: ignore[arg-type]
    rig.ask("start", "web")
    rig.spawned("web")
    rig.later(4)
    rig.load(web(after))  # type: ignore[arg-type]
    rig.later(5.9 if ends_s != 20 else 15.9)
    assert rig.shown("web") == "active/running/success"
    rig.later(100 if ends_s is None else 0.2)
    assert rig.status("web").sub_state == ("running" if ends_s is None else "stop-sigterm")


def test_a_main_process_that_names_itself_stays_the_one() -> None:
    """MAINPID= with the pid of the main process changes nothing: there is no former one whose end is waited for."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    spawn_id = rig.spawned("web")
    pid = rig.status("web").pid
    assert pid is not None
    rig.happen(NotifyReceived("web", spawn_id, pid, {"READY": "1"}, main_pid=pid))
    assert rig.manager.ledger.state("web").former == []
    rig.happen(NotifyReceived("web", spawn_id, pid, {}, main_pid=pid + 50))
    assert [each.spawn_id for each in rig.manager.ledger.state("web").former] == [spawn_id]
    assert rig.status("web").pid == pid + 50


def test_a_unit_whose_file_broke_is_still_enabled() -> None:
    """The life goes on by its old text, and so does what that says of the next start of the supervisor."""
    web = service("web", relations={"enabled": True})
    rig = Rig(web, start=True)
    rig.spawned("web")
    assert rig.status("web").enabled is True
    rig.load(bad=UnitSet(bad={"web": BadUnit("web", "web.toml", "web.toml:1:1: no")}))
    assert rig.status("web").enabled is True
    rig.load()
    assert rig.status("web").enabled is False


def test_a_shutdown_ends_the_waiting_and_lets_the_rest_be() -> None:
    """A unit that waits for a dependency waits no more; one that is simply down gets no job."""
    rig = Rig(service("db", restart=NEVER), service("web", relations=needs("db")), service("log"))
    rig.ask("start", "web")
    rig.failed_to_spawn("db")
    assert rig.shown("web").startswith("inactive/dependency/")
    rig.shut_down()
    assert rig.shown("web").startswith("inactive/dead/")
    assert [each.unit for each in rig.records if each.event == "job.queued" and each.fields["type"] == "stop"] == [
        "web"
    ]


def test_a_unit_that_is_bound_to_what_is_skipped_is_not_tried_again() -> None:
    """web waits for db, to which it is bound; db's condition does not hold: that is no recovery."""
    db = service("db", restart=NEVER, relations={"conditions": (Condition("path-exists", "/x"),)})
    rig = Rig(db, service("web", relations={"binds_to": (Dependency("db"),)}))
    rig.ask("start", "web")
    rig.checked("db")
    rig.failed_to_spawn("db")
    rig.ask("start", "db")
    rig.checked("db", condition='condition-path-exists = "/x"')
    assert [each.unit for each in rig.records if each.event == "job.queued"] == ["web", "db", "db"]


def test_what_somebody_asked_for_needs_no_delay_though_others_need_it_too() -> None:
    """web crashed and runs its exec-stop-post; somebody asks for it, then for api, which pulls it in: it starts as soon
    as it is down, not after the restart's delay.
    """
    web = service("web", restart=SLOWLY, exec_stop_post=commands("/bin/sweep"))
    rig = Rig(web, service("api", relations=needs("web")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    rig.spawned("web")
    rig.ask("start", "web", wait=False)
    rig.ask("start", "api", wait=False)
    rig.exited("web", 0, role=Role.STOP_POST)
    assert rig.launched() == ["web", "web"]


def test_a_clean_end_while_it_reloads_itself_is_an_end() -> None:
    """A notify-reload service whose main process ends well before it has reloaded is down."""
    rig = Rig(service("web", type=ServiceType.NOTIFY_RELOAD, restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.says("web", READY="1")
    request = rig.ask("reload", "web")
    rig.exited("web", 0)
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.outcome(request)["web"] != "done"


@pytest.mark.parametrize("relation", ["after", "requires", "wants", "binds_to", "requisite"])
def test_a_relation_to_itself_means_nothing(relation: str) -> None:
    """A unit that names itself starts and stops like any other."""
    rig = Rig(service("web", relations={relation: (Dependency("web"),)}))
    request = rig.ask("start", "web")
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}
    request = rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert rig.outcome(request) == {"web": "done"}


def test_a_reload_starts_nothing_that_somebody_stopped() -> None:
    """With no broken file about (or none but broken ones before), a second load is no first one."""
    web, api = (service(name, relations={"enabled": True}) for name in ("web", "api"))
    rig = Rig(web, start=True)
    assert rig.record("job.queued", "web").fields["origin"] == "boot"
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    rig.load(web, api, start=True)
    assert rig.launched() == ["web", "api"]
    assert rig.record("job.queued", "api").fields["origin"] == "command"


@pytest.mark.parametrize(("relation", "queued"), [("requires", ["cache", "web"]), ("binds_to", ["cache"])])
def test_the_success_of_a_oneshot_is_enough_for_requires_alone(relation: str, queued: list[str]) -> None:
    """web waits for cache; the oneshot db, which it needs too, has done its work: when cache is back web is started,
    unless it is bound to db, which is over.
    """
    edges = {"requires": (Dependency("cache"),)}
    edges[relation] = (*edges.get(relation, ()), Dependency("db"))
    rig = Rig(oneshot("db"), service("cache", restart=NEVER), service("web", relations=edges))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.exited("db", 0)
    rig.failed_to_spawn("cache")
    assert rig.shown("web").startswith("inactive/dependency/")
    told = len(rig.records)
    rig.ask("start", "cache")
    rig.spawned("cache")
    assert [each.unit for each in rig.records[told:] if each.event == "job.queued"] == queued


def test_a_start_that_hangs_in_its_end_has_failed() -> None:
    """The start times out, the process ignores every word and may not be killed: who asked is told, and need not wait
    for ever.
    """
    keys = {"timeout_start_ns": SECOND_NS, "timeout_stop_ns": SECOND_NS, "kill": KillPolicy(send_sigkill=False)}
    rig = Rig(notify("web", **keys))
    request = rig.ask("start", "web")
    rig.spawned("web")
    rig.later(5)
    assert rig.status("web").sub_state == "stuck"
    assert rig.outcome(request) == {"web": "failed"}
    assert rig.shown("web").endswith("/timeout")


def test_who_was_bound_to_what_ended_is_told_so_and_who_needs_it_is_stopped() -> None:
    """db ends while web, bound to it, starts and edge waits for web: web's start lacks its dependency, edge's is called
    off by the stop that follows.
    """
    rig = Rig(
        service("db", restart=NEVER),
        notify("web", relations={"binds_to": (Dependency("db"),)}),
        service("edge", relations=needs("web")),
    )
    request = rig.ask("start", "edge", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("db")
    assert rig.outcome(request) == {"edge": "canceled", "web": "dependency"}


def test_what_failed_in_the_end_of_a_start_says_how() -> None:
    """The main process fails while the command after the start runs, and leaves something: the reason is its end."""
    rig = Rig(service("web", exec_start_post=commands("/bin/tell"), restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 3, role=Role.MAIN, empty=False)
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    assert rig.record("unit.stopping").fields["reason"] == "its main process exited with code 3"


def test_a_former_main_process_that_says_something_names_no_heir() -> None:
    """It may speak as before; only MAINPID= would name another one."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    spawn_id = rig.spawned("web")
    pid = rig.status("web").pid
    assert pid is not None
    rig.happen(NotifyReceived("web", spawn_id, pid, {"READY": "1"}, main_pid=pid + 50))
    rig.exited("web", signal=9, empty=False)
    former = rig.manager.ledger.state("web").former
    rig.happen(NotifyReceived("web", spawn_id, pid, {"STATUS": "going"}))
    assert rig.manager.ledger.state("web").former == former


def test_a_unit_waits_for_one_before_it_that_is_to_reload_or_start() -> None:
    """Both are to be up: it does not matter by which word the first one was asked for."""
    web = service("web", relations={"after": (Dependency("db"),)})
    rig = Rig(notify("cache"), service("db", relations=needs("cache")), web)
    rig.ask("reload-or-restart", "db", wait=False)
    rig.ask("start", "web", wait=False)
    assert rig.launched() == ["cache"]
    rig.up("cache")
    assert rig.launched() == ["cache", "db"]
    rig.spawned("db")
    assert rig.launched() == ["cache", "db", "web"]


def test_a_failure_that_is_told_twice_is_one() -> None:
    """web may not wait for db, which cannot start: its job fails and so does the unit; the alert is started once."""
    web = service(
        "web", relations={**needs("db"), "on_failure": ("alert",), "on_dependency_failure": OnDependencyFailure.FAIL}
    )
    rig = Rig(service("db", restart=NEVER), web, oneshot("alert"))
    rig.ask("start", "web")
    rig.failed_to_spawn("db")
    assert rig.shown("web") == "failed/failed/dependency"
    assert rig.manager.ledger.state("alert").related == 1
    assert [each.unit for each in rig.records if each.event == "job.queued"].count("alert") == 1


def test_an_automatic_restart_takes_no_stop_of_a_dependent_back() -> None:
    """db, which crashed, comes back while web is being stopped by somebody: web stays down; log, which runs, is
    restarted with db.
    """
    db = service("db", restart=RestartPolicy(delay_ns=SECOND_NS, jitter=0.0))
    web, log = (service(name, relations={"part_of": ("db",)}) for name in ("web", "log"))
    rig = Rig(db, web, log)
    rig.ask("start", "db", "web", "log")
    for name in ("db", "web", "log"):
        rig.spawned(name)
    rig.ask("stop", "web")
    rig.crash("db")
    rig.later(1)
    rig.exited("web", signal=15)
    rig.exited("log", signal=15)
    rig.spawned("db")
    assert rig.launched() == ["db", "web", "log", "db", "log"]
    assert rig.shown("web") == "inactive/dead/success"


PHASES: dict[str, tuple[dict[str, Any], str]] = {
    "condition": ({"exec_condition": commands("/bin/may-it")}, "start"),
    "start-pre": ({"exec_start_pre": commands("/bin/prepare")}, "start"),
    "start": ({}, "start"),
    "start-post": ({"exec_start_post": commands("/bin/tell")}, "start"),
    "reload": ({"exec_reload": commands("/bin/reload")}, "start"),
    "stop": ({"exec_stop": commands("/bin/stop")}, "stop"),
    "stop-sigterm": ({}, "stop"),
    "stop-watchdog": ({}, "abort"),
    "stop-post": ({"exec_stop_post": commands("/bin/sweep")}, "stop"),
    "final-sigterm": ({"exec_stop_post": commands("/bin/sweep")}, "stop"),
}
"""Each phase that a time-out bounds, with what a unit has to have for it, and the key of the time-out."""


def bring_to(rig: Rig, phase: str) -> None:
    """Start web, and let happen what it needs to come to this phase."""
    rig.ask("start", "web", wait=False)
    if phase in ("condition", "start-pre", "start"):
        return
    rig.up("web")
    if phase == "start-post":
        return
    if phase == "reload":
        rig.ask("reload", "web", wait=False)
    elif phase == "stop-watchdog":
        rig.says("web", WATCHDOG="trigger")
    else:
        rig.ask("stop", "web", wait=False)
    if phase in ("stop-post", "final-sigterm"):
        rig.exited("web", signal=15)
    if phase == "final-sigterm":
        rig.exited("web", 0, role=Role.STOP_POST, empty=False)


@pytest.mark.parametrize(("before", "after"), [(10, 20), (20, 10), (None, 10), (10, None)])
@pytest.mark.parametrize("phase", PHASES)
def test_a_time_out_that_changes_counts_from_the_beginning_of_the_phase(
    phase: str, before: int | None, after: int | None
) -> None:
    """A reload gives another time-out while its phase goes on: the phase ends so long after its beginning. The other
    two time-outs mean nothing to it.
    """
    keys, key = PHASES[phase]

    def web(seconds: int | None, others: int) -> Unit:
        spans = {f"timeout_{name}_ns": others * SECOND_NS for name in ("start", "stop", "abort")}
        spans[f"timeout_{key}_ns"] = None if seconds is None else seconds * SECOND_NS  # type: ignore[assignment]
        return notify("web", restart=NEVER, **keys, **spans)

    rig = Rig(web(before, 100))
    bring_to(rig, phase)
    assert rig.status("web").sub_state == phase
    began_ns = rig.mono_ns
    rig.later(4)
    rig.load(web(after, 50))
    ends_ns = rig.manager.deadline_ns()
    assert ends_ns == (None if after is None else began_ns + after * SECOND_NS)
    rig.later(1000 if after is None else after - 4.1)
    assert rig.status("web").sub_state == phase
    if after is not None:
        rig.later(0.2)
        assert rig.status("web").sub_state != phase or phase == "reload"


def test_what_a_unit_may_need_in_a_shutdown_counts_each_of_its_commands() -> None:
    """Two commands to stop it, one after that, the signal and the kill: each gets its share of nine tenths of the time,
    and all is over before force is needed.
    """
    keys = {"exec_stop": commands("/bin/a", "/bin/b"), "exec_stop_post": commands("/bin/c")}
    rig = Rig(service("web", timeout_stop_ns=20 * SECOND_NS, **keys))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down(50)
    share_ns = 20 * 45 * SECOND_NS // (20 * 4 + 20 / 8)
    began_ns = rig.mono_ns
    assert rig.manager.deadline_ns() == pytest.approx(began_ns + share_ns, abs=10)


@pytest.mark.parametrize("is_ordered", [True, False])
def test_what_is_killed_in_a_forced_shutdown_gets_a_moment_to_die(is_ordered: bool) -> None:
    """The kernel has five seconds, whether an orderly end was tried first or not; then the supervisor waits no more."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    if is_ordered:
        rig.shut_down(90)
    rig.happen(ShutdownForced())
    rig.later(4.9)
    assert not any(isinstance(each, ExitSupervisor) for each in rig.actions)
    rig.later(1.2)
    assert sum(isinstance(each, ExitSupervisor) for each in rig.actions) == 1


def test_a_requisite_whose_start_goes_on_without_a_job_is_waited_for() -> None:
    """The start of db was called off and goes on: web waits until db is up."""
    web = service("web", relations={"requisite": (Dependency("db"),)})
    rig = Rig(notify("db"), web)
    rig.ask("start", "db", wait=False)
    rig.spawned("db")
    rig.ask("cancel", arguments={"job": 1})
    request = rig.ask("start", "web")
    assert rig.launched() == ["db"]
    assert request not in rig.replies
    rig.says("db", READY="1")
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}


def test_a_unit_recovers_each_time() -> None:
    """web waits for db, which fails and comes back, again and again: no time is the last one."""
    rig = Rig(service("db", restart=NEVER), service("web", relations={"binds_to": (Dependency("db"),)}))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    for count in range(2, 30):
        rig.crash("db")
        rig.exited("web", signal=15)
        rig.ask("start", "db")
        rig.spawned("db")
        assert rig.launched().count("web") == count
        rig.spawned("web")


def test_what_a_process_said_was_wrong_is_told_with_its_end() -> None:
    """ERRNO= of the life that is over, and of no other."""
    rig = Rig(notify("web", restart=NEVER))
    for errno in (5, None):
        rig.ask("start", "web")
        rig.spawned("web")
        rig.says("web", READY="1", **({} if errno is None else {"ERRNO": str(errno)}))
        rig.crash("web")
        assert rig.record("unit.failed").fields.get("errno", "none") == (errno or "none")


@pytest.mark.parametrize(("code", "ends"), [(1, False), (0, True)])
def test_what_is_skipped_has_not_ended(code: int, ends: bool) -> None:
    """A unit whose end is that of the supervisor, and whose exec-condition says no, ends nothing."""
    relations = {"exit_supervisor_on": ExitSupervisorOn.EXIT}
    rig = Rig(oneshot("web", relations=relations, exec_condition=commands("/bin/may-it")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", code, role=Role.CONDITION)
    if code == 0:
        rig.spawned("web")
        rig.exited("web", 0, role=Role.MAIN)
    assert any(isinstance(each, ExitSupervisor) for each in rig.actions) is ends


@pytest.mark.parametrize("verb", ["start", "reload-or-restart"])
def test_a_requisite_that_imposes_no_order_is_there_when_it_is_asked_for(verb: str) -> None:
    """db waits for cache, and web has to find db, but not up: it starts at once."""
    web = service("web", relations={"requisite": (Dependency("db", ordered=False),)})
    rig = Rig(notify("cache"), service("db", relations=needs("cache")), web)
    rig.ask(verb, "db", wait=False)
    rig.ask("start", "web", wait=False)
    assert rig.launched() == ["cache", "web"]


def test_a_stop_that_only_follows_gives_way_to_a_wish() -> None:
    """all wants c, whose conflict with x would stop what is part of x, and, by way of others, a, which is part of x and
    is down: a starts and c is given up; only a conflict of a's own would win over the wish.
    """
    wants = {name: {"wants": (Dependency(other),)} for name, other in (("b", "d"), ("d", "a"))}
    rig = Rig(
        target("all", wants=(Dependency("c"), Dependency("b"))),
        service("c", relations={"conflicts": ("x",)}),
        service("b", relations=wants["b"]),
        service("d", relations=wants["d"]),
        service("a", relations={"part_of": ("x",)}),
        service("x"),
    )
    rig.ask("start", "x")
    rig.spawned("x")
    rig.ask("start", "all")
    assert rig.launched() == ["x", "a"]
    assert rig.shown("x") == "active/running/success"


def test_a_stop_that_is_shortened_by_a_shutdown_still_has_time() -> None:
    """It gets nine tenths of what the shutdown has, less the share of the kill, from now on; not nothing."""
    rig = Rig(service("web", timeout_stop_ns=3600 * SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.shut_down(90)
    rig.later(71)
    assert KillTree("web", 9) not in rig.actions
    rig.later(2)
    assert KillTree("web", 9) in rig.actions


def test_a_new_unit_does_not_call_off_an_irreversible_stop() -> None:
    """A reload brings web, enabled, which needs db; db is being stopped for good: web is given up, the stop goes on."""
    rig = Rig(service("db"))
    rig.ask("start", "db")
    rig.spawned("db")
    rig.ask("stop", "db", wait=False, mode=JobMode.REPLACE_IRREVERSIBLY)
    rig.load(service("db"), service("web", relations={**needs("db"), "enabled": True}), start=True)
    assert [(job.unit, job.type) for job in view.jobs(rig.manager)] == [("db", "stop")]
    rig.exited("db", signal=15)
    assert rig.launched() == ["db"]


def test_whoever_wants_the_order_kept_gets_it() -> None:
    """A start that asks for no order waits for the end of the life before; one that does not say so joins it."""
    rig = Rig(notify("db"), service("web", relations={"after": (Dependency("db"),)}))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web", wait=False)
    rig.ask("start", "db", wait=False)
    rig.ask("start", "web", wait=False, mode=JobMode.IGNORE_DEPENDENCIES)
    assert {job.unit: job.waiting_for for job in view.jobs(rig.manager)} == {"db": (), "web": ()}
    rig.ask("start", "web", wait=False)
    assert {job.unit: job.waiting_for for job in view.jobs(rig.manager)} == {"db": (), "web": ("db",)}
    rig.exited("web", signal=15)
    assert rig.launched() == ["web", "db"]
    rig.up("db")
    assert rig.launched() == ["web", "db", "web"]


@pytest.mark.parametrize("is_oneshot", [True, False])
def test_why_a_unit_that_is_over_at_once_is_stopped(is_oneshot: bool) -> None:
    """Its work is done, or nothing is left of it: the words say which, and only the first one was ready."""
    keys = {"exec_stop": commands("/bin/stop"), "restart": NEVER}
    unit = oneshot("web", **keys) if is_oneshot else service("web", type=ServiceType.FORKING, **keys)
    rig = Rig(unit)
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0)
    reason = "its work is done" if is_oneshot else "no process of it is left"
    assert rig.record("unit.stopping").fields["reason"] == reason
    assert ("unit.ready" in rig.events()) is is_oneshot


def test_a_wish_gives_way_to_what_is_needed() -> None:
    """web requires a and wants c, which conflicts with a: c is given up, nothing is refused."""
    web = service("web", relations={**needs("a"), "wants": (Dependency("c"),)})
    rig = Rig(web, service("a"), service("c", relations={"conflicts": ("a",)}))
    rig.ask("start", "web", wait=False)
    rig.spawned("a")
    assert rig.launched() == ["a", "web"]


def test_work_that_is_done_forgets_the_failures_before_it() -> None:
    """A oneshot that fails, is tried again and succeeds has none."""
    rig = Rig(oneshot("web", restart=RestartPolicy(restart=Restart.ON_FAILURE, delay_ns=SECOND_NS, jitter=0.0)))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    assert rig.status("web").failures == 1
    rig.later(1)
    rig.spawned("web")
    rig.exited("web", 0)
    assert (rig.shown("web"), rig.status("web").failures) == ("inactive/dead/success", 0)


def test_a_unit_that_was_healthy_long_enough_has_no_failures_though_nobody_looked() -> None:
    """The deadline is late, the end is told first: the failure counts as the first one."""
    policy = RestartPolicy(delay_ns=SECOND_NS, jitter=0.0, reset_ns=60 * SECOND_NS)
    rig = Rig(service("web", restart=policy))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    rig.spawned("web")
    rig.mono_ns += 60 * SECOND_NS
    rig.crash("web")
    assert rig.status("web").failures == 1


def test_what_fails_for_its_dependency_has_no_code_of_its_own() -> None:
    """web goes down with db, to which it is bound, and may not wait: the supervisor ends with 125, not with the code of
    the signal that web was stopped with.
    """
    relations = {
        "binds_to": (Dependency("db"),),
        "on_dependency_failure": OnDependencyFailure.FAIL,
        "exit_supervisor_on": ExitSupervisorOn.FAILURE,
    }
    rig = Rig(service("db", restart=NEVER), service("web", relations=relations))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("db")
    rig.exited("web", signal=9)
    assert [each.code for each in rig.actions if isinstance(each, ExitSupervisor)] == [125]


def test_failures_that_are_forgotten_by_hand_are_not_forgotten_again() -> None:
    """reset-failed of a unit that is up: nothing is left that could end at a time."""
    rig = Rig(service("web", restart=RestartPolicy(delay_ns=SECOND_NS, jitter=0.0, reset_ns=60 * SECOND_NS)))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    rig.spawned("web")
    assert rig.manager.deadline_ns() == rig.mono_ns + 60 * SECOND_NS
    rig.ask("reset-failed", "web")
    assert rig.manager.deadline_ns() is None
