"""``[sandbox]``, namespaces and mounts: what programs see, as root and, in a user namespace, as an ordinary user."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_py.host.private_folders import BASES, PREFIX
from tests.integration.supervisor_rig import AS_USER, STOP_S, SYSTEM_PYTHON, RunningSupervisor, supervisor, until
from tests.integration.test_sandbox_calls import CAPS, ends, raises, unit

WRITE = "open({!r}, 'w').close()"
NOTIFY = "s = socket.socket(socket.AF_UNIX, 2); s.sendto(b'STATUS=reached', os.environ['NOTIFY_SOCKET']); "
CONTROL = "s = socket.socket(socket.AF_UNIX); s.connect(os.environ['SUPERVISORD_PY_SOCKET']); "
MARK = "/tmp/supervisord-py-test-mark"
"""A file that a unit must not see; nobody makes it outside of a test's own /tmp."""

UNITS: dict[str, tuple[str, str]] = {
    "private-tmp": (
        "private-tmp = true",
        f"assert not any(n.startswith('spy-p') and n != os.environ['SUPERVISORD_PY_SOCKET'].split('/')[2] "
        f"for n in os.listdir('/tmp')), os.listdir('/tmp'); open({MARK!r}, 'w'); open('/var/tmp/x', 'w'); "
        "assert os.stat('/tmp').st_mode & 0o7777 == 0o1777; " + CONTROL,
    ),
    "private-devices": (
        "private-devices = true",
        "assert sorted(os.listdir('/dev'))[:3] == ['core', 'fd', 'full'] and not os.path.exists('/dev/kmsg'); "
        "assert open('/dev/zero', 'rb').read(2) == b'\\0\\0'; open('/dev/null', 'w').write('x'); "
        "open('/dev/shm/spy-x', 'w'); os.unlink('/dev/shm/spy-x')",
    ),
    "private-network": (
        "private-network = true",
        "assert os.listdir('/proc/self/net/dev_snmp6') == ['lo'] if os.path.exists('/proc/self/net/dev_snmp6') else 1; "
        "a = socket.create_server(('127.0.0.1', 0)); socket.create_connection(a.getsockname()); "
        "assert [n for _, n in socket.if_nameindex()] == ['lo']",
    ),
    "network-in-sys": (
        "private-network = true",
        "assert os.listdir('/sys/class/net') == ['lo'] or {uid}; assert os.listdir('/sys/fs/cgroup')",
    ),
    "network-in-sys-read-only": (
        "private-network = true\nprotect-kernel-tunables = true\nprotect-control-groups = true",
        "assert not any(os.access(p, os.W_OK) for p in ('/sys', '/sys/fs/cgroup', '/sys/class/net/lo/mtu')); "
        "assert os.listdir('/sys/class/net') == ['lo'] or {uid}; assert os.listdir('/sys/fs/cgroup')",
    ),
    "network-not-in-sys": (
        "private-network = true\nprivate-mounts = false",
        "assert {uid} or os.readlink('/proc/self/ns/mnt') == os.readlink(f'/proc/{os.getppid()}/ns/mnt')",
    ),
    "private-ipc": ("private-ipc = true", "assert len(open('/proc/sysvipc/shm').readlines()) == 1"),
    "private-users": (
        "private-users = true",
        "assert os.getuid() == {uid}; assert str({uid}) in open('/proc/self/uid_map').read().split(); "
        "assert '4294967295' not in open('/proc/self/uid_map').read()",
    ),
    "system-strict": (
        "protect-system = 'strict'\nread-write-paths = '{folder}/rw'",
        WRITE.format("{folder}/rw/x") + "; " + raises(WRITE.format("{folder}/x"), "EROFS"),
    ),
    "system-full": ("protect-system = 'full'", "assert not any(os.access(p, os.W_OK) for p in ('/usr', '/etc'))"),
    "system-yes": ("protect-system = true", raises(WRITE.format("/usr/x"), "EROFS")),
    "home": ("protect-home = true", "assert not os.path.exists('/root/.bashrc'); " + NOTIFY),
    "home-read-only": ("protect-home = 'read-only'", raises("os.mkdir('/home/x')", "EROFS")),
    "home-tmpfs": ("protect-home = 'tmpfs'", "assert os.listdir('/root') == [] == os.listdir('/home')"),
    "nested": (
        "read-only-paths = ['{folder}', '-/no/such']\nread-write-paths = '{folder}/rw'\n"
        "inaccessible-paths = '{folder}/rw/no'",
        WRITE.format("{folder}/rw/y") + "; assert not os.access('{folder}/rw/no', os.W_OK); "
        + raises(WRITE.format("{folder}/y"), "EROFS"),
    ),
    "inaccessible": (
        "inaccessible-paths = ['{folder}/rw', '{folder}/secret']",
        "assert os.listdir('{folder}/rw') == [] if {uid} == 0 else not os.access('{folder}/rw', os.R_OK); "
        "assert {uid} or open('{folder}/secret').read() == ''; " + raises(WRITE.format("{folder}/rw/x"), "{ro}"),
    ),
    "no-exec": (
        "no-exec-paths = '/'\nexec-paths = ['/usr', '-/lib', '-/lib64', '-/bin']",
        "os.access('{folder}/run', os.X_OK) and 1/0; import subprocess; subprocess.run(['/bin/true'], check=True)",
    ),
    "bind": (
        "bind-paths = '{folder}/rw:{folder}/deep/er/place'\nbind-read-only-paths = ['{folder}/secret:/tmp/seen', "
        "'-/no/such:/tmp/no']\nprivate-tmp = true\nprotect-system = 'strict'",
        WRITE.format("{folder}/deep/er/place/z") + "; assert open('/tmp/seen').read() == 'secret'; "
        + raises("open('/tmp/seen', 'a')", "EROFS"),
    ),
    "tmpfs-options": (
        "temporary-file-system = '/mnt:ro,noexec,suid,nostrictatime,noatime,size=1m'",
        "found = [l.split() for l in open('/proc/self/mountinfo') if l.split()[4] == '/mnt'][-1]; "
        "words = set(found[5].split(',')); assert {'ro', 'noexec', 'nodev', 'noatime'} <= words, found; "
        "assert 'nosuid' not in words and 'size=1024k' in found[-1] and found[6].startswith('shared:'), found",
    ),
    "tmpfs": (
        "temporary-file-system = ['/usr/share:ro', '/mnt:mode=0700']\n"
        "bind-read-only-paths = '{folder}/rw:/usr/share/a/b'",
        "assert os.listdir('/usr/share') == ['a'] and os.stat('/mnt').st_mode & 0o777 == 0o700; "
        + WRITE.format("/mnt/x") + "; " + raises(WRITE.format("/usr/share/x"), "EROFS"),
    ),
    "tunables": (
        "protect-kernel-tunables = true\nprotect-control-groups = true\nprotect-kernel-modules = true\n"
        "protect-kernel-logs = true",
        "assert not os.access('/sys', os.W_OK) and not os.access('/sys/fs/cgroup', os.W_OK); "
        "assert not os.path.isdir('/usr/lib/modules') or {uid} or not os.listdir('/usr/lib/modules'); "
        + raises("open('/proc/sys/kernel/domainname', 'w')", "EROFS"),
    ),
    "notify": (
        "protect-system = 'strict'\ntemporary-file-system = '/run'\nprivate-tmp = true", NOTIFY + CONTROL,
    ),
    "hostname": ("protect-hostname = true\nprivate-mounts = true", "assert l.sethostname(b'x', 1) == -1"),
}  # fmt: skip
AS_ROOT = {
    "proc": ("proc-subset = 'pid'\nprotect-proc = 'invisible'", "", "assert not os.path.exists('/proc/meminfo')"),
    "invisible": (
        "protect-proc = 'invisible'", "user = 'nobody'",
        "assert not os.path.exists('/proc/1') and os.path.exists('/proc/self')",
    ),
    "user": (
        "private-users = true\nprotect-system = 'strict'\nprivate-tmp = true", "user = 'nobody'",
        CAPS + "assert os.getuid() == 65534 and s['CapEff'] == '0' * 16 and os.stat('/etc/passwd').st_uid == 0; "
        "open('/tmp/x', 'w')",
    ),
    "filter-in-namespace": (
        "private-users = true\nsystem-call-filter = '@system-service'\nprivate-network = true", "user = 'nobody'",
        "os.uname()",
    ),
}  # fmt: skip


def text_of(folder: Path, text: str, uid: int) -> str:
    reads_only = "EROFS" if uid == 0 else "EACCES"
    for name, value in (("folder", str(folder)), ("uid", str(uid)), ("ro", reads_only)):
        text = text.replace(f"{{{name}}}", value)
    return text


def fill(folder: Path, uid: int) -> None:
    (folder / "rw" / "no").mkdir(parents=True)
    (folder / "secret").write_text("secret")
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    for path in (folder, folder / "rw", folder / "rw" / "no", folder / "secret"):
        os.chown(path, uid, -1)


def own_mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def left_in_tmp(*units: str) -> set[str]:
    return {str(path) for base in BASES for unit in units for path in Path(base).glob(f"{PREFIX}*-{unit}*")}


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may enter; those of pytest are its user's alone."""
    folder = Path(tempfile.mkdtemp(prefix="spy-place-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def check_all(running: RunningSupervisor, names: list[str]) -> None:
    for name in names:
        status = running.wait_state(name, "inactive", "failed")
        assert ends(status) == 0, (name, status["exit"], status["why"], running.supctl("logs", name).stdout[-1500:])


@pytest.mark.parametrize("uid", AS_USER)
def test_what_is_seen(uid: int | None, place: Path) -> None:
    """Each key does what it says, and nothing of it is seen outside or left behind."""
    own = os.geteuid() if uid is None else uid
    folder = place
    fill(folder, own)
    before, mounts = left_in_tmp(*UNITS), own_mounts()
    units = {
        name: unit(
            text_of(folder, keys, own), text_of(folder, code, own), service="restart = 'no'\nnotify-access = 'main'"
        )
        for name, (keys, code) in UNITS.items()
    }
    with supervisor(units, uid=uid) as running:
        check_all(running, list(UNITS))
    assert left_in_tmp(*UNITS) <= before
    assert own_mounts() == mounts
    assert not Path(MARK).exists()


@pytest.mark.root
def test_what_root_can_give_another_user() -> None:
    """Namespaces, and then the user; only root sees all of /proc another way."""
    units = {
        name: unit(keys, code, service=f"restart = 'no'\n{service}") for name, (keys, service, code) in AS_ROOT.items()
    }
    with supervisor(units) as running:
        check_all(running, list(AS_ROOT))


@pytest.mark.parametrize("uid", AS_USER)
def test_private_tmp_is_one_for_a_life_and_goes_with_it(uid: int | None) -> None:
    """All commands and checks of a life share it; the next one has another; what was left by a kill goes too."""
    shared = f"shared-{uid or 0}"  # The same test of another user runs at the same time.
    before = left_in_tmp(shared)
    text = """
[service]
exec-start-pre = "/bin/sh -c 'test ! -e /tmp/mark; echo x > /tmp/mark'"
exec-start = "/bin/sh -c 'exec sleep 1000'"
restart = "no"
[health.up]
kind = "readiness"
exec = "test -e /tmp/mark"
interval = 0.1
[sandbox]
private-tmp = true
"""
    with supervisor({shared: text}, uid=uid, invariants=False) as running:
        first = running.wait_state(shared, "active")
        assert len(left_in_tmp(shared) - before) == 2
        assert running.supctl("restart", shared).returncode == 0
        assert running.wait_state(shared, "active")["invocation"] != first["invocation"]
        until(lambda: len(left_in_tmp(shared) - before) == 2, "only the folders of this life")
        running.kill_manager()
        running.wait_started()
        assert running.wait_state(shared, "active")["pid"] is not None
        assert len(left_in_tmp(shared) - before) == 2
        assert running.supctl("stop", shared).returncode == 0
        until(lambda: left_in_tmp(shared) <= before, "nothing left behind")


@pytest.mark.parametrize("uid", [65534] if os.geteuid() == 0 else [None])
def test_what_cannot_be_mounted_is_told(uid: int | None) -> None:
    """A path that is missing fails the start with its key; best-effort runs, and says which keys do not hold."""
    keys = "read-only-paths = '/no/such/path'\nprivate-tmp = true"
    loose = unit(f"enforce = 'best-effort'\nproc-subset = 'pid'\n{keys}", "import signal; signal.pause()").replace(
        "oneshot", "simple"
    )
    with supervisor({"strict": unit(keys, "", service="restart = 'no'"), "loose": loose}, uid=uid) as running:
        status = running.wait_state("strict", "failed")
        assert status["exit"]["code"] == 226
        assert "read-only-paths: /no/such/path: no such file or directory" in running.supctl("why", "strict").stdout
        status = running.wait_state("loose", "active")
        assert status["applied"] == ["private-tmp: mount namespace", "private-users: user namespace (implied)"]
        assert "Confined" in running.supctl("status", "loose").stdout
        assert status["degraded"] == [
            "proc-subset: proc: operation not permitted",
            "read-only-paths: /no/such/path: no such file or directory",
        ]


@pytest.mark.parametrize("uid", AS_USER)
def test_a_check_shares_the_network_of_its_unit(uid: int | None) -> None:
    """A health check of a unit with a private network reaches its server; nobody else does."""
    server = (
        "import socket, signal; s = socket.create_server(('127.0.0.1', 45871)); "
        "t = socket.socket(socket.AF_UNIX, 2); signal.pause()"
    )
    check = "import socket; socket.create_connection(('127.0.0.1', 45871)).close()"
    text = f"""
[service]
exec-start = ["{SYSTEM_PYTHON}", "-c", "{server}"]
[health.up]
kind = "readiness"
exec = ["{SYSTEM_PYTHON}", "-c", "{check}"]
interval = 0.2
[sandbox]
private-network = true
"""
    with supervisor({"a": text}, uid=uid) as running:
        assert running.wait_state("a", "active")["applied"][0] == "private-network: network namespace"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 45871))


@pytest.mark.parametrize("uid", AS_USER)
def test_another_root(uid: int | None, place: Path) -> None:
    """A folder is its root; what is bound into it is seen there, the supervisor's sockets too."""
    root = place / "root"
    for name in ("usr", "etc", "proc", "dev"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc" / "mark").write_text("inside")
    for path in (root, *root.iterdir()):
        os.chown(path, os.geteuid() if uid is None else uid, -1, follow_symlinks=False)
    keys = "bind-read-only-paths = '/usr'\nbind-paths = '/proc'"
    code = "assert os.listdir('/etc') == ['mark'] and os.getcwd() == '/'; " + NOTIFY + CONTROL
    searched = "exec-start-pre = ['@env', 'another-name', 'true']\nworking-directory = '-/no/such'"
    service = f"restart = 'no'\nnotify-access = 'main'\nroot-directory = '{root}'\n{searched}"
    interfaces = (
        "assert os.listdir('/etc') == ['mark'] and os.path.exists('/proc/self/status') and os.listdir('/sys/kernel'); "
        "open('/dev/null', 'w').write('x'); assert os.path.ismount('/run'); " + NOTIFY + CONTROL
    )
    units = {
        "a": unit(keys, code, service=service),
        "interfaces": unit("bind-read-only-paths = '/usr'\nmount-apivfs = true", interfaces, service=service),
        "own-dev": unit(
            "bind-read-only-paths = '/usr'\nmount-apivfs = true\nprivate-devices = true",
            "assert not os.path.exists('/dev/kmsg') and os.path.exists('/dev/zero')",
            service=service,
        ),
    }
    with supervisor(units, uid=uid) as running:
        check_all(running, list(units))
    assert sorted(path.name for path in (root / "usr").iterdir()) == []


@pytest.mark.parametrize("uid", AS_USER)
def test_a_home_that_is_hidden_is_no_working_directory(uid: int | None, place: Path) -> None:
    """An ordinary user's unit starts at home: with protect-home, or private-tmp and a home below /tmp, none started.
    One that is written fails the start, unless it may be missing."""
    hide = f"[sandbox]\ntemporary-file-system = '{place}'\n"
    command = "[service]\nexec-start = '/bin/pwd'\nrestart = 'no'\n"
    units = {"may-miss": f"{command}working-directory = '-{place}/home'\n{hide}"}
    units["written"] = f"{command}working-directory = '{place}/home'\n{hide}"
    (place / "home").mkdir()
    with supervisor(units, uid=uid) as running:
        if (status := running.wait_state("written", "failed", "inactive"))["exit"]["code"] == 226:
            pytest.skip(str(status["why"]))
        assert ends(running.wait_state("may-miss", "inactive", "failed")) == 0
        assert status["exit"]["code"] == 200
        assert (running.log_folder / "may-miss.log").read_text() == "/\n"


@pytest.mark.root
def test_ipc_objects_go_with_the_last_unit_of_a_user() -> None:
    """Those of its user, when it stops."""
    made = Path("/dev/shm/spy-left-behind")
    objects = "l.shmget(0x5b9c, 4096, 0o1600) >= 0 or 1/0; l.msgget(0x5b9c, 0o1600) >= 0 or 1/0; "
    code = f"import signal; open('{made}', 'w'); {objects}open('{made}2', 'w'); signal.pause()"
    text = unit("remove-ipc = true", code, service="user = 'games'").replace("oneshot", "simple")
    with supervisor({"a": text}) as running:
        running.wait_state("a", "active")
        until(Path(f"{made}2").exists, "its objects")
        assert running.supctl("stop", "a").returncode == 0
        until(lambda: not made.exists(), "shared memory is gone")
        for kind in ("shm", "msg"):
            table = Path(f"/proc/sysvipc/{kind}")
            until(lambda table=table: str(0x5B9C) not in table.read_text().split(), f"the object in {table} is gone")


@pytest.mark.root
def test_a_command_that_keeps_the_user_stays_in_the_sandbox() -> None:
    """``!`` is root in the unit's own /tmp, ``+`` is root in everybody's."""
    lines = "\n".join([
        "/bin/sh -c 'id -u > /tmp/spy-mark'",
        "!/bin/sh -c 'test $$(id -u) = 0 -a $$(cat /tmp/spy-mark) = 65534'",
        "+/bin/sh -c 'test $$(id -u) = 0 -a ! -e /tmp/spy-mark'",
    ])  # fmt: skip
    text = f'[service]\ntype = "oneshot"\nrestart = "no"\nuser = "nobody"\nexec-start = """\n{lines}\n"""\n'
    with supervisor({"a": f"{text}[sandbox]\nprivate-tmp = true\n"}) as running:
        check_all(running, ["a"])


@pytest.mark.parametrize("uid", AS_USER)
def test_a_private_tmp_outlives_the_keeper_with_its_life(uid: int | None) -> None:
    """Keeper and manager are killed: the next ones take the life over with its folders, and remove them at its end;
    those of a life that did not last are removed at once."""
    lasting = '[service]\nexec-start = ["sleep", "1000"]\nrestart = "no"\n[sandbox]\nprivate-tmp = true\n'
    names = (outlives, dies_too) = (f"outlives-{uid or 0}", f"dies-too-{uid or 0}")
    before = left_in_tmp(*names)
    with supervisor(dict.fromkeys(names, lasting), uid=uid, invariants=False) as running:
        pids = {name: running.wait_state(name, "active")["pid"] for name in names}
        assert len(left_in_tmp(*names) - before) == 4
        os.kill(running.keeper_pid, signal.SIGKILL)
        running.process.wait(STOP_S)
        os.kill(pids[dies_too], signal.SIGKILL)
        (running.units / f"{dies_too}.toml").unlink()
        running.start_again()
        assert running.wait_state(outlives, "active")["pid"] == pids[outlives]
        until(lambda: len(left_in_tmp(*names) - before) == 2, "the folders of the dead one are gone")
        assert running.supctl("stop", outlives).returncode == 0
        until(lambda: left_in_tmp(*names) <= before, "nothing left behind")


def test_a_unit_without_a_process_lost_its_private_tmp_with_the_manager(place: Path) -> None:
    """What its first command wrote there is seen by its last one, though the manager is another by then."""
    text = f"""
[service]
type = "oneshot"
remain-after-exit = true
exec-start = "/bin/sh -c 'echo kept > /tmp/mark'"
exec-stop = "/bin/sh -c 'cp /tmp/mark {place}/seen'"
[sandbox]
private-tmp = true
bind-paths = "{place}"
"""
    with supervisor({"a": text}) as running:
        running.wait_state("a", "active")
        running.kill_manager()
        running.wait_started()
        assert running.supctl("stop", "a").returncode == 0
        assert (place / "seen").read_text() == "kept\n"


@pytest.mark.root
def test_root_made_folders_where_a_link_of_the_unit_led(place: Path) -> None:
    """What a bind is laid over is made where it is missing, and not for who may write a folder on the way to choose
    where; a link whose target is no text at all is an ordinary path."""
    (place / "roots").mkdir()
    (place / "own").mkdir()
    os.chown(place / "own", 65534, 65534)
    for name, target in (("to", place / "roots" / "made"), ("odd", "/tmp/\udcff")):
        (place / "own" / name).symlink_to(target)
        os.chown(place / "own" / name, 65534, 65534, follow_symlinks=False)
    service = "restart = 'no'\nuser = 65534"
    units = {name: unit(f"bind-paths = '/usr:{place}/own/{name}/x'", "", service=service) for name in ("to", "odd")}
    with supervisor(units) as running:
        for name in units:
            status = running.wait_state(name, "failed")
            assert (status["exit"]["code"], "a link of another user" in status["why"]) == (226, True), status["why"]
    assert list((place / "roots").iterdir()) == []


@pytest.mark.root
def test_a_file_was_covered_by_a_folder_in_another_root(place: Path) -> None:
    """What an inaccessible path is was looked up on the machine, where it may be something else or not be at all."""
    root = place / "root"
    for name in ("usr", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "secret").write_text("secret")
    keys = "bind-read-only-paths = '/usr'\ninaccessible-paths = '/secret'"
    code = "assert open('/secret').read() == ''"
    with supervisor({"a": unit(keys, code, service=f"restart = 'no'\nroot-directory = '{root}'")}) as running:
        check_all(running, ["a"])


@pytest.mark.parametrize("uid", [65534] if os.geteuid() == 0 else [None])
def test_status_called_applied_what_had_no_effect(uid: int | None) -> None:
    """A capability in a namespace of its own is none outside, and no objects go with a unit that has no user."""
    keys = "ambient-capabilities = 'CAP_NET_BIND_SERVICE'\nprivate-tmp = true\nremove-ipc = true"
    text = unit(keys, "import signal; signal.pause()").replace("oneshot", "simple")
    with supervisor({"a": text}, uid=uid) as running:
        status = running.wait_state("a", "active")
        assert status["applied"][0] == "ambient-capabilities: capabilities, in its user namespace only"
        assert not any(each.startswith("remove-ipc") for each in status["applied"])
        assert status["degraded"] == ["remove-ipc: the unit has no user of its own, whose objects they would be"]


@pytest.mark.root
def test_files_that_a_proc_of_processes_has_not_were_to_be_hidden_in_it() -> None:
    """As many units of distributions have it: what is not there need not be made inaccessible."""
    keys = "proc-subset = 'pid'\nprotect-kernel-tunables = true\nprotect-kernel-logs = true\nprivate-devices = true"
    code = "assert not os.path.exists('/proc/kmsg') and not os.path.exists('/proc/sys')"
    with supervisor({"a": unit(keys, code, service="restart = 'no'")}) as running:
        check_all(running, ["a"])
