"""The book of a killed keeper, read back (``keeper/book.py`` tells what its lines are)."""

import contextlib
import json
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

ENDS = ("exited", "spawn-failed")


class Spawn(Struct):
    """What the book says of a spawn; ``over``: its end is told, or will be by a fact."""

    id: int
    unit: str
    role: str
    pid: int
    main_pid: int
    main_start: int = 0
    invocation: str | None = None
    cgroups: list[str] = []
    tagged: bool = True
    told: bool = False
    notify: tuple[str, str] | None = None
    over: bool = False


class Book(Struct):
    """What the dead keeper had written: its spawns by id, whose the processes are that carry an id, and its custody."""

    boot: str = ""
    namespace: str = ""
    """Nothing where the keeper's version did not write it."""
    spawns: dict[int, Spawn] = {}
    units: dict[int, str] = {}
    state: dict[str, str] | None = None
    """None: there is no custody in it."""
    lines: dict[int, str] = {}
    facts: dict[int, dict[str, Any]] = {}
    last: int = 0
    acknowledged: int = 0
    requests: deque[dict[str, Any]] = msgspec.field(default_factory=deque)
    ended: list[tuple[str, dict[str, Any]]] = []
    killing: dict[str, int] = {}
    held: dict[str, list[Spawn]] = {}
    """By unit: its spawns since it was released; their cgroup folders and its notify socket are still there."""

    def unit_of(self, spawn_id: int | None) -> str | None:
        """Return whose the processes are that carry an id."""
        return None if spawn_id is None else self.units.get(spawn_id)


def read_book(path: Path) -> Book:
    """Read what the dead keeper had written; a line that is cut, or no book, is not an error."""
    book = Book()
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return book
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError):
            ((key, value),) = json.loads(line).items()
            _read_line(book, key, value)
    _note_facts(book)
    return book


def _read_line(book: Book, key: str, value: Any) -> None:
    match key:
        case "boot":
            book.boot = str(value)
        case "namespace":
            book.namespace = str(value)
        case "custody":
            book.state, book.last, book.acknowledged = value["state"], value["last"], value["acknowledged"]
            book.lines, book.facts = dict(map(tuple, value["lines"])), dict(map(tuple, value["facts"]))
            book.requests, book.ended = deque(value["requests"]), [(name, fact) for name, fact in value["ended"]]
        case "commit" if book.state is not None:
            for name, text in value["state"].items():
                if text is None:
                    book.state.pop(name, None)
                else:
                    book.state[name] = text
            book.lines |= dict(map(tuple, value["lines"]))
            book.lines = {seq: text for seq, text in book.lines.items() if seq > value["journalled"]}
            book.acknowledged = max(book.acknowledged, value["ack"])
            book.requests += value["do"]
        case "did":
            for _ in range(min(value, len(book.requests))):
                done = book.requests.popleft()
                if done["do"] == "release":
                    book.held.pop(done["unit"], None)
        case "fact":
            book.facts[value[0]], book.last = value[1], value[0]
        case "ended":
            book.ended.append((value[0], value[1]))
        case "spawn":
            spawn = msgspec.convert(value, Spawn)
            book.spawns[spawn.id], book.units[spawn.id] = spawn, spawn.unit
            book.killing.pop(spawn.unit, None)
            book.held.setdefault(spawn.unit, []).append(spawn)
        case "killing":
            book.killing[value[0]] = value[1]
        case "tags":
            book.units |= dict.fromkeys(map(int, value[1]), str(value[0]))


def _note_facts(book: Book) -> None:
    """Find out whose start and end is told, and which exits are still to be."""
    told = set()
    for fact in book.facts.values():
        spawn = book.spawns.get(fact.get("id") or 0)
        if fact["fact"] in ENDS:
            told.add((fact["id"], fact.get("pid")))
        if spawn is not None and fact["fact"] == "spawned":
            spawn.told = True
    book.ended = [(unit, fact) for unit, fact in book.ended if (fact["id"], fact["pid"]) not in told]
    over = {number for number, _ in told} | {fact["id"] for _, fact in book.ended}
    for spawn in book.spawns.values():
        spawn.over = spawn.id in over and not _went_on(book, spawn, told)
    book.facts = {number: fact for number, fact in book.facts.items() if number > book.acknowledged}


def _went_on(book: Book, spawn: Spawn, told: set[tuple[int, int | None]]) -> bool:
    """Say whether only processes have ended that were the spawn's main one before another took their place."""
    ended = {pid for number, pid in told if number == spawn.id}
    ended |= {fact["pid"] for _, fact in book.ended if fact["id"] == spawn.id}
    return None not in ended and spawn.main_pid not in ended
