"""``[sandbox]``, privileges and system calls: what programs can still do, as root and as an ordinary user."""

import ctypes
import os
import platform
import signal

import pytest

from tests.integration.supervisor_rig import AS_USER, SYSTEM_PYTHON, supervisor

LIBC = "import ctypes as c, os, sys, socket; l = c.CDLL(None, use_errno=True); "
"""``refused(result)`` below: -1 and which errno."""

KILLED = "killed"
KEYCTL = 250 if platform.machine() == "x86_64" else 219


def unit(sandbox: str, code: str, *, service: str = "") -> str:
    """A unit whose success is that ``code`` exits with 0."""
    program = f"exec-start = [{SYSTEM_PYTHON!r}, '-c', '''{LIBC}{code.replace('%', '%%')}''']"
    return f"[service]\ntype = 'oneshot'\n{program}\n{service}\n[limits]\ncore = 0\n[sandbox]\n{sandbox}\n"


def fails(expression: str, number: str) -> str:
    """The program succeeds when the call in it fails with this errno."""
    return f"import errno; r = {expression}; sys.exit(not (r == -1 and c.get_errno() == errno.{number}))"


def raises(statement: str, number: str) -> str:
    return f"""import errno
try: {statement}
except OSError as e: sys.exit(e.errno != errno.{number})
sys.exit(9)"""


MMAP_WX = "l.mmap(None, c.c_size_t(4096), 6, 0x22, -1, c.c_long(0))"
NO_NEW = "sys.exit('NoNewPrivs:\\t1' not in open('/proc/self/status').read())"

EVERYBODY: dict[str, tuple[str, str, object]] = {
    "nnp": ("no-new-privileges = true", NO_NEW, 0),
    "filter-kill": ("system-call-filter = '~uname'", "os.uname()", KILLED),
    "filter-errno": ("system-call-filter = ['~uname:EILSEQ']", raises("os.uname()", "EILSEQ"), 0),
    "filter-number": (
        "system-call-filter = ['~uname']\nsystem-call-error-number = 'EHOSTDOWN'", raises("os.uname()", "EHOSTDOWN"), 0,
    ),
    "filter-group": (
        "system-call-filter = ['@system-service', '~@setuid:EPERM']", raises("os.setuid(os.getuid())", "EPERM"), 0,
    ),
    "filter-allows": ("system-call-filter = '@system-service'", "os.uname(); os.fork() or os._exit(0); os.wait()", 0),
    "families": (
        "restrict-address-families = ['AF_INET']",
        "socket.socket(); " + raises("socket.socket(socket.AF_UNIX)", "EAFNOSUPPORT"), 0,
    ),
    "no-families": ("restrict-address-families = 'none'", raises("socket.socket()", "EAFNOSUPPORT"), 0),
    "write-execute": ("memory-deny-write-execute = true", "l.mmap.restype = c.c_long; " + fails(MMAP_WX, "EPERM"), 0),
    "namespaces": ("restrict-namespaces = true", fails("l.unshare(0x10000000)", "EPERM"), 0),
    "namespaces-but-user": ("restrict-namespaces = 'user'", "sys.exit(l.unshare(0x10000000) != 0)", 0),
    "realtime": (
        "restrict-realtime = true",
        "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); "
        + raises("os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))", "EPERM"), 0,
    ),
    "suid": (
        "restrict-suid-sgid = true",
        "import tempfile; f = tempfile.NamedTemporaryFile(); os.chmod(f.name, 0o700); "
        + raises("os.chmod(f.name, 0o4700)", "EPERM"), 0,
    ),
    "personality": (
        "lock-personality = true",
        "l.personality(c.c_ulong(0xffffffff)) and 1/0; " + fails("l.personality(8)", "EPERM"), 0,
    ),
    "hostname": ("protect-hostname = true", fails("l.sethostname(b'x', 1)", "EPERM"), 0),
    "clock": ("protect-clock = true", "import time; " + raises("time.clock_settime(0, time.time())", "EPERM"), 0),
    "keyring": (
        "keyring-mode = 'private'",
        f"k = l.syscall({KEYCTL}, 0, -3, 0); sys.exit(k == {{before}} or k <= 0)", 0,
    ),
    "landlock": (
        "landlock = ['/usr:rx', '/lib:rx', '-/lib64:rx', '-/no/such:r',"
        " '/etc/ld.so.cache:r', '/dev/null:rw', '/tmp:rw']",
        "import tempfile; f = tempfile.NamedTemporaryFile(); open(f.name, 'w').write('x'); os.listdir('/usr'); "
        + raises("open('/etc/passwd')", "EACCES"), 0,
    ),
    "landlock-read-only": (
        "landlock = ['/:rx', '/dev/null:w']",
        "open('/etc/passwd').read(); open('/dev/null', 'w').write('x'); "
        + raises("open('/tmp/never-made-here', 'w')", "EACCES"), 0,
    ),
    "landlock-ports": (
        "landlock = ['tcp:34567:connect']",
        "s = socket.socket(); r = s.connect_ex(('127.0.0.1', 34567)); assert r in (0, 111), r; "
        + raises("s.bind(('127.0.0.1', 0))", "EACCES"), 0,
    ),
    "architectures": ("system-call-architectures = 'native'", "", 0),
    "loose": ("enforce = 'best-effort'\nsystem-call-filter = '~uname:EPERM'", raises("os.uname()", "EPERM"), 0),
}  # fmt: skip
"""Name to keys, program, and how it ends."""

CAPS = "s = dict(x.split(':\\t', 1) for x in open('/proc/self/status').read().splitlines()); "
FOR_ROOT: dict[str, tuple[str, str, str, int]] = {
    "bounding": (
        "capability-bounding-set = ['CAP_CHOWN', 'CAP_KILL']", "", CAPS + "sys.exit(s['CapBnd'] != '%016x' % 33)", 0,
    ),
    "bounding-without": (
        "capability-bounding-set = '~CAP_CHOWN'", "",
        CAPS + "sys.exit(int(s['CapBnd'], 16) & 1 or s['CapBnd'][-1] != 'e')", 0,
    ),
    "ambient": (
        "ambient-capabilities = 'CAP_CHOWN CAP_NET_RAW'", "user = 'nobody'",
        CAPS + "sys.exit(not s['CapAmb'] == s['CapEff'] == s['CapPrm'] == '%016x' % 0x2001)", 0,
    ),
    "user-with-filter": (
        "system-call-filter = '@system-service'", "user = 'nobody'",
        CAPS + "sys.exit(not (s['NoNewPrivs'] == '0' and s['CapEff'] == s['CapPrm'] == '0' * 16))", 0,
    ),
    "user-with-strict-filter": (
        "system-call-filter = ['@system-service', '~@privileged @resources']", "user = 'nobody'", "os.uname()", 0,
    ),
    "secure-bits": (
        "secure-bits = 'no-setuid-fixup noroot'", "user = 'nobody'", "sys.exit(l.prctl(27, 0, 0, 0, 0) != 5)", 0,
    ),
    "user-with-landlock": (
        "landlock = '/:rx'", "user = 'nobody'",
        CAPS + "s['NoNewPrivs'] == '0' or 1/0; " + raises("open('/tmp/never-made-here', 'w')", "EACCES"), 0,
    ),
    "no-clock": ("protect-clock = true", "", CAPS + "sys.exit(int(s['CapBnd'], 16) >> 25 & 1)", 0),
}  # fmt: skip


def ends(status: dict[str, object]) -> object:
    found = status["exit"]
    assert isinstance(found, dict), (status["why"], status)
    return KILLED if found.get("signal") == "SIGSYS" else found.get("code")


@pytest.mark.parametrize("uid", AS_USER)
def test_what_everybody_can_do_without(uid: int | None) -> None:
    """All that needs no privileges, in one supervisor; where it is not privileged no-new-privileges is implied."""
    before = str(ctypes.CDLL(None).syscall(KEYCTL, 0, -3, 0))
    units = {
        name: unit(sandbox, code.replace("{before}", before), service="restart = 'no'")
        for name, (sandbox, code, _) in EVERYBODY.items()
    }
    with supervisor(units, uid=uid) as running:
        for name, (_, _, expected) in EVERYBODY.items():
            status = running.wait_state(name, "inactive", "failed")
            assert ends(status) == expected, (name, status["exit"], running.supctl("logs", name).stdout)


@pytest.mark.root
def test_capabilities_of_a_privileged_supervisor() -> None:
    """Sets hold over the change of the user; a filter needs no no-new-privileges there, and leaves no capability."""
    units = {name: unit(sandbox, code, service=service) for name, (sandbox, service, code, _) in FOR_ROOT.items()}
    with supervisor(units) as running:
        for name, (_, _, _, expected) in FOR_ROOT.items():
            status = running.wait_state(name, "inactive", "failed")
            assert ends(status) == expected, (name, status["exit"], running.supctl("logs", name).stdout)


@pytest.mark.parametrize("uid", [65534] if os.geteuid() == 0 else [None])
def test_what_an_ordinary_user_cannot_have_fails_the_start_or_is_told(uid: int | None) -> None:
    """With the key and the reason; best-effort runs without."""
    keys = "capability-bounding-set = 'CAP_CHOWN'\nno-new-privileges = true"
    loose = f"enforce = 'best-effort'\n{keys}"
    units = {
        "strict": unit(keys, "", service="restart = 'no'"),
        "loose": unit(loose, "import signal; signal.pause()").replace("oneshot", "simple"),
    }
    with supervisor(units, uid=uid) as running:
        status = running.wait_state("strict", "failed")
        assert status["exit"]["code"] == 218, status
        assert "capability-bounding-set: prctl: operation not permitted" in running.supctl("why", "strict").stdout
        status = running.wait_state("loose", "active")
        assert status["degraded"] == ["capability-bounding-set: prctl: operation not permitted"]


@pytest.mark.parametrize("uid", AS_USER)
def test_a_privileged_command_is_outside(uid: int | None) -> None:
    """The prefix ``+`` is without the sandbox; the other commands of the unit are in it."""
    check = "/bin/sh -c 'grep -q NoNewPrivs:.{} /proc/self/status'"
    lines = "\n".join(["+" + check.format(0), check.format(1)])
    service = f'[service]\ntype = "oneshot"\nrestart = "no"\nexec-start = """\n{lines}\n"""\n'
    text = f"{service}[sandbox]\nno-new-privileges = true\n"
    with supervisor({"a": text}, uid=uid) as running:
        assert ends(running.wait_state("a", "inactive", "failed")) == 0


def test_the_signal_is_the_one_of_system_calls() -> None:
    """``KILLED`` is what a filter does."""
    assert signal.Signals(31) is signal.SIGSYS
