"""The phases around the main process: exec-condition before it, exec-start-post after it, reloads, and its time."""

from typing import Any

import pytest
from core_rig import Rig, commands, notify, oneshot, service

from supervisord_py.core.actions import KillTree, SignalProcesses, Whom
from supervisord_py.model.records import Severity
from supervisord_py.model.states import Restart, Role, ServiceType
from supervisord_py.model.unit import SECOND_NS, Command, ExitStatuses, RestartPolicy

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)
ALWAYS = RestartPolicy(restart=Restart.ALWAYS, jitter=0.0)


def words(rig: Rig) -> list[str]:
    return [action.command.words[0] for action in rig.spawns]


# exec-condition


def test_a_condition_that_holds_lets_the_start_go_on() -> None:
    """exec-condition runs first of all, each after the other; exit 0 of all of them leads to exec-start-pre."""
    rig = Rig(service("web", exec_condition=commands("c1", "c2"), exec_start_pre=commands("pre")))
    rig.ask("start", "web")
    assert rig.shown("web") == "activating/condition/success"
    rig.exited("web", 0)
    rig.exited("web", 0)
    assert rig.shown("web") == "activating/start-pre/success"
    rig.exited("web", 0)
    rig.spawned("web")
    assert words(rig) == ["c1", "c2", "pre", "/bin/web"]
    assert rig.shown("web") == "active/running/success"


@pytest.mark.parametrize("code", [1, 254])
def test_a_condition_that_does_not_hold_skips_the_start(code: int) -> None:
    """1 to 254: the unit is inactive, not failed, its start job was skipped, and no policy starts it again."""
    rig = Rig(service("web", restart=ALWAYS, exec_condition=commands("c1", "c2")))
    request = rig.ask("start", "web")
    rig.exited("web", code)
    assert rig.shown("web") == "inactive/dead/exec-condition"
    assert rig.outcome(request) == {"web": "skipped"}
    assert words(rig) == ["c1"]
    assert rig.status("web").failures == 0
    assert rig.record("unit.stopped", "web").fields["result"] == "exec-condition"
    assert rig.manager.deadline_ns() is None


@pytest.mark.parametrize(
    ("end", "result"),
    [({"code": 255}, "exit-code"), ({"signal": 9}, "signal"), ({"signal": 15}, "signal"), (None, "timeout")],
    ids=["255", "KILL", "TERM", "time-out"],
)
def test_a_condition_that_fails_fails_the_start(end: dict[str, int] | None, result: str) -> None:
    """255, a signal or the start time-out is no answer: the unit has failed, and the policy decides what follows."""
    rig = Rig(service("web", restart=NEVER, exec_condition=commands("c"), timeout_start_ns=SECOND_NS))
    request = rig.ask("start", "web")
    rig.spawned("web")
    if end is None:
        rig.later(1)
        end = {"signal": 15}
    rig.exited("web", **end)  # type: ignore[arg-type]
    assert rig.shown("web") == f"failed/failed/{result}"
    assert rig.outcome(request) == {"web": "failed"}
    assert words(rig) == ["c"]


def test_a_condition_that_cannot_be_run_is_no_answer() -> None:
    """A missing program is a failure of the unit; systemd takes its exit code 203 for an answer."""
    rig = Rig(service("web", restart=NEVER, exec_condition=commands("c")))
    rig.ask("start", "web")
    rig.failed_to_spawn("web")
    assert rig.shown("web") == "failed/failed/exit-code"


def test_stop_post_runs_after_a_skipped_start() -> None:
    """exec-stop-post belongs to every end, and is told of the skip; exec-stop is not run, nothing was started."""
    rig = Rig(service("web", exec_condition=commands("c"), exec_stop=commands("stop"), exec_stop_post=commands("post")))
    request = rig.ask("start", "web")
    rig.exited("web", 1)
    assert words(rig) == ["c", "post"]
    told = dict(rig.spawns[-1].environment)
    assert told["SERVICE_RESULT"] == "exec-condition"
    assert "EXIT_CODE" not in told
    rig.exited("web", 0)
    assert rig.shown("web") == "inactive/dead/exec-condition"
    assert rig.outcome(request) == {"web": "skipped"}


def test_what_a_condition_leaves_behind_is_killed_before_the_start_goes_on() -> None:
    """A process that exec-condition left must not live beside the service."""
    rig = Rig(service("web", exec_condition=commands("c")))
    rig.ask("start", "web")
    rig.exited("web", 0, empty=False)
    assert rig.did(KillTree) == [KillTree("web", 9)]
    assert words(rig) == ["c"]
    rig.emptied("web")
    assert words(rig) == ["c", "/bin/web"]


def test_a_stop_ends_a_condition() -> None:
    """The command is asked to end, and the unit is down without a failure."""
    rig = Rig(service("web", exec_condition=commands("c")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 15, Whom.ALL, then_continue=True)]
    rig.exited("web", signal=15)
    assert rig.shown("web") == "inactive/dead/success"


# exec-start-post


@pytest.mark.parametrize("kind", [ServiceType.SIMPLE, ServiceType.NOTIFY], ids=lambda kind: kind.value)
def test_a_unit_is_active_after_its_start_post_commands(kind: ServiceType) -> None:
    """They run when the main process is up (ready, if it says so) and are told its pid; then the start is done."""
    rig = Rig(service("web", type=kind, exec_start_post=commands("p1", "p2")))
    request = rig.ask("start", "web")
    rig.up("web")
    main = rig.spawn_of("web", Role.MAIN).spawn_id
    assert rig.shown("web") == "activating/start-post/success"
    assert rig.spawns[-1].main_spawn == main
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    assert rig.shown("web") == "activating/start-post/success"
    assert request not in rig.replies
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}
    assert rig.events("web").count("unit.ready") == 1


def test_a_start_post_command_that_fails_stops_the_unit() -> None:
    """The main process is ended, exec-stop is left out, and the start has failed."""
    rig = Rig(service("web", restart=NEVER, exec_start_post=commands("p1", "p2"), exec_stop=commands("stop")))
    request = rig.ask("start", "web")
    rig.up("web")
    rig.exited("web", 3, role=Role.START_POST, empty=False)
    assert rig.shown("web") == "deactivating/stop-sigterm/exit-code"
    rig.exited("web", signal=15, role=Role.MAIN)
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.outcome(request) == {"web": "failed"}
    assert words(rig) == ["/bin/web", "p1"]


def test_a_start_post_command_may_be_allowed_to_fail() -> None:
    """The - prefix: the next command runs, and the unit is up."""
    rig = Rig(service("web", exec_start_post=(Command(("p1",), ignore_failure=True), Command(("p2",)))))
    rig.ask("start", "web")
    rig.up("web")
    rig.exited("web", 3, role=Role.START_POST, empty=False)
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    assert rig.shown("web") == "active/running/success"


@pytest.mark.parametrize(
    ("code", "shown"), [(0, "inactive/dead/success"), (4, "failed/failed/exit-code")], ids=["clean", "failure"]
)
def test_a_main_process_that_ends_during_start_post_waits_for_the_command(code: int, shown: str) -> None:
    """The command may have more to do; then the unit ends as its main process did."""
    rig = Rig(service("web", restart=NEVER, exec_start_post=commands("p")))
    request = rig.ask("start", "web")
    rig.up("web")
    rig.exited("web", code, role=Role.MAIN, empty=False)
    assert rig.shown("web").startswith("activating/start-post")
    rig.exited("web", 0, role=Role.START_POST)
    assert rig.shown("web") == shown
    assert rig.outcome(request) == {"web": "done" if code == 0 else "failed"}
    assert "unit.ready" not in rig.events("web")


def test_start_post_that_hangs_times_the_start_out() -> None:
    """The time-out of the start counts for each command of it."""
    rig = Rig(service("web", restart=NEVER, exec_start_post=commands("p"), timeout_start_ns=5 * SECOND_NS))
    rig.ask("start", "web")
    rig.up("web")
    rig.spawned("web")
    rig.later(5)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"


def test_a_oneshot_has_its_start_post_after_the_last_command() -> None:
    """Readiness, and with it the job's end, comes after exec-start-post."""
    rig = Rig(oneshot("setup", exec_start=commands("one", "two"), exec_start_post=commands("post")))
    request = rig.ask("start", "setup")
    rig.exited("setup", 0)
    rig.exited("setup", 0)
    assert rig.shown("setup") == "activating/start-post/success"
    assert request not in rig.replies
    rig.exited("setup", 0)
    assert words(rig) == ["one", "two", "post"]
    assert rig.outcome(request) == {"setup": "done"}
    assert rig.events("setup").count("unit.ready") == 1


def test_a_daemon_may_begin_a_reload_during_start_post() -> None:
    """RELOADING=1 said meanwhile is not lost: the unit is up, and reloading until READY=1."""
    rig = Rig(notify("web", exec_start_post=commands("p")))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", RELOADING="1")
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    assert rig.shown("web") == "reloading/reload/success"
    rig.says("web", READY="1")
    assert rig.shown("web") == "active/running/success"


# idle


def test_an_idle_unit_alone_starts_at_once() -> None:
    """Nothing else is to be done: nothing is waited for."""
    rig = Rig(service("motd", type=ServiceType.IDLE))
    rig.ask("start", "motd")
    assert words(rig) == ["/bin/motd"]
    rig.spawned("motd")
    assert rig.shown("motd") == "active/running/success"


def test_an_idle_unit_waits_for_the_jobs_of_others() -> None:
    """Its program runs when the last other job is done."""
    rig = Rig(service("motd", type=ServiceType.IDLE), notify("web"))
    rig.ask("start", "motd", "web")
    assert words(rig) == ["/bin/web"]
    assert rig.shown("motd") == "activating/start/success"
    rig.up("web")
    assert words(rig) == ["/bin/web", "/bin/motd"]


def test_an_idle_unit_waits_five_seconds_at_most() -> None:
    """A start that takes long does not keep it for ever."""
    rig = Rig(service("motd", type=ServiceType.IDLE), notify("web"))
    rig.ask("start", "motd", "web")
    rig.later(4.9)
    assert words(rig) == ["/bin/web"]
    rig.later(0.1)
    assert words(rig) == ["/bin/web", "/bin/motd"]
    assert rig.shown("motd") == "activating/start/success"


def test_idle_units_do_not_wait_for_each_other_or_for_what_waits_for_them() -> None:
    """Neither two of them nor a unit that is to start after one hold them up."""
    rig = Rig(
        service("a", type=ServiceType.IDLE),
        service("b", type=ServiceType.IDLE),
        service("late", relations={"after": (_edge("a"),)}),
    )
    rig.ask("start", "a", "b", "late")
    assert sorted(words(rig)) == ["/bin/a", "/bin/b"]


def test_an_idle_unit_that_waits_can_be_stopped() -> None:
    """It has no process yet: it is down at once, and stays down when the others are done."""
    rig = Rig(service("motd", type=ServiceType.IDLE), notify("web"))
    rig.ask("start", "motd", "web")
    request = rig.ask("stop", "motd")
    assert rig.outcome(request) == {"motd": "done"}
    rig.up("web")
    assert words(rig) == ["/bin/web"]


def _edge(name: str) -> object:
    from supervisord_py.model.unit import Dependency

    return Dependency(name)


# notify-reload


def _reloading(**keys: object) -> tuple[Rig, int, int]:
    """A notify-reload unit that was asked to reload; the main spawn id and the request's number."""
    rig = Rig(service("web", type=ServiceType.NOTIFY_RELOAD, **keys))
    rig.ask("start", "web")
    main = rig.spawned("web")
    rig.says("web", READY="1")
    rig.later(1)
    return rig, main, rig.ask("reload", "web")


def test_notify_reload_sends_its_signal_and_waits_for_both_words() -> None:
    """RELOADING=1 of after the signal, then READY=1: only then the reload is done."""
    rig, main, request = _reloading(reload_signal=12)
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 12, Whom.MAIN, main, then_continue=True)]
    assert rig.shown("web") == "reloading/reload/success"
    rig.says("web", RELOADING="1", MONOTONIC_USEC=str(rig.mono_ns // 1000))
    rig.says("web", READY="1")
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}


def test_notify_reload_may_say_both_words_at_once() -> None:
    """A daemon that reloads in no time says RELOADING=1 and READY=1 in one datagram."""
    rig, _, request = _reloading()
    rig.says("web", RELOADING="1", READY="1", MONOTONIC_USEC=str(rig.mono_ns // 1000))
    assert rig.outcome(request) == {"web": "done"}


@pytest.mark.parametrize("said", [{}, {"MONOTONIC_USEC": "999999999"}, {"MONOTONIC_USEC": "-1"}])
def test_an_answer_of_before_the_signal_is_none(said: dict[str, str]) -> None:
    """A reload that was going on already has read older settings: its RELOADING=1 and READY=1 do not end ours."""
    rig, _, request = _reloading()
    rig.says("web", RELOADING="1", **said)
    rig.says("web", READY="1")
    assert rig.shown("web") == "reloading/reload/success"
    assert request not in rig.replies


def test_notify_reload_that_does_not_answer_fails_the_reload_only() -> None:
    """After the start time-out the job has failed, and the unit goes on."""
    rig, _, request = _reloading(timeout_start_ns=5 * SECOND_NS)
    rig.says("web", RELOADING="1", MONOTONIC_USEC=str(rig.mono_ns // 1000))
    rig.later(5)
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "failed"}


def test_notify_reload_runs_its_commands_before_the_signal() -> None:
    """exec-reload first (it may write what is read), then the signal; a command that fails leaves the signal out."""
    rig, main, request = _reloading(exec_reload=commands("r"))
    assert rig.did(SignalProcesses) == []
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 1, Whom.MAIN, main, then_continue=True)]
    assert request not in rig.replies
    failing, _, request = _reloading(exec_reload=commands("r"))
    failing.exited("web", 1, role=Role.RELOAD, empty=False)
    assert failing.did(SignalProcesses) == []
    assert failing.outcome(request) == {"web": "failed"}


def test_reload_or_restart_reloads_a_notify_reload_unit() -> None:
    """It can reload without an exec-reload."""
    rig = Rig(service("web", type=ServiceType.NOTIFY_RELOAD))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.says("web", READY="1")
    rig.ask("reload-or-restart", "web")
    assert rig.shown("web") == "reloading/reload/success"


def test_reloading_before_the_first_ready_means_nothing() -> None:
    """haproxy and caddy say RELOADING=1 while they start; READY=1 makes them active, not reloading."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.says("web", RELOADING="1")
    assert rig.shown("web") == "activating/start/success"
    rig.says("web", READY="1")
    assert rig.shown("web") == "active/running/success"


def test_a_reload_does_not_make_a_unit_younger() -> None:
    """since is when it became active; a reload is no new activation (it was shown as one)."""
    rig = Rig(service("web", exec_reload=commands("r")))
    rig.ask("start", "web")
    rig.up("web")
    since = rig.status("web").since
    rig.later(10)
    rig.ask("reload", "web")
    assert rig.status("web").since == since
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    assert rig.status("web").since == since


# how long it runs


def test_runtime_max_ends_a_unit_with_a_time_out() -> None:
    """It counts from when the unit became active; exec-stop runs, and is told of the time-out."""
    rig = Rig(notify("web", restart=NEVER, runtime_max_ns=10 * SECOND_NS, exec_stop=commands("stop")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.later(8)
    rig.says("web", READY="1")
    rig.later(9.9)
    assert rig.shown("web") == "active/running/success"
    rig.later(0.1)
    assert rig.shown("web") == "deactivating/stop/timeout"
    assert dict(rig.spawns[-1].environment)["SERVICE_RESULT"] == "timeout"
    rig.exited("web", 0, role=Role.STOP, empty=False)
    rig.exited("web", signal=15, role=Role.MAIN)
    assert rig.shown("web") == "failed/failed/timeout"


def test_runtime_max_is_a_failure_that_the_policy_sees() -> None:
    """on-failure restarts after it, and the new life has its own time."""
    rig = Rig(service("web", runtime_max_ns=10 * SECOND_NS))
    rig.ask("start", "web")
    rig.up("web")
    rig.later(10)
    rig.exited("web", signal=15)
    assert rig.shown("web") == "activating/auto-restart/timeout"
    rig.later(1)
    rig.up("web")
    rig.later(9)
    assert rig.shown("web") == "active/running/success"


def test_a_reload_does_not_lengthen_the_runtime() -> None:
    """The time goes on during a reload, and holds again after it."""
    rig = Rig(service("web", runtime_max_ns=10 * SECOND_NS, exec_reload=commands("r")))
    rig.ask("start", "web")
    rig.up("web")
    rig.later(6)
    rig.ask("reload", "web")
    rig.later(2)
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    rig.later(1.9)
    assert rig.shown("web") == "active/running/success"
    rig.later(0.1)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"


def test_a_unit_without_its_main_process_does_not_run_too_long() -> None:
    """remain-after-exit: nothing runs, and nothing ends it; a oneshot's time is its start."""
    rig = Rig(
        service("web", runtime_max_ns=10 * SECOND_NS, remain_after_exit=True),
        oneshot("setup", runtime_max_ns=SECOND_NS, remain_after_exit=True),
    )
    rig.ask("start", "web", "setup")
    rig.up("web")
    rig.exited("web", 0)
    rig.exited("setup", 0)
    rig.later(60)
    assert rig.shown("web") == rig.shown("setup") == "active/exited/success"


def test_extend_timeout_extends_the_runtime() -> None:
    """EXTEND_TIMEOUT_USEC moves the end of the runtime later, never earlier, and a reload does not undo it."""
    rig = Rig(notify("web", runtime_max_ns=10 * SECOND_NS, exec_reload=commands("r")))
    rig.ask("start", "web")
    rig.up("web")
    rig.later(9)
    rig.says("web", EXTEND_TIMEOUT_USEC="5000000")
    rig.says("web", EXTEND_TIMEOUT_USEC="1000000")
    rig.ask("reload", "web")
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    rig.later(4.9)
    assert rig.shown("web") == "active/running/success"
    rig.later(0.1)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"


@pytest.mark.parametrize("phase", ["condition", "start-pre", "start-post", "stop", "stop-post"])
def test_extend_timeout_extends_every_phase(phase: str) -> None:
    """A command that needs longer may say so, whichever it is (notify-access = "all")."""
    keys = {f"exec_{phase.replace('-', '_')}": commands("c")}
    rig = Rig(
        service("web", timeout_start_ns=5 * SECOND_NS, timeout_stop_ns=5 * SECOND_NS, **keys)  # type: ignore[arg-type]
    )
    rig.ask("start", "web")
    if phase in ("start-post", "stop", "stop-post"):
        rig.up("web")
    if phase in ("stop", "stop-post"):
        rig.ask("stop", "web")
    if phase == "stop-post":
        rig.exited("web", signal=15, role=Role.MAIN)
    spawn_id = rig.spawned("web")
    rig.later(4)
    rig.happen(_notified(spawn_id, EXTEND_TIMEOUT_USEC="3000000"))
    rig.later(2)
    assert rig.status("web").sub_state == phase
    rig.later(1)
    assert rig.status("web").sub_state != phase


def _notified(spawn_id: int, **fields: str) -> object:
    from supervisord_py.core.events import NotifyReceived

    return NotifyReceived("web", spawn_id, 1, fields)


def test_service_result_is_told_to_exec_stop() -> None:
    """As to exec-stop-post: systemd sets it for both, and how the main process ended once it has."""
    rig = Rig(service("web", exec_stop=commands("stop")))
    rig.ask("start", "web")
    rig.up("web")
    rig.ask("stop", "web")
    told = dict(rig.spawns[-1].environment)
    assert told["SERVICE_RESULT"] == "success"
    assert "EXIT_CODE" not in told
    ended = Rig(service("web", restart=NEVER, exec_stop=commands("stop")))
    ended.ask("start", "web")
    ended.up("web")
    ended.exited("web", 0)
    assert dict(ended.spawns[-1].environment)["EXIT_STATUS"] == "0"


def test_success_statuses_hold_for_every_command() -> None:
    """success-exit-status makes an end clean, of the main process and of any other command."""
    clean = ExitStatuses(codes=(7,), signals=(10,))
    rig = Rig(service("web", success=clean, exec_start_pre=commands("pre"), exec_reload=commands("r")))
    rig.ask("start", "web")
    rig.exited("web", 7)
    rig.spawned("web")
    request = rig.ask("reload", "web")
    rig.exited("web", signal=10, role=Role.RELOAD, empty=False)
    assert rig.outcome(request) == {"web": "done"}
    rig.exited("web", 7, role=Role.MAIN)
    assert rig.shown("web") == "inactive/dead/success"


@pytest.mark.parametrize(
    ("keys", "end", "severity"),
    [
        ({}, {"code": 0}, Severity.INFO),
        ({}, {"signal": 15}, Severity.INFO),
        ({"success": ExitStatuses(codes=(15,))}, {"code": 15}, Severity.INFO),
        ({}, {"code": 15}, Severity.WARNING),
        ({}, {"signal": 9}, Severity.WARNING),
    ],
    ids=["code 0", "SIGTERM", "privoxy's 15", "code 15", "SIGKILL"],
)
def test_the_clean_end_of_a_daemon_was_told_as_a_warning(
    keys: dict[str, Any], end: dict[str, int], severity: Severity
) -> None:
    """A daemon that dies of the stop's SIGTERM, or with a success-exit-status, is no warning; other ends are."""
    rig = Rig(service("web", **keys))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", **end)
    assert rig.record("unit.exited", "web").severity is severity
