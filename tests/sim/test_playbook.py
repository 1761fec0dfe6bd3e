"""The conversation tests of users: a playbook passes, fails with a diff, and does not go unasserted."""

import gc
import sys

import pytest

from supervisord_py.model.unit import Command, Service, Unit, UnitKind
from supervisord_py.testing.playbook import (
    exit_supervisor,
    exited,
    kill,
    manager_dies,
    playbook,
    record,
    refusal,
    reply,
    shutdown,
    signal,
    spawn,
    spawn_failed,
    spawned,
    start,
    stop,
    wait,
)

WEB = Unit("web", UnitKind.SERVICE, Service(exec_start=(Command(("/opt/web/run",)),)))


def test_a_crash_is_answered_with_a_restart() -> None:
    """The conversation of the style guide: a crash schedules a restart, and time brings it."""
    assert (
        playbook([WEB])
        >> start("web")
        << record("job.queued", "web")
        << spawn("web")
        >> spawned("web")
        << record("unit.started", "web")
        << reply("web", "done")
        >> exited("web", 1)
        << record("unit.exited", "web", code=1)
        << record("unit.restart-scheduled", "web")
        >> wait("1s")
        << spawn("web")
    )


def test_a_stop_goes_through_its_signals() -> None:
    """A stop signals everything, and kills what has not ended when the time-out is over."""
    assert (
        playbook([WEB])
        >> start("web")
        << spawn("web")
        >> spawned("web")
        >> stop("web")
        << signal("web", "SIGTERM")
        >> wait("90s")
        << kill("web")
        >> exited("web", "SIGKILL")
        << reply("web", "done")
    )


def test_a_spawn_that_fails_fails_the_start() -> None:
    """A program that cannot be executed fails the job, and the answer says so."""
    assert playbook([WEB]) >> start("web") << spawn("web") >> spawn_failed("web") << reply("web", "failed")


def test_a_new_manager_goes_on_where_the_old_one_died() -> None:
    """The exit that comes after a manager's death is answered by the new one."""
    assert (
        playbook([WEB])
        >> start("web")
        << spawn("web")
        >> spawned("web")
        >> manager_dies()
        >> exited("web", "SIGSEGV")
        << record("unit.exited", "web", signal="SIGSEGV")
        << record("unit.restart-scheduled", "web")
    )


def test_a_shutdown_refuses_and_ends() -> None:
    """While everything stops a start is refused, and the last exit ends the supervisor."""
    assert (
        playbook([WEB])
        >> start("web")
        << spawn("web")
        >> spawned("web")
        >> shutdown()
        << signal("web")
        >> start("web")
        << refusal("ShuttingDown")
        >> exited("web", "SIGTERM")
        << exit_supervisor()
    )


def test_a_wrong_expectation_fails_with_a_diff() -> None:
    """What was expected and what came instead stand side by side in the failure."""
    with pytest.raises(AssertionError) as failed:
        assert playbook([WEB]) >> start("web") << signal("web")
    text = str(failed.value)
    assert " - << signal web SIGTERM" in text
    assert " + << spawn #1 web main: /opt/web/run" in text


def test_an_action_that_nobody_expected_fails() -> None:
    """What the core does has to be said in full: a spawn that is not mentioned is a failure."""
    with pytest.raises(AssertionError, match=r" \+ << spawn #1 web main"):
        assert playbook([WEB]) >> start("web")


def test_an_unasserted_playbook_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation that was never had is an error, not a passing test (Python reports it as unraisable)."""
    caught: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: caught.append(str(found.exc_value)))
    forgotten = playbook([WEB]) >> start("web")
    del forgotten
    gc.collect()
    assert caught == ["unasserted playbook: write `assert playbook(...) >> ... << ...`"]
