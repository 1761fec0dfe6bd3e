"""Kill the manager at random moments while fifty units start, stop, notify and crash; then hold the ledger against
the journal.

Every process of the chaos writes what it did into its unit's ledger with its own hands (start, ready, exit), under a
lock that a second copy of the unit could not take. Afterwards the ledger is the truth that journal and supervisor are
compared with:

* no two copies of a unit ever lived at once, and no stable unit was restarted;
* every life has exactly one ``unit.exited``, with the pid and the status of the ledger;
* every READY that a process sent is a ``unit.ready`` of its invocation (unless it was being stopped);
* every command that was acknowledged is in the journal, the chain verifies, and no client call failed.
"""

import json
import random
import sys
import textwrap
from collections import Counter
from pathlib import Path

SHELL_HEAD = """\
exec 9>>$DIR/$UNIT.lock
flock -n 9 || echo "double $$" >>$DIR/$UNIT.ledger
echo "start $$ $INVOCATION_ID" >>$DIR/$UNIT.ledger
"""

STABLE = SHELL_HEAD + "exec sleep 100000\n"

CRASHER = SHELL_HEAD + 'sleep "$1" 9>&-\necho "exit $$ 3" >>$DIR/$UNIT.ledger\nexit 3\n'

ONESHOT = SHELL_HEAD + 'sleep 0.05 9>&-\necho "exit $$ 0" >>$DIR/$UNIT.ledger\n'

NOTIFIER = """\
import fcntl, os, random, select, socket, sys, time
folder, unit = os.environ["DIR"], os.environ["UNIT"]
lock = open(f"{folder}/{unit}.lock", "a")
def say(text):
    fd = os.open(f"{folder}/{unit}.ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, text.encode() + b"\\n")
    os.close(fd)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    say(f"double {os.getpid()}")
me, life = os.getpid(), os.environ["INVOCATION_ID"]
say(f"start {me} {life}")
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
sock.send(b"READY=1")
say(f"ready {me} {life}")
end = time.monotonic() + random.uniform(0, 6)
count = 0
while time.monotonic() < end:
    count += 1
    sock.send(b"STATUS=beat %d\\nX_OK=1" % count)
    select.select([], [], [], 0.3)
code = random.choice([0, 1, 7])
say(f"exit {me} {code}")
os._exit(code)
"""


def write_units(folder: Path, ledgers: Path, random_: random.Random) -> dict[str, str]:
    """Write fifty units into ``folder`` and return their kinds by name."""
    kinds: dict[str, str] = {}
    scripts = {"stable": STABLE, "crasher": CRASHER, "oneshot": ONESHOT, "toggled": STABLE}
    for kind, text in scripts.items():
        (ledgers / f"{kind}.sh").write_text(text)
    (ledgers / "notifier.py").write_text(NOTIFIER)
    for kind, count in (("stable", 15), ("crasher", 12), ("notifier", 8), ("oneshot", 5), ("toggled", 10)):
        for number in range(1, count + 1):
            name = f"{kind}{number}"
            kinds[name] = kind
            seconds = f"{random_.uniform(0.1, 3):.2f}"
            command = (
                ["/usr/bin/python3", "-S", str(ledgers / "notifier.py")]
                if kind == "notifier"
                else ["/bin/sh", str(ledgers / f"{kind}.sh"), seconds]
            )
            unit_type = {"notifier": "notify", "oneshot": "oneshot"}.get(kind, "simple")
            restart = {"crasher": "always", "notifier": "always", "oneshot": "no"}.get(kind, "on-failure")
            after = f'wants = ["oneshot{number}"]' if kind == "toggled" and number <= 5 else ""
            (folder / f"{name}.toml").write_text(
                textwrap.dedent(f"""\
                [unit]
                {after}
                [service]
                type = "{unit_type}"
                exec-start = {json.dumps(command)}
                restart = "{restart}"
                restart-sec = "50ms"
                restart-max-delay-sec = "200ms"
                [service.environment]
                DIR = "{ledgers}"
                UNIT = "{name}"
                [quarantine]
                failures = 0
                """)
            )
    return kinds


def read_ledger(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def compare(
    ledgers: Path, kinds: dict[str, str], records: list[dict[str, object]], acknowledged: list[str]
) -> list[str]:
    """Hold the ledgers against the journal; return everything that is wrong, in words."""
    wrong: list[str] = []
    exits: dict[tuple[str, str], list[dict[str, object]]] = {}
    ready: Counter[tuple[str, str]] = Counter()
    stopped: set[tuple[str, str]] = set()
    for record in records:
        life = str(record["unit"]), str(record["invocation"])
        if record["event"] == "unit.exited" and isinstance(record["pid"], int):
            exits.setdefault(life, []).append(record)
        elif record["event"] == "unit.ready":
            ready[life] += 1
        elif record["event"] == "unit.stopping":
            stopped.add(life)
    # One that was killed before it could write a line has an end all the same, and only one.
    wrong += [f"{life}: {len(found)} exits of one life" for life, found in exits.items() if len(found) > 1]
    for name, kind in kinds.items():
        lines = read_ledger(ledgers / f"{name}.ledger")
        starts = [line for line in lines if line[0] == "start"]
        wrong += [f"{name}: a second copy lived: {line}" for line in lines if line[0] == "double"]
        if kind == "stable" and len(starts) != 1:
            wrong.append(f"{name}: a stable unit was started {len(starts)} times")
        # A pid may come round again in a long run: whose a line is, the start before it says.
        invocation_of: dict[str, str] = {}
        for line in lines:
            if line[0] == "start":
                invocation_of[line[1]] = line[2]
            life = name, invocation_of[line[1]]
            told = exits.get(life, [])
            if line[0] == "start" and [str(each["pid"]) for each in told] != [line[1]]:
                wrong.append(f"{life}: its process {line[1]} has the exits {told}")
            if line[0] == "exit" and told and told[0].get("code") != int(line[2]) and told[0].get("signal") is None:
                wrong.append(f"{life}: pid {line[1]} exited {line[2]}, the journal says {told[0].get('code')}")
            # A READY that comes when the stop at the end is decided makes nothing ready any more.
            counts = (0, 1) if life in stopped else (1,)
            if line[0] == "ready" and ready[life] not in counts:
                wrong.append(f"{life}: its READY has {ready[life]} unit.ready records")
    reasons = Counter(str(record.get("reason")) for record in records if record["event"] == "command")
    wrong += [f"acknowledged command {reason} is not in the journal" for reason in acknowledged if not reasons[reason]]
    numbers = [record["seq"] for record in records if record["seq"] is not None]
    if numbers != list(range(1, len(numbers) + 1)):
        wrong.append("the numbers of the journal have a hole or a double")
    return wrong


if __name__ == "__main__":
    sys.exit("run by tests/faults/test_manager_deaths.py")
