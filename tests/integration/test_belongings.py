"""What a unit's processes are given: variables from files, folders, credentials, input and output."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.supervisor_rig import AS_USER, supervisor, until

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: folders below /run and /var, another user's files")
NOBODY = 65534


def sh(text: str, *more: str) -> str:
    """A unit that runs a line of shell and goes on."""
    keys = "\n".join(more)
    return f"[service]\nexec-start = ['sh', '-c', '''{text}; exec sleep 1000''']\n{keys}\n"


@pytest.fixture
def name() -> Iterator[str]:
    """A name that nobody has below the roots of root; what is left there is removed."""
    name = f"spy-test-{os.getpid()}"
    yield name
    for parent in ("/run", "/var/lib", "/var/cache", "/var/log", "/etc"):
        shutil.rmtree(f"{parent}/{name}", ignore_errors=True)


@pytest.mark.parametrize("uid", AS_USER)
def test_variables_come_from_files_that_are_read_before_each_command(uid: int | None) -> None:
    """A file that exec-start-pre writes holds for exec-start; it wins over ``environment``, and may be missing."""
    with supervisor({}, uid=uid) as running:
        out, first, later = (running.folder / "u" / each for each in ("out", "first.env", "later.env"))
        out.parent.mkdir()
        out.parent.chmod(0o777)
        first.write_text('# comment\nA="from file"\nB=file\nodd name=1\nGONE=1\n')
        (running.units / "web.toml").write_text(
            sh(
                f'echo "$A,$B,$C,$D,${{GONE-none}},$SPY_PASSED" > {out}',
                f"exec-start-pre = ['sh', '-c', 'echo C=written by $B > {later}']",
                f"environment-file = ['{first}', '-{later}', '-/no/such/file', '-{out.parent}/*.nothing']",
                "environment = { B = 'unit', D = 'unit' }",
                "unset-environment = ['GONE', 'D=other']",
                "pass-environment = ['SPY_PASSED', 'SPY_MISSING']",
            )
        )
        running.supctl("daemon-reload")
        assert running.supctl("start", "web").returncode == 0
        until(lambda: out.exists() and out.read_text(), "the variables")
        assert out.read_text() == "from file,file,written by file,unit,none,\n"
        assert running.status("web")["degraded"] == [f"{first}: 'odd name' is not a variable's name"]


def test_a_missing_file_with_variables_fails_the_start_and_says_which() -> None:
    """As in systemd the result is resources; a FIFO is no file, and nobody waits for it."""
    with supervisor({"web": sh("true", "environment-file = '/no/such.env'", "restart = 'no'")}) as running:
        status = running.wait_state("web", "failed")
        assert (status["result"], "/no/such.env: no such file" in status["why"]) == ("resources", True)
        fifo = running.folder / "fifo"
        os.mkfifo(fifo)
        (running.units / "fifo.toml").write_text(sh("true", f"environment-file = '{fifo}'", "restart = 'no'"))
        running.supctl("daemon-reload")
        assert running.supctl("start", "fifo").returncode != 0
        assert "not a file" in running.status("fifo")["why"]


@root
def test_folders_are_made_for_the_user_and_the_runtime_folder_goes_with_the_unit(name: str) -> None:
    """Owner, mode and variables; a folder of another owner is handed over with what is in it."""
    old = Path(f"/var/lib/{name}/data/old")
    old.mkdir(parents=True)
    unit = sh(
        'echo "$RUNTIME_DIRECTORY $STATE_DIRECTORY $LOGS_DIRECTORY $CONFIGURATION_DIRECTORY" > $STATE_DIRECTORY/seen',
        "user = 65534",
        f"runtime-directory = ['{name}', '{name}/below']",
        "runtime-directory-mode = '0700'",
        f"state-directory = '{name}/data'",
        f"logs-directory = '{name}'",
        f"configuration-directory = '{name}'",
    )
    with supervisor({"web": unit}) as running:
        running.wait_state("web", "active")
        seen = old.parent / "seen"
        until(lambda: seen.exists() and seen.read_text(), "its folders")
        assert seen.read_text() == f"/run/{name}:/run/{name}/below /var/lib/{name}/data /var/log/{name} /etc/{name}\n"
        owners = {path: Path(path).stat() for path in (f"/run/{name}", str(old), f"/etc/{name}", f"/var/lib/{name}")}
        assert [found.st_uid for found in owners.values()] == [NOBODY, NOBODY, 0, 0]
        assert owners[f"/run/{name}"].st_mode & 0o777 == 0o700
        running.kill_manager()
        assert running.supctl("stop", "web").returncode == 0
        until(lambda: not Path(f"/run/{name}").exists(), "the end of its runtime folder")
        assert seen.exists()


@root
@pytest.mark.parametrize(("preserve", "kept"), [("no", False), ("restart", True), ("yes", True)])
def test_what_is_preserved_outlives_a_restart(name: str, preserve: str, kept: bool) -> None:
    """With ``restart`` the runtime folder stays over a restart and goes with the stop; with ``yes`` it stays."""
    keys = (f"runtime-directory = '{name}'", f"runtime-directory-preserve = '{preserve}'")
    with supervisor({"web": sh('echo 1 >> "$RUNTIME_DIRECTORY/lives"', *keys)}) as running:
        lives = Path(f"/run/{name}/lives")
        until(lambda: lives.exists() and lives.read_text(), "the first life")
        pid = running.status("web")["pid"]
        assert running.supctl("restart", "web").returncode == 0
        until(lambda: lives.exists() and lives.read_text() == "1\n" * (2 if kept else 1), "the second life")
        os.kill(running.status("web")["pid"], 9)
        until(lambda: running.status("web")["pid"] not in (None, pid), "the third life")
        until(lambda: lives.exists() and lives.read_text() == "1\n" * (3 if kept else 1), "the third life's line")
        assert running.supctl("stop", "web").returncode == 0
        until(lambda: lives.exists() == (preserve == "yes"), "the end of what is not preserved")


@root
def test_a_link_that_a_user_made_leads_nowhere(name: str) -> None:
    """A folder is not made, nor given away, where a link of somebody else points."""
    parent = Path(f"/var/lib/{name}")
    parent.mkdir()
    (parent / "data").symlink_to("/etc")
    os.lchown(parent / "data", NOBODY, NOBODY)
    unit = sh("true", "user = 65534", f"state-directory = '{name}/data'", "restart = 'no'")
    with supervisor({"web": unit}) as running:
        status = running.wait_state("web", "failed")
        assert (status["exit"], Path("/etc").stat().st_uid) == ({"code": 238, "signal": None}, 0)


@pytest.mark.parametrize("uid", AS_USER)
def test_credentials_are_files_of_the_unit_alone(uid: int | None) -> None:
    """Read-only, its own, and gone with the unit; a value is the default of a file that is missing."""
    with supervisor({}, uid=uid) as running:
        secrets, out = running.folder / "u", running.folder / "u" / "out"
        running.folder.chmod(0o711)
        secrets.mkdir()
        secrets.chmod(0o777)
        (secrets / "token").write_text("s3cret")
        (secrets / "many").mkdir()
        (secrets / "many" / "one").write_text("1")
        unit = sh(
            f'cd $CREDENTIALS_DIRECTORY; pwd > {out}; stat -c "%%n %%a" * >> {out}; cat * >> {out}',
            f"load-credential = ['token:{secrets}/token', 'set:{secrets}/missing', 'many:{secrets}/many']",
            "set-credential = ['set:default', 'token:never']",
            *(["user = 65534"] if os.geteuid() == 0 and uid is None else []),
        )
        (running.units / "web.toml").write_text(unit)
        running.supctl("daemon-reload")
        assert running.supctl("start", "web").returncode == 0
        until(lambda: out.exists() and out.read_text().endswith("s3cret"), "the credentials")
        folder, *rest = out.read_text().splitlines()
        assert rest == ["many_one 400", "set 400", "token 400", "1defaults3cret"]
        assert "s3cret" not in running.supctl("show", "web").stdout + running.supctl("cat", "web").stdout
        assert running.supctl("stop", "web").returncode == 0
        until(lambda: not Path(folder).exists(), "the end of the credentials")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_a_unit_has_is_its_users_though_a_command_of_roots_comes_first(name: str) -> None:
    """Folders and credentials were root's, or became it while it ran, when a command with ``+`` had made them."""
    unit = sh(
        "touch $STATE_DIRECTORY/x && cat $CREDENTIALS_DIRECTORY/token && sleep 1000",
        "exec-start-pre = '+/bin/true'",
        "exec-reload = '+/bin/true'",
        "user = 65534",
        f"state-directory = '{name}'",
        "set-credential = 'token:s3cret'",
        "restart = 'no'",
    )
    with supervisor({"web": unit}, prepare=lambda folder: folder.chmod(0o711)) as running:
        log = running.log_folder / "web.log"
        until(lambda: (log.exists() and log.read_text() == "s3cret") or running.status("web")["exit"], "the secret")
        assert log.read_text() == "s3cret"
        assert running.supctl("reload", "web").returncode == 0
        assert Path(f"/var/lib/{name}").stat().st_uid == 65534


def test_a_credential_that_the_supervisor_was_not_given_is_told_and_does_not_fail_the_start() -> None:
    """As in systemd; its folder is there, ``%d`` names it, and status says what is missing."""
    unit = sh(
        "test $CREDENTIALS_DIRECTORY = %d && test -d %d && test ! -e %d/token && exec sleep 1000",
        "load-credential = 'token'",
        "restart = 'no'",
    )
    with supervisor({"web": unit}) as running:
        status = running.wait_state("web", "active", "failed")
        assert (status["active_state"], status["degraded"]) == (
            "active",
            ["load-credential: the supervisor was given no credential token"],
        )


def test_a_missing_credential_fails_the_start() -> None:
    """With systemd's code for it, 243."""
    unit = sh("true", "load-credential = 'token:/no/such/token'", "restart = 'no'")
    with supervisor({"web": unit}) as running:
        status = running.wait_state("web", "failed")
        assert status["exit"] == {"code": 243, "signal": None}
        assert "/no/such/token: no such file" in status["why"]


@pytest.mark.parametrize("uid", AS_USER)
def test_input_is_what_the_unit_says(uid: int | None) -> None:
    """Lines, with their specifiers, then bytes; each command reads all of it."""
    unit = sh(
        "cat | od -An -c | tr -d ' \\n'; sleep 1000",
        "exec-start-pre = 'cat'",
        "standard-input-text = ['I am %n', '', '50%% \\o']",
        "standard-input-data = ['AAH/', 'Cg==']",
    )
    with supervisor({"web": unit}, uid=uid) as running:
        log = running.log_folder / "web.log"
        wanted = rb"Iamweb\n\n50%\o\n\0001377\n"
        until(lambda: log.exists() and wanted in log.read_bytes(), "what it has read")
        assert log.read_bytes() == b"I am web\n\n50% \\o\n\0\x01\xff\n" + wanted


@pytest.mark.parametrize("uid", AS_USER)
def test_programs_are_looked_for_in_folders_of_the_units_own(uid: int | None) -> None:
    """PATH names them, unless the unit gives it another value; then programs are looked for in them all the same."""
    with supervisor({}, uid=uid) as running:
        place = running.folder / "bin"
        place.mkdir(mode=0o755)
        (place / "tell").write_text("#!/bin/sh\necho I run with $PATH\n")
        (place / "tell").chmod(0o755)
        head = f"[service]\ntype = 'oneshot'\nexec-start = 'tell'\nexec-search-path = '/bin:{place}'\n"
        for name, more in (
            ("a", ""),
            ("b", "environment = { PATH = '/usr' }\n"),
            ("c", "exec-start-pre = 'no-such'\n"),
        ):
            (running.units / f"{name}.toml").write_text(head + more)
        running.supctl("daemon-reload")
        codes = [running.supctl("start", name).returncode for name in "abc"]
        assert [code == 0 for code in codes] == [True, True, False]
        logs = [running.supctl("logs", name).stdout for name in "ab"]
        assert f"I run with /bin:{place}" in logs[0] and "I run with /usr\n" in logs[1]
        assert "no program no-such in exec-search-path" in running.status("c")["why"]


@pytest.mark.parametrize("uid", AS_USER)
def test_input_and_output_are_files(uid: int | None) -> None:
    """A file as input; output appended or written anew; the error output follows the output, or the log."""
    with supervisor({}, uid=uid) as running:
        place = running.folder / "u"
        place.mkdir()
        place.chmod(0o777)
        for name in ("in", "log", "anew"):
            (place / name).write_text(f"{name} before\n")
            (place / name).chmod(0o666)
        (running.units / "a.toml").write_text(
            sh("cat; echo more >&2", f"standard-input = 'file:{place}/in'", f"standard-output = 'append:{place}/log'")
        )
        keys = (f"standard-output = 'truncate:{place}/anew'", "standard-error = 'journal'")
        (running.units / "b.toml").write_text(sh("echo out; echo err >&2", *keys))
        (running.units / "c.toml").write_text(sh("echo out; echo err >&2", "standard-output = 'null'"))
        running.supctl("daemon-reload")
        assert running.supctl("start", "a", "b", "c").returncode == 0
        until(lambda: (place / "log").read_text() == "log before\nin before\nmore\n", "what a wrote")
        until(lambda: (place / "anew").read_text() == "out\n", "what b wrote")
        until(lambda: running.supctl("logs", "b").stdout.endswith("err\n"), "what b complained")
        assert "out" not in running.supctl("logs", "b", "c").stdout
        assert not any("err" in line for line in running.supctl("logs", "c").stdout.splitlines())


def test_output_and_error_output_wrote_over_each_other_in_one_file() -> None:
    """What goes to the same file is opened once, as in systemd, and made with the unit's umask: it was 0644."""
    with supervisor({}) as running:
        both = "echo out; echo err >&2; echo more"
        place = running.folder / "u"
        place.mkdir()
        (place / "both").write_text("read\nand")
        for kind, umask in (("file", "0077"), ("truncate", "0000")):
            keys = [f"standard-{name} = '{kind}:{place}/{kind}'" for name in ("output", "error")]
            (running.units / f"{kind}.toml").write_text(sh(both, *keys, f"umask = '{umask}'"))
        keys = [f"standard-{name} = 'file:{place}/both'" for name in ("input", "output", "error")]
        (running.units / "both.toml").write_text(sh(f"read line; {both}", *keys))
        running.supctl("daemon-reload")
        assert running.supctl("start", "file", "truncate", "both").returncode == 0
        for kind, mode in (("file", 0o600), ("truncate", 0o666)):
            until(lambda kind=kind: (place / kind).read_text() == "out\nerr\nmore\n", f"all of {kind}")  # type: ignore[misc]
            assert stat.S_IMODE((place / kind).stat().st_mode) == mode
        until(lambda: (place / "both").read_text() == "read\nout\nerr\nmore\n", "what was read and written")


def test_a_stream_that_cannot_be_opened_fails_the_start() -> None:
    """With systemd's codes, 208 and 209, and the path."""
    for key, code in (("standard-input = 'file:/no/such'", 208), ("standard-output = 'file:/no/such/file'", 209)):
        with supervisor({"web": sh("true", key, "restart = 'no'")}) as running:
            status = running.wait_state("web", "failed")
            assert status["exit"] == {"code": code, "signal": None}
            assert "/no/such" in status["why"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with one that the unit's user may write and one of root's that it may not touch."""
    folder = Path(tempfile.mkdtemp(prefix="spy-place-"))
    folder.chmod(0o755)
    (folder / "own").mkdir()
    os.chown(folder / "own", NOBODY, NOBODY)
    (folder / "roots").mkdir(mode=0o700)
    (folder / "roots" / "precious").write_text("precious")
    yield folder
    shutil.rmtree(folder)


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return path


@root
def test_a_link_in_a_runtime_folder_had_root_remove_another_one(name: str, place: Path) -> None:
    """The folder on the way is the unit's own: what it puts in the place of a folder below is not gone through."""
    (place / "roots" / "b").mkdir()
    (place / "roots" / "b" / "precious").write_text("precious")
    outer = sh("true", "user = 65534", f"runtime-directory = '{name}'")
    swap = f"mv /run/{name}/a /run/{name}/x && ln -s {place / 'roots'} /run/{name}/a"
    within = sh("true", "user = 65534", f"runtime-directory = '{name}/a/b'", f"exec-stop = ['sh', '-c', '{swap}']")
    with supervisor({"outer": outer, "within": f"[unit]\nafter = 'outer'\n{within}"}) as running:
        running.wait_state("within", "active")
        assert running.supctl("stop", "within").returncode == 0
        until(lambda: not list(running.folder.glob("r/made/within.json")), "the end of its runtime folder")
        assert Path(f"/run/{name}/a").is_symlink()
    assert (place / "roots" / "b" / "precious").exists()


@root
def test_a_link_of_another_user_chose_the_file_that_root_opened(place: Path) -> None:
    """Output would have been written to it, input read from it: now the start fails, and says which link; one that root
    made is followed."""
    precious = place / "roots" / "precious"
    link(place / "own" / "out", precious)
    link(place / "own" / "new", place / "roots" / "new")
    os.link(precious, place / "own" / "hard")
    (place / "way").symlink_to(place / "roots")
    wanted = {
        "out": f"standard-output = 'append:{place}/own/out'",
        "new": f"standard-error = 'truncate:{place}/own/new'",
        "hard": f"standard-output = 'truncate:{place}/own/hard'",
        "in": f"standard-input = 'file:{place}/own/out'",
    }
    units = {each: sh("echo told", "user = 65534", "restart = 'no'", keys) for each, keys in wanted.items()}
    units["good"] = sh("echo told", "user = 65534", f"standard-output = 'file:{place}/way/good'")
    units["device"] = sh("echo told", "standard-output = 'file:/dev/stderr'", "standard-input = 'file:/dev/zero'")
    with supervisor(units) as running:
        codes = {each: running.wait_state(each, "failed")["exit"]["code"] for each in wanted}
        assert codes == {"out": 209, "new": 222, "hard": 209, "in": 208}
        assert "standard-output: out, a link of another user, in /" in running.status("out")["why"]
        until(lambda: (place / "roots" / "good").exists() and (place / "roots" / "good").read_text(), "what was told")
        running.wait_state("device", "active")
    assert precious.read_text() == "precious" and not (place / "roots" / "new").exists()


@root
def test_what_stood_in_the_way_of_a_folder_was_called_a_bad_descriptor(name: str, place: Path) -> None:
    """A link of another user on the way is refused, by its reason."""
    Path(f"/var/lib/{name}").mkdir()
    link(Path(f"/var/lib/{name}/a"), place / "roots")
    keys = ("user = 65534", f"state-directory = '{name}/a/b'", "restart = 'no'")
    with supervisor({"web": sh("true", *keys)}) as running:
        status = running.wait_state("web", "failed")
        assert (status["exit"]["code"], "not a directory" in status["why"]) == (238, True), status["why"]
    assert not (place / "roots" / "b").exists()


@root
def test_a_unit_of_another_user_below_a_closed_folder_was_started_without_a_word() -> None:
    """Its credentials and the notify socket are out of its reach: ``run`` says so, and which folder to open."""
    for mode in (0o755, 0o700):
        with supervisor({"web": sh("true", "user = 65534")}, prepare=lambda at, mode=mode: at.chmod(mode)) as running:
            assert (f"chmod o+x {running.folder}" in running.output()) is (mode == 0o700)
