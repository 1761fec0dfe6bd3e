"""Units of type forking: the start command ends, and the daemon that it leaves is found and followed."""

import pytest
from core_rig import Rig, commands, service

from supervisord_py.core.actions import FollowMain, KillTree, ReleaseUnit, SignalProcesses, StopFollowing, Whom
from supervisord_py.core.events import ExitStatus, MainFollowed, NotifyReceived, ProcessExited
from supervisord_py.core.manager import Manager
from supervisord_py.model.states import KillMode, Restart, Role, ServiceType
from supervisord_py.model.unit import SECOND_NS, Command, KillPolicy, RestartPolicy, Unit

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)
PID_FILE = "/run/web.pid"


def forking(**keys: object) -> Unit:
    keys.setdefault("restart", NEVER)
    return service("web", type=ServiceType.FORKING, timeout_start_ns=5 * SECOND_NS, **keys)  # type: ignore[arg-type]


def forked(*, empty: bool = False, **keys: object) -> tuple[Rig, int]:
    """A unit whose start command has ended well; the number of the start request."""
    rig = Rig(forking(**keys))
    request = rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0, empty=empty)
    return rig, request


def test_the_daemon_that_a_start_command_leaves_is_the_main_process() -> None:
    """exec-start runs as a command of the start; when it is done the daemon is asked for, and its end is the unit's."""
    rig, request = forked()
    assert rig.spawns[-1].role is Role.START
    assert rig.did(FollowMain) == [FollowMain("web", rig.spawns[-1].spawn_id + 1)]
    assert rig.shown("web") == "activating/start/success"
    assert rig.status("web").pid is None
    rig.followed("web")
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}
    assert rig.record("unit.started", "web").fields == {"spawn_id": 2, "pid": rig.status("web").pid}
    rig.daemon_exited("web", 1)
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.record("unit.exited", "web").fields["role"] == "main"


def test_nothing_is_up_before_the_start_command_has_ended() -> None:
    """That the command runs says nothing yet about the daemon."""
    rig = Rig(forking())
    request = rig.ask("start", "web")
    rig.spawned("web")
    assert rig.shown("web") == "activating/start/success"
    assert "unit.started" not in rig.events("web")
    assert request not in rig.replies


def test_a_start_command_that_fails_fails_the_start() -> None:
    """What it may have left is ended, and nobody is followed."""
    rig = Rig(forking())
    request = rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 2, empty=False)
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 15, Whom.ALL, then_continue=True)]
    rig.emptied("web")
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.outcome(request) == {"web": "failed"}


def test_a_start_command_that_never_ends_times_out() -> None:
    """timeout-start-sec counts for it."""
    rig = Rig(forking())
    rig.ask("start", "web")
    rig.spawned("web")
    rig.later(5)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"


def test_a_start_that_leaves_no_process_is_a_success_that_is_over() -> None:
    """As systemd does: without a pid file a forking unit need not leave anything behind."""
    rig, request = forked(empty=True, exec_stop=commands("stop"))
    assert rig.did(FollowMain) == []
    rig.exited("web", 0, role=Role.STOP)
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.outcome(request) == {"web": "done"}
    assert "unit.ready" not in rig.events("web")


@pytest.mark.parametrize("guess", [True, False])
def test_a_unit_whose_main_process_nobody_knows_lives_as_long_as_its_tree(guess: bool) -> None:
    """Nothing to guess, or not asked to: it is up while any process is left, and ends well when none is."""
    rig, request = forked(guess_main_pid=guess)
    assert bool(rig.did(FollowMain)) is guess
    if guess:
        rig.followed("web", refused="2 processes could be meant")
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}
    rig.emptied("web")
    assert rig.shown("web") == "inactive/dead/success"


def test_a_unit_whose_main_process_nobody_knows_is_asked_to_end() -> None:
    """kill-mode mixed asks the main process first: here it may be any, so none is killed unasked."""
    rig, _ = forked(guess_main_pid=False, kill=KillPolicy(mode=KillMode.MIXED))
    rig.ask("stop", "web")
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 15, Whom.ALL, then_continue=True)]
    assert rig.did(KillTree) == []
    rig.emptied("web")
    assert rig.shown("web") == "inactive/dead/success"


def test_a_unit_whose_last_process_ends_during_a_reload_command_is_over() -> None:
    """The command is waited for, and then there is nothing left to be up."""
    rig, _ = forked(guess_main_pid=False, exec_reload=commands("r"))
    rig.ask("reload", "web")
    rig.exited("web", 0, role=Role.RELOAD, empty=True)
    assert rig.shown("web") == "inactive/dead/success"


def test_the_pid_file_is_waited_for() -> None:
    """It may come some time after the start command has ended; until then the unit is starting, and says why."""
    rig, request = forked(pid_file=PID_FILE)
    assert rig.did(FollowMain)[0].pid_file == PID_FILE
    rig.later(4)
    assert rig.status("web").why == f"it waits for its pid file {PID_FILE}"
    assert rig.shown("web") == "activating/start/success"
    assert request not in rig.replies
    rig.followed("web")
    assert rig.shown("web") == "active/running/success"
    assert rig.manager.deadline_ns() is None


def test_a_pid_file_that_never_comes_times_the_start_out() -> None:
    """Nobody waits for the file any more then, and what is there is ended."""
    rig, request = forked(pid_file=PID_FILE)
    asked = rig.follow_of("web").spawn_id
    rig.later(5)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"
    assert StopFollowing("web", asked) in rig.last.actions
    rig.emptied("web")
    assert rig.shown("web") == "failed/failed/timeout"
    assert rig.outcome(request) == {"web": "failed"}


def test_a_pid_file_without_anybody_to_write_it_is_given_up() -> None:
    """The last process is gone: waiting on would be in vain (protocol), at once or later."""
    at_once, _ = forked(pid_file=PID_FILE, empty=True)
    assert at_once.shown("web") == "failed/failed/protocol"
    later, _ = forked(pid_file=PID_FILE)
    later.emptied("web")
    assert later.shown("web") == "failed/failed/protocol"
    assert later.did(StopFollowing) == [StopFollowing("web", 2)]


def test_a_pid_file_that_names_somebody_else_fails_the_start() -> None:
    """The unit would be taken for a process that is not its own."""
    rig, request = forked(pid_file=PID_FILE)
    rig.followed("web", refused="process 77 belongs to unit db")
    rig.emptied("web")
    assert rig.shown("web") == "failed/failed/protocol"
    assert "process 77 belongs to unit db" in rig.replies[request].outcomes[0].message


def test_a_stop_before_the_pid_file_came() -> None:
    """The waiting is called off; a daemon that is found all the same is ended with the rest and booked as its own."""
    rig, _ = forked(pid_file=PID_FILE)
    asked = rig.follow_of("web").spawn_id
    request = rig.ask("stop", "web")
    assert rig.did(StopFollowing) == [StopFollowing("web", asked)]
    rig.happen(MainFollowed("web", asked, 300))
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    rig.happen(ProcessExited(asked, 300, ExitStatus(signal=15)))
    assert rig.record("unit.exited").unit == "web"
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.outcome(request) == {"web": "done"}
    assert rig.did(ReleaseUnit) == [ReleaseUnit("web")]


@pytest.mark.parametrize("keys", [{"pid_file": PID_FILE}, {}], ids=["awaited", "guessed"])
def test_kill_mode_process_left_a_daemon_that_nobody_knew_behind(keys: dict[str, object]) -> None:
    """A stop while the daemon is looked for, or when it could not be told: what is left is the unit, and it is asked,
    waited for and killed; it was called down at once, and the next start made a second daemon."""
    rig, _ = forked(kill=KillPolicy(mode=KillMode.PROCESS), timeout_stop_ns=3 * SECOND_NS, **keys)
    if not keys:
        rig.followed("web", refused="2 processes could be meant")
    request = rig.ask("stop", "web")
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 15, Whom.ALL, then_continue=True)]
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    rig.later(3)
    assert rig.did(KillTree) == [KillTree("web", 9)]
    rig.emptied("web")
    assert rig.shown("web") == "failed/failed/timeout"
    assert rig.outcome(request) == {"web": "done"}


def test_kill_mode_process_spares_what_the_known_daemon_leaves() -> None:
    """With its main process known, the others are left alone, by exec-start-pre too."""
    rig, _ = forked(kill=KillPolicy(mode=KillMode.PROCESS))
    asked = rig.followed("web")
    rig.ask("stop", "web")
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 15, Whom.MAIN, asked, then_continue=True)]
    rig.daemon_exited("web", 0, empty=False)
    assert rig.shown("web") == "inactive/dead/success"


def _guessed_wrongly(**keys: object) -> Rig:
    """The daemon forks twice: the process in between was there when the start command ended, and has ended well."""
    rig, _ = forked(**keys)
    rig.followed("web")
    rig.daemon_exited("web", 0, empty=False)
    return rig


def test_a_daemon_that_forks_twice_was_killed_for_its_helper() -> None:
    """The process in between was taken for the main one, and its end for the unit's: guess again."""
    rig = _guessed_wrongly()
    assert rig.shown("web") == "active/running/success"
    second = rig.follow_of("web").spawn_id
    assert rig.did(FollowMain) == [FollowMain("web", second, wait=False)]
    rig.followed("web")
    assert rig.status("web").pid is not None
    rig.daemon_exited("web", 3)
    assert rig.shown("web") == "failed/failed/exit-code"


def test_where_no_single_process_is_left_the_tree_is_the_daemon() -> None:
    """The second guess finds nobody: the unit is up for as long as any process of it lives."""
    rig = _guessed_wrongly()
    rig.followed("web", refused="2 processes could be meant")
    assert rig.shown("web") == "active/running/success"
    assert rig.status("web").pid is None
    rig.emptied("web")
    assert rig.shown("web") == "inactive/dead/success"


def test_a_guess_is_made_anew_while_the_unit_reloads_or_has_more_to_start() -> None:
    """The process in between may end at any time: in a reload, or while exec-start-post runs."""
    rig, _ = forked(exec_reload=commands("r"))
    rig.followed("web")
    request = rig.ask("reload", "web")
    rig.daemon_exited("web", 0, empty=False)
    assert rig.shown("web") == "reloading/reload/success"
    rig.followed("web")
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    assert rig.outcome(request) == {"web": "done"}
    assert rig.shown("web") == "active/running/success"
    posted, request = forked(exec_start_post=commands("post"))
    posted.followed("web")
    posted.daemon_exited("web", 0, empty=False)
    posted.exited("web", 0, role=Role.START_POST, empty=False)
    posted.followed("web")
    assert posted.shown("web") == "active/running/success"
    assert posted.outcome(request) == {"web": "done"}


def test_what_ends_badly_or_has_named_itself_is_no_wrong_guess() -> None:
    """Only a clean end of a process that was guessed is doubted."""
    rig, _ = forked()
    rig.followed("web")
    rig.daemon_exited("web", 1, empty=False)
    assert rig.shown("web") == "deactivating/stop-sigterm/exit-code"
    named, _ = forked()
    spawn_id = named.followed("web")
    named.happen(NotifyReceived("web", spawn_id, 1, {"MAINPID": "400"}, main_pid=400))
    named.happen(ProcessExited(spawn_id, 101, ExitStatus(code=0), main=False, tree_empty=False))
    named.happen(ProcessExited(spawn_id, 400, ExitStatus(code=0), tree_empty=False))
    assert named.shown("web") == "deactivating/stop-sigterm/success"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_daemon_that_replaced_itself_while_it_reloaded_was_stopped(is_there: bool) -> None:
    """A reload that makes a new master, names it in the pid file and ends the old one (nginx): the life goes on, and
    without a new one it ends, though the reload command was done first."""
    rig, _ = forked(pid_file=PID_FILE, exec_reload=commands("r"))
    rig.followed("web")
    request = rig.ask("reload", "web")
    rig.daemon_exited("web", 0, empty=False)
    assert rig.did(FollowMain) == [FollowMain("web", rig.follow_of("web").spawn_id, PID_FILE, wait=False)]
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    assert rig.outcome(request) == {"web": "done"}
    assert rig.shown("web") == "active/running/success"
    if is_there:
        rig.followed("web")
        assert rig.shown("web") == "active/running/success"
        assert rig.status("web").pid is not None
    else:
        rig.followed("web", refused="process 101 is not alive")
        assert rig.shown("web") == "deactivating/stop-sigterm/success"


def test_a_pid_file_that_names_nobody_in_a_reload_ends_the_unit() -> None:
    """The answer comes while the reload command runs: it is ended with everything else."""
    rig, _ = forked(pid_file=PID_FILE, exec_reload=commands("r"))
    rig.followed("web")
    request = rig.ask("reload", "web")
    rig.daemon_exited("web", 3, empty=False)
    rig.followed("web", refused="process 101 is not alive")
    assert rig.shown("web") == "deactivating/stop-sigterm/exit-code"
    assert rig.outcome(request) == {"web": "failed"}


def test_a_daemon_that_replaced_itself_before_it_was_up_was_stopped() -> None:
    """Its first process ends while exec-start-post runs: the pid file is read when that is done."""
    rig, request = forked(pid_file=PID_FILE, exec_start_post=commands("post"))
    rig.followed("web")
    rig.daemon_exited("web", 0, empty=False)
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    rig.followed("web")
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}


def test_a_daemon_that_is_found_too_late_hands_its_place_over() -> None:
    """MAINPID= of it makes two processes of one spawn id: both ends are the unit's (the second was nobody's)."""
    rig, _ = forked(pid_file=PID_FILE)
    asked = rig.follow_of("web").spawn_id
    rig.ask("stop", "web")
    rig.happen(MainFollowed("web", asked, 300))
    for named in (300, 301):
        rig.happen(NotifyReceived("web", asked, 300, {"MAINPID": str(named)}, main_pid=named))
    rig.happen(ProcessExited(asked, 300, ExitStatus(code=0), main=False, tree_empty=False))
    rig.happen(ProcessExited(asked, 301, ExitStatus(signal=15)))
    assert [record.unit for record in rig.records if record.event == "unit.exited"] == ["web"] * 3
    assert rig.shown("web") == "inactive/dead/success"


def test_a_restored_manager_asks_for_the_daemon_again() -> None:
    """The pid file is watched by the manager itself, so its death must not end the waiting."""
    rig, _ = forked(pid_file=PID_FILE)
    assert Manager.restore(rig.state, rig.units).pending_actions() == [rig.follow_of("web")]
    rig.followed("web")
    assert Manager.restore(rig.state, rig.units).pending_actions() == []


def test_the_same_answer_twice_is_one_daemon() -> None:
    """A new manager asks again, and hears what the old one has heard already."""
    rig, _ = forked()
    spawn_id = rig.followed("web")
    rig.happen(MainFollowed("web", spawn_id, 300))
    rig.daemon_exited("web", 0)
    assert rig.events("web").count("unit.exited") == 2
    assert rig.shown("web") == "inactive/dead/success"


def test_start_post_may_write_the_pid_file() -> None:
    """With exec-start-post the file is looked at once before it, and waited for after it."""
    rig, request = forked(pid_file=PID_FILE, exec_start_post=commands("post"))
    assert rig.did(FollowMain)[0].wait is False
    rig.followed("web", refused="there is no file")
    assert rig.shown("web") == "activating/start-post/success"
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    assert rig.did(FollowMain)[0].wait is True
    assert rig.shown("web") == "activating/start-post/success"
    rig.followed("web")
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}


def test_start_post_is_told_the_daemon_that_is_known_already() -> None:
    """MAINPID of exec-start-post is the daemon, not the start command."""
    rig, _ = forked(pid_file=PID_FILE, exec_start_post=commands("post"))
    spawn_id = rig.followed("web")
    assert rig.spawns[-1].main_spawn == spawn_id
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    assert rig.did(FollowMain) == []
    assert rig.shown("web") == "active/running/success"


def test_no_pid_file_after_start_post_and_nobody_to_write_it() -> None:
    """The tree is empty when the commands after the start are done: the promise of a pid file is broken."""
    rig, _ = forked(pid_file=PID_FILE, exec_start_post=commands("post"))
    rig.followed("web", refused="there is no file")
    rig.exited("web", 0, role=Role.START_POST, empty=True)
    assert rig.shown("web") == "failed/failed/protocol"


def test_a_daemon_ends_as_a_daemon() -> None:
    """SIGTERM is a clean end of the daemon and of its start command; the prefix - of exec-start holds for both."""
    rig, _ = forked()
    rig.followed("web")
    rig.daemon_exited("web", signal=15)
    assert rig.shown("web") == "inactive/dead/success"
    ignoring, _ = forked(exec_start=(Command(("/bin/web",), ignore_failure=True),))
    ignoring.followed("web")
    ignoring.daemon_exited("web", 9)
    assert ignoring.shown("web") == "inactive/dead/success"


def test_main_pid_of_a_daemon_that_is_followed() -> None:
    """A daemon that replaces itself names the new one with MAINPID=, as any other main process."""
    rig, _ = forked()
    spawn_id = rig.followed("web")
    rig.happen(NotifyReceived("web", spawn_id, 1, {"MAINPID": "400"}, main_pid=400))
    assert rig.status("web").pid == 400
    rig.happen(ProcessExited(spawn_id, 101, ExitStatus(code=0), main=False, tree_empty=False))
    assert rig.shown("web") == "active/running/success"


def _hands_over(**keys: object) -> tuple[Rig, int]:
    """A daemon with a pid file has ended with 3, and other processes of it are left; the spawn id that is asked for."""
    rig, _ = forked(pid_file=PID_FILE, **keys)
    first = rig.followed("web")
    rig.happen(ProcessExited(first, 101, ExitStatus(code=3), tree_empty=False))
    return rig, rig.follow_of("web").spawn_id


def test_the_pid_file_names_the_successor_of_a_daemon_that_ends() -> None:
    """A daemon that replaces itself writes its pid file before the old one ends (nginx): the life goes on."""
    rig, asked = _hands_over(exec_start_post=())
    assert rig.did(FollowMain) == [FollowMain("web", asked, PID_FILE, wait=False)]
    assert Manager.restore(rig.state, rig.units).pending_actions() == rig.did(FollowMain)
    rig.followed("web")
    assert rig.shown("web") == "active/running/success"
    assert rig.status("web").pid is not None
    assert "unit.stopping" not in rig.events("web")
    rig.daemon_exited("web", 0)
    assert rig.shown("web") == "inactive/dead/success"


def test_a_daemon_without_a_successor_ends_the_unit() -> None:
    """The file names nobody that lives: the unit ends as its main process did."""
    rig, _ = _hands_over()
    rig.followed("web", refused="process 101 is not alive")
    assert rig.shown("web") == "deactivating/stop-sigterm/exit-code"
    rig.emptied("web")
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.record("unit.failed").fields["message"] == "its main process exited with code 3"


def test_a_stop_while_a_successor_is_looked_for() -> None:
    """The looking is called off, and the unit ends as its main process did."""
    rig, asked = _hands_over(exec_reload=commands("r"))
    request = rig.ask("stop", "web")
    assert StopFollowing("web", asked) in rig.last.actions
    assert rig.shown("web") == "deactivating/stop-sigterm/exit-code"
    rig.emptied("web")
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.outcome(request) == {"web": "done"}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_reload_waits_for_the_successor(is_there: bool) -> None:
    """Nobody would read the settings at the moment; the reload ended the unit."""
    rig, _ = _hands_over(exec_reload=commands("r"))
    request = rig.ask("reload", "web")
    assert rig.shown("web") == "active/running/success"
    if is_there:
        rig.followed("web")
        assert rig.shown("web") == "reloading/reload/success"
    else:
        rig.followed("web", refused="process 101 is not alive")
        assert rig.outcome(request) == {"web": "invalid"}


def test_a_restart_of_a_forking_unit_forks_again() -> None:
    """Each life has its own start command and its own daemon."""
    rig, _ = forked(restart=RestartPolicy(jitter=0.0))
    first = rig.followed("web")
    rig.daemon_exited("web", 1)
    rig.later(1)
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    assert rig.followed("web") != first
    assert rig.shown("web") == "active/running/success"
    assert rig.status("web").restarts == 1
