"""Container mode: process 1 of a PID namespace, one command without a file, output on standard output.

Each namespace is made anew with unshare, as root and in a user namespace (which needs no privilege); where the kernel
or a sandbox refuses, the tests are skipped and say so.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervisor_rig import supervisor, until

WAYS = {"root": ("unshare", "-pf", "--mount-proc"), "user": ("unshare", "-Urpf", "--mount-proc")}
PROGRAM = (sys.executable, "-m", "supervisord_py")
ENDS_S = 60.0
DEAF = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)\nwhile True: signal.pause()"
TELLS = """
import os, signal, sys
def tell(number, frame):  # by hand: the next signal may come while the line is written
    os.write(1, signal.Signals(number).name.encode() + b"\\n")
for number in {numbers}:
    signal.signal(number, tell)
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(42))
print("ready", flush=True)
while True:
    signal.pause()
"""


def refusal(way: str) -> str | None:
    """Say why such a namespace cannot be made here."""
    if way == "root" and os.getuid() != 0:
        return "needs root"
    if shutil.which("unshare") is None:
        return "no unshare(1)"
    tried = subprocess.run([*WAYS[way], "true"], capture_output=True, text=True, timeout=ENDS_S, check=False)
    return None if tried.returncode == 0 else tried.stderr.strip() or "unshare fails"


@pytest.fixture(params=sorted(WAYS))
def namespace(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The command that makes a PID namespace in which its argument is process 1."""
    why_not = refusal(request.param)
    if why_not is not None:
        pytest.skip(f"no PID namespace as {request.param}: {why_not}")
    return WAYS[request.param]


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="spy-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def environment(path: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(path), "FROM_OUTSIDE": "yes"}


def execute(
    path: Path, *arguments: str, prefix: tuple[str, ...] = (), text: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run ``supervisord-py exec`` to its end, with ``path`` for temporary folders; nothing may stay there."""
    ended = subprocess.run(
        [*prefix, *PROGRAM, "exec", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=ENDS_S,
        check=False,
        env=environment(path),
    )
    assert os.listdir(path) == [], "everything was temporary"
    return ended


@contextmanager
def executing(path: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> Iterator["subprocess.Popen[str]"]:
    """Run ``supervisord-py exec`` beside the test; it is killed when it is not over by then."""
    with subprocess.Popen(
        [*prefix, *PROGRAM, "exec", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(path),
    ) as process:
        try:
            yield process
            process.wait(ENDS_S)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(ENDS_S)
                finally:
                    process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def keeper_of(process: "subprocess.Popen[str]") -> int:
    """The keeper below unshare, which waits for it and passes no signal on."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found: str = until(lambda: children.read_text().split(), "the keeper below unshare")[0]
    return int(found)


# exec


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_exec_ends_with_the_code_of_its_command(script: str, code: int) -> None:
    """Its own code, 128 + n for a signal, and nothing is printed or left behind."""
    with folder() as path:
        ended = execute(path, "--", "sh", "-c", script)
        assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


def test_exec_says_why_a_command_never_started() -> None:
    """125, and the reason on standard error."""
    with folder() as path:
        ended = execute(path, "--", "/no/such/program")
        assert ended.returncode == 125
        assert "/no/such/program: no such file or directory" in ended.stderr


def test_exec_hands_everything_through() -> None:
    """Input, output, error, environment, folder, umask, limits and words are those of the caller."""
    script = "cat; echo to-err >&2; echo $FROM_OUTSIDE; pwd; umask; ulimit -n; printf '%s\\n' \"$@\""
    with folder() as path:
        words = ("%n $HOME", 'a "b" \\ \x7f é')
        ended = execute(path, "--", "sh", "-c", script, "sh", *words, text="from stdin\n")
        limit = subprocess.run(["sh", "-c", "umask; ulimit -n"], capture_output=True, text=True, check=True).stdout
        assert ended.stdout == f"from stdin\nyes\n{os.getcwd()}\n{limit}{words[0]}\n{words[1]}\n"
        assert (ended.stderr, ended.returncode) == ("to-err\n", 0)


def test_exec_starts_again_only_when_asked() -> None:
    """With --restart on-failure it goes on until the command ends well."""
    with folder() as path, folder() as kept:
        script = f"echo x >> {kept}/lives; test $(wc -l < {kept}/lives) -ge 3"
        assert execute(path, "--", "sh", "-c", script).returncode == 1
        assert execute(path, "--restart", "on-failure", "--", "sh", "-c", script).returncode == 0
        assert (kept / "lives").read_text() == "x\n" * 3


def test_exec_refuses_what_is_no_name() -> None:
    """Wrong usage is 2, before anything is made."""
    with folder() as path:
        assert execute(path, "--name", "../x", "--", "true").returncode == 2
        assert execute(path).returncode == 2


def test_signals_reach_the_command_of_process_1(namespace: tuple[str, ...]) -> None:
    """Every signal that can be passed on is, and SIGTERM ends it with its own code."""
    numbers = [
        int(number)
        for number in signal.valid_signals()
        if number
        in (
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGQUIT,
            signal.SIGUSR1,
            signal.SIGUSR2,
            signal.SIGALRM,
            signal.SIGWINCH,
            signal.SIGCONT,
            signal.SIGURG,
            signal.SIGIO,
            signal.SIGRTMIN,
            signal.SIGRTMAX,
        )
    ]
    with folder() as path:
        code = TELLS.format(numbers=numbers)
        with executing(path, "--", sys.executable, "-c", code, prefix=namespace) as process:
            assert line(process) == "ready"
            keeper = keeper_of(process)
            for number in numbers:
                os.kill(keeper, number)
                assert line(process) == signal.Signals(number).name
            os.kill(keeper, signal.SIGTERM)
        assert process.returncode == 42
        assert os.listdir(path) == []


def test_a_stop_while_process_1_starts_is_not_lost(namespace: tuple[str, ...]) -> None:
    """The kernel drops what process 1 has no handler for: it waits until there is one."""
    with folder() as path:
        with executing(path, "--", sys.executable, "-c", DEAF, prefix=namespace) as process:
            keeper = keeper_of(process)
            # The folder is made after signals are held, and long before the keeper handles them.
            until(lambda: os.listdir(path), "the temporary folder", ENDS_S)
            os.kill(keeper, signal.SIGTERM)
            assert process.wait(ENDS_S) in (0, 137)


def test_process_1_ends_a_command_that_does_not_listen(namespace: tuple[str, ...]) -> None:
    """A stop is over before a container engine loses its patience: the command is killed in time."""
    with folder() as path:
        with executing(path, "--shutdown-timeout", "1s", "--", sys.executable, "-c", DEAF, prefix=namespace) as process:
            assert line(process) == "deaf"
            os.kill(keeper_of(process), signal.SIGTERM)
        assert process.returncode == 137
        assert os.listdir(path) == []


def test_process_1_reaps_what_others_left(namespace: tuple[str, ...]) -> None:
    """Orphans of processes that we did not make are no zombies, and what is left at the end does not outlive it."""
    script = (
        "for i in 1 2 3 4 5; do (setsid sh -c 'exit 3' &); done; setsid sleep 1000 & "
        "while ls /proc | grep '^[0-9]' | while read p; do grep -s '^State:.Z' /proc/$p/status; done | grep -q .; "
        "do sleep 0.05; done; echo no zombies"
    )
    with folder() as path:
        ended = execute(path, "--", "sh", "-c", script, prefix=namespace)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "no zombies\n", "")


# run


ENDS = """
[unit]
exit-supervisor-on = "{on}"
requires = ["db"]
[service]
exec-start = ["sh", "-c", "while [ ! -e @/up ]; do sleep 0.1; done; echo working; exit {code}"]
restart = "no"
"""
SLEEPS = """
[service]
exec-start = ["sh", "-c", "trap 'echo asked; exit 0' TERM; echo up; touch @/up; while :; do sleep 0.1; done"]
kill-mode = "mixed"
"""
"""``@`` stands for the folder of the test."""


def run_to_the_end(
    units: dict[str, str], *options: str, prefix: tuple[str, ...] = (), settings: str = ""
) -> tuple[int, str, list[dict[str, Any]]]:
    """Run a supervisor until a unit ends it; returns code, what it printed, and its journal."""
    with folder() as path:
        (path / "units").mkdir()
        (path / "supervisord.toml").write_text(settings)
        for name, text in units.items():
            (path / "units" / f"{name}.toml").write_text(text.replace("@", str(path)))
        places = ("--runtime-dir", f"{path}/r", "--state-dir", f"{path}/s", "--config", f"{path}/supervisord.toml")
        ended = subprocess.run(
            [*prefix, *PROGRAM, "run", f"{path}/units", *places, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ENDS_S,
            check=False,
        )
        journal = [
            json.loads(text)
            for segment in sorted((path / "s" / "journal").glob("*.ndjson"))
            for text in segment.read_text().splitlines()
        ]
        return ended.returncode, ended.stdout, [record for record in journal if "event" in record]


@pytest.mark.parametrize(("on", "code"), [("failure", 3), ("exit", 0), ("exit", 4)])
def test_the_end_of_a_unit_ends_the_container_with_its_code(on: str, code: int) -> None:
    """The others stop in order first, their last words are on standard output, and the journal says why."""
    status, printed, records = run_to_the_end(
        {"db": SLEEPS, "web": ENDS.format(on=on, code=code)}, "--output", "stdout"
    )
    assert status == code
    texts = [text.split() for text in printed.splitlines()]
    assert sorted(texts[:2]) == [["db", "|", "up"], ["web", "|", "working"]]
    assert texts[2:] == [["db", "|", "asked"]]
    (stopping,) = (record for record in records if record["event"] == "daemon.stopping")
    assert stopping["reason"].startswith("web has ")
    assert records[-1]["event"] == "daemon.stopped" and records[-1]["code"] == code


def test_process_1_has_8_seconds_unless_it_is_told(namespace: tuple[str, ...]) -> None:
    """The ordered stop of a container is shorter than the patience of its engine; what is written or typed holds."""
    units = {"db": SLEEPS, "web": ENDS.format(on="exit", code=0)}
    times = []
    for options, settings in (
        ((), ""),
        ((), '[supervisor]\nshutdown-timeout-sec = "33s"\n'),
        (("--shutdown-timeout", "5s"), '[supervisor]\nshutdown-timeout-sec = "33s"\n'),
    ):
        status, _, records = run_to_the_end(units, *options, prefix=namespace, settings=settings)
        assert status == 0
        times += [record["timeout_ms"] for record in records if record["event"] == "daemon.stopping"]
    assert times == [8_000, 33_000, 5_000]


def test_orphans_are_no_warnings_for_process_1(namespace: tuple[str, ...]) -> None:
    """What a visitor (as ``docker exec``) leaves is taken in, told without a warning, and ended with the container."""
    if shutil.which("nsenter") is None:
        pytest.skip("no nsenter(1)")
    with folder() as path:
        (path / "units").mkdir()
        (path / "units" / "web.toml").write_text('[service]\nexec-start = ["sleep", "1000"]\n')
        process = subprocess.Popen(
            [
                *(*namespace, *PROGRAM, "run", f"{path}/units"),
                *("--runtime-dir", f"{path}/r", "--state-dir", f"{path}/s"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        keeper = keeper_of(process)
        try:
            until((path / "r" / "control.sock").exists, "the control socket", ENDS_S)
            kinds = ("-U", "--preserve-credentials") if "-Urpf" in namespace else ()
            visit = ["nsenter", *kinds, "-p", "-m", "-t", str(keeper), "sh", "-c", "(exit 3 &); setsid sleep 777 &"]
            subprocess.run(visit, timeout=ENDS_S, check=True)

            def strays() -> list[dict[str, Any]]:
                segments = (path / "s" / "journal").glob("*.ndjson")
                lines = "".join(segment.read_text() for segment in segments).splitlines()
                return [json.loads(text) for text in lines if '"stray.appeared"' in text]

            until(lambda: any("sleep 777" in record["command"] for record in strays()), "the stray", ENDS_S)
            assert {record["severity"] for record in strays()} == {"info"}
        finally:
            os.kill(keeper, signal.SIGTERM)
            assert process.wait(ENDS_S) == 0


def test_a_killed_container_that_is_started_again_begins_anew(namespace: tuple[str, ...]) -> None:
    """The folders of the container are still there, and no process is: a boot, and not a failure of every unit."""
    with folder() as path:
        (path / "units").mkdir()
        (path / "units" / "web.toml").write_text(
            '[unit]\nexit-supervisor-on = "failure"\n[service]\nexec-start = "sleep 1000"\nrestart = "no"\n'
        )

        def ready() -> list[str]:
            segments = sorted((path / "s" / "journal").glob("*.ndjson"))
            lines = "".join(segment.read_text() for segment in segments).splitlines()
            return [text for text in lines if '"unit.ready"' in text]

        places = ("--runtime-dir", f"{path}/r", "--state-dir", f"{path}/s")
        for life, number in enumerate((signal.SIGKILL, signal.SIGTERM), start=1):
            process = subprocess.Popen(
                [*namespace, *PROGRAM, "run", f"{path}/units", *places], stdin=subprocess.DEVNULL
            )
            keeper = keeper_of(process)
            try:
                until(
                    lambda life=life, process=process: len(ready()) == life or process.poll() is not None, "web", ENDS_S
                )
                assert process.poll() is None, "web runs again, and the container with it"
            finally:
                with suppress(ProcessLookupError):
                    os.kill(keeper, number)
                code = process.wait(ENDS_S)
        assert code == 0


def test_a_control_group_that_the_user_namespace_does_not_map_is_none() -> None:
    """The group of our name is in the image's file, and files cannot be given to it; one that is asked for must be."""
    why_not = refusal("user")
    if why_not is not None:
        pytest.skip(f"no PID namespace: {why_not}")
    with folder() as path:
        (path / "group").write_text("root:x:0:\nsupervisord-py:x:90000:\n")
        script = 'mount --bind "$0" /etc/group && exec "$@"'
        prefix = (*WAYS["user"], "sh", "-c", script, str(path / "group"))
        units = {"web": '[unit]\nexit-supervisor-on = "exit"\n[service]\nexec-start = "true"\nrestart = "no"\n'}
        assert run_to_the_end(units, prefix=prefix)[0] == 0
        settings = '[control]\nsocket-group = "supervisord-py"\n'
        status, printed, _ = run_to_the_end(
            units, prefix=(*prefix, "sh", "-c", 'exec "$@" 2>&1', "sh"), settings=settings
        )
        assert status == 1
        assert "the group supervisord-py (90000) does not exist in this user namespace" in printed


def test_run_needs_the_proc_of_its_own_namespace() -> None:
    """Whose a process is could not be told with the numbers of another namespace: a clear error, and no start."""
    why_not = refusal("user")
    if why_not is not None:
        pytest.skip(f"no PID namespace: {why_not}")
    with folder() as path:
        ended = execute(path, "--", "true", prefix=("unshare", "-Urpf"))
        assert ended.returncode == 1
        assert "/proc is that of another PID namespace" in ended.stderr


def test_a_root_that_cannot_be_written_needs_one_tmpfs(namespace: tuple[str, ...]) -> None:
    """With everything read-only but /dev/shm exec works; with that read-only too it says what is missing."""
    read_only = (*namespace, "-m", "sh", "-c")
    only_shm = 'mount -t tmpfs none /dev/shm && mount -o remount,bind,ro / 2>/dev/null || exit 99; exec "$@"'
    nothing = "mount -t tmpfs -o ro none /dev/shm && mount -t tmpfs -o ro none /run && " + only_shm.split("&& ", 1)[1]
    with folder() as path:
        os.chmod(path, 0o500)
        tried = subprocess.run([*read_only, only_shm, "sh", "true"], capture_output=True, timeout=ENDS_S, check=False)
        if tried.returncode != 0:
            pytest.skip("/ cannot be made read-only here")
        for script, code in ((only_shm, 6), (nothing, 1)):
            ended = subprocess.run(
                [*read_only, script, "sh", *PROGRAM, "exec", "--", "sh", "-c", "exit 6"],
                capture_output=True,
                text=True,
                timeout=ENDS_S,
                check=False,
                env=environment(path),
            )
            assert ended.returncode == code, ended.stderr
        assert "mount a tmpfs" in ended.stderr


# --output stdout


TALKS = r'''
[service]
exec-start = ["sh", "-c", """printf 'one\\nbin\\377ary\\n'; \
head -c 2000000 /dev/zero | tr '\\0' x; printf '\\npartial'"""]
restart = "no"
[unit]
exit-supervisor-on = "exit"
'''


def test_every_line_is_shown_after_the_name_of_its_unit() -> None:
    """Bytes that are no text, a line of two megabytes in pieces, and the last line that never ended."""
    status, printed, _ = run_to_the_end({"talker": TALKS}, "--output", "stdout")
    assert status == 0
    lines = printed.splitlines()
    assert all(text.startswith("talker | ") for text in lines)
    texts = [text.removeprefix("talker | ") for text in lines]
    assert texts[0] == "one" and texts[1] == "bin\ufffdary" and texts[-1] == "partial"
    assert "".join(texts[2:-1]) == "x" * 2_000_000


def test_a_reader_that_stands_still_or_goes_holds_up_nothing() -> None:
    """Standard output is a pipe that nobody reads, then one that is closed: units run, restart, stop, and log on."""
    noisy = '[service]\nexec-start = ["sh", "-c", "while :; do head -c 65536 /dev/zero | tr \'\\\\0\' x; echo; done"]\n'
    with folder() as path:
        reader, writer = os.pipe()
        try:
            (path / "units").mkdir()
            (path / "units" / "noisy.toml").write_text(noisy + '[log]\nmax-bytes = "1M"\n')
            process = subprocess.Popen(
                [
                    *(*PROGRAM, "run", f"{path}/units", "--runtime-dir", f"{path}/r", "--state-dir", f"{path}/s"),
                    *("--output", "stdout"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=subprocess.DEVNULL,
            )
            try:
                log = path / "s" / "log" / "noisy.log.2"
                until(log.exists, "three files of output", ENDS_S)
                assert select.select([reader], [], [], 0)[0], "it is shown"
                os.close(reader)
                reader = -1
                before = log.stat().st_ino
                until(lambda: log.exists() and log.stat().st_ino != before, "more output", ENDS_S)
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(ENDS_S) == 0
        finally:
            for descriptor in (reader, writer):
                if descriptor >= 0:
                    os.close(descriptor)


def test_units_get_the_variables_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--pass-env``, more than once; what is not named stays outside, and what is not there is no error."""
    for name in ("FIRST", "SECOND", "THIRD"):
        monkeypatch.setenv(name, name.lower())
    unit = '[service]\nexec-start = ["sh", "-c", "echo $FIRST $SECOND ${THIRD-none} ${FOURTH-none}"]\nrestart = "no"\n'
    options = ("--output", "stdout", "--pass-env", "FIRST", "--pass-env", "SECOND", "--pass-env", "FOURTH")
    status, printed, _ = run_to_the_end({"web": f'[unit]\nexit-supervisor-on = "exit"\n{unit}'}, *options)
    assert (status, printed) == (0, "web | first second none none\n")


def test_a_supervisor_without_output_on_standard_output_is_as_before() -> None:
    """Lines of units are in their files only."""
    with supervisor({"db": SLEEPS}) as running:
        running.wait_state("db", "active")
        until(lambda: (running.log_folder / "db.log").exists(), "its output")
        assert "up" not in running.output().split()
