"""Each row as a play: the units it needs, what is done to them, what systemd saw and what is seen here.

The same play is acted in the simulated world and with real processes. There paths lie in a folder of the test and
time-outs that are to run out are short; ``Setting`` says so.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from supervisord_py.model.unitset import LoadResult
from tests.compat.rows import REFUSED, Matrix, Row, differences
from tests.compat.theatre import Seen, Theatre

STOP_MATRIX = Path(__file__).parent / "stop_matrix.py"
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Setting:
    """Where a play is acted: names and paths of its own, and how long what runs out takes."""

    prefix: str = ""
    folder: str = "/run"
    short_s: float | None = None
    python: str = "/usr/bin/python3"

    def name(self, unit: str) -> str:
        return self.prefix + unit

    def path(self, name: str) -> str:
        return f"{self.folder}/{self.prefix}{name}"

    def place(self, text: str) -> str:
        """Move what lies in /run, and use the Python that is there."""
        moved = text.replace("/run/", f"{self.folder}/{self.prefix}")
        return moved.replace("/usr/bin/python3", self.python)

    def runs_out(self, seconds: float, *, share: float = 1.0) -> str:
        """How long a time-out is that has to run out; with a ``share`` where nothing happens before."""
        return str(seconds) if self.short_s is None else f"{round(self.short_s * share * 1000)}ms"


@dataclass(frozen=True)
class Play:
    """``texts`` are unit files of systemd by name; ``act`` does what the row does and ``look`` what it saw."""

    row: Row
    texts: dict[str, str]
    wanted: dict[str, Any]
    act: Callable[[Theatre], None]
    look: Callable[[Theatre], dict[str, Any]]

    def perform(self, theatre: Theatre, loaded: LoadResult) -> dict[str, Any]:
        """Act it; returns what was seen. A unit that is refused at load is all that there is to see."""
        if any(name not in loaded.unit_set.units for name in self.texts):
            return REFUSED
        self.act(theatre)
        listed = differences().get(self.row.id)
        expected = self.wanted | (listed.ours if listed is not None else {})

        seen: list[dict[str, Any]] = [{}]

        def is_there() -> bool:
            seen[0] = self.look(theatre)
            return seen[0] == expected

        theatre.settle(is_there)
        # What is upheld is tried again and again: a second look might come in the middle of that.
        return seen[0] if seen[0] == expected else self.look(theatre)


def play(row: Row, setting: Setting) -> Play:
    """Return the play of a row."""
    match row.matrix:
        case Matrix.RESTART:
            return _restart(row, setting)
        case Matrix.DEPENDENCY:
            return _dependency(row, setting)
        case Matrix.STOP:
            return _stop(row, setting)
        case Matrix.TYPES:
            return _types(row, setting)
        case Matrix.PHASES:
            return _phases(row, setting)
        case Matrix.TIMERS:
            return _timers(row, setting)
        case Matrix.CLI | Matrix.SETTINGS | Matrix.SOCKETS:
            raise AssertionError(f"{row.id} is no play of this kind")


# which exits are restarted

_SLEEP = "ExecStart=/bin/sleep 50\n"


def _shell(command: str) -> str:
    return f'ExecStart=/bin/sh -c "{command}"\n'


def _dies_of(signal: str) -> str:
    return _shell(f"kill -{signal} $$$$") + "LimitCORE=0\n"


_CAUSES: dict[str, str] = {
    "exit 1": _shell("exit 1"),
    "exit 0 with RestartForceExitStatus=0": _shell("exit 0") + "RestartForceExitStatus=0\n",
    "SIGHUP": _dies_of("HUP"),
    "SIGTERM": _dies_of("TERM"),
    "SIGPIPE (IgnoreSIGPIPE=no)": _dies_of("PIPE") + "IgnoreSIGPIPE=no\n",
    "SIGKILL": _dies_of("KILL"),
    "SIGABRT": _dies_of("ABRT"),
    "SIGSEGV": _dies_of("SEGV"),
    "RuntimeMaxSec reached": _SLEEP + "RuntimeMaxSec=@1\n",
    "ExecCondition exit 255": 'ExecCondition=/bin/sh -c "exit 255"\n' + _SLEEP,
    "exec failure (no such file)": "ExecStart=/nonexistent\n",
    "bad user": "User=nosuch\n" + _SLEEP,
    "oneshot exit 1": "Type=oneshot\n" + _shell("exit 1"),
    "oneshot exit 0": "Type=oneshot\n" + _shell("exit 0"),
    "systemctl stop": _SLEEP,
    "systemctl kill -s TERM": _SLEEP,
}


def _restart(row: Row, setting: Setting) -> Play:
    cause, policy = row.data["cause"], row.data["policy"]
    unit = setting.name("web")
    text = _CAUSES[cause].replace("@1", setting.runs_out(1, share=0.3))
    wanted: dict[str, Any] = {"restarted": row.data["restarted"]}
    if cause.startswith("oneshot") and policy in ("always", "on-success"):
        wanted = REFUSED
    elif not row.data["restarted"]:
        wanted |= {"state": row.data["state"], "result": row.data["result"]}

    def act(theatre: Theatre) -> None:
        theatre.ask("start", unit)
        if cause == "systemctl stop":
            theatre.ask("stop", unit)
        elif cause == "systemctl kill -s TERM":
            theatre.kill(unit, "SIGTERM")

    def look(theatre: Theatre) -> dict[str, Any]:
        seen = theatre.look(unit)
        restarted = seen.state == "activating/auto-restart"
        return {"restarted": restarted} | ({} if restarted else {"state": seen.state, "result": seen.result})

    return Play(row, {unit: f"{text}Restart={policy}\nRestartSec=300\n"}, wanted, act, look)


# what happens to others


def _dependency(row: Row, setting: Setting) -> Play:
    event, relation = row.data["event"], row.data["relation"]
    a, b = setting.name("A"), setting.name("B")
    flag = setting.path("flag")
    texts = {a: _SLEEP, b: _SLEEP}
    if event == "start B, A fails to start":
        texts[a] = "Type=oneshot\nExecStart=/bin/false\n"
    elif event == "start B, A unit missing":
        del texts[a]
    elif code := re.fullmatch(r"A exits (\d) while both run", event):
        # Once it has been told to end, each new life of it ends at once.
        texts[a] = _shell(f"[ -e {flag} ] || read _ < {flag}.fifo; exit {code[1]}")
    elif event == "A killed, A Restart=always":
        texts[a] += "Restart=always\n"
    elif event == "A condition fails on start of B":
        texts[a] += "ConditionPathExists=/nonexistent/there\n"
    if relation.startswith("A has "):
        directive = relation.removeprefix("A has ").removesuffix("=B")
        if a in texts:
            texts[a] += f"{directive}={b}.service\n"
    elif relation != "none":
        texts[b] += f"{relation}={a}.service\n"
    if row.data["after"]:
        texts[b] += f"After={a}.service\n"
    before: dict[str, Seen] = {}
    answer: list[int | None] = [None]

    def act(theatre: Theatre) -> None:
        for name, unit in (("A", a), ("B", b)):
            if row.data["before"][name] == "active":
                theatre.ask("start", unit)
        for name, unit in (("A", a), ("B", b)):
            before[unit] = theatre.look(unit)
            assert before[unit].active == row.data["before"][name], f"{name} is not as the row begins"
        if event.startswith("A exits"):
            theatre.touch(flag)
        elif event.startswith("A killed"):
            theatre.murder(a, "SIGKILL")
        elif event.startswith("start B") or event.endswith("on start of B"):
            answer[0] = theatre.ask("start", b)
        else:
            words = {"started": "start", "stopped": "stop", "restarted": "restart"}
            unit, word = event.split()[:2]
            answer[0] = theatre.ask(words[word], a if unit == "A" else b)

    def look(theatre: Theatre) -> dict[str, Any]:
        found: dict[str, Any] = {"rc": _word(answer[0])}
        for name, unit in (("A", a), ("B", b)):
            now, old = theatre.look(unit), before[unit].pid
            found[name] = now.active
            found[f"{name}_new_pid"] = old is not None and now.pid is not None and now.pid != old
        return found

    wanted = {key: row.data[key] for key in ("A", "B", "A_new_pid", "B_new_pid")}
    return Play(row, texts, wanted | {"rc": _word(row.data["rc"])}, act, look)


def _word(code: int | None) -> str | None:
    """Whether a command did it; which code says what is the contract's (see the rows of the exit codes)."""
    return None if code is None else FAILED if code else DONE


# how a unit is stopped


def _stop(row: Row, setting: Setting) -> Play:
    unit, log = setting.name("tree"), setting.path("log")
    data = row.data
    text = (
        f"ExecStart={setting.python} {STOP_MATRIX} stop-matrix {log} {data['main_ignores']} {data['children_ignore']}\n"
        f"{data['settings'].replace('LOG', log)}\n"
    )
    code, number = data["main_exit"].split(":")
    if "TimeoutStopSec" not in data["settings"]:
        runs_out = data["result"] == "timeout" or code == "2"
        text += f"TimeoutStopSec={setting.runs_out(2) if runs_out else 30}\n"
    wanted = {
        "signals": data["signals"],
        "post": data["post"],
        "alive": sorted(data["alive_after_stop"]),
        "rc": _word(data["stop_rc"]),
        "state": data["state"],
        "result": data["result"],
        "main_exit": {"0": "", "1": f"exited:{number}", "2": f"killed:{number}"}[code],
    }
    is_heard = data["sigcont"] and (setting.short_s is None or data["main_ignores"] != "-")
    if is_heard:
        # Where it is false the process was gone before it could say so; that is a race among real processes.
        wanted["sigcont"] = True
    both = "SendSIGHUP" in data["settings"]
    if both:
        wanted["signals"] = [_first_of_two(line) for line in wanted["signals"]]
    answer: list[int | None] = [None]

    def act(theatre: Theatre) -> None:
        theatre.ask("start", unit)
        theatre.settle(lambda: sum(" up" in line for line in theatre.lines(log)) == 3, seconds=1)
        answer[0] = theatre.ask("stop", unit)

    def look(theatre: Theatre) -> dict[str, Any]:
        lines = [line for line in theatre.lines(log) if " up" not in line]
        heard = [line for line in lines if not line.startswith("post") and "SIGCONT" not in line]
        seen = theatre.look(unit)
        found: dict[str, Any] = {
            "signals": sorted(map(_first_of_two, heard) if both else heard),
            "post": [line for line in lines if line.startswith("post")],
            "alive": theatre.alive(unit, log),
            "rc": _word(answer[0]),
            "state": seen.state,
            "result": seen.result,
            "main_exit": seen.main_exit,
        }
        if is_heard:
            found["sigcont"] = any("SIGCONT" in line for line in lines)
        return found

    return Play(row, {unit: text}, wanted, act, look)


def _first_of_two(line: str) -> str:
    """With SendSIGHUP= both signals are sent at once, and a process ends of the one that it gets first."""
    return re.sub(r"SIGTERM|SIGHUP", "SIGTERM or SIGHUP", line)


# what a process is told

TOLD = (
    "INVOCATION_ID", "MAINPID", "SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS", "MONITOR_SERVICE_RESULT",
    "MONITOR_EXIT_CODE", "MONITOR_EXIT_STATUS", "MONITOR_INVOCATION_ID", "MONITOR_UNIT",
)  # fmt: skip
"""Variables that depend on the phase."""


def _phases(row: Row, setting: Setting) -> Play:
    phase = row.id.partition("/")[2]
    unit, handler = setting.name("envph"), setting.name("handler")
    file = setting.path("env")
    dumps = f'=/bin/sh -c "env > {file}"\n'
    texts = {unit: _SLEEP}
    match phase:
        case "OnFailure":
            texts = {
                unit: _shell("exit 3") + f"OnFailure={handler}.service\n",
                handler: f"Type=oneshot\nExecStart{dumps}",
            }
        case "ExecStopPost-after-exit3":
            texts = {unit: _shell("exit 3") + f"ExecStopPost{dumps}"}
        case "ExecStopPost-after-SIGKILL":
            texts[unit] += f"ExecStopPost{dumps}"
        case _:
            texts[unit] += f"{phase}{dumps}"
    wanted = {name: value for name, value in row.data.items() if name in TOLD}
    if "MONITOR_UNIT" in wanted:
        wanted["MONITOR_UNIT"] = unit

    def act(theatre: Theatre) -> None:
        theatre.ask("start", unit)
        if phase == "ExecReload":
            theatre.ask("reload", unit)
        elif phase.endswith("SIGKILL"):
            theatre.murder(unit, "SIGKILL")
        elif phase in ("ExecStop", "ExecStopPost"):
            theatre.ask("stop", unit)

    def look(theatre: Theatre) -> dict[str, Any]:
        variables = dict(line.split("=", 1) for line in theatre.lines(file) if "=" in line)
        return {name: _shape(name, value) for name, value in variables.items() if name in TOLD}

    return Play(row, texts, wanted, act, look)


def _shape(name: str, value: str) -> str:
    """A value as the rows show it, where it differs each time."""
    if name.endswith("INVOCATION_ID"):
        return "<32 hex>" if re.fullmatch("[0-9a-f]{32}", value) else value
    return "<pid>" if name == "MAINPID" and value.isdecimal() else value


# service types

_OWN_TEXTS = {
    "assert false": "AssertPathExists=/nonexistent/there\nExecStart=/bin/sleep 50\n",
    "start limit burst 3 in 60s": (
        "StartLimitBurst=3\nStartLimitIntervalSec=60\nRestart=always\n" + _shell("echo x >> /run/sl2")
    ),
    "template instance with path escape": _shell("echo i=%%i I=%%I f=%%f n=%%n N=%%N p=%%p > /run/ty"),
}
_FILES = {
    "start limit (Restart=always, 100ms)": "sl1",
    "start limit burst 3 in 60s": "sl2",
    "RestartSec=1 timing": "rs1",
    "oneshot 3 commands, 2nd fails": "o3",
    "oneshot 3 commands, 2nd fails with -": "o4",
}
TEMPLATE = "template instance with path escape"


def _types(row: Row, setting: Setting) -> Play:
    name = row.id.partition("/")[2]
    unit = setting.name("ty@a-b\\x2fc" if name == TEMPLATE else "web")
    data = row.data
    text = setting.place((data["service"] or _OWN_TEXTS[name]) + "\n")
    runs_out = data["result"] == "timeout"
    text = re.sub(
        r"(TimeoutStartSec|RuntimeMaxSec)=(\d+)",
        lambda found: f"{found[1]}={setting.runs_out(float(found[2]), share=0.5) if runs_out else 30}",
        text,
    )
    wanted = {
        "rc": _word(data["start_rc"]),
        "active": data["active"],
        "sub": data["sub"],
        "result": data["result"],
        "main_exit": data["main_exit"],
        "alive": data["main_pid_alive"],
        "restarts": data["nrestarts"],
        "status_text": data["status_text"],
    }
    path = setting.place(f"/run/{_FILES[name]}") if name in _FILES else None
    if "side_effect" in data and name != TEMPLATE:
        wanted["lines"] = data["side_effect"].split()
    if "starts" in data:
        wanted["starts"] = data["starts"]
    if "gaps_s" in data:
        wanted["gaps"] = [1] * len(data["gaps_s"])
    answer: list[int | None] = [None]

    def act(theatre: Theatre) -> None:
        answer[0] = theatre.ask("start", unit)

    def look(theatre: Theatre) -> dict[str, Any]:
        seen = theatre.look(unit)
        lines = theatre.lines(path) if path is not None else []
        found: dict[str, Any] = {
            "rc": _word(answer[0]),
            "active": seen.active,
            "sub": seen.sub,
            "result": seen.result,
            "main_exit": seen.main_exit,
            "alive": seen.pid is not None,
            "restarts": seen.restarts,
            "status_text": seen.status_text,
        }
        if "lines" in wanted:
            found["lines"] = lines
        if "starts" in wanted:
            found["starts"] = len(lines)
        if "gaps" in wanted:
            times = [float(line) for line in lines]
            # systemd was late by up to half a second; early it never was.
            found["gaps"] = [int(after - before) for before, after in pairwise(times)]
        return found

    return Play(row, {unit: text}, wanted, act, look)


# timers

_RUN_S = {
    "OnActiveSec=1 OnUnitInactiveSec=1 (service runs 1s)": "1",
    "OnActiveSec=1, service slower than period": "2.5",
}
_ELAPSED = "active/elapsed"


def _timers(row: Row, setting: Setting) -> Play:
    """A timer and its service are one unit here: an elapsed timer, which systemd goes on calling active, leaves the
    unit as its service is, at rest. RemainAfterElapse=no is therefore how it always is.
    """
    unit, clock = setting.name("job"), setting.name("began")
    fires, began = setting.path("fires"), setting.path("began")
    timer = "\n".join(line for line in row.data["timer"].splitlines() if line != "RemainAfterElapse=no")
    text = f'Type=oneshot\nExecStart=/bin/sh -c "date +%%s.%%N >> {fires}"\n{timer}\nAccuracySec=1us\n'
    if (runs_s := _RUN_S.get(row.id.partition("/")[2])) is not None:
        text += f"ExecStart=/bin/sleep {runs_s}\n"
    texts = {unit: text, clock: f'Type=oneshot\nExecStart=/bin/sh -c "date +%%s.%%N >> {began}"\n'}
    fired_s, state = row.data["fired_after_s"], "/".join(row.data["timer_state"].values())
    wanted: dict[str, Any] = {"state": "inactive/dead" if state == _ELAPSED else state, "count": row.data["count"]}
    if state == "active/running":
        # What ran there was the service, a oneshot, which is activating.
        wanted["state"] = "activating/start"
    if fired_s is None:
        wanted["gaps"] = [round(gap) for gap in row.data["gaps_s"]]
        watched_s = sum(row.data["gaps_s"]) + 2
    else:
        wanted["fired"] = [int(at_s) for at_s in fired_s]
        # A run was over when it was said to wait.
        watched_s = max(fired_s, default=4) + 0.4 + (float(runs_s or 0) if state == "active/waiting" else 0)

    seen: dict[str, Any] = {}

    def act(theatre: Theatre) -> None:
        theatre.ask("start", clock)
        theatre.ask("start", unit)
        theatre.settle(seconds=watched_s)
        seen.update(watch(theatre))

    def watch(theatre: Theatre) -> dict[str, Any]:
        times = [float(line) for line in theatre.lines(fires)]
        begin_s = float(theatre.lines(began)[0])
        found: dict[str, Any] = {"state": theatre.look(unit).state, "count": len(times)}
        if "gaps" in wanted:
            return found | {"gaps": [round(after - before) for before, after in pairwise(times)]}
        return found | {"fired": [int(at_s - begin_s) for at_s in times]}

    # What comes after systemd was watched is no part of the row.
    return Play(row, texts, wanted, act, lambda theatre: dict(seen))
