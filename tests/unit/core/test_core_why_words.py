"""Every answer to *why*, word for word: ``why_words.txt`` is reviewed like a golden script.

Each line that begins with ``#`` is a unit's state and what ``status`` says of it; below are the lines of ``why``: kind,
message, the unit it points at, the record that tells more, the advice.
"""

from pathlib import Path
from typing import Any

from core_rig import Rig, needs, notify, service

from supervisord_py.core import view
from supervisord_py.core.events import Origin
from supervisord_py.model.records import UNNUMBERED
from supervisord_py.model.states import Restart, ServiceType
from supervisord_py.model.unit import (
    SECOND_NS,
    BadUnit,
    Condition,
    Dependency,
    KillPolicy,
    RestartPolicy,
    Unit,
    UnitSet,
)

WORDS = Path(__file__).with_name("why_words.txt")
NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)
ROOT = Origin(0, 0, 9, "root")
CRON = Origin(pid=4, unit="cron")


class Told:
    """What is answered, in the order in which it is asked."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def of(self, rig: Rig, name: str = "web") -> None:
        self.lines.append(f"# {name} {rig.shown(name)} | {rig.status(name).why or '-'}")
        numbered = [record for record in rig.records if record.event not in UNNUMBERED]
        for line in view.why(rig.manager, name):
            record = None if line.seq is None else numbered[line.seq - 1]
            known = "-" if record is None else f"{record.event} {record.unit}"
            words = (line.kind, line.message, line.unit or "-", known, line.advice or "-")
            self.lines.append(f"    {' | '.join(words)}")


def web(relations: dict[str, Any] | None = None, **keys: Any) -> Unit:
    return notify("web", relations=relations, **{"restart": NEVER, **keys})


def orders(told: Told) -> None:
    rig = Rig(web())
    told.of(rig)
    rig.ask("start", "web", wait=False, origin=ROOT, reason="demo")
    told.of(rig)
    rig.up("web")
    told.of(rig)
    rig.ask("restart", "web", wait=False, origin=CRON)
    told.of(rig)
    rig.exited("web", signal=15)
    rig.up("web")
    told.of(rig)
    rig.ask("stop", "web", wait=False, origin=ROOT, reason="work")
    told.of(rig)
    rig.exited("web", signal=15)
    told.of(rig)


def ends(told: Told) -> None:
    rig = Rig(web())
    rig.ask("start", "web", wait=False)
    rig.up("web")
    told.of(rig)
    rig.exited("web", 0)
    told.of(rig)
    rig.ask("start", "web", wait=False)
    rig.up("web")
    rig.exited("web", 5, empty=False)
    told.of(rig)
    rig.emptied("web")
    told.of(rig)


def restarts(told: Told) -> None:
    rig = Rig(web(restart=RestartPolicy(delay_ns=SECOND_NS, jitter=0.0, failures=2)))
    rig.ask("start", "web")
    rig.up("web")
    rig.later(3)
    rig.crash("web", 4)
    told.of(rig)
    rig.later(1)
    rig.up("web")
    told.of(rig)
    rig.exited("web", signal=11)
    told.of(rig)


def waits(told: Told) -> None:
    rig = Rig(service("web", type=ServiceType.IDLE), notify("db"))
    rig.ask("start", "db", "web", wait=False)
    told.of(rig)
    told.of(rig, "db")
    rig = Rig(service("web", type=ServiceType.FORKING, pid_file="/run/web.pid", restart=NEVER))
    rig.ask("start", "web", wait=False)
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    told.of(rig)
    rig = Rig(web(kill=KillPolicy(send_sigkill=False), timeout_stop_ns=SECOND_NS))
    rig.ask("start", "web")
    rig.up("web")
    rig.ask("stop", "web")
    rig.later(2)
    told.of(rig)
    rig = Rig(web({"conditions": (Condition("path-exists", "/x"),)}))
    rig.ask("start", "web", wait=False)
    told.of(rig)
    rig.checked("web", condition='condition-path-exists = "/x"')
    told.of(rig)


def others(told: Told) -> None:
    relations = {**needs("db"), "requisite": (Dependency("log"),)}
    rig = Rig(web(relations), notify("db", restart=NEVER), service("log"))
    rig.ask("start", "log")
    rig.spawned("log")
    rig.ask("start", "web", wait=False)
    told.of(rig)
    rig.spawned("db")
    rig.crash("db")
    told.of(rig)
    rig.exited("log", 0)
    told.of(rig)
    rig = Rig(web(), notify("boss", relations={"upholds": (Dependency("web"),)}))
    rig.ask("start", "boss", wait=False)
    rig.up("boss")
    rig.up("web")
    rig.crash("web")
    told.of(rig)
    rig = Rig(web({"on_failure": ("alert",)}), notify("alert"))
    rig.ask("start", "web")
    rig.up("web")
    rig.crash("web")
    told.of(rig, "alert")
    rig.up("alert")
    told.of(rig, "alert")
    rig = Rig(web({"conflicts": ("old",)}), notify("old"))
    rig.ask("start", "old", wait=False)
    rig.up("old")
    rig.ask("start", "web", wait=False)
    told.of(rig)
    rig.exited("old", signal=15)
    told.of(rig, "old")
    rig = Rig(web({"binds_to": (Dependency("db"),)}), notify("db", restart=NEVER))
    rig.ask("start", "web", wait=False)
    rig.up("db")
    rig.up("web")
    rig.crash("db")
    told.of(rig)
    rig.exited("web", signal=15)
    told.of(rig)


def files(told: Told) -> None:
    rig = Rig(web())
    rig.ask("start", "web")
    rig.up("web")
    rig.load(bad=UnitSet(bad={"web": BadUnit("web", "web.toml", "web.toml:1:1: no")}))
    told.of(rig)
    rig.load()
    told.of(rig)
    told.of(rig, "ghost")


def test_every_answer_is_as_reviewed() -> None:
    """Orders, ends, restarts, waiting, the doings of others, and files that are bad or gone."""
    told = Told()
    for story in (orders, ends, restarts, waits, others, files):
        story(told)
    assert told.lines == WORDS.read_text(encoding="utf-8").splitlines()
