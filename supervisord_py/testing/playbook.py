"""Tests as conversations: what the core is told, and what it answers.

    assert ( playbook(units) >> start("web") << spawn("web") >> exited("web", 1) << record("unit.restart-scheduled",
    "web") )

``>>`` tells the core something; ``<<`` is what it has to do about it. What it *does* (processes made and signalled)
has to be said in full and in order; records and replies are looked for in their order, and others may stand between
them; ``release`` too may go unsaid. ``exited`` and ``notify`` of a process whose program does not run yet let it run
first. The conversation happens when the playbook is asserted; a failure prints it with what was missing (``-``) and
what came instead (``+``). A playbook that nobody asserted raises: a test that says nothing proves nothing.

Source: mitmproxy, test/mitmproxy/proxy/tutils.py.
"""

from collections.abc import Callable, Iterable
from typing import Any, Self

from msgspec import Struct

from supervisord_py.core.actions import (
    AnyAction,
    CheckConditions,
    Effects,
    ExitSupervisor,
    FollowMain,
    KillTree,
    ReleaseUnit,
    Reply,
    SignalProcesses,
    SpawnProcess,
    StopFollowing,
)
from supervisord_py.core.events import Event, ExitStatus, ShutdownForced, ShutdownRequested, TreeEmptied
from supervisord_py.model.records import Record
from supervisord_py.model.states import JobMode, Role
from supervisord_py.model.unit import Unit
from supervisord_py.model.values import parse_signal, parse_timespan
from supervisord_py.testing.narrative import action_line, record_line, reply_line
from supervisord_py.testing.scene import Happened, Scene


class Told(Struct, frozen=True):
    """One line that the core is told."""

    words: str
    play: Callable[[Scene], Iterable[Happened]]


class Wanted(Struct, frozen=True):
    """One thing that the core has to do, write or answer."""

    words: str
    kind: type
    fits: Callable[[Any], bool]


class Playbook:
    """A conversation with a core; see the module."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self.scene = Scene(units)
        self._lines: list[Told | Wanted] = []
        self._played = False

    def __rshift__(self, told: Told) -> Self:
        self._lines.append(told)
        return self

    def __lshift__(self, wanted: Wanted) -> Self:
        self._lines.append(wanted)
        return self

    def __bool__(self) -> bool:
        """Have the conversation.

        Raises:
            AssertionError: The core did something else; the message is the conversation as a diff.
        """
        assert not self._played, "a playbook is played once"
        self._played = True
        script: list[str] = []
        is_good = True
        position = 0
        while position < len(self._lines):
            told = self._lines[position]
            assert isinstance(told, Told), "a playbook begins with >>"
            position += 1
            wanted: list[Wanted] = []
            while position < len(self._lines) and isinstance(line := self._lines[position], Wanted):
                wanted.append(line)
                position += 1
            script.append(f"   >> {told.words}")
            effects = Effects()
            for happened in told.play(self.scene):
                effects.records += happened.effects.records
                effects.actions += happened.effects.actions
                effects.replies += happened.effects.replies
            lines, is_right = _compare(wanted, effects)
            script += lines
            is_good = is_good and is_right
            if not is_right:
                break
        if not is_good:
            raise AssertionError("the core did something else (- expected, + actual):\n" + "\n".join(script))
        return True

    def __del__(self) -> None:
        if not self._played:
            raise RuntimeError("unasserted playbook: write `assert playbook(...) >> ... << ...`")


def _compare(wanted: list[Wanted], effects: Effects) -> tuple[list[str], bool]:
    """Match what was wanted with what was done; gives the lines of the diff and whether all is right."""
    script: list[str] = []
    is_right = True
    records, replies = list(effects.records), list(effects.replies)
    actions = list(effects.actions)
    for want in wanted:
        if want.kind is Record or want.kind is Reply:
            pool: list[Any] = records if want.kind is Record else replies
            found = next((index for index, item in enumerate(pool) if want.fits(item)), None)
            if found is not None:
                del pool[: found + 1]
        else:
            if want.kind is not ReleaseUnit:
                while actions and isinstance(actions[0], ReleaseUnit):
                    actions.pop(0)
            found = 0 if actions and want.fits(actions[0]) else None
            if found is not None:
                actions.pop(0)
        script.append(f"{'   ' if found is not None else ' - '}<< {want.words}")
        is_right = is_right and found is not None
    unsaid = [action for action in actions if not isinstance(action, ReleaseUnit)]
    is_right = is_right and not unsaid
    if not is_right:
        script += [f" + << {action_line(action)}" for action in unsaid]
        script += [f"   (record {record_line(item)})" for item in effects.records]
        script += [f"   (action {action_line(item)})" for item in effects.actions]
        script += [f"   (reply {reply_line(item)})" for item in effects.replies]
    return script, is_right


def playbook(units: Iterable[Unit]) -> Playbook:
    """Begin a conversation with a core that has loaded these units."""
    return Playbook(units)


# what the core is told


def _once(words: str, make: Callable[[Scene], Event]) -> Told:
    return Told(words, lambda scene: [scene.handle(make(scene))])


def command(verb: str, *units: str, **fields: Any) -> Told:
    """Somebody asks for something; ``fields`` are those of ``CommandRequested``."""
    return _once(f"{verb} {' '.join(units)}", lambda scene: scene.request(verb, units, **fields))


def start(*units: str, mode: JobMode = JobMode.REPLACE) -> Told:
    return command("start", *units, mode=mode)


def stop(*units: str) -> Told:
    return command("stop", *units)


def restart(*units: str) -> Told:
    return command("restart", *units)


def reset_failed(*units: str) -> Told:
    return command("reset-failed", *units)


def spawned(unit: str) -> Told:
    """The program of the process that was asked for runs."""
    return _once(f"spawned {unit}", lambda scene: scene.spawned(unit))


def spawn_failed(unit: str, step: str = "exec") -> Told:
    return _once(f"spawn-failed {unit} {step}", lambda scene: scene.spawn_failed(unit, step))


def exited(unit: str, end: int | str = 0, *, left: bool = False, role: Role | None = None) -> Told:
    """The unit's newest process ends: with a code, or by a signal's name; ``left``: grandchildren stay behind."""
    status = ExitStatus(signal=parse_signal(end)) if isinstance(end, str) else ExitStatus(code=end)

    def play(scene: Scene) -> Iterable[Happened]:
        if scene.is_pending(unit):
            yield scene.handle(scene.spawned(unit))
        yield scene.handle(scene.exited(unit, status, left=left, role=role))

    return Told(f"exited {unit} {end}{' (processes left)' if left else ''}", play)


def followed(unit: str, refused: str | None = None) -> Told:
    """The daemon that a forking unit left behind is found, or not."""
    words = f"followed {unit}{f' refused: {refused}' if refused else ''}"
    return _once(words, lambda scene: scene.followed(unit, refused))


def conditions(unit: str, *, condition: str | None = None, assertion: str | None = None) -> Told:
    """The conditions of the unit were looked at; what is named does not hold."""
    broken = " and ".join(text for text in (condition, assertion) if text)
    words = f"conditions {unit}: {f'{broken} does not hold' if broken else 'hold'}"
    return _once(words, lambda scene: scene.checked(unit, condition, assertion))


def tree_empty(unit: str) -> Told:
    """The last process that was left behind is gone."""
    return _once(f"tree-empty {unit}", lambda scene: TreeEmptied(unit))


def notify(unit: str, **fields: str) -> Told:
    """The main process speaks through its notify socket."""

    def play(scene: Scene) -> Iterable[Happened]:
        if scene.is_pending(unit):
            yield scene.handle(scene.spawned(unit))
        yield scene.handle(scene.notified(unit, fields))

    return Told(f"notify {unit} {' '.join(f'{key}={value}' for key, value in fields.items())}", play)


def ready(unit: str) -> Told:
    return notify(unit, READY="1")


def wait(span: str) -> Told:
    """Time passes: ``"5s"``, ``"1min 30s"``."""
    duration_ns = parse_timespan(span)
    assert duration_ns is not None, "an infinite wait never ends"
    return Told(f"wait {span}", lambda scene: scene.pass_time(duration_ns))


def manager_dies() -> Told:
    """The manager dies, and the next one restores the state of the last commit."""

    def play(scene: Scene) -> Iterable[Happened]:
        scene.manager_dies()
        return []

    return Told("the manager dies", play)


def shutdown(span: str = "90s") -> Told:
    return _once(f"shutdown {span}", lambda scene: ShutdownRequested(parse_timespan(span) or 0))


def shutdown_forced() -> Told:
    return _once("shutdown forced", lambda scene: ShutdownForced())


# what the core has to do


def _action(words: str, kind: type[AnyAction], **fields: object) -> Wanted:
    wanted = {name: value for name, value in fields.items() if value is not None}
    return Wanted(
        words,
        kind,
        lambda action: type(action) is kind and all(getattr(action, name) == value for name, value in wanted.items()),
    )


def spawn(unit: str, role: Role | None = None) -> Wanted:
    return _action(f"spawn {unit}{f' {role.value}' if role else ''}", SpawnProcess, unit=unit, role=role)


def signal(unit: str, name: str = "SIGTERM") -> Wanted:
    return _action(f"signal {unit} {name}", SignalProcesses, unit=unit, signal=parse_signal(name))


def kill(unit: str) -> Wanted:
    """Everything of the unit is killed until nothing is left."""
    return _action(f"kill {unit}", KillTree, unit=unit)


def follow(unit: str, pid_file: str | None = None) -> Wanted:
    """The daemon that the unit left behind is looked for."""
    return _action(f"follow {unit}", FollowMain, unit=unit, pid_file=pid_file)


def stop_following(unit: str) -> Wanted:
    return _action(f"stop following {unit}", StopFollowing, unit=unit)


def check(unit: str) -> Wanted:
    """The conditions of the unit are asked for."""
    return _action(f"check the conditions of {unit}", CheckConditions, unit=unit)


def release(unit: str) -> Wanted:
    return _action(f"release {unit}", ReleaseUnit, unit=unit)


def exit_supervisor(code: int = 0) -> Wanted:
    return _action(f"exit the supervisor with {code}", ExitSupervisor, code=code)


def record(event: str, unit: str | None = None, **fields: object) -> Wanted:
    """A record is written; ``fields`` are those of it that matter."""

    def fits(item: Record) -> bool:
        return (
            item.event == event
            and unit in (None, item.unit)
            and all(item.fields.get(name) == value for name, value in fields.items())
        )

    shown = "".join(f" {name}={value}" for name, value in fields.items())
    return Wanted(f"record {event}{f' {unit}' if unit else ''}{shown}", Record, fits)


def reply(unit: str, result: str) -> Wanted:
    """Somebody is told what became of the unit: a job's result."""
    return Wanted(
        f"reply {unit} {result}",
        Reply,
        lambda item: any(outcome.unit == unit and outcome.result == result for outcome in item.outcomes),
    )


def refusal(error: str) -> Wanted:
    """Somebody is refused."""
    return Wanted(f"refusal {error}", Reply, lambda item: item.refusal is not None and item.refusal.error == error)
