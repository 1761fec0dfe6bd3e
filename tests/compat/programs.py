"""The programs of the rows, acted: a small reader of the shell and Python texts that their units hold.

Each is a generator of steps; the stage carries them out in virtual time. A text that cannot be read is an error, so
that no row passes because its program did nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from supervisord_py.model.values import parse_signal

SECOND_NS = 1_000_000_000


class Sleep(Struct, frozen=True):
    duration_ns: int


class Exit(Struct, frozen=True):
    code: int


class KillSelf(Struct, frozen=True):
    signal: int


class KillMain(Struct, frozen=True):
    """``kill -INT $MAINPID``."""

    signal: int


class Fork(Struct, frozen=True):
    """Make a process that runs ``program``; the variable of that name of both holds what fork returns."""

    program: "Program"
    name: str = ""


class Notify(Struct, frozen=True):
    fields: dict[str, str]
    main_is_fork: bool = False
    """``MAINPID`` is the process that was forked last."""


class Append(Struct, frozen=True):
    """Append a line to a file; ``@time`` is the time in seconds."""

    path: str
    line: str


class WritePid(Struct, frozen=True):
    """Write the pid of the process that was forked last."""

    path: str


class WaitFor(Struct, frozen=True):
    """Wait until the file is there."""

    path: str


class Handle(Struct, frozen=True):
    """Log signals from now on; those in ``ignored`` end nothing, the others end the process with 0."""

    role: str
    log: str
    ignored: frozenset[int]


Step = Sleep | Exit | KillSelf | KillMain | Fork | Notify | Append | WritePid | WaitFor | Handle
Program = Iterator[Step]
FOREVER_NS = 10**15

MATRIX_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGCONT")


def program(argv: Sequence[str], environment: Mapping[str, str]) -> Program:
    """Return what a command does.

    Raises:
        ValueError: The command cannot be acted here.
    """
    match list(argv):
        case ["/bin/true"]:
            return iter((Exit(0),))
        case ["/bin/false"]:
            return iter((Exit(1),))
        case ["/bin/sleep", seconds]:
            return iter((Sleep(int(float(seconds) * SECOND_NS)), Exit(0)))
        case ["/bin/sh", "-c", text]:
            return _shell(text, environment)
        case ["/usr/bin/python3", "-c", text]:
            return _python(text)
        case ["/usr/bin/python3", path, "stop-matrix", log, mine, theirs]:
            assert path.endswith("stop_matrix.py")
            return _stop_matrix(log, mine, theirs)
    raise ValueError(f"no actor for {argv}")


def _shell(text: str, environment: Mapping[str, str]) -> Program:
    for pattern, act in (
        (r"exit (\d+)", lambda found: (Exit(int(found[1])),)),
        (r"kill -(\w+) \$\$", lambda found: (KillSelf(parse_signal(f"SIG{found[1]}")),)),
        (r"kill -(\w+) \$MAINPID", lambda found: (KillMain(parse_signal(f"SIG{found[1]}")), Exit(0))),
        (r"sleep 50 &", lambda found: (Fork(_sleeper()), Exit(0))),
        (r"sleep 50 & echo \$! > (\S+)", lambda found: (Fork(_sleeper()), WritePid(found[1]), Exit(0))),
        (r"date \+%s\.%N >> (\S+)", lambda found: (Append(found[1], "@time"), Exit(0))),
        (r"echo ([^>]*?) ?>> ?(\S+)", lambda found: (Append(found[2], _variables(found[1], environment)), Exit(0))),
        (r"\[ -e (\S+) \] \|\| read _ < \S+; exit (\d+)", lambda found: (WaitFor(found[1]), Exit(int(found[2])))),
        (r"env > (\S+)", lambda found: (Append(found[1], "env"), Exit(0))),
        (r"env > (\S+); exit (\d+)", lambda found: (Append(found[1], "env"), Exit(int(found[2])))),
    ):
        if found := re.fullmatch(pattern, text):
            return iter(act(found))
    raise ValueError(f"no actor for the shell text {text!r}")


def _sleeper() -> Program:
    return iter((Sleep(50 * SECOND_NS), Exit(0)))


def _variables(text: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda found: environment.get(found[1], ""), text)


_PREAMBLE = "f=lambda m:s.sendto(m.encode(),a);"


def _python(text: str) -> Program:
    _, found, script = text.partition(_PREAMBLE)
    if not found:
        raise ValueError(f"no actor for the Python text {text!r}")
    return _statements(script.split(";"), forked=None)


def _statements(statements: Sequence[str], forked: bool | None) -> Program:
    """``forked`` is whether this is the child of the fork that has been, None before it."""
    for index, statement in enumerate(statements):
        condition, conjunction, action = statement.partition(" and ")
        if not conjunction:
            action = statement
        elif condition not in ("p", "p==0"):
            raise ValueError(f"no actor for {statement!r}")
        elif (condition == "p") is forked:
            continue
        if action == "p=os.fork()":
            yield Fork(_statements(statements[index + 1 :], forked=True))
            forked = False
        elif slept := re.fullmatch(r"time\.sleep\(([\d.]+)\)", action):
            yield Sleep(int(float(slept[1]) * SECOND_NS))
        elif ended := re.fullmatch(r"(?:os\._)?exit\((\d+)\)", action):
            yield Exit(int(ended[1]))
        elif said := re.fullmatch(r"f\('([^']*)'(%p)?\)", action):
            lines = said[1].replace("\\n", "\n").split("\n")
            fields = dict(line.split("=", 1) for line in lines if line)
            yield Notify(fields, main_is_fork=said[2] is not None)
        else:
            raise ValueError(f"no actor for {action!r}")
    yield Exit(0)


def _stop_matrix(log: str, mine: str, theirs: str) -> Program:
    """A main process, its child, and a grandchild in a session of its own (``stop_matrix.py``)."""

    def one(role: str, ignored: str, made: Program | None) -> Program:
        numbers = frozenset(parse_signal(name) for name in ignored.split(",") if name != "-")
        yield Handle(role, log, numbers)
        if made is not None:
            yield Fork(made)
        yield Append(log, f"{role} up")
        yield Sleep(FOREVER_NS)

    return one("main", mine, one("child", theirs, one("grandchild", theirs, None)))
