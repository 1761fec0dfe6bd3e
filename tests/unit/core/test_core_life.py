"""One unit: how a life starts, is up, reloads, ends, and what follows."""

import pytest
from core_rig import NO_JITTER, Rig, commands, notify, oneshot, service, target

from supervisord_py.core.actions import KillTree, ReleaseUnit, SignalProcesses, SpawnProcess, Whom
from supervisord_py.core.events import NotifyReceived, SpawnFailed
from supervisord_py.model.sandbox import Access, Sandbox
from supervisord_py.model.states import KillMode, Restart, Role
from supervisord_py.model.unit import SECOND_NS, Command, ExecContext, KillPolicy, RestartPolicy

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def test_a_simple_service_is_up_when_its_program_runs() -> None:
    """exec succeeding is both start and readiness of a simple service, and its start job is done then, not before."""
    rig = Rig(service("web"))
    request = rig.ask("start", "web")
    assert rig.shown("web") == "activating/start/success"
    assert request not in rig.replies
    rig.spawned("web")
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}
    assert rig.status("web").pid == 101


def test_a_spawn_that_fails_fails_the_job() -> None:
    """No program, no start: the job fails with the reason, and the exit is recorded with systemd's code."""
    rig = Rig(service("web", restart=NEVER))
    request = rig.ask("start", "web")
    rig.failed_to_spawn("web")
    assert rig.outcome(request) == {"web": "failed"}
    assert "could not be executed" in rig.replies[request].outcomes[0].message
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.record("unit.exited", "web").fields["code"] == 203
    assert rig.status("web").exit is not None and rig.status("web").exit.code == 203


@pytest.mark.parametrize(
    ("step", "errno", "detail", "message"),
    [
        ("exec", 2, "/srv/web", "could not be executed: /srv/web: no such file or directory"),
        ("exec", 2, "no program web in PATH", "could not be executed: no program web in PATH"),
        ("chdir", 13, "/nodir", "could not enter its working directory: /nodir: permission denied"),
        ("user", 0, "no such user nosuchuser", "could not take its user: no such user nosuchuser"),
        ("limits", 1, "", "could not take its limits: operation not permitted"),
        ("nice", 9999, "", "could not be started (step nice): errno 9999"),
        ("signals", 71, "", "could not be started (step signals): EPROTO"),
        ("umask", 0, "", "could not be started (step umask)"),
    ],
)
def test_a_failed_step_is_told_in_words_and_once(step: str, errno: int, detail: str, message: str) -> None:
    """What could not be done, about what, and why: no errno beside its own words, no "errno 0"."""
    rig = Rig(service("web", restart=NEVER))
    request = rig.ask("start", "web")
    rig.happen(SpawnFailed(rig.spawn_of("web").spawn_id, step, 203, errno, detail))
    assert rig.replies[request].outcomes[0].message == f"web failed (exit-code): its main command {message}"


@pytest.mark.parametrize(("errno", "words"), [(2, "no such file or directory"), (13, "permission denied")])
def test_a_program_that_is_not_in_path_was_told_as_the_last_place_that_was_tried(errno: int, words: str) -> None:
    """/bin/web was said to be forbidden when it was /opt/bin/web; an absolute program is told with its path."""
    rig = Rig(service("web", restart=NEVER, exec_start=commands("web")), service("db", restart=NEVER))
    for name, told in (("web", f"web, looked for in PATH: {words}"), ("db", f"/bin/db: {words}")):
        request = rig.ask("start", name)
        rig.happen(SpawnFailed(rig.spawn_of(name).spawn_id, "exec", 203, errno, f"/bin/{name}"))
        message = f"{name} failed (exit-code): its main command could not be executed: {told}"
        assert rig.replies[request].outcomes[0].message == message


@pytest.mark.parametrize(
    ("context", "step", "errno", "detail", "told"),
    [
        (
            ExecContext(sandbox=Sandbox(landlock=(Access("/usr", "rx"),))), "exec", 13, "/bin/web",
            "could not be executed: the program /bin/web: permission denied (landlock has to leave it, its interpreter "
            "and its libraries executable)",
        ),
        (
            ExecContext(root_directory="/srv"), "exec", 2, "/bin/web",
            "could not be executed: the program /bin/web: no such file or directory (it is looked for in "
            "root-directory, /srv, and so are its interpreter and libraries)",
        ),
        (ExecContext(), "exec", 13, "/bin/web", "could not be executed: /bin/web: permission denied"),
        (
            ExecContext(), "namespace", 2, "read-only-paths: /x: no such file or directory",
            "could not be started (step namespace): read-only-paths: /x: no such file or directory (with - in front a "
            "path may be missing)",
        ),
    ],
    ids=["landlock", "root", "nothing", "path"],
)  # fmt: skip
def test_a_sandbox_that_keeps_a_program_from_running_was_told_as_the_program_s_fault(
    context: ExecContext, step: str, errno: int, detail: str, told: str
) -> None:
    """The kernel says that the program may not, or is not there; what it means is a library that no key allows."""
    rig = Rig(service("web", restart=NEVER, context=context))
    request = rig.ask("start", "web")
    rig.happen(SpawnFailed(rig.spawn_of("web").spawn_id, step, 203, errno, detail))
    assert rig.replies[request].outcomes[0].message == f"web failed (exit-code): its main command {told}"


def test_a_fork_that_fails_is_a_lack_of_resources() -> None:
    """The machine, not the unit, is short of something."""
    rig = Rig(service("web", restart=NEVER))
    rig.ask("start", "web")
    rig.failed_to_spawn("web", step="fork", code=71, errno=11)
    assert rig.shown("web") == "failed/failed/resources"


def test_a_command_without_its_variables_had_exited_with_0() -> None:
    """No process was made, so none ended: neither in status and the journal, nor for exec-stop-post."""
    rig = Rig(service("web", restart=NEVER, exec_stop_post=commands("/bin/post")))
    rig.ask("start", "web")
    rig.failed_to_spawn("web", step="environment-file", code=0)
    assert rig.record("unit.exited", "web").fields["code"] is None
    told = {key for key, _ in rig.spawn_of("web").environment}
    assert ("SERVICE_RESULT" in told, "EXIT_CODE" in told, "EXIT_STATUS" in told) == (True, False, False)
    rig.spawned("web")
    rig.exited("web", 0)
    assert (rig.shown("web"), rig.status("web").exit) == ("failed/failed/resources", None)


def test_running_is_never_said_before_ready() -> None:
    """A notify service is activating until READY=1, whatever else it says."""
    rig = Rig(notify("web"))
    request = rig.ask("start", "web")
    rig.spawned("web")
    rig.says("web", STATUS="warming up", WATCHDOG="1")
    assert rig.shown("web") == "activating/start/success"
    rig.says("web", READY="1")
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}
    assert rig.events("web")[-2:] == ["unit.ready", "job.finished"]


def test_ready_twice_is_ready_once() -> None:
    """A second READY=1 changes nothing."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", READY="1")
    assert rig.events("web").count("unit.ready") == 1


def test_exit_zero_before_ready_is_a_protocol_failure() -> None:
    """A notify service that ends well without READY=1 has broken its promise."""
    rig = Rig(notify("web", restart=NEVER))
    request = rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0)
    assert rig.shown("web") == "failed/failed/protocol"
    assert rig.outcome(request) == {"web": "failed"}


def test_a_start_that_takes_too_long_is_ended() -> None:
    """READY that never comes is a time-out: the process is ended and the unit fails with the reason."""
    rig = Rig(notify("web", restart=NEVER, timeout_start_ns=5 * SECOND_NS))
    request = rig.ask("start", "web")
    rig.spawned("web")
    rig.later(4.9)
    assert rig.shown("web") == "activating/start/success"
    rig.later(0.2)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"
    rig.exited("web", signal=15)
    assert rig.shown("web") == "failed/failed/timeout"
    assert rig.outcome(request) == {"web": "failed"}


def test_extend_timeout_extends_the_present_phase() -> None:
    """EXTEND_TIMEOUT_USEC moves the end of the start later, never earlier."""
    rig = Rig(notify("web", timeout_start_ns=5 * SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.later(4)
    rig.says("web", EXTEND_TIMEOUT_USEC="3000000")
    rig.says("web", EXTEND_TIMEOUT_USEC="1000000")
    rig.later(2.9)
    assert rig.shown("web") == "activating/start/success"
    rig.later(0.2)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"


def test_commands_run_in_systemds_order() -> None:
    """start-pre, main, then at a stop exec-stop, the signal, stop-post; one at a time."""
    rig = Rig(
        service(
            "web",
            exec_start_pre=commands("pre1", "pre2"),
            exec_stop=commands("stop1", "stop2"),
            exec_stop_post=commands("post1", "post2"),
        )
    )
    rig.ask("start", "web")
    for _ in range(2):
        rig.spawned("web")
        rig.exited("web", 0)
    rig.spawned("web")
    request = rig.ask("stop", "web")
    for _ in range(2):
        rig.spawned("web")
        rig.exited("web", 0, role=Role.STOP, empty=False)
    rig.exited("web", signal=15, role=Role.MAIN)
    for _ in range(2):
        rig.spawned("web")
        rig.exited("web", 0)
    words = [action.command.words[0] for action in rig.spawns]
    assert words == ["pre1", "pre2", "/bin/web", "stop1", "stop2", "post1", "post2"]
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.outcome(request) == {"web": "done"}


def test_a_failed_start_pre_skips_the_start_and_runs_stop_post() -> None:
    """Nothing starts after a failed start-pre, exec-stop is not run, exec-stop-post is."""
    rig = Rig(
        service(
            "web",
            restart=NEVER,
            exec_start_pre=commands("pre"),
            exec_stop=commands("stop"),
            exec_stop_post=commands("post"),
        )
    )
    request = rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 3)
    rig.exited("web", 0)
    assert [action.command.words[0] for action in rig.spawns] == ["pre", "post"]
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.outcome(request) == {"web": "failed"}


def test_a_failure_may_be_ignored() -> None:
    """A command with the ``-`` prefix fails without consequence, also the main one."""
    ignored = (Command(("pre",), ignore_failure=True),)
    rig = Rig(service("web", exec_start_pre=ignored, exec_start=(Command(("main",), ignore_failure=True),)))
    rig.ask("start", "web")
    rig.exited("web", 3)
    rig.spawned("web")
    rig.exited("web", 1)
    assert rig.shown("web") == "inactive/dead/success"


def test_what_start_pre_leaves_behind_is_killed_before_the_service() -> None:
    """The main process is made only when the tree of start-pre is empty."""
    rig = Rig(service("web", exec_start_pre=commands("pre")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    assert rig.did(KillTree) == [KillTree("web")]
    assert rig.launched() == []
    rig.emptied("web")
    assert rig.launched() == ["web"]


def test_a_oneshot_runs_its_commands_in_order_and_is_done() -> None:
    """Each command waits for the one before; success of the last is readiness and the end."""
    rig = Rig(oneshot("setup", exec_start=commands("one", "two")))
    request = rig.ask("start", "setup")
    rig.spawned("setup")
    rig.exited("setup", 0)
    assert request not in rig.replies
    rig.spawned("setup")
    rig.exited("setup", 0)
    assert rig.shown("setup") == "inactive/dead/success"
    assert rig.outcome(request) == {"setup": "done"}
    assert [action.command.words[0] for action in rig.spawns] == ["one", "two"]


def test_a_oneshot_stops_at_the_first_failing_command() -> None:
    """The third command of a oneshot is not run when the second fails."""
    rig = Rig(oneshot("setup", exec_start=commands("one", "two", "three")))
    request = rig.ask("start", "setup")
    rig.exited("setup", 0)
    rig.exited("setup", 1)
    assert rig.shown("setup") == "failed/failed/exit-code"
    assert len(rig.spawns) == 2
    assert rig.outcome(request) == {"setup": "failed"}


def test_remain_after_exit_keeps_a_oneshot_active() -> None:
    """After its success it is active (exited), and a stop runs its exec-stop."""
    rig = Rig(oneshot("net", remain_after_exit=True, exec_stop=commands("down")))
    rig.ask("start", "net")
    rig.exited("net", 0)
    assert rig.shown("net") == "active/exited/success"
    rig.ask("stop", "net")
    rig.exited("net", 0)
    assert rig.shown("net") == "inactive/dead/success"
    assert rig.spawns[-1].command.words == ("down",)


def test_a_clean_exit_runs_exec_stop_and_a_crash_does_not() -> None:
    """exec-stop belongs to a service that ends in order; exec-stop-post to every end."""
    for code, words in ((0, ["/bin/web", "stop", "post"]), (1, ["/bin/web", "post"])):
        rig = Rig(service("web", restart=NEVER, exec_stop=commands("stop"), exec_stop_post=commands("post")))
        rig.ask("start", "web")
        rig.spawned("web")
        rig.exited("web", code)
        while rig.spawns[-1].role is not Role.STOP_POST:
            rig.exited("web", 0)
        rig.exited("web", 0)
        assert [action.command.words[0] for action in rig.spawns] == words


def test_stop_post_is_told_how_it_ended() -> None:
    """SERVICE_RESULT, EXIT_CODE and EXIT_STATUS are systemd's words."""
    cases = (
        ({"code": 0}, ("success", "exited", "0")),
        ({"code": 7}, ("exit-code", "exited", "7")),
        ({"signal": 9}, ("signal", "killed", "KILL")),
        ({"signal": 11, "core": True}, ("core-dump", "dumped", "SEGV")),
    )
    for end, words in cases:
        rig = Rig(service("web", restart=NEVER, exec_stop_post=commands("post")))
        rig.ask("start", "web")
        rig.spawned("web")
        rig.exited("web", **end)  # type: ignore[arg-type]
        told = dict(rig.spawns[-1].environment)
        assert (told["SERVICE_RESULT"], told["EXIT_CODE"], told["EXIT_STATUS"]) == words


def test_a_life_is_told_about_itself_and_the_one_before() -> None:
    """Each life has its own invocation id; the second one knows how the first ended, the first knows of none."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    first = dict(rig.spawns[-1].environment)
    rig.spawned("web")
    rig.crash("web", 3)
    rig.later(1)
    second = dict(rig.spawns[-1].environment)
    assert first["INVOCATION_ID"] != second["INVOCATION_ID"]
    assert first["SUPERVISORD_PY_UNIT"] == "web"
    assert "SUPERVISORD_PY_LAST_LIFE" not in first
    assert second["SUPERVISORD_PY_LAST_LIFE"] == '{"result":"exit-code","exit":{"code":3},"runtime_ms":0}'
    assert (first["SUPERVISORD_PY_RESTARTS"], second["SUPERVISORD_PY_RESTARTS"]) == ("0", "1")


def test_an_exit_variable_of_an_older_life_is_not_told_to_this_one() -> None:
    """stop-post of a life whose main process never ran has no EXIT_CODE, whatever the life before did."""
    rig = Rig(service("web", restart=NEVER, exec_start_pre=commands("pre"), exec_stop_post=commands("post")))
    rig.ask("start", "web")
    rig.exited("web", 0)
    rig.spawned("web")
    rig.exited("web", 9)
    rig.exited("web", 0)
    rig.ask("start", "web")
    rig.exited("web", 1)
    assert "EXIT_CODE" not in dict(rig.spawns[-1].environment)
    assert dict(rig.spawns[-1].environment)["SERVICE_RESULT"] == "exit-code"


def test_reload_runs_its_commands_and_goes_back() -> None:
    """While exec-reload runs the unit is reloading; then it is running, and the job is done."""
    rig = Rig(service("web", exec_reload=commands("r1", "r2")))
    rig.ask("start", "web")
    rig.spawned("web")
    request = rig.ask("reload", "web")
    assert rig.shown("web") == "reloading/reload/success"
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}
    assert rig.spawns[-1].main_spawn == rig.spawn_of("web", Role.MAIN).spawn_id


def test_a_failed_reload_fails_the_job_only() -> None:
    """The service goes on running, and the second reload command is not run."""
    rig = Rig(service("web", exec_reload=commands("r1", "r2")))
    rig.ask("start", "web")
    rig.spawned("web")
    request = rig.ask("reload", "web")
    rig.exited("web", 1, role=Role.RELOAD, empty=False)
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "failed"}
    assert len(rig.spawns) == 2


def test_a_reload_that_hangs_is_killed() -> None:
    """The reload command is killed at the start time-out, the service is not."""
    rig = Rig(service("web", exec_reload=commands("r"), timeout_start_ns=5 * SECOND_NS))
    rig.ask("start", "web")
    main = rig.spawned("web")
    request = rig.ask("reload", "web")
    reload = rig.spawned("web")
    rig.later(6)
    assert SignalProcesses("web", 9, Whom.MAIN, reload) in rig.actions
    rig.exited("web", signal=9, role=Role.RELOAD, empty=False)
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "failed"}
    assert main != reload


def test_a_second_reload_waits_for_the_first() -> None:
    """A reload that is asked for while one runs is done after it: the settings may have changed since."""
    rig = Rig(service("web", exec_reload=commands("r")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.says("web", RELOADING="1")
    request = rig.ask("reload", "web")
    assert len(rig.spawns) == 1
    rig.says("web", READY="1")
    assert rig.spawns[-1].role is Role.RELOAD
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    assert rig.outcome(request) == {"web": "done"}


def test_reload_of_what_cannot_is_refused_in_words() -> None:
    """A unit that does not run, and one without exec-reload, say so and what to do instead."""
    rig = Rig(service("web"))
    request = rig.ask("reload", "web")
    assert rig.outcome(request) == {"web": "invalid"}
    rig.ask("start", "web")
    rig.spawned("web")
    request = rig.ask("reload", "web")
    assert "restart it" in rig.replies[request].outcomes[0].message
    assert rig.shown("web") == "active/running/success"


def test_a_service_may_reload_itself() -> None:
    """RELOADING=1 until READY=1."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", RELOADING="1")
    assert rig.shown("web") == "reloading/reload/success"
    rig.says("web", READY="1")
    assert rig.shown("web") == "active/running/success"


def test_a_service_may_stop_itself() -> None:
    """After STOPPING=1 it is given its stop time-out, is not signalled, and is restarted as its policy says."""
    rig = Rig(notify("web", restart=RestartPolicy(restart=Restart.ALWAYS, jitter=0.0)))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", STOPPING="1")
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    assert rig.did(SignalProcesses) == []
    rig.exited("web", 0)
    assert rig.shown("web") == "activating/auto-restart/success"


def test_watchdog_trigger_aborts() -> None:
    """WATCHDOG=trigger: the watchdog signal, the abort time-out, then the final signal; the result is watchdog."""
    rig = Rig(notify("web", timeout_abort_ns=3 * SECOND_NS, restart=NEVER))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", WATCHDOG="trigger")
    assert rig.did(SignalProcesses)[0].signal == 6
    rig.later(3.1)
    assert KillTree("web", 9) in rig.actions
    rig.exited("web", signal=9)
    assert rig.shown("web") == "failed/failed/watchdog"
    assert "unit.watchdog" in rig.events("web")


def test_the_first_failure_of_a_life_is_its_result() -> None:
    """A kill after a time-out does not make the time-out a signal."""
    rig = Rig(service("web", restart=NEVER, timeout_stop_ns=2 * SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.later(2.1)
    rig.exited("web", signal=9)
    assert rig.shown("web") == "failed/failed/timeout"


def test_a_target_is_up_at_once_and_down_at_once() -> None:
    """A target has no process and no state between."""
    rig = Rig(target("all"))
    request = rig.ask("start", "all")
    assert rig.shown("all") == "active/running/success"
    assert rig.outcome(request) == {"all": "done"}
    rig.ask("stop", "all")
    assert rig.shown("all") == "inactive/dead/success"


def test_the_exit_record_has_everything() -> None:
    """unit.exited: pid, role, signal name, core, rusage, runtime, spawn id; caused by the record before it."""
    rig = Rig(service("web", restart=NEVER))
    rig.ask("start", "web")
    spawn_id = rig.spawned("web")
    rig.exited("web", signal=11, core=True)
    assert rig.record("unit.exited").fields == {
        "spawn_id": spawn_id,
        "pid": 101,
        "role": "main",
        "signal": "SIGSEGV",
        "core": True,
        "rusage": {"user_us": 1},
        "runtime_ms": 5,
    }


def test_causes_form_a_chain() -> None:
    """command, job.queued, unit.starting, unit.started, unit.ready, job.finished: each names the one before."""
    rig = Rig(notify("web"))
    rig.seq = 100
    rig.ask("start", "web", cause=99)
    rig.spawned("web")
    rig.says("web", READY="1")
    chain = [(record.event, record.cause) for record in rig.records if record.event != "unit.loaded"]
    assert chain == [
        ("job.queued", 99),
        ("unit.starting", 100),
        ("unit.started", 101),
        ("unit.ready", 102),
        ("job.finished", 103),
    ]


def test_a_crash_is_the_cause_of_the_restart() -> None:
    """unit.exited, unit.restart-scheduled, job.queued, unit.starting: the chain runs through the crash."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    begin = len(rig.records)
    first = rig.seq
    rig.crash("web")
    rig.later(1)
    chain = [(record.event, record.cause) for record in rig.records[begin:]]
    assert chain[1:] == [
        ("unit.restart-scheduled", first),
        ("job.queued", first + 1),
        ("unit.starting", first + 2),
    ]


def test_causes_are_unknown_while_records_are_lost() -> None:
    """With no next number, nothing is named as a cause."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.seq = 0
    rig.spawned("web")
    assert {record.cause for record in rig.last.records} == {None}


def test_release_comes_with_the_rest_and_an_empty_tree() -> None:
    """A unit that comes to rest is released once, not between two lives and not while a process is left."""
    rig = Rig(service("web", kill=KillPolicy(mode=KillMode.PROCESS)))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    assert rig.did(ReleaseUnit) == []
    rig.later(1)
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", signal=15, empty=False)
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.did(ReleaseUnit) == []
    rig.emptied("web")
    assert rig.did(ReleaseUnit) == [ReleaseUnit("web")]


def test_a_heartbeat_is_recorded_once_a_second() -> None:
    """Beats come as often as they like; the ring sees one a second, with the progress."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    for _ in range(25):
        rig.says("web", WATCHDOG="1", X_PROGRESS="5")
        rig.later(0.1)
    assert rig.events("web").count("unit.heartbeat") == 3
    assert rig.record("unit.heartbeat").fields == {"progress": "5"}


def test_reported_errors_are_counted_until_ok() -> None:
    """X_ERROR counts consecutive errors, X_OK ends the streak."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", X_ERROR="no route")
    rig.later(1)
    rig.says("web", X_ERROR="no route")
    assert rig.record("unit.error").fields == {"message": "no route", "count": 2}
    rig.says("web", X_OK="1")
    rig.later(1)
    rig.says("web", X_ERROR="again")
    assert rig.record("unit.error").fields["count"] == 1


def test_a_flood_of_reported_errors_is_one_record_a_second() -> None:
    """A process that reports errors in a loop does not fill the journal; the next record's count tells the others."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    for _ in range(50):
        rig.says("web", X_ERROR="no route")
    assert rig.events("web").count("unit.error") == 1
    rig.later(1)
    rig.says("web", X_ERROR="still none")
    assert rig.record("unit.error").fields == {"message": "still none", "count": 51}


def test_a_datagram_of_an_old_life_changes_nothing() -> None:
    """READY of a process that is not of the present life does not make the new one ready."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    old = rig.spawns[-1]
    rig.crash("web")
    rig.later(1)
    rig.spawned("web")
    from supervisord_py.core.events import NotifyReceived

    rig.happen(NotifyReceived("web", old.spawn_id, 101, {"READY": "1"}))
    assert rig.shown("web") == "activating/start/success"


def test_odd_words_are_ignored() -> None:
    """What cannot be understood never fails a service."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.says("web", EXTEND_TIMEOUT_USEC="-1", ERRNO="x", WATCHDOG="maybe", X_UNKNOWN="\x00", READY="2")
    rig.says("web", EXTEND_TIMEOUT_USEC="9" * 30)
    assert rig.shown("web") == "activating/start/success"


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_stopping_wins_over_ready_in_one_datagram(verb: str) -> None:
    """STOPPING, READY and RELOADING in one datagram: the end counts."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", STOPPING="1", READY="1", RELOADING="1")
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    rig.ask(verb, "web")
    rig.exited("web", 0)
    assert rig.launched() == ["web"] * (2 if verb == "restart" else 1)


def test_a_policy_starts_nothing_before_its_delay() -> None:
    """The restart comes at its deadline, not before, and counts."""
    rig = Rig(service("web", restart=RestartPolicy(delay_ns=2 * SECOND_NS, jitter=0.0)))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    assert rig.shown("web") == "activating/auto-restart/exit-code"
    rig.later(1.999)
    assert rig.launched() == ["web"]
    rig.later(0.001)
    assert rig.launched() == ["web", "web"]
    assert rig.status("web").restarts == 1
    assert NO_JITTER.delay_ns == SECOND_NS // 10


def test_spawns_carry_the_invocation_of_their_life() -> None:
    """All commands of one life have one invocation id, which the status shows."""
    rig = Rig(service("web", exec_start_pre=commands("pre"), exec_stop_post=commands("post"), restart=NEVER))
    rig.ask("start", "web")
    rig.exited("web", 0)
    rig.spawned("web")
    rig.exited("web", 1)
    actions = [action for action in rig.actions if isinstance(action, SpawnProcess)]
    assert {action.invocation for action in actions} == {rig.status("web").invocation}
    assert {record.invocation for record in rig.records if record.event == "unit.exited"} == {actions[0].invocation}


def test_a_repeated_refusal_of_mainpid_does_not_fill_the_journal() -> None:
    """One record a minute with the count so far; a new life counts anew."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")

    def refuse(times: int) -> list[object]:
        before = len(rig.records)
        for _ in range(times):
            spawn_id = rig.spawn_of("web").spawn_id
            rig.happen(NotifyReceived("web", spawn_id, 101, {"MAINPID": "1"}, refused="pid 1 is not of the unit"))
        return [each.fields["count"] for each in rig.records[before:] if each.event == "unit.error"]

    assert refuse(50) == [1]
    rig.later(61)
    assert refuse(2) == [51]
    rig.crash("web")
    rig.later(2)
    rig.up("web")
    assert refuse(1) == [1]


def test_an_extension_without_end_is_a_century() -> None:
    """The deadline stays within 64 bits: other parts hand it to the kernel."""
    rig = Rig(notify("web", timeout_start_ns=SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.says("web", EXTEND_TIMEOUT_USEC="9" * 18)
    deadline_ns = rig.manager.deadline_ns()
    assert deadline_ns is not None
    assert 99 * 365 * 86_400 * SECOND_NS < deadline_ns < 2**63
