"""A program for each limit of one process that tries to break it: what it is told, and what status says of it."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervisor_rig import AS_USER, SYSTEM_PYTHON, RunningSupervisor, supervisor, until

CPU = min(os.sched_getaffinity(0))
NOBODY_S = 61234
"""A user whom nobody else is, and who has nothing: root is not held by all limits."""

OPENS = "import os\nn = 0\nwhile n < 100: os.open('/dev/null', 0); n += 1\n"
FORKS = "import os, signal\nfor n in range(30):\n  if os.fork() == 0: signal.alarm(60); signal.pause()\n"
WRITES = "import os\nfd = os.memfd_create('data')\nfor n in range(9): os.pwrite(fd, b'x', n * 1024)\n"
EXECUTES = "import os\nos.execv('/bin/true', ['true', *['x' * 100000] * 5])\n"
LOCKS = "import ctypes, mmap\nm = mmap.mmap(-1, 1 << 21)\nat = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
LOCKS += "libc = ctypes.CDLL(None, use_errno=True)\n"
LOCKS += "if libc.mlock(ctypes.c_void_p(at), 1 << 21): raise OSError(ctypes.get_errno(), '')\n"
QUEUES = "import ctypes, os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [40])\n"
QUEUES += "libc = ctypes.CDLL(None, use_errno=True)\nfor n in range(50):\n"
QUEUES += "  if libc.sigqueue(os.getpid(), 40, None): raise OSError(ctypes.get_errno(), '')\n"
MESSAGES = "import ctypes, os\nrt = ctypes.CDLL('librt.so.1', use_errno=True)\nname = b'/spy-%d' % os.getpid()\n"
MESSAGES += "if rt.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None) < 0: raise OSError(ctypes.get_errno(), '')\n"
MESSAGES += "rt.mq_unlink(name)\n"
REAL_TIME = "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))\n"
NICER = "import os\nos.nice(-1)\n"
DEARER = "import os\nos.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1')\n"
FIRST = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
FIRST += "number = {'x86_64': 251}.get(os.uname().machine, 30)\n"
FIRST += "if libc.syscall(number, 1, 0, 1 << 13): raise OSError(ctypes.get_errno(), '')\n"

EMFILE, EAGAIN, EFBIG, E2BIG, ENOMEM, EPERM, EACCES = 24, 11, 27, 7, 12, 1, 13
REFUSED: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "nofile": ("nofile = 20", OPENS, (EMFILE,)),
    "nproc": ("nproc = 1", FORKS, (EAGAIN,)),
    "fsize": ("fsize = '4K'", WRITES, (EFBIG,)),
    "stack": ("stack = '1M'", EXECUTES, (E2BIG,)),
    "memlock": ("memlock = '64K'", LOCKS, (ENOMEM, EPERM)),
    "sigpending": ("sigpending = 3", QUEUES, (EAGAIN,)),
    "msgqueue": ("msgqueue = 100", MESSAGES, (EMFILE,)),
    "rtprio": ("rtprio = 0", REAL_TIME.replace("PRIORITY", "1"), (EPERM,)),
    "nice": ("nice = 5", NICER, (EPERM,)),
    "oom": ("oom-score-adjust = 300", DEARER, (EACCES,)),
    "io-class": ("io-scheduling-class = 'idle'", FIRST, (EPERM,)),
    "cpu-policy": ("cpu-scheduling-policy = 'batch'", REAL_TIME.replace("PRIORITY", "1"), (EPERM,)),
}
"""What a program is refused: its limit, the program, and the errors that say so."""

SPIN = "while True: pass\n"
SWELL = "kept = []\nfor n in range(300): kept.append(bytearray(1 << 20))\n"
ABORT = "import os\nos.abort()\n"
ENDED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "cpu": ("cpu = '1:60'", SPIN, {"code": None, "signal": "SIGXCPU"}, "signal"),
    "as": ("as = '150M'", SWELL, {"code": 42, "signal": None}, "exit_code"),
    "data": ("data = '100M'", SWELL, {"code": 42, "signal": None}, "exit_code"),
    "core": ("core = 0", ABORT, {"code": None, "signal": "SIGABRT"}, "signal"),
}
"""What a program is ended by, or ends itself for: its exit and result."""

ALONE = "import os, signal\nprint('cpus', sorted(os.sched_getaffinity(0)), flush=True)\nsignal.pause()\n"


def program(code: str, limits: str, *, user: int | None, more: str = "") -> str:
    """A unit whose program says what it was refused."""
    attempt = "".join(f"  {line}\n" for line in code.splitlines())
    text = f"import os\ntry:\n{attempt}except MemoryError:\n  os._exit(42)\nexcept OSError as error:\n"
    text += "  os.write(1, b'refused %d\\n' % error.errno)\nelse:\n  os.write(1, b'broken\\n')\n"
    who = "" if user is None else f"user = '{user}'\ngroup = '{user}'\n"
    command = f"exec-start = ['{SYSTEM_PYTHON}', '-S', '-c', '''{text.replace('%', '%%')}''']\n"
    return f"[service]\n{command}restart = 'no'\nremain-after-exit = true\n{who}{more}[limits]\n{limits}\n"


def said(running: RunningSupervisor, unit: str) -> str:
    path = running.log_folder / f"{unit}.log"
    return str(until(lambda: path.exists() and path.read_text(), f"words of {unit}")).strip()


@pytest.mark.parametrize("uid", AS_USER)
def test_each_limit_of_a_process_holds(uid: int | None) -> None:
    """The program that wants more is refused it, or ended, and says or is said to have been; none gets through."""
    user = NOBODY_S if os.geteuid() == 0 and uid is None else None
    units = {name: program(code, limit, user=user) for name, (limit, code, *_) in {**REFUSED, **ENDED}.items()}
    # The others' processes count too, and a program is not even executed above its limit.
    units["nproc"] = program(FORKS, REFUSED["nproc"][0], user=None if user is None else NOBODY_S + 1)
    units["affinity"] = program(ALONE, f"cpu-affinity = {CPU}", user=user)
    with supervisor(units, uid=uid) as running:
        for name, (_, _, errors) in REFUSED.items():
            assert said(running, name) in {f"refused {error}" for error in errors}, name
        for name, (_, _, end, result) in ENDED.items():
            status = running.wait_state(name, "failed")
            assert (status["exit"], status["result"]) == (end, result), name
            assert name == "core" or end["signal"] is None or str(end["signal"]) in status["why"]
        assert said(running, "affinity") == f"cpus [{CPU}]"


@pytest.mark.parametrize("enforce", ["strict", "best-effort"])
@pytest.mark.parametrize("uid", AS_USER)
def test_a_limit_above_what_may_be_had(uid: int | None, enforce: str) -> None:
    """Strict, the start fails with 205, the key and the reason; best-effort the process has the most there is, and
    status says so."""
    most = int(Path("/proc/sys/fs/nr_open").read_text()) + 1000
    text = program("import signal; signal.pause()", f"nofile = {most}\nenforce = '{enforce}'", user=None)
    with supervisor({"web": text}, uid=uid) as running:
        status = running.wait_state("web", "failed", "active")
        if enforce == "strict":
            assert status["exit"] == {"code": 205, "signal": None}
            assert "nofile" in status["why"]
            assert status["result"] == "exit_code"
        else:
            assert status["active_state"] == "active"
            (told,) = status["degraded"]
            assert told.startswith(f"nofile: {most}:{most} is more than may be had, it has "), told
            limits = Path(f"/proc/{status['pid']}/limits").read_text()
            (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
            assert line.split()[4] in told
            assert "Degraded: nofile" in running.supctl("status", "web").stdout


REAL = {"realtime": "io-scheduling-class = 'realtime'", "fifo": "cpu-scheduling-policy = 'fifo'", "nice": "nice = -5"}
STEPS = {
    "realtime": (211, "io-scheduling-class"),
    "fifo": (214, "cpu-scheduling-policy"),
    "nice": (201, "nice"),
    "oom": (206, "oom-score-adjust"),
}


@pytest.mark.parametrize("uid", AS_USER[1:] or AS_USER)
@pytest.mark.skipif(os.geteuid() == 0 and len(AS_USER) < 2, reason="no ordinary user here")
def test_what_an_ordinary_user_may_not_raise(uid: int | None) -> None:
    """Each fails the start with its code, or is left out and told."""
    limits = {**REAL, "oom": "oom-score-adjust = -100"}
    units = {
        f"{name}-{enforce}": program("import signal; signal.pause()", f"{limit}\nenforce = '{enforce}'", user=None)
        for name, limit in limits.items()
        for enforce in ("strict", "best-effort")
    }
    with supervisor(units, uid=uid) as running:
        for name, (code, step) in STEPS.items():
            strict = running.wait_state(f"{name}-strict", "failed", "active")
            assert strict["exit"] == {"code": code, "signal": None}, name
            loose = running.wait_state(f"{name}-best-effort", "failed", "active")
            assert loose["active_state"] == "active", name
            assert [told.partition(":")[0] for told in loose["degraded"]] == [step], name


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has real time to give")
def test_real_time_is_given_and_ends() -> None:
    """Who has a priority may not take a higher one; the hard rttime ends who never lets go."""
    more = "cpu-scheduling-policy = 'fifo'\ncpu-scheduling-priority = 7\n"
    units = {
        "greedy": program(SPIN, f"{more}rttime = 300000", user=None),
        "higher": program(REAL_TIME.replace("PRIORITY", "9"), more, user=NOBODY_S),
    }
    with supervisor(units) as running:
        status = running.wait_state("greedy", "failed")
        assert status["result"] == "signal"
        assert status["exit"]["signal"] in ("SIGKILL", "SIGXCPU")
        assert said(running, "higher") == "refused 1"
        assert running.status("higher")["degraded"] == []
