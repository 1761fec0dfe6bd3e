"""``run``: a command as a unit of its own, without a file, or with one that is written.

What is asked for is one call (``Run``) that carries a token: after a lost connection it is made again and means the
same unit. With ``--pty`` it is made as a stream, so that it can be waited for together with the terminal.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from supervisord_py.ctl.client import ConnectionLostError, ControlError, SupervisorReplacedError, new_token
from supervisord_py.ctl.options import Misuse, Verb
from supervisord_py.ctl.render import clean
from supervisord_py.ctl.replies import exit_from_wire, explain_exit, outcomes_from_wire
from supervisord_py.ctl.session import Patience, Session
from supervisord_py.ctl.verbs import Progress, carry_out, warn_unless_durable
from supervisord_py.ctl.waiting import INTERRUPTED, NEVER_STARTED, signal_number
from supervisord_py.errors import SupervisordError

_TIMES = {
    "on_calendar": "on-calendar",
    "every": "every",
    "on_active": "on-active-sec",
    "on_boot": "on-boot-sec",
    "on_startup": "on-startup-sec",
    "on_unit_active": "on-unit-active-sec",
    "on_unit_inactive": "on-unit-inactive-sec",
}
_TERMINAL_VARIABLES = ("TERM", "COLORTERM", "NO_COLOR")


class NoSuchProgramError(SupervisordError):
    """The command is not there. Whoever waits for its end is told what stands for one that never started."""

    def __init__(self, program: str, *, waits: bool) -> None:
        super().__init__(program)
        self.program = program
        self.exit_status = NEVER_STARTED if waits else 1

    def __str__(self) -> str:
        return f"there is no program {self.program}"


@click.command(
    "run", cls=Verb, accepts=("no_wait", "reason", "plan"), context_settings={"allow_interspersed_args": False}
)
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-u", "--unit", metavar="NAME", help="The name of the unit; else one is made, run-NUMBER.")
@click.option("--save", metavar="NAME", help="Write it as a unit file NAME.toml, and start that.")
@click.option("-w", "--wait", "until_exit", is_flag=True, help="Wait for its end, and exit with its code.")
@click.option("-t", "--pty", is_flag=True, help="Give it this terminal, and wait for its end.")
@click.option("-G", "--collect", is_flag=True, help="Forget it when it has failed, too.")
@click.option("--description", metavar="TEXT", help="What people see beside its name.")
@click.option("--uid", metavar="USER", help="The user that it runs as.")
@click.option("--gid", "--group", metavar="GROUP", help="The group that it runs as.")
@click.option("--working-directory", metavar="DIR", help="Where it runs.")
@click.option("-d", "--same-dir", is_flag=True, help="It runs where you are.")
@click.option("-E", "--env", "--setenv", "variables", metavar="NAME[=VALUE]", multiple=True, help="A variable.")
@click.option(
    "-p", "--property", "properties", metavar="TABLE.KEY=VALUE", multiple=True, help="Any key of a unit file."
)
@click.option("-r", "--remain-after-exit", is_flag=True, help="It stays active when it has ended well.")
@click.option("--on-calendar", metavar="TIMES", help="Run it at these times.")
@click.option("--every", metavar="SPAN", help="Run it again and again, this long after the last start.")
@click.option("--on-active", metavar="SPAN", help="Run it this long from now.")
@click.option("--on-boot", metavar="SPAN", help="Run it this long after the boot.")
@click.option("--on-startup", metavar="SPAN", help="Run it this long after the supervisor's start.")
@click.option("--on-unit-active", metavar="SPAN", help="Run it this long after its last start.")
@click.option("--on-unit-inactive", metavar="SPAN", help="Run it this long after its last end.")
@click.pass_context
def run_command(
    context: click.Context,
    /,
    command: tuple[str, ...],
    unit: str | None,
    save: str | None,
    until_exit: bool,
    pty: bool,
    collect: bool,
    description: str | None,
    uid: str | None,
    gid: str | None,
    working_directory: str | None,
    same_dir: bool,
    variables: tuple[str, ...],
    properties: tuple[str, ...],
    remain_after_exit: bool,
    **times: str | None,
) -> int:
    """Run a command as a unit of its own, with all that units have: a log, limits, a cgroup, a stop that reaches every
    process. It has no file; when it has ended it is forgotten, and one that has failed is with reset-failed.

    With --wait it exits with the command's code (128 + n for signal n, 125 when it never started).
    """
    session: Session = context.obj
    options = session.options
    timed = {key: value for key, value in times.items() if value is not None}
    _refuse_nonsense(context, session, pty=pty, until_exit=until_exit, timed=bool(timed))
    if save is not None and unit is not None:
        raise Misuse("--save NAME names the unit already: leave out --unit", context)
    if save is not None and collect:
        raise Misuse("what is saved is not forgotten: leave out --save or --collect", context)
    if same_dir and working_directory is not None:
        raise Misuse("--same-dir or --working-directory: leave one out", context)
    environment = _environment(context, session, variables)
    if pty:
        given = {name: session.environment[name] for name in _TERMINAL_VARIABLES if name in session.environment}
        environment = given | environment
    wanted = [f"timer.{_TIMES[key]}={_quoted(value)}" for key, value in timed.items()]
    wanted += ["service.remain-after-exit=true"] if remain_after_exit else []
    parameters: dict[str, Any] = {
        "command": _found(session, command, properties, waits=(until_exit or pty) and not options.plan),
        "unit": save if save is not None else unit,
        "save": save is not None,
        "description": _program_name(command[0]) if description is None and save is None else description,
        "user": uid,
        "group": gid,
        "working_directory": os.getcwd() if same_dir else working_directory,
        "environment": environment or None,
        "properties": [*wanted, *properties],
        "collect": collect,
        "wait": not options.no_wait and not options.plan,
        "plan": options.plan,
        "reason": options.reason,
        "token": new_token(),
    }
    parameters = {key: value for key, value in parameters.items() if value is not None}
    if pty:
        return _with_terminal(session, parameters)
    if until_exit and not options.plan:
        return _until_exit(session, parameters | {"until": "exit"})
    return _start(session, parameters)


def _refuse_nonsense(context: click.Context, session: Session, *, pty: bool, until_exit: bool, timed: bool) -> None:
    options = session.options
    if (pty or until_exit) and options.no_wait:
        raise Misuse("to wait and not to wait: leave out --no-wait", context)
    if (pty or until_exit) and timed:
        raise Misuse("what is run by the clock has no end to wait for: leave out --wait and --pty", context)
    if pty and options.remote is not None:
        raise Misuse("--pty is for this machine, and --remote is another: ssh -t HOST supctl run --pty ...", context)
    if pty and (session.wants_json or options.plan):
        raise Misuse("--pty shows what the command shows: leave out --json and --plan", context)


def _environment(context: click.Context, session: Session, variables: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in variables:
        name, equals, value = text.partition("=")
        if not name:
            raise Misuse(f"{text!r} is no NAME=VALUE", context)
        if equals:
            found[name] = value
        elif name in session.environment:
            found[name] = session.environment[name]
        else:
            raise Misuse(f"there is no variable {name} here: write {name}=VALUE", context)
    return found


def _found(session: Session, command: Sequence[str], properties: Sequence[str], *, waits: bool) -> list[str]:
    """Return the command with the path of its program, as far as it is here that it will be looked for."""
    program = command[0]
    elsewhere = session.options.remote is not None or any(text.startswith("service.root-") for text in properties)
    if elsewhere or program.startswith("/"):
        return list(command)
    path = os.path.abspath(program) if "/" in program else shutil.which(program, path=session.environment.get("PATH"))
    if path is None:
        raise NoSuchProgramError(program, waits=waits)
    return [path, *command[1:]]


def _program_name(path: str) -> str:
    """Return what people see beside the unit's name: not the arguments, which not everybody may see."""
    return clean(os.path.basename(path))


def _quoted(text: str) -> str:
    """Write a value so that it is text, whatever it looks like."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _start(session: Session, parameters: dict[str, Any]) -> int:
    told: list[dict[str, Any]] = []

    def request() -> dict[str, Any]:
        reply = session.call("Run", **parameters)
        told.append(reply)
        _tell_more(session, reply)
        return reply

    code = carry_out(session, request, [str(parameters.get("unit", parameters["command"][0]))])
    if code == 0 and session.options.no_wait and not session.options.plan and not session.wants_json:
        session.note(f"running as unit {told[0]['unit']}")
    return code


def _tell_more(session: Session, reply: dict[str, Any]) -> None:
    """Tell what stands beside the outcomes: the text of a plan, the file that was written, and warnings."""
    if session.wants_json:
        return
    if reply.get("text"):
        session.echo(*map(clean, reply["text"].rstrip("\n").split("\n")), "")
    if reply.get("path"):
        session.echo(f"{'would write' if session.options.plan else 'wrote'} {clean(reply['path'])}")
    for warning in reply.get("warnings") or ():
        session.note(f"warning: {clean(warning)}")


def _until_exit(session: Session, parameters: dict[str, Any]) -> int:
    name = parameters.get("unit")
    progress = Progress(session, [name or " ".join(parameters["command"])])
    session.while_waiting = progress.show
    try:
        reply = session.call("Run", **parameters)
    except KeyboardInterrupt:
        progress.clear()
        session.note(f"interrupted: it goes on; supctl stop {name or 'UNIT'} ends it, supctl list 'run-*' has its name")
        return INTERRUPTED
    finally:
        session.while_waiting = None
        progress.clear()
    _tell_more(session, reply)
    return _tell_end(session, reply, is_quiet=False)


def _tell_end(session: Session, reply: dict[str, Any], *, is_quiet: bool) -> int:
    """Tell how the unit has ended, and return the code that stands for it."""
    warn_unless_durable(session, reply)
    name, ended = reply["unit"], exit_from_wire((reply["ended"] or {}).get("exit"))
    outcomes = outcomes_from_wire(reply["outcomes"])
    if session.wants_json:
        shown = {"result": str(reply["ended"]["result"]).replace("_", "-"), "exit": ended}
        session.emit({"unit": name, "outcomes": outcomes, "ended": shown, "durable": reply["durable"]})
    if ended is None:
        why = next((each["message"] for each in outcomes if each["message"]), "")
        session.note(f"{name} never started{': ' if why else ''}{clean(why)}")
        return NEVER_STARTED
    if not is_quiet and not session.wants_json:
        session.echo(f"{name} ended with {explain_exit(ended)}")
    code = ended.get("code")
    return code if code is not None else 128 + signal_number(str(ended.get("signal")))


def _with_terminal(session: Session, parameters: dict[str, Any]) -> int:
    from supervisord_py.ctl.terminal import LentTerminal, TerminalLeftError

    terminal = LentTerminal()
    parameters |= {"terminal": terminal.path, "until": "exit"}
    try:
        try:
            with terminal.raw():
                reply = _run_beside(session, parameters, terminal)
        except TerminalLeftError as error:
            sys.stderr.write("\n")
            session.note(f"{error}: the unit is stopped")
            return error.exit_status
    finally:
        terminal.close()
    return _tell_end(session, reply, is_quiet=True)


def _run_beside(session: Session, parameters: dict[str, Any], terminal: Any) -> dict[str, Any]:
    """Make the call, and forward the terminal until it is answered."""
    session.call("Ping")  # whoever answers is known then, should the connection be lost
    patience = Patience(session)
    deadline = None if session.options.timeout_s is None else time.monotonic() + session.options.timeout_s
    replies: list[dict[str, Any]] = []
    while True:
        limit = {} if deadline is None else {"timeout_ms": max(1, int((deadline - time.monotonic()) * 1000))}
        try:
            with session.client.stream("Run", **parameters, **limit) as stream:

                def is_over() -> bool:
                    replies.extend(stream.ready())
                    return bool(replies)

                terminal.forward(stream.fileno(), is_over)
                terminal.drain()
                return replies[-1]
        except ConnectionLostError:
            patience.next_manager()
            if session.client.is_replaced():
                raise SupervisorReplacedError("Run") from None
        except ControlError:
            terminal.drain()
            raise
