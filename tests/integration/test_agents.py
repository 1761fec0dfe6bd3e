"""Python agents as units of a real supervisor: what ends a cycle, a process and a streak, and what an agent finds."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from tests.integration.supervisor_rig import AS_USER, SYSTEM_PYTHON, RunningSupervisor, supervisor, until

AGENTS = dedent(
    """
    import ctypes, os, select, sys
    from supervisord_py.agent import Agent, Fatal, Plugin, Recoverable

    class Ticker(Agent):
        every = 0.05

        def setup(self):
            self.cycles = 0
            lives = self.state_dir / "lives"
            self.lives = len(lives.read_text()) + 1 if lives.exists() else 1
            lives.write_text("x" * self.lives)
            last = self.last_life
            print(f"life {self.lives} after {last and last.result}, config {self.config}", flush=True)

        def run_cycle(self):
            self.cycles += 1
            self.status(f"cycle {self.cycles} of life {self.lives}")

        def teardown(self):
            print("torn down")

    class Failing(Ticker):
        def run_cycle(self):
            raise ValueError(f"no luck in life {self.lives}")

    class Doomed(Ticker):
        def run_cycle(self):
            raise Fatal("the licence has expired", code=9)

    class Slow(Ticker):
        def run_cycle(self):
            if self.cycles == 0:
                self.cycles += 1
                select.select([], [], [], 1000)
            super().run_cycle()

    class Endless(Ticker):
        def run_cycle(self):
            while True:
                select.select([], [], [], 1)

    class Hung(Ticker):
        def run_cycle(self):
            # Does not give the interpreter away, and no signal interrupts it.
            mutex = ctypes.create_string_buffer(64)
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)

    class Stub(Agent):
        every = 0.05

        def run_cycle(self):
            stub = os.environ["SUPERVISORD_PY_STUB"]
            print(f"stub {stub} of {self.name} as {os.geteuid()}: {self.config}, {sys.executable}, {self.plugins}")
            self.error("the word of a stub is not that of the unit")

    class Unlucky(Ticker):
        def run_cycle(self):
            super().run_cycle()
            if self.cycles % 3:
                raise Recoverable(f"the upstream is away in cycle {self.cycles}")

    class Stalled(Ticker):
        def run_cycle(self):
            while not self.wait(0.05):
                self.beat()

    class Silent(Ticker):
        async def run_cycle(self):
            import asyncio
            await asyncio.Event().wait()

    class Meter(Plugin):
        def setup(self):
            print(f"meter of {self.agent.name} up")

        def finalize(self):
            print("meter down")
    """
)


def agent(cls: str, keys: str = "", service: str = "") -> str:
    return f'[agent]\nclass = "fleet:{cls}"\npath = ["."]\n{keys}\n[service]\nrestart-sec = "10ms"\n{service}\n'


def with_agents(folder: Path) -> None:
    (folder / "units" / "fleet.py").write_text(AGENTS)


def told(running: RunningSupervisor, event: str, unit: str) -> list[dict[str, Any]]:
    return [record for record in running.records() if record["event"] == event and record["unit"] == unit]


@pytest.mark.parametrize("uid", AS_USER)
def test_an_agent_runs_is_stopped_and_finds_its_state_again(uid: int | None) -> None:
    """Its config, its plugins, its folder and the story of its last life; it is ready when it is set up."""
    keys = 'config = { greeting = "hi %n" }\nplugins = ["fleet:Meter"]'
    with supervisor({"tick": agent("Ticker", keys)}, prepare=with_agents, uid=uid) as running:
        running.wait_state("tick", "active")
        until(lambda: (running.status("tick")["status_text"] or "").startswith("cycle 3 of life 1"), "cycles")
        psutil.Process(running.status("tick")["pid"]).kill()
        until(lambda: "of life 2" in (running.status("tick")["status_text"] or ""), "the second life")
        assert running.supctl("stop", "tick").returncode == 0
        logs = running.supctl("logs", "tick", "-n", "50").stdout
        assert "life 1 after None, config {'greeting': 'hi tick'}" in logs
        assert "life 2 after signal" in logs
        assert [line.split()[-1] for line in logs.splitlines()][-2:] == ["down", "down"]
        assert running.status("tick")["result"] == "success"
        folder = running.folder / "s-agents" / "tick"
        assert folder.stat().st_mode & 0o777 == 0o700


def test_the_state_folder_of_an_agent_is_writable_whatever_else_is_read_only() -> None:
    """As a service's own folders are."""
    text = agent("Ticker") + '[sandbox]\nprotect-system = "strict"\n'
    with supervisor({"tick": text}, prepare=with_agents) as running:
        until(lambda: "of life 1" in (running.status("tick")["status_text"] or ""), "a life that has kept its number")


def test_errors_in_a_row_restart_an_agent() -> None:
    """Each is a record with its traceback; the third in a row is a failure of the unit."""
    with supervisor({"bad": agent("Failing", service="error-threshold = 3")}, prepare=with_agents) as running:
        scheduled = until(lambda: told(running, "unit.restart-scheduled", "bad"), "a restart")
        assert scheduled[0]["result"] == "errors"
        first = told(running, "unit.error", "bad")[0]
        assert (first["message"], first["count"]) == ("ValueError: no luck in life 1", 1)
        assert first["traceback"].splitlines()[-1] == "ValueError: no luck in life 1"


def test_a_recoverable_exception_is_an_error_without_a_traceback_and_the_agent_goes_on() -> None:
    """Two in a row and then a good cycle: a streak of two, again and again, and never a restart."""
    with supervisor({"unlucky": agent("Unlucky", service="error-threshold = 3")}, prepare=with_agents) as running:
        pid = running.wait_state("unlucky", "active")["pid"]
        until(lambda: "cycle 12 of" in (running.status("unlucky")["status_text"] or ""), "twelve cycles")
        errors = told(running, "unit.error", "unlucky")
        assert {error["count"] for error in errors} <= {1, 2}
        assert errors[0]["message"] == "the upstream is away in cycle 1"
        assert not errors[0].get("traceback")
        assert (running.status("unlucky")["pid"], running.status("unlucky")["restarts"]) == (pid, 0)


@pytest.mark.parametrize(
    ("cls", "keys", "service", "result", "words"),
    [
        (
            "Failing",
            "",
            "error-threshold = 3",
            "errors",
            "it reported 3 errors in a row, the last: ValueError: no luck",
        ),
        ("Doomed", "", "", "exit-code", "its main process exited with code 9"),
        ("Stalled", "", 'watchdog-sec = "2s"\nprogress-sec = "500ms"', "progress", "it has done no work for 500ms"),
        ("Endless", 'cycle-timeout = "100ms"', "error-threshold = 2", "errors", "has taken longer than 0.1 s"),
        ("Hung", 'cycle-timeout = "100ms"', "", "exit-code", "its main process exited with code 1"),
        ("Silent", "", 'watchdog-sec = "500ms"', "watchdog", "500ms"),
    ],
    ids=["errors in a row", "fatal", "stall", "hang", "hang outside of Python", "silence"],
)
def test_each_way_to_fail_restarts_an_agent_then_quarantines_it_and_why_tells_which(
    cls: str, keys: str, service: str, result: str, words: str
) -> None:
    """Heartbeats come from between the cycles, not from beside them: who hangs is silent, who only beats is idle."""
    text = agent(cls, keys, service) + "[quarantine]\nfailures = 2\n"
    with supervisor({"poor": text}, prepare=with_agents) as running:
        running.wait_state("poor", "quarantined")
        # The state is known before the records are on the disk.
        until(lambda: told(running, "unit.quarantined", "poor"), "the record of the quarantine")
        (scheduled,) = told(running, "unit.restart-scheduled", "poor")
        (quarantined,) = told(running, "unit.quarantined", "poor")
        assert (scheduled["result"], quarantined["result"], quarantined["failures"]) == (result, result, 2)
        assert len({record["invocation"] for record in told(running, "unit.started", "poor")}) == 2
        why = running.supctl("why", "poor").stdout
        assert f"it is quarantined: it has failed 2 times ({result})" in why
        assert words in why
        assert "supctl release poor" in why


@pytest.mark.parametrize("uid", AS_USER)
def test_a_stub_class_takes_the_place_of_an_agent_that_is_quarantined(uid: int | None) -> None:
    """As the same user, in the same interpreter, with the same config; what it reports is not the unit's."""
    keys = 'config = { greeting = "hi" }\nplugins = ["fleet:Meter"]\n'
    text = agent("Doomed", keys) + '[quarantine]\nfailures = 2\nstub-class = "fleet:Stub"\n'
    with supervisor({"doomed": text}, prepare=with_agents, uid=uid) as running:
        running.wait_state("doomed", "quarantined")
        until(lambda: "stub 1 of doomed" in running.supctl("logs", "doomed", "-n", "100").stdout, "its stub")
        said = next(
            line for line in running.supctl("logs", "doomed", "-n", "500").stdout.splitlines() if "stub 1" in line
        )
        python = sys.executable if uid is None else SYSTEM_PYTHON
        user = os.geteuid() if uid is None else uid
        assert said.endswith(f"as {user}: {{'greeting': 'hi'}}, {python}, {{}}")
        assert {record["message"] for record in told(running, "unit.error", "doomed")} == {
            "Fatal: the licence has expired"
        }
        status = running.status("doomed")
        assert (status["sub_state"], status["pid"]) == ("stub", told(running, "unit.stub-started", "doomed")[0]["pid"])
        why = running.supctl("why", "doomed").stdout
        assert "it is quarantined: it has failed 2 times (exit-code)" in why
        assert "its stub runs in its place" in why


def test_a_stub_class_of_a_program_is_looked_for_in_stub_path() -> None:
    """One that is not there ends it: the key is named, and the unit stays quarantined without it."""
    program = '[service]\nexec-start = ["false"]\nrestart-sec = "10ms"\n[quarantine]\nfailures = 1\n'
    units = {
        "there": program + 'stub-class = "fleet:Stub"\nstub-path = ["."]\n',
        "gone": program + 'stub-class = "fleet:Stub"\n',
    }
    with supervisor(units, prepare=with_agents) as running:
        until(lambda: "stub 1 of there" in running.supctl("logs", "there").stdout, "the stub")
        until(lambda: running.status("gone")["sub_state"] == "failed", "the end of the other")
        logs = running.supctl("logs", "gone").stdout
        assert "quarantine.stub-class: no module fleet (quarantine.stub-path adds folders" in logs
        assert "its stub has ended too" in running.supctl("why", "gone").stdout


def test_a_fatal_exception_ends_the_process_with_its_code() -> None:
    with supervisor({"doomed": agent("Doomed", service='restart = "no"')}, prepare=with_agents) as running:
        status = running.wait_state("doomed", "failed")
        assert status["exit"]["code"] == 9
        assert told(running, "unit.error", "doomed")[0]["message"] == "Fatal: the licence has expired"
        assert running.supctl("logs", "doomed").stdout.splitlines()[-1] == "torn down"


def test_a_cycle_that_takes_too_long_is_ended_and_the_next_one_follows() -> None:
    with supervisor({"slow": agent("Slow", 'cycle-timeout = "200ms"')}, prepare=with_agents) as running:
        until(lambda: "of life 1" in (running.status("slow")["status_text"] or ""), "the cycle after it")
        (error,) = told(running, "unit.error", "slow")
        assert error["message"] == "the cycle has taken longer than 0.2 s (cycle-timeout)"


def test_a_cycle_that_python_cannot_end_is_ended_with_its_process() -> None:
    """Where it hangs is in the log."""
    with supervisor({"hung": agent("Hung", 'cycle-timeout = "200ms"')}, prepare=with_agents) as running:
        until(lambda: told(running, "unit.restart-scheduled", "hung"), "the end of its process")
        assert "in run_cycle" in running.supctl("logs", "hung", "-n", "100").stdout


def test_a_wrong_configuration_is_one_error_that_names_the_field_and_no_restart() -> None:
    typed = "from dataclasses import dataclass\nimport fleet\n@dataclass\nclass Conf:\n    limit: int\n"
    typed += "class Typed(fleet.Ticker):\n    Config = Conf\n"

    def prepare(folder: Path) -> None:
        with_agents(folder)
        (folder / "units" / "typed.py").write_text(typed)

    unit = agent("Ticker", 'config = { limit = "many" }').replace("fleet:Ticker", "typed:Typed")
    with supervisor({"typed": unit}, prepare=prepare) as running:
        status = running.wait_state("typed", "failed")
        assert status["exit"]["code"] == 78
        (error,) = told(running, "unit.error", "typed")
        assert error["message"] == "ConfigError: agent.config.limit: expected int, got str"
        assert not told(running, "unit.restart-scheduled", "typed")


def test_an_agent_has_an_interpreter_of_its_own_that_need_not_have_this_package() -> None:
    if not Path(SYSTEM_PYTHON).exists() or Path(SYSTEM_PYTHON).samefile(sys.executable):
        pytest.skip(f"needs another Python than the tests': {SYSTEM_PYTHON}")
    with supervisor({"own": agent("Ticker", f'python = "{SYSTEM_PYTHON}"')}, prepare=with_agents) as running:
        running.wait_state("own", "active")
        until(lambda: "cycle" in (running.status("own")["status_text"] or ""), "a cycle")
        assert psutil.Process(running.status("own")["pid"]).exe() == str(Path(SYSTEM_PYTHON).resolve())


def test_with_a_timer_each_process_makes_one_cycle() -> None:
    unit = agent("Ticker") + '[timer]\nevery = "100ms"\n'
    with supervisor({"once": unit}, prepare=with_agents) as running:
        until(lambda: len(told(running, "unit.exited", "once")) > 2, "three runs")
        assert {record["code"] for record in told(running, "unit.exited", "once")} == {0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[agent]\nevery = 1\n', "[agent] without class"),
        ('[agent]\nclass = "no colon"\n', "'no colon' is not the name of a class"),
        ('[agent]\nclass = "a:B"\n[service]\ntype = "exec"\n', "the runner of an [agent] decides type"),
        ('[agent]\nclass = "a:B"\n[service]\nexec-start = ["true"]\n', "the runner of an [agent] decides exec-start"),
        ('[agent]\nclass = "a:B"\n[target]\n', "a unit is an [agent] or a [target], not both"),
        ('[agent]\nclass = "a:B"\nevery = 1\n[timer]\nevery = 5\n', "every together with [timer]"),
        ('[agent]\nclass = "a:B"\nconfig = 3\n', "3 is not a table"),
    ],
)  # fmt: skip
def test_what_check_says_of_an_agent(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(text)
    command = [sys.executable, "-m", "supervisord_py", "check", str(tmp_path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert message in checked.stdout + checked.stderr


def test_new_makes_an_agent_that_works_with_a_test_that_passes(tmp_path: Path) -> None:
    new = [sys.executable, "-m", "supervisord_py", "new", "my-agent", "--agent", "-o"]
    subprocess.run([*new, str(tmp_path)], check=True, capture_output=True)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, check=False
    )
    assert tested.returncode == 0, tested.stdout
    assert subprocess.run([*new, str(tmp_path)], check=False, capture_output=True).returncode == 1, (
        "it is there already"
    )

    def prepare(folder: Path) -> None:
        subprocess.run([*new, str(folder / "units")], check=True, capture_output=True)

    with supervisor({}, prepare=prepare) as running:
        until(lambda: running.status("my-agent")["status_text"] == "said hello 1 times", "its first words")
