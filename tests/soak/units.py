"""The units of the soak: every kind of silence, of health check, of timer, and units that fail on purpose."""

import json
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = Path(__file__).with_name("program.py")

DEFAULTS = """\
[service]
restart-sec = "50ms"
restart-max-delay-sec = "1s"
restart-reset-sec = "5s"
[service.environment]
SOAK = "{mark}"
[quarantine]
failures = 0
"""
"""What is killed again and again on purpose is not to be quarantined for it."""

SETTINGS = """\
[pools.few]
max-workers = 2
[[hooks]]
event = "unit.quarantined"
command = ["/bin/sh", "-c", "echo $SUPERVISORD_PY_UNIT >> {folder}/hooked"]
[[hooks]]
event = "unit.watchdog"
command = ["/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"]
timeout = "500ms"
"""

CHECK_OFTEN = 'interval = "1s"\ntimeout = "1s"\nfailure-threshold = 3\n'
STAMP_OLD_S = 3


@dataclass
class Population:
    """Which units there are, by what may be done to them."""

    victims: list[str] = field(default_factory=list)
    """May be stopped, killed and made to hang; they never end by themselves."""
    paused: list[str] = field(default_factory=list)
    """Are paused and resumed; nothing else is done to them."""
    steady: list[str] = field(default_factory=list)
    """Nothing is done to them: one life, from the first to the last moment."""
    workers: list[str] = field(default_factory=list)
    """Take turns in a pool, and end by themselves."""
    loops: list[str] = field(default_factory=list)
    """Fail at once, always, and what is started when they do."""
    timers: list[str] = field(default_factory=list)
    triggered: list[str] = field(default_factory=list)
    """Run when they are triggered, and by no clock that the soak would see."""


def write_units(folder: Path, ledgers: Path, mark: str) -> Population:
    """Write the unit files and the settings."""
    people = Population()
    units = folder / "units"
    (units / "defaults.toml").write_text(DEFAULTS.format(mark=mark))
    (folder / "supervisord.toml").write_text(SETTINGS.format(folder=folder))

    def add(kind: list[str], name: str, words: str, service: str = "", more: str = "", unit: str = "") -> None:
        kind.append(name)
        owner = "%n" if "@" in name else name
        command = [sys.executable, "-S", "-E", str(PROGRAM), str(ledgers), owner, *words.split()]
        unit_table = f"[unit]\n{unit}\n" if unit else ""
        text = f"{unit_table}[service]\nexec-start = {json.dumps(command)}\n{service}\n{more}"
        (units / f"{name}.toml").write_text(text)

    notify = 'type = "notify"\nwatchdog-signal = "SIGKILL"\n'
    add(people.victims, "beat1", "beat", f'{notify}watchdog-sec = "2s"')
    add(people.victims, "beat2", "beat tree", f'{notify}watchdog-sec = "3s"')
    add(people.victims, "work", "work", f'{notify}progress-sec = "3s"')
    add(people.victims, "both", "beat work", f'{notify}watchdog-sec = "2s"\nprogress-sec = "4s"')
    port, http_port = _free_port(), _free_port()
    http = f'http = "http://127.0.0.1:{http_port}/"\n{CHECK_OFTEN}'
    add(
        people.victims, "http", f"port={http_port}", "",
        f'[health.up]\nkind = "readiness"\n{http}[health.alive]\nkind = "liveness"\n{http}',
    )  # fmt: skip
    add(people.victims, "tcp", f"port={port}", "", _liveness(f'tcp = "127.0.0.1:{port}"'))
    add(people.victims, "unix", f"unix={folder}/served", "", _liveness(f'unix = "{folder}/served"'))
    script = (
        f"read then < {folder}/stamp; read now rest < /proc/uptime; sleep 1000 & "
        f"test $((${{now%%.*}} - then)) -le {STAMP_OLD_S}"
    )
    exec_check = "exec = " + json.dumps(["/bin/sh", "-c", script.replace("%", "%%")])
    startup = f'[health.there]\nkind = "startup"\nfile = "{folder}/stamp"\ninterval = "200ms"\n'
    add(
        people.victims,
        "exec",
        f"stamp={folder}/stamp beat",
        f'{notify}watchdog-sec = "5s"',
        startup + _liveness(exec_check),
    )
    line = '[health.up]\nkind = "startup"\nlog = "up and running"\ninterval = "200ms"\n'
    add(people.victims, "log", "say beat", 'notify-access = "main"\nwatchdog-sec = "2s"', line)
    add(people.paused, "pause1", "beat tree", f'{notify}watchdog-sec = "2s"')
    add(people.paused, "pause2", f"unix={folder}/paused", "", _liveness(f'unix = "{folder}/paused"'))
    add(people.steady, "steady1", "beat work", f'{notify}watchdog-sec = "2s"\nprogress-sec = "2s"')
    add(people.steady, "steady2", "beat", f'{notify}watchdog-sec = "1s"', unit='wants = ["http", "broken"]')
    pool = '[pool]\nname = "few"\n[instances]\ncount = 4\n'
    add(people.workers, "worker@", "exit=0 about=4", 'restart = "always"', pool)
    loop = 'restart = "always"'
    add(
        people.loops, "broken", "exit=7 after=0.1", loop,
        '[quarantine]\nfailures = 3\nretry-after = "20s"\nstub = ["sleep", "1000"]\non-quarantine = ["mended"]\n',
    )  # fmt: skip
    add(people.loops, "hopeless", "exit=8 after=0.1", loop, "[quarantine]\nfailures = 2\n")
    once = 'type = "oneshot"'
    add(people.loops, "mended", "exit=0 after=0", once, unit="enabled = false")
    add(people.timers, "tick", "exit=0 after=0", once, '[timer]\nevery = "3s"\n')
    add(people.timers, "tock", "exit=0 after=1", once, '[timer]\nevery = "2s"\nfrom = "end"\n')
    add(people.timers, "clock", "exit=0 about=1", once, '[timer]\non-calendar = "*:*:0/5"\naccuracy-sec = "1us"\n')
    add(
        people.timers,
        "long",
        "exit=0 after=7",
        once,
        '[timer]\non-calendar = "*:*:0/5"\naccuracy-sec = "1us"\noverrun = "queue"\n',
    )
    add(people.triggered, "night", "exit=0 about=1", once, '[timer]\non-calendar = "2100-01-01"\n')
    return people


def _liveness(check: str) -> str:
    return f'[health.alive]\nkind = "liveness"\n{check}\n{CHECK_OFTEN}'


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
