"""The verbs about the supervisor itself: ping, version, stats, idl, health, can, commands, daemon-reload,
daemon-restart, daemon-reexec, shutdown.
"""

import sys
import time
from typing import Any

import click

from supervisord_py import __version__
from supervisord_py.ctl.client import ConnectionLostError
from supervisord_py.ctl.options import Verb, complete_units
from supervisord_py.ctl.render import Style, clean, format_bytes, format_cpu, format_duration, table
from supervisord_py.ctl.session import Session
from supervisord_py.errors import SupervisordError

TAKEOVER_S = 30.0
"""How long a new manager may take to be made, checked and put in place."""


@click.command("ping", cls=Verb)
@click.pass_obj
def ping(session: Session) -> int:
    """Exit 0 when the supervisor answers."""
    reply = session.call("Ping")
    if session.wants_json:
        session.emit(reply)
    else:
        session.echo(reply["answer"])
    return 0


@click.command("version", cls=Verb)
@click.pass_obj
def version(session: Session) -> int:
    """Print the versions of supctl, the manager and the keeper, and which supervisor this is."""
    reply = {"ctl": __version__} | session.call("Version")
    if session.wants_json:
        session.emit(reply)
        return 0
    session.echo(
        f"supctl    {reply['ctl']}",
        f"manager   {reply['manager']} (pid {reply['pid']})",
        f"keeper    {reply['keeper']} (pid {reply['keeper_pid']}, protocol {reply['protocol']})",
        f"name      {reply['name']}",
        f"instance  {reply['instance']}",
        f"socket    {session.address.path}",
    )
    return 0


@click.command("stats", cls=Verb)
@click.pass_obj
def stats(session: Session) -> int:
    """Print what the supervisor and its units need, where its journal stands, and what became of the messages of
    agents."""
    reply = session.call("Stats")
    # A supervisor that is older tells of messages only.
    supervisor, units, bus = reply.get("supervisor"), reply.get("units") or [], reply["bus"]
    if session.wants_json:
        session.emit({"supervisor": supervisor, "units": units, "bus": bus})
        return 0
    if supervisor is not None:
        session.echo(*_stats_of_supervisor(supervisor))
    state = "listening" if bus["listening"] else "not listening: supctl daemon-reexec brings a keeper that does"
    session.echo(f"bus         {state}, connections {bus['connections']}")
    if units:
        session.echo("", *_stats_of_units(session.style, units))
    totals = bus["totals"]
    words = [name for name in ("sent", "delivered", "dropped") if name in totals]
    words += [name for name in totals if name not in words]
    if words:
        rows = [[unit, *(str(counts.get(word, 0)) for word in words)] for unit, counts in bus["by_unit"].items()]
        rows.append(["all", *(str(totals[word]) for word in words)])
        session.echo("", *table(session.style, ("MESSAGES", *(word.upper() for word in words)), rows))
    return 0


def _stats_of_supervisor(told: dict[str, Any]) -> list[str]:
    states = ", ".join(f"{count} {state.replace('_', '-')}" for state, count in told["units"].items())
    behind = [f"{told[key]} {words}" for key, words in _BEHIND.items() if told[key]]
    journal = f"{told['last_seq']} records, {format_bytes(told['journal_bytes'])}"
    return [
        f"supervisor  {clean(told['name'])}, up {_uptime(told['keeper'])}",
        f"keeper      {_own(told['keeper'])}",
        f"manager     {_own(told['manager'])}, for {_uptime(told['manager'])}",
        f"units       {sum(told['units'].values())}{': ' if states else ''}{states}",
        f"processes   {told['processes']}",
        f"jobs        {told['jobs']}",
        f"restarts    {told['restarts']} automatic; failures counted: {told['failures']}",
        f"journal     {', '.join([journal, *behind])}",
        f"output      {format_bytes(told['output_bytes'])} kept",
    ]


_BEHIND = {"unwritten": "not written yet", "unsynced": "not on stable storage yet", "lost": "lost"}


def _own(process: dict[str, Any]) -> str:
    facts = [f"pid {process['pid']}", format_bytes(process["memory_bytes"]), format_cpu(process["cpu_ns"])]
    return ", ".join(fact for fact in facts if fact)


def _uptime(process: dict[str, Any]) -> str:
    return "?" if process["uptime_ms"] is None else format_duration(process["uptime_ms"] / 1000)


def _stats_of_units(style: Style, units: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            unit["name"],
            unit["active_state"].replace("_", "-"),
            format_bytes(unit["memory_bytes"]),
            format_cpu(unit["cpu_ns"]),
            "" if unit["tasks"] is None else str(unit["tasks"]),
            format_bytes(unit["read_bytes"]),
            format_bytes(unit["write_bytes"]),
            str(unit["restarts"] or ""),
            str(unit["failures"] or ""),
            _counted_by(unit["counted_by"]),
        ]
        for unit in units
    ]
    headings = ("UNIT", "STATE", "MEM", "CPU", "TASKS", "READ", "WRITTEN", "RESTARTS", "FAILURES", "COUNTED BY")
    return table(style, headings, rows, right="MEM CPU TASKS READ WRITTEN RESTARTS FAILURES")


def _counted_by(mechanisms: dict[str, str]) -> str:
    """Say by what the numbers of a unit are counted: the one mechanism, or each with its numbers."""
    if len(set(mechanisms.values())) <= 1:
        return next(iter(mechanisms.values()), "")
    names: dict[str, list[str]] = {}
    for name, mechanism in mechanisms.items():
        names.setdefault(mechanism, []).append(name)
    return ", ".join(f"{mechanism} ({' '.join(counted)})" for mechanism, counted in names.items())


@click.command("idl", cls=Verb)
@click.argument("interface", required=False)
@click.pass_obj
def idl(session: Session, interface: str | None) -> int:
    """Print the definition of the control interface, or of one INTERFACE of it."""
    names = [interface] if interface else session.call("org.varlink.service.GetInfo")["interfaces"]
    texts = {
        name: session.call("org.varlink.service.GetInterfaceDescription", interface=name)["description"]
        for name in names
    }
    if session.wants_json:
        session.emit({"interfaces": texts})
        return 0
    for index, text in enumerate(texts.values()):
        session.echo(*([""] if index else []), text.rstrip("\n"))
    return 0


@click.command("health", cls=Verb)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing, only exit.")
@click.pass_obj
def health(session: Session, quiet: bool) -> int:
    """Exit 0 when nothing is wrong; otherwise 1, and a line for each problem."""
    reply = session.call("Health")
    if session.wants_json:
        session.emit(reply)
    elif not quiet:
        session.echo(*(["healthy"] if reply["healthy"] else map(clean, reply["problems"])))
        session.echo(*(f"warning: {clean(warning)}" for warning in reply.get("warnings") or ()))
    return 0 if reply["healthy"] else 1


@click.command("can", cls=Verb)
@click.argument("verb")
@click.argument("unit", required=False, shell_complete=complete_units)
@click.option("--as", "subject", metavar="USER", help="Ask for this user instead of yourself.")
@click.pass_obj
def can(session: Session, verb: str, unit: str | None, subject: str | None) -> int:
    """Say whether VERB on UNIT is permitted and by what; exit 0 when it is, 5 when it is not."""
    parameters = {"verb": verb, "unit": unit, "user": subject}
    reply = session.call("Can", **{key: value for key, value in parameters.items() if value is not None})
    if session.wants_json:
        session.emit(reply)
    else:
        session.echo(f"{'yes' if reply['allowed'] else 'no'}{': ' if reply['why'] else ''}{clean(reply['why'])}")
    return 0 if reply["allowed"] else 5


@click.command("commands", cls=Verb)
@click.pass_obj
def commands(session: Session) -> int:
    """List the commands of the supervisor and which of them are permitted to you."""
    reply = session.call("Commands")
    if session.wants_json:
        session.emit(reply)
        return 0
    allowed = set(reply["allowed"])
    style = session.style
    for command in reply["commands"]:
        mark = style.paint("yes", "green") if command in allowed else style.paint("no ", "dim")
        session.echo(f"{mark}  {command}")
    return 0


def _tell_durability(session: Session, reply: dict[str, Any]) -> None:
    if reply.get("durable") is False and not session.options.plan:
        session.note("warning: the journal cannot be written, this is not on disk: see supctl journal stats")


@click.command("daemon-reload", cls=Verb, accepts=("reason", "plan"))
@click.pass_obj
def daemon_reload(session: Session) -> int:
    """Read settings and unit files again and take over what changed: new units are started, running ones take over at
    once what needs no restart, and for the rest it says which to restart. With --plan it is only said, by unit and key.

    A file with a problem leaves its unit as it was, a folder that cannot be read its units, and the others are loaded;
    exits 1 then.
    """
    options = session.options
    reply = session.call("DaemonReload", plan=options.plan, reason=options.reason)
    _tell_durability(session, reply)
    problems = reply["problems"]
    if not session.wants_json:
        session.echo(*_reload_lines(session.style, reply, planned=options.plan))
    elif not problems:
        session.emit(reply | ({"plan": True} if options.plan else {}))
    if not problems:
        return 0
    code = session.fail(FilesInvalidError(len(problems), planned=options.plan), **reply)
    sys.stderr.write("".join(f"  {clean(problem)}\n" for problem in problems))
    return code


class FilesInvalidError(SupervisordError):
    """Some of the files cannot be used."""

    def __init__(self, problems: int, *, planned: bool) -> None:
        super().__init__(problems, planned)
        self.problems = problems
        self.planned = planned

    def __str__(self) -> str:
        count = f"{self.problems} problem{'s' if self.problems != 1 else ''}"
        return f"{count} in the files; everything else {'would be' if self.planned else 'is'} loaded:"


_WHAT_FOLLOWS = {
    ("added", "start"): ("it is started", "it would be started"),
    ("added", "none"): ("not started: it is not enabled, or was masked",) * 2,
    ("changed", "live"): ("in effect", "it would be in effect at once"),
    ("changed", "restart"): ("needs a restart", "it would need a restart"),
    ("removed", "keep"): ("it runs on without a file until it stops", "it would run on without a file until it stops"),
    ("broken", "keep"): ("it runs on by its last good text", "it would run on by its last good text"),
}
"""By change and effect: what is said after a reload, and of a plan."""


def _reload_lines(style: Style, reply: dict[str, Any], *, planned: bool) -> list[str]:
    """Say what a reload changed, unit by unit and key by key."""
    would = "would be " if planned else ""
    changes = reply["changes"]
    lines: list[str] = []
    for change in changes:
        follows = _WHAT_FOLLOWS.get((change["change"], change["effect"]), ("", ""))[planned]
        if not change["keys"] and change["change"] == "changed":
            follows = "means the same as before"
        why = "; ".join(filter(None, (clean(change["message"]), follows)))
        lines.append(f"{would}{change['change']}: {style.paint(change['unit'], 'bold')}{f' ({why})' if why else ''}")
        lines += _key_lines(style, change["keys"])
    if reply["settings"]:
        lines += [f"{would}changed: supervisord.toml", *_key_lines(style, reply["settings"])]
    restart = [change["unit"] for change in changes if change["effect"] == "restart"]
    if restart and not planned:
        lines.append(f"next: supctl restart {' '.join(restart)}")
    return lines or ["nothing has changed"]


_EFFECTS = {"live": "", "none": "", "restart": "  (restart)"}


def _key_lines(style: Style, keys: list[dict[str, Any]]) -> list[str]:
    def text(value: str | None) -> str:
        return style.paint("not set", "dim") if value is None else clean(value.replace("\n", "; "))

    return [
        f"  {key['key']}: {text(key['old'])} -> {text(key['new'])}{_EFFECTS.get(key['effect'], '')}" for key in keys
    ]


@click.command("daemon-restart", cls=Verb, accepts=("reason", "no_wait"))
@click.pass_obj
def daemon_restart(session: Session) -> int:
    """Put a new manager in the place of the present one; every process goes on."""
    before = session.call("Version")["pid"]
    session.expects_loss = True
    try:
        reply = session.call("DaemonRestart", reason=session.options.reason)
    except ConnectionLostError:
        # Being replaced is what was asked for; a manager with the same pid was never told.
        if session.call("Version")["pid"] == before:
            reply = session.call("DaemonRestart", reason=session.options.reason)
        else:
            reply = {"job": None, "durable": True}
    _tell_durability(session, reply)
    if session.options.no_wait:
        now = before
    else:
        now = _await_other_manager(session, before)
        if now == before:
            return session.fail(ManagerStayedError(before))
    if session.wants_json:
        session.emit(reply | {"manager_pid": now})
    elif session.options.no_wait:
        session.echo(f"the manager (pid {before}) is being replaced")
    else:
        session.echo(f"a new manager has taken over (pid {now}, was {before})")
    return 0


@click.command("daemon-reexec", cls=Verb, accepts=("reason", "no_wait"))
@click.pass_obj
def daemon_reexec(session: Session) -> int:
    """Let the keeper replace itself in place by its new version, with a new manager; every process goes on."""
    before = session.call("Version")
    session.expects_loss = True
    try:
        reply = session.call("DaemonReexec", reason=session.options.reason)
    except ConnectionLostError:
        if session.call("Version")["pid"] == before["pid"]:
            reply = session.call("DaemonReexec", reason=session.options.reason)
        else:
            reply = {"job": None, "durable": True, "refused": None}
    _tell_durability(session, reply)
    if reply["refused"] is not None:
        return session.fail(KeeperStayedError(reply["refused"]))
    if session.options.no_wait:
        if session.wants_json:
            session.emit(reply | {"manager_pid": before["pid"], "keeper": before["keeper"]})
        else:
            session.echo(f"the keeper {before['keeper']} (pid {before['keeper_pid']}) is replacing itself")
        return 0
    now = _await_other_manager(session, before["pid"])
    if now == before["pid"]:
        return session.fail(ManagerStayedError(before["pid"]))
    version = session.call("Version")["keeper"]
    if session.wants_json:
        session.emit(reply | {"manager_pid": now, "keeper": version})
    else:
        session.echo(
            f"the keeper (pid {before['keeper_pid']}) is version {version} now, was {before['keeper']}",
            f"a new manager has taken over (pid {now}, was {before['pid']})",
        )
    return 0


class KeeperStayedError(SupervisordError):
    """The keeper that was to replace itself found that it cannot."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the keeper has not been replaced, everything is as it was: {self.reason}"


class ManagerStayedError(SupervisordError):
    """The manager that was to be replaced is still the one that answers."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"the manager (pid {self.pid}) has not been replaced, the new one was not fit: "
            "see supctl journal tail -e 'manager.*'"
        )


def _await_other_manager(session: Session, before: int) -> int:
    """Return the pid of the manager that answers, as soon as it is another or when ``TAKEOVER_S`` is over."""
    deadline = time.monotonic() + TAKEOVER_S
    while (now := int(session.call("Version")["pid"])) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


@click.command("shutdown", cls=Verb, accepts=("reason", "no_wait"))
@click.pass_obj
def shutdown(session: Session) -> int:
    """Stop every unit in order, then the supervisor; wait until it is gone."""
    try:
        reply = session.call("Shutdown", reason=session.options.reason)
    except ConnectionLostError:
        reply = _shutdown_again(session)
    _tell_durability(session, reply)
    if not session.options.no_wait:
        try:
            session.client.wait_until_gone()
        except KeyboardInterrupt:
            session.note("interrupted: the supervisor goes on stopping")
            return 130
    if session.wants_json:
        session.emit(reply)
    else:
        session.echo("the supervisor is stopping" if session.options.no_wait else "the supervisor has stopped")
    return 0


def _shutdown_again(session: Session) -> dict[str, Any]:
    """Ask once more after a lost connection; a supervisor that is gone meanwhile has done what was asked, even where
    another one runs already.
    """
    from supervisord_py.ctl.client import ControlError, UnreachableError

    try:
        if not session.client.is_replaced():
            return session.call("Shutdown", reason=session.options.reason)
    except (UnreachableError, ConnectionLostError):
        pass
    except ControlError as error:
        if error.name != "ShuttingDown":
            raise
    return {"job": None, "durable": True}
