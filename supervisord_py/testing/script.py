"""Golden scripts: a story in commands, and under each the trace of what the core did. People review their diffs.

A script is a text of blocks parted by blank lines. A line that begins with ``#`` is prose. A block is one or more
commands, a line ``----``, and the trace::

    start web
    ----
    - job.queued web type=start > spawn #1 web main: /bin/web

In a trace ``-`` is a record (``!`` a warning, ``!!`` an error; after ``<-`` the other unit's record it follows from),
``>`` an action, ``<`` a reply, ``=`` a unit whose state has changed, ``@`` the time since the story began at which a
deadline was reached, ``$`` the command, where a block has several. ``unit`` commands define units, with ``key=value``
words as in a unit file; the first other command loads them. The default of
``restart-jitter`` is 0 here, so that the times can be checked by hand.

Commands::

    unit NAME [target] KEY=VALUE...      define a unit (dependencies: ``requires=db,setup:exited,log:unordered``; a
                                         condition: ``condition-path-exists=!/run/x``)
    drop NAME                            remove its definition; ``load`` then tells the core
    load [start | revert]                give the core all definitions (``start``: start the enabled ones; ``revert``:
                                         they are the older ones that it asked for)
    VERB UNIT... [no-wait] [plan] [mode=MODE] [token=TEXT] [by=USER] [reason=TEXT] [signal=NAME] [whom=main|all]
                                         a request of the control interface
    apply [UNIT...] | restart UNIT... max-unavailable=N, [probation=SPAN] [reverts]
                                         a rollout
    cancel JOB
    spawned UNIT [without WORDS] | spawn-failed UNIT [STEP]
    too-much UNIT KEY [killed]           it takes more than this limit allows, or the kernel has killed one of it
    exited UNIT [CODE|SIGNAL|unknown] [left] [role=ROLE] | tree-empty UNIT
    ready UNIT | notify UNIT KEY=VALUE... | main-pid UNIT | former-exited UNIT
    followed UNIT [refused REASON]       the daemon that a forking unit left is found (its pid file appears), or not
    frozen UNIT | thawed UNIT            it stands still, or goes on
    listening UNIT [failed REASON] | connection UNIT [accepted [PEER]] | connections UNIT N | stored UNIT NAME...
    conditions UNIT [hold | condition-KIND=TEXT | assert-KIND=TEXT]
                                         somebody has looked: all hold, or this one does not
    wait SPAN | suspend SPAN | set-clock [-]SPAN | shutdown SPAN | force
    manager-dies | lost COMMAND...       the manager dies; dies with this command's event in its hands
    keeper-dies [UNIT...]                the keeper is killed and another goes on; what is not of UNIT ended unseen
    status | why UNIT | jobs
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any

from supervisord_py.core.events import (
    ClockChanged,
    DescriptorsStored,
    Event,
    ExitStatus,
    Origin,
    ShutdownForced,
    ShutdownRequested,
    TreeEmptied,
    UnitFrozen,
)
from supervisord_py.core.view import jobs, list_units, unit_status, why
from supervisord_py.model.calendar import parse_calendar
from supervisord_py.model.sockets import Activation, Listen, ListenKind, Socket, Sockets, parse_socket_address
from supervisord_py.model.states import (
    ExitSupervisorOn,
    JobMode,
    KillMode,
    NotifyAccess,
    OnDependencyFailure,
    OomPolicy,
    Overrun,
    Restart,
    Role,
    ServiceType,
    TimerFrom,
    Until,
)
from supervisord_py.model.unit import (
    SECOND_NS,
    Command,
    Condition,
    Dependency,
    ExitStatuses,
    KillPolicy,
    LoadedFrom,
    Quarantine,
    RestartPolicy,
    Service,
    StartLimit,
    Timer,
    Unit,
    UnitKind,
)
from supervisord_py.model.values import parse_signal, parse_timespan
from supervisord_py.testing.narrative import effect_lines
from supervisord_py.testing.processes import NOTIFYING
from supervisord_py.testing.scene import Happened, Scene, StoryError, seconds

VERBS = frozenset(
    {
        *("start", "stop", "restart", "try-restart", "reload", "reload-or-restart", "kill", "reset-failed", "cancel"),
        *("apply", "trigger", "release", "pause", "resume"),
    }
)
SEPARATOR = "----"
_DEFINITIONS = frozenset({"unit", "drop"})


class Script:
    """Plays the commands of one script."""

    def __init__(self) -> None:
        self.scene = Scene()
        self._units: dict[str, Unit] = {}
        self._unloaded = False
        self._began_ns = self.scene.clock.mono_ns

    def play(self, command: str) -> list[str]:
        """Play one command; gives the lines of its trace.

        Raises:
            StoryError: The command is not one, or speaks of what is not there.
        """
        verb, *words = command.split()
        if verb == "unit":
            self._units[words[0]] = parse_unit(words[0], words[1:])
            self._unloaded = True
            return []
        if verb == "drop":
            del self._units[words[0]]
            return []
        if verb == "load" or self._unloaded:
            lines = self._told(
                self.scene.load(
                    self._units.values(),
                    start_enabled=words == ["start"] and verb == "load",
                    reverts=words == ["revert"] and verb == "load",
                )
            )
            self._unloaded = False
            return lines if verb == "load" else self.play(command)
        if verb == "wait":
            return self._wait(_span(words[0]))
        if verb == "manager-dies":
            self.scene.manager_dies()
            return []
        if verb == "keeper-dies":
            return [line for happened in self.scene.keeper_dies(words) for line in self._told(happened)]
        if verb in _QUERIES:
            return _QUERIES[verb](self.scene, words)
        if verb == "lost":
            self.scene.handle(self._event(words[0], words[1:]), lost=True)
            return []
        return self._told(self.scene.handle(self._event(verb, words)))

    def _wait(self, duration_ns: int) -> list[str]:
        lines: list[str] = []
        for happened in self.scene.pass_time(duration_ns):
            if told := self._told(happened):
                lines += [f"@ {seconds(happened.at_ns - self._began_ns)}", *told]
        return lines

    def _told(self, happened: Happened) -> list[str]:
        states = [f"= {name} {words}" for name, words in happened.changes.items()]
        return [*effect_lines(happened.effects, happened.causes), *states]

    def _event(self, verb: str, words: Sequence[str]) -> Event:
        scene = self.scene
        if verb in VERBS:
            return _request(scene, verb, words)
        if verb == "set-clock":
            scene.clock.set_wall((-1 if words[0].startswith("-") else 1) * _span(words[0].lstrip("+-")))
            return ClockChanged()
        if verb in ("shutdown", "suspend"):
            duration_ns = _span(words[0])
            if verb == "shutdown":
                return ShutdownRequested(duration_ns)
            scene.clock.suspend(duration_ns)
            return ClockChanged()
        if verb == "force":
            return ShutdownForced()
        if verb not in _FACTS:
            raise StoryError(f"{verb} is no command of a script; see supervisord_py/testing/script.py")
        return _FACTS[verb](scene, words[0], words[1:])


def _span(text: str) -> int:
    duration_ns = parse_timespan(text)
    if duration_ns is None:
        raise StoryError("a story needs a finite time")
    return duration_ns


def _request(scene: Scene, verb: str, words: Sequence[str]) -> Event:
    fields: dict[str, object] = {}
    arguments: dict[str, object] = {}
    units: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if word in ("no-wait", "plan"):
            fields["wait" if word == "no-wait" else "plan"] = word == "plan"
        elif key == "mode" and value:
            fields["mode"] = JobMode(value)
        elif key == "by" and value:
            fields["origin"] = Origin(uid=1000, gid=1000, pid=1, user=value)
        elif key in ("token", "reason") and value:
            fields[key] = value
        elif word == "reverts":
            arguments["reverts"] = True
        elif key == "max-unavailable" and value:
            arguments["max_unavailable"] = int(value)
        elif key == "probation" and value:
            arguments["probation_ns"] = _span(value)
        elif value:
            arguments[key] = parse_signal(value) if key == "signal" else value
        elif verb == "cancel":
            arguments["job"] = int(word)
        else:
            units.append(word)
    return scene.request(verb, units, arguments=arguments, **fields)


def _exited(scene: Scene, unit: str, words: Sequence[str]) -> Event:
    roles = [word.removeprefix("role=") for word in words if word.startswith("role=")]
    ends = [word for word in words if word != "left" and not word.startswith("role=")]
    role = Role(roles[0]) if roles else None
    return scene.exited(unit, _status(ends[0] if ends else "0"), left="left" in words, role=role)


def _followed(scene: Scene, unit: str, words: Sequence[str]) -> Event:
    if words and words[0] != "refused":
        raise StoryError(f"followed {unit} refused REASON, not {words[0]}")
    return scene.followed(unit, " ".join(words[1:]) or "no process could be meant" if words else None)


def _listening(scene: Scene, unit: str, words: Sequence[str]) -> Event:
    if words and words[0] != "failed":
        raise StoryError(f"listening {unit} failed REASON, not {words[0]}")
    return scene.listening(unit, " ".join(words[1:]) if words else None)


def _conditions(scene: Scene, unit: str, words: Sequence[str]) -> Event:
    broken: dict[str, str] = {}
    for word in words:
        if word == "hold":
            continue
        key, _, parameter = word.partition("=")
        table = key.partition("-")[0]
        if table not in ("condition", "assert") or not parameter:
            raise StoryError(f"{word} is no condition: hold, condition-KIND=TEXT or assert-KIND=TEXT")
        broken[table] = f'{key} = "{parameter}"'
    return scene.checked(unit, broken.get("condition"), broken.get("assert"))


def _status(word: str) -> ExitStatus:
    if word == "unknown":
        return ExitStatus()
    if word.isdigit():
        return ExitStatus(code=int(word))
    number = parse_signal(word)
    return ExitStatus(signal=number, core_dumped=word in ("SIGSEGV", "SIGABRT"))


_FACTS: dict[str, Callable[[Scene, str, Sequence[str]], Event]] = {
    "spawned": lambda scene, unit, words: scene.spawned(unit, " ".join(words).removeprefix("without ")),
    "too-much": lambda scene, unit, words: scene.breached(unit, words[0], by_kernel=words[1:] == ["killed"]),
    "spawn-failed": lambda scene, unit, words: scene.spawn_failed(unit, words[0] if words else "exec"),
    "exited": _exited,
    "tree-empty": lambda scene, unit, words: TreeEmptied(unit),
    "ready": lambda scene, unit, words: scene.notified(unit, {"READY": "1"}),
    "frozen": lambda scene, unit, words: UnitFrozen(unit, frozen=True),
    "thawed": lambda scene, unit, words: UnitFrozen(unit, frozen=False),
    "notify": lambda scene, unit, words: scene.notified(unit, dict(word.split("=", 1) for word in words)),
    "main-pid": lambda scene, unit, words: scene.handed_over(unit),
    "followed": _followed,
    "conditions": _conditions,
    "listening": _listening,
    "connection": lambda scene, unit, words: scene.came(unit, " ".join(words[1:]) if words else None),
    "connections": lambda scene, unit, words: scene.connected(unit, int(words[0])),
    "stored": lambda scene, unit, words: DescriptorsStored(unit, tuple(words)),
    "former-exited": lambda scene, unit, words: scene.former_exited(unit, ExitStatus(code=0)),
}


def _status_lines(scene: Scene, words: Sequence[str]) -> list[str]:
    lines = []
    for name in words or list_units(scene.manager):
        status = unit_status(scene.manager, name)
        shown = [f"= {name} {scene.state_words(name)}"]
        shown += [f"restarts={status.restarts}"] if status.restarts else []
        shown += [f"failures={status.failures}"] if status.failures else []
        shown += [f": {status.why}"] if status.why else []
        lines.append(" ".join(shown))
    return lines


def _why_lines(scene: Scene, words: Sequence[str]) -> list[str]:
    return [
        f"= {line.kind}: {line.message}{f' ({line.advice})' if line.advice else ''}"
        for line in why(scene.manager, words[0])
    ]


def _job_lines(scene: Scene, words: Sequence[str]) -> list[str]:
    return [
        f"= job {job.job}: {job.type} {job.unit} {job.state}"
        + (f", waits for {' '.join(job.waiting_for)}" if job.waiting_for else "")
        for job in jobs(scene.manager)
    ]


_QUERIES: dict[str, Callable[[Scene, Sequence[str]], list[str]]] = {
    "status": _status_lines,
    "why": _why_lines,
    "jobs": _job_lines,
}


# units in one line


def parse_unit(name: str, words: Sequence[str]) -> Unit:
    """Read the words of a ``unit`` command: ``web type=notify requires=db restart=always``.

    Raises:
        StoryError: A key is not known.
    """
    is_target = "target" in words
    values = dict(word.split("=", 1) for word in words if word != "target")
    unit = Unit(
        name=name,
        kind=UnitKind.TARGET if is_target else UnitKind.SERVICE,
        service=None if is_target else _service(name, values),
        requires=_edges(values.pop("requires", "")),
        wants=_edges(values.pop("wants", "")),
        binds_to=_edges(values.pop("binds-to", "")),
        after=_edges(values.pop("after", "")),
        before=_names(values.pop("before", "")),
        conflicts=_names(values.pop("conflicts", "")),
        requisite=_edges(values.pop("requisite", "")),
        part_of=_names(values.pop("part-of", "")),
        propagates_stop_to=_names(values.pop("propagates-stop-to", "")),
        upholds=_edges(values.pop("upholds", "")),
        on_failure=_names(values.pop("on-failure", "")),
        on_success=_names(values.pop("on-success", "")),
        conditions=_conditions_of("condition", values),
        asserts=_conditions_of("assert", values),
        job_timeout_ns=parse_timespan(values.pop("job-timeout-sec", "infinity")),
        enabled=_is_yes(values.pop("enabled", "true")),
        on_dependency_failure=OnDependencyFailure(values.pop("on-dependency-failure", "wait")),
        timer=_timer(values),
        sockets=_sockets(values),
        quarantine=Quarantine(Command((f"/opt/{name}/stub",)) if values.pop("stub", None) else None),
        exit_supervisor_on=ExitSupervisorOn(ends) if (ends := values.pop("exit-supervisor-on", None)) else None,
        source=LoadedFrom(f"units/{name}.toml"),
    )
    if values:
        raise StoryError(f"{name}: no such key in a script's unit: {', '.join(values)}")
    return unit


def _timer(values: dict[str, str]) -> Timer | None:
    """``every=10s on-calendar=*:00:00 on-active-sec=1min``: a timer without delay; calendars in UTC."""
    spans: dict[str, Any] = {key: _spans(values.pop(key, "")) for key in _TIMES}
    every, calendars = values.pop("every", None), _names(values.pop("on-calendar", ""))
    if every is None and not calendars and not any(spans.values()):
        return None
    return Timer(
        every_ns=None if every is None else _span(every),
        every_from=TimerFrom(values.pop("from", "start")),
        on_calendar=tuple(parse_calendar(text, lambda name: None) for text in calendars),
        accuracy_ns=_span(values.pop("accuracy-sec", "0")),
        persistent=_is_yes(values.pop("persistent", "false")),
        overrun=Overrun(values.pop("overrun", "skip")),
        **{f"{key.removesuffix('-sec').replace('-', '_')}_ns": found for key, found in spans.items()},
    )


def _sockets(values: dict[str, str]) -> Sockets | None:
    """``listen-stream=/run/web,8080 accept=true``: one socket; the limit is that of the model."""
    addresses = _names(values.pop("listen-stream", ""))
    if not addresses:
        return None
    socket = Socket(
        "web",
        tuple(Listen(ListenKind.STREAM, parse_socket_address(text)) for text in addresses),
        accept=_is_yes(values.pop("accept", "false")),
        max_connections=int(values.pop("max-connections", "64")),
        trigger_burst=int(values.pop("trigger-limit-burst", "20")),
        trigger_interval_ns=_span(values.pop("trigger-limit-interval-sec", "2s")),
    )
    idle = values.pop("idle-exit-sec", None)
    return Sockets((socket,), Activation(values.pop("activation", "demand")), None if idle is None else _span(idle))


_TIMES = ("on-active-sec", "on-boot-sec", "on-startup-sec", "on-unit-active-sec", "on-unit-inactive-sec")


def _spans(text: str) -> tuple[int, ...]:
    return tuple(_span(word) for word in _names(text))


def _service(name: str, values: dict[str, str]) -> Service:
    restart, kill, default = RestartPolicy(jitter=0.0), KillPolicy(), Service()
    kind = ServiceType(values.pop("type", "simple"))

    def span(key: str, otherwise: int | None) -> int | None:
        return parse_timespan(values.pop(key)) if key in values else otherwise

    def commands(key: str) -> tuple[Command, ...]:
        """``exec-stop=2`` is two commands, ``exec-stop=-1`` one whose failure does not count."""
        count = int(values.pop(key, "1" if key == "exec-start" else "0"))
        word = "run" if key == "exec-start" else key.removeprefix("exec-")
        return tuple(
            Command((f"/opt/{name}/{word}", *([str(index + 1)] if abs(count) > 1 else [])), ignore_failure=count < 0)
            for index in range(abs(count))
        )

    start_limit = None
    if "start-limit-burst" in values or "start-limit-interval-sec" in values:
        interval_ns = span("start-limit-interval-sec", 10 * SECOND_NS)
        start_limit = StartLimit(interval_ns, int(values.pop("start-limit-burst", "5")))
    return Service(
        type=kind,
        exec_start=commands("exec-start"),
        exec_start_pre=commands("exec-start-pre"),
        exec_condition=commands("exec-condition"),
        exec_start_post=commands("exec-start-post"),
        exec_reload=commands("exec-reload"),
        exec_stop=commands("exec-stop"),
        exec_stop_post=commands("exec-stop-post"),
        restart=RestartPolicy(
            restart=Restart(values.pop("restart", "no" if kind is ServiceType.ONESHOT else "on-failure")),
            delay_ns=span("restart-sec", restart.delay_ns) or 0,
            steps=int(values.pop("restart-steps", restart.steps)),
            max_delay_ns=span("restart-max-delay-sec", restart.max_delay_ns),
            jitter=float(values.pop("restart-jitter", 0)),
            reset_ns=span("restart-reset-sec", restart.reset_ns),
            failures=int(values.pop("failures", restart.failures)),
            prevent=_statuses(values.pop("restart-prevent-exit-status", "")),
            force=_statuses(values.pop("restart-force-exit-status", "")),
            limit=start_limit,
        ),
        kill=KillPolicy(
            mode=KillMode(values.pop("kill-mode", kill.mode.value)),
            signal=parse_signal(values.pop("kill-signal", "SIGTERM")),
            send_sigkill=_is_yes(values.pop("send-sigkill", "true")),
            final_signal=parse_signal(values.pop("final-kill-signal", "SIGKILL")),
            watchdog_signal=parse_signal(values.pop("watchdog-signal", "SIGABRT")),
            restart_signal=parse_signal(values.pop("restart-kill-signal")) if "restart-kill-signal" in values else None,
            send_sighup=_is_yes(values.pop("send-sighup", "false")),
        ),
        timeout_start_ns=span("timeout-start-sec", None if kind is ServiceType.ONESHOT else default.timeout_start_ns),
        timeout_stop_ns=span("timeout-stop-sec", default.timeout_stop_ns),
        timeout_abort_ns=span("timeout-abort-sec", default.timeout_abort_ns),
        runtime_max_ns=span("runtime-max-sec", None),
        success=_statuses(values.pop("success-exit-status", "")),
        pid_file=values.pop("pid-file", None),
        guess_main_pid=_is_yes(values.pop("guess-main-pid", "true")),
        reload_signal=parse_signal(values.pop("reload-signal", "SIGHUP")),
        remain_after_exit=_is_yes(values.pop("remain-after-exit", "false")),
        store_max=int(values.pop("file-descriptor-store-max", "0")),
        oom_policy=OomPolicy(values.pop("oom-policy", "stop")),
        notify_access=NotifyAccess(values.pop("notify-access", "main" if kind in NOTIFYING else "none")),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _conditions_of(table: str, values: dict[str, str]) -> tuple[Condition, ...]:
    """``condition-path-exists=|!/run/x``, several parted by commas."""
    found = []
    for key in [key for key in values if key.startswith(f"{table}-")]:
        for text in _names(values.pop(key)):
            bare = text.removeprefix("|")
            found.append(
                Condition(
                    key.removeprefix(f"{table}-"),
                    bare.removeprefix("!"),
                    trigger=bare != text,
                    negate=bare.startswith("!"),
                )
            )
    return tuple(found)


def _statuses(text: str) -> ExitStatuses:
    """``1,SIGKILL``: codes and signals."""
    codes = tuple(int(word) for word in _names(text) if word.isdigit())
    return ExitStatuses(codes, tuple(parse_signal(word) for word in _names(text) if not word.isdigit()))


def _is_yes(word: str) -> bool:
    if word not in ("true", "false"):
        raise StoryError(f"{word} is not true or false")
    return word == "true"


def _edges(text: str) -> tuple[Dependency, ...]:
    edges = []
    for entry in filter(None, text.split(",")):
        # the last colon: an instance's name may hold one
        unit, _, how = entry.partition(":")
        if how == "unordered":
            edges.append(Dependency(unit, ordered=False))
        else:
            edges.append(Dependency(unit, until=Until(how or "ready")))
    return tuple(edges)


# the file


def run_script(text: str) -> str:
    """Play a whole script and return it as it should be: the same commands and prose, with the traces that the core
    gives now.
    """
    script = Script()
    return "\n\n".join(_run_block(script, block) for block in _blocks(text)) + "\n"


def _blocks(text: str) -> Iterator[list[str]]:
    block: list[str] = []
    for line in text.split("\n"):
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []
    if block:
        yield block


def _run_block(script: Script, block: list[str]) -> str:
    told = block[: block.index(SEPARATOR)] if SEPARATOR in block else block
    commands = [line for line in told if not line.startswith("#")]
    if not commands:
        return "\n".join(told)
    trace: list[str] = []
    for command in commands:
        lines = script.play(command)
        trace += [f"$ {command}", *lines] if len(commands) > 1 and lines else lines
    if not trace and all(command.split()[0] in _DEFINITIONS for command in commands):
        return "\n".join(told)
    return "\n".join([*told, SEPARATOR, *trace])


def main(arguments: Sequence[str] | None = None) -> int:
    """Play scripts and print how they differ from what they were; ``--rewrite`` records them anew."""
    parser = argparse.ArgumentParser(prog="python -m supervisord_py.testing.script", description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, help="scripts, or folders of them (*.txt)")
    parser.add_argument("--rewrite", action="store_true", help="write what the core does now; read the diff afterwards")
    options = parser.parse_args(arguments)
    different = 0
    for path in options.paths:
        for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
            old = file.read_text(encoding="utf-8")
            try:
                new = run_script(old)
            except StoryError as wrong:
                print(f"{file}: {wrong}", file=sys.stderr)
                return 2
            if old != new and options.rewrite:
                file.write_text(new, encoding="utf-8")
            elif old != new:
                different += 1
                sys.stdout.writelines(unified_diff(old.splitlines(True), new.splitlines(True), str(file), "now"))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
