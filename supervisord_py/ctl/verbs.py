"""The verbs that change units: start to reload-or-restart, kill, reset-failed; and the jobs they make.

Each waits until its jobs are done unless told otherwise, prints a line a unit, and when something failed shows why
and the last output, so that the next command need not be typed.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from supervisord_py.ctl.client import CallTimeoutError, ConnectionLostError, ControlError, SupervisorReplacedError
from supervisord_py.ctl.options import Misuse, Verb, units_argument
from supervisord_py.ctl.render import Cell, clean, format_duration, table
from supervisord_py.ctl.replies import OutcomeReply, UnitReply, outcomes_from_wire, units_from_wire, words_from_wire
from supervisord_py.ctl.session import Session
from supervisord_py.errors import SupervisordError
from supervisord_py.model.states import JobMode

INTERRUPTED = 130
LAST_LINES = 10

_DONE = {
    "start": "started",
    "verify-active": "is active:",
    "stop": "stopped",
    "reload": "reloaded",
    "restart": "restarted",
    "reload-or-start": "reloaded",
    "nop": "nothing to do for",
    "kill": "signalled",
    "reset-failed": "reset",
    "enable": "enabled",
    "disable": "disabled",
    "mask": "masked",
    "unmask": "unmasked",
    "pause": "paused",
    "scale": "scaled",
    "set": "set",
    "resume": "resumed",
}
_LAST_WORDS = "; its last words: "
"""What the message of an apply that goes back has of the life that was the reason."""
_MORE = ("restarts", "changes", "settings", "unit", "path", "text", "warnings", "ended")
"""What some replies have besides, for ``--json``."""
_FINE = ("done", "skipped", "queued")
_STARTS = ("start", "restart", "reload-or-start")


def change_units(session: Session, method: str, units: Sequence[str], **more: Any) -> int:
    """Carry out a verb that makes jobs, wait for them, and tell what became of each unit; return the exit code."""
    options = session.options

    def request() -> dict[str, Any]:
        return session.call(
            method,
            units=list(units),
            wait=not options.no_wait and not options.plan,
            plan=options.plan,
            reason=options.reason,
            **more,
        )

    return carry_out(session, request, units)


def carry_out(
    session: Session,
    request: Callable[[], dict[str, Any]],
    units: Sequence[str],
    *,
    nothing: str = "nothing to do",
) -> int:
    """Make a request that answers with outcomes and print them; return the exit code. ``nothing`` is said without
    any."""
    started = time.monotonic()
    progress = Progress(session, units)
    session.while_waiting = progress.show
    try:
        reply = request()
    except KeyboardInterrupt:
        progress.clear()
        session.note("interrupted: the job goes on; supctl jobs lists it, supctl cancel JOB ends it")
        return INTERRUPTED
    except ControlError as error:
        progress.clear()
        if error.name == "JobFailed" and not session.wants_json:
            outcomes = outcomes_from_wire(error.parameters.get("outcomes"))
            return _tell_failure(session, error, outcomes, time.monotonic() - started)
        return session.fail(error)
    except (CallTimeoutError, ConnectionLostError) as error:
        progress.clear()
        return session.fail(error)
    finally:
        session.while_waiting = None
    progress.clear()
    outcomes = outcomes_from_wire(reply.get("outcomes"))
    warn_unless_durable(session, reply)
    if session.wants_json:
        document = {"job": reply.get("job"), "durable": reply.get("durable"), "outcomes": outcomes}
        document |= {key: reply[key] for key in _MORE if key in reply}
        session.emit(document | ({"plan": True} if session.options.plan else {}))
    elif session.options.no_wait and not session.options.plan and reply.get("job") is not None:
        session.echo(str(reply["job"]))
    else:
        _tell(session, outcomes, time.monotonic() - started, nothing)
    return 0


def warn_unless_durable(session: Session, reply: dict[str, Any]) -> None:
    if reply.get("durable") is False and not session.options.plan:
        session.note("warning: the journal cannot be written, this is not on disk: see supctl journal stats")


def _tell(session: Session, outcomes: Sequence[OutcomeReply], elapsed_s: float, nothing: str = "nothing to do") -> None:
    if not outcomes:
        session.echo(nothing)
        return
    if session.options.plan:
        for outcome in outcomes:
            act = f"would {outcome['type']}" if outcome["type"] != "nop" else "nothing to do for"
            if outcome["result"] not in _FINE:
                act = f"could not {outcome['type']}"
            session.echo(f"{act} {outcome['unit']}{_because(outcome)}")
        return
    pids = _pids(session, outcomes)
    for outcome in outcomes:
        if outcome["result"] == "skipped":
            session.echo(f"skipped {outcome['unit']}{_because(outcome)}")
            continue
        if outcome["result"] == "queued":
            session.echo(f"queued {outcome['type']} of {outcome['unit']}, job {outcome['job']}{_because(outcome)}")
            continue
        if outcome["message"].startswith("already ") or outcome["message"] == "not masked":
            session.echo(f"{outcome['unit']} is {clean(outcome['message'])}")
            continue
        facts = [f"pid {pids[outcome['unit']]}"] if outcome["job"] and pids.get(outcome["unit"]) else []
        if outcome["job"]:
            facts.append(format_duration(elapsed_s))
        about = f" ({', '.join(facts)})" if facts else ""
        session.echo(f"{_DONE.get(outcome['type'], outcome['type'])} {outcome['unit']}{about}{_because(outcome)}")


def _because(outcome: OutcomeReply) -> str:
    return f": {clean(outcome['message'])}" if outcome["message"] else ""


def _pids(session: Session, outcomes: Sequence[OutcomeReply]) -> dict[str, int | None]:
    """Look up the main processes of what was started; the verb has succeeded, so nothing here may make it fail."""
    started = [outcome["unit"] for outcome in outcomes if outcome["type"] in _STARTS and outcome["result"] == "done"]
    if not started:
        return {}
    try:
        with session.new_client(timeout_s=2.0) as client:
            return {
                unit["name"]: unit["pid"] for unit in units_from_wire(client.call("List", units=started, failed=False))
            }
    except SupervisordError:
        return {}


def _tell_failure(session: Session, error: ControlError, outcomes: Sequence[OutcomeReply], elapsed_s: float) -> int:
    fine = [outcome for outcome in outcomes if outcome["result"] in _FINE]
    if fine:
        _tell(session, fine, elapsed_s)
    failed = [outcome for outcome in outcomes if outcome["result"] not in _FINE]
    if not failed:
        return session.fail(error)
    units = _failed_units(session, failed)
    for outcome in failed:
        name = outcome["unit"]
        session.note(f"cannot {outcome['type']} {name}: {clean(outcome['message']) or outcome['result']}")
        unit = units.get(name)
        details: list[str] = []
        if unit is not None:
            why, cause = unit["why"], outcome["message"].rpartition(": ")[2]
            if why and (not cause or cause not in why):
                details.append(f"why: {clean(why)}")
            if unit["result"] not in ("success", outcome["result"]) and unit["result"] not in outcome["message"]:
                details.append(f"result: {unit['result']}")
            if _LAST_WORDS not in outcome["message"]:
                # What went back has a later life, whose lines would follow.
                details += [f"| {clean(line)}" for line in unit.get("lines") or ()]
        details.append(f"next: supctl why {name}")
        sys.stderr.write("".join(f"  {line}\n" for line in details))
    return error.exit_status


def _failed_units(session: Session, failed: Sequence[OutcomeReply]) -> dict[str, UnitReply]:
    """Fetch the failed units with their last output; what is not permitted is left out of the message, no more."""
    try:
        with session.new_client(timeout_s=5.0) as client:
            names = [outcome["unit"] for outcome in failed]
            return {
                unit["name"]: unit for unit in units_from_wire(client.call("Status", units=names, lines=LAST_LINES))
            }
    except SupervisordError:
        return {}


class Progress:
    """On a terminal, one line that says what is being waited for, from the second second on."""

    def __init__(self, session: Session, units: Sequence[str]) -> None:
        self._session = session
        self._units = units
        self._shown = False

    def show(self, elapsed_s: float) -> None:
        if not sys.stderr.isatty() or elapsed_s < 1.5 or self._session.wants_json:
            return
        waiting = " ".join(self._units)
        try:
            with self._session.new_client(timeout_s=0.5) as client:
                jobs = [words_from_wire(job) for job in client.call("Jobs")["jobs"]]
        except SupervisordError:
            jobs = []
        if jobs:
            shown = ", ".join(f"{job['unit']} ({job['type']} {job['state']})" for job in jobs[:4])
            waiting = shown + (f" and {len(jobs) - 4} more" if len(jobs) > 4 else "")
        sys.stderr.write(
            f"\r\x1b[Kwaiting for {clean(waiting)}, {format_duration(elapsed_s)}; Ctrl-C leaves the job going"
        )
        sys.stderr.flush()
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


_JOB_VERB = ("no_wait", "reason", "plan")


def _job_verb(name: str, method: str, summary: str, text: str, no_units: str | None = None) -> click.Command:
    @click.command(name, cls=Verb, accepts=_JOB_VERB, short_help=summary, help=text, no_units=no_units)
    @units_argument(required=True)
    @job_mode_option
    @click.pass_obj
    def command(session: Session, units: tuple[str, ...], job_mode: str | None) -> int:
        return change_units(session, method, units, **mode_of(job_mode))

    return command


def job_mode_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--job-mode``."""
    return click.option(
        "--job-mode",
        type=click.Choice([mode.value for mode in JobMode]),
        metavar="MODE",
        help="How this goes with queued jobs and related units (replace).",
    )(function)


def mode_of(job_mode: str | None) -> dict[str, str]:
    """Return the parameter that asks for a job mode; none where it was not given."""
    return {} if job_mode is None else {"mode": job_mode}


_ALL = "name units, @groups or globs; '*' is every unit"
start = _job_verb(
    "start", "Start", "start units and what they require",
    "Start units and what they require, and wait until they are ready.", f"start what? {_ALL}",
)  # fmt: skip
stop = _job_verb(
    "stop", "Stop", "stop units and what requires them",
    "Stop units and what requires them; a pending restart is cancelled.", f"stop what? {_ALL}",
)  # fmt: skip
try_restart = _job_verb(
    "try-restart", "TryRestart", "restart units that run", "Restart units that run; the others are left alone."
)
reload = _job_verb(
    "reload", "Reload", "make units read their own configuration again",
    "Make running units read their own configuration again: exec-reload, or the reload-signal of a notify-reload.",
    "reload makes units read their configuration again and needs their names; "
    "to read the unit files again: supctl daemon-reload",
)  # fmt: skip
reload_or_restart = _job_verb(
    "reload-or-restart", "ReloadOrRestart", "reload units, or restart those that cannot",
    "Reload units that can, restart those that cannot, start those that do not run.",
)  # fmt: skip


def _plain_verb(name: str, method: str, summary: str, text: str) -> click.Command:
    @click.command(name, cls=Verb, accepts=_JOB_VERB, short_help=summary, help=text, no_units=f"{name} what? {_ALL}")
    @units_argument(required=True)
    @click.pass_obj
    def command(session: Session, units: tuple[str, ...]) -> int:
        return change_units(session, method, units)

    return command


pause = _plain_verb(
    "pause", "Pause", "let all processes of units stand still",
    "Let every process of running units stand still, by the freezer of their cgroup or by SIGSTOP. They stay active; "
    "time-outs, watchdogs and health checks stand still too.",
)  # fmt: skip
resume = _plain_verb("resume", "Resume", "let paused units go on", "Let paused units go on where they were.")
trigger = _plain_verb(
    "trigger", "Trigger", "run units that have a timer now",
    "Run units that have a timer now, whether they are armed or not; the times at which they are run stay what they "
    "are. While a run goes on none begins beside it.",
)  # fmt: skip
release = _plain_verb(
    "release", "Release", "trust quarantined units again, and start them",
    "Forget the failures of units, and start them: the way out of a quarantine. start of a quarantined unit is the "
    "same.",
)  # fmt: skip


def rolling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--rolling`` and ``--max-unavailable``."""
    function = click.option(
        "--max-unavailable", type=click.IntRange(min=1), metavar="N", help="With --rolling: so many at a time (1)."
    )(function)
    return click.option("--rolling", is_flag=True, help="One after the other, each when the last one is ready.")(
        function
    )


@click.command("restart", cls=Verb, accepts=_JOB_VERB, no_units=f"restart what? {_ALL}")
@units_argument(required=True)
@job_mode_option
@rolling_options
@click.pass_context
def restart(
    context: click.Context, units: tuple[str, ...], rolling: bool, max_unavailable: int | None, job_mode: str | None
) -> int:
    """Stop units and start them again; those that do not run are started. With --rolling one after the other, in the
    order of dependencies, until one fails."""
    limit = rolling_limit(context, rolling, max_unavailable)
    if limit is not None and job_mode is not None:
        raise Misuse("--job-mode is for a restart of all units at once: leave it or --rolling out", context)
    more: dict[str, Any] = mode_of(job_mode) if limit is None else {"max_unavailable": limit}
    return change_units(context.obj, "Restart", units, **more)


def rolling_limit(context: click.Context, rolling: bool, max_unavailable: int | None) -> int | None:
    """Return how many units may be down at a time; None when it is not rolling.

    Raises:
        Misuse: A limit was given and it is not rolling.
    """
    if max_unavailable is not None and not rolling:
        raise Misuse("--max-unavailable is for --rolling: give both", context)
    return (max_unavailable or 1) if rolling else None


class _KillVerb(Verb):
    """``kill`` as hands know it: ``kill -9 web`` and ``kill -HUP web`` too."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        for word in args:
            is_signal = word[:1] == "-" and (word[1:].isdigit() or (word[1:].isalnum() and word[1:].isupper()))
            words += ["-s", word[1:]] if is_signal else [word]
        return super().parse_args(context, words)


def signal_name(text: str) -> str:
    """Return a signal as the supervisor takes it: ``hup`` is ``SIGHUP``, a number stays one."""
    word = text.upper()
    return word if word.isdigit() or word.startswith("SIG") else f"SIG{word}"


@click.command("kill", cls=_KillVerb, accepts=("reason", "plan"))
@units_argument(required=True)
@click.option("-s", "--signal", default="SIGTERM", show_default=True, metavar="SIGNAL", help="A name or a number.")
@click.option(
    "--whom",
    type=click.Choice(("main", "all")),
    default="all",
    show_default=True,
    help="The main process, or every one.",
)
@click.pass_obj
def kill(session: Session, units: tuple[str, ...], signal: str, whom: str) -> int:
    """Send a signal to the processes of units. The supervisor then does what it does when they die: to end a unit use
    stop.
    """
    return send_signal(session, units, signal, whom)


def send_signal(session: Session, units: Sequence[str], signal: str, whom: str) -> int:
    options = session.options

    def request() -> dict[str, Any]:
        return session.call(
            "Kill", units=list(units), signal=signal_name(signal), whom=whom, reason=options.reason, plan=options.plan
        )

    return carry_out(session, request, units)


@click.command("signal", cls=Verb, accepts=("reason", "plan"))
@click.argument("signal", metavar="SIGNAL")
@units_argument(required=True)
@click.option("--whom", type=click.Choice(("main", "all")), default="main", show_default=True)
@click.pass_obj
def signal_units(session: Session, signal: str, units: tuple[str, ...], whom: str) -> int:
    """Send a signal to the main process of units, as supervisorctl does; kill is the same for all processes."""
    return send_signal(session, units, signal, whom)


VANISHED_MAX = 5
"""So many units may vanish in a row while all are asked for."""


@click.command("reset-failed", cls=Verb, accepts=("reason", "plan"))
@units_argument(required=False)
@click.pass_obj
def reset_failed(session: Session, units: tuple[str, ...]) -> int:
    """Forget the failures of units (of all when none is named): failed and quarantined become inactive. Starts
    nothing.
    """
    options = session.options

    def request() -> dict[str, Any]:
        tries = 1 if units else VANISHED_MAX
        while True:
            tries -= 1
            try:
                return session.call("ResetFailed", units=list(units), reason=options.reason, plan=options.plan)
            except ControlError as error:
                # Of all of them one was forgotten meanwhile (``run``): it has nothing left to forget.
                if error.name != "NoSuchUnit" or not tries:
                    raise

    return carry_out(session, request, units)


@click.command("jobs", cls=Verb)
@click.pass_obj
def jobs(session: Session) -> int:
    """List what is being done, and what waits for it."""
    found = [words_from_wire(job) for job in session.call("Jobs")["jobs"]]
    if session.wants_json:
        session.emit({"jobs": found})
        return 0
    rows = [
        [
            str(job["job"]),
            job["unit"],
            job["type"],
            Cell(job["state"], *(("green",) if job["state"] == "running" else ())),
            _waiting_for(job),
        ]
        for job in found
    ]
    lines = table(session.style, ("JOB", "UNIT", "TYPE", "STATE", "WAITING FOR"), rows, right="JOB")
    session.echo(*(lines or ["no jobs"]))
    return 0


def _waiting_for(job: dict[str, Any]) -> str:
    """Say what a job waits for: units, or its turn under a limit."""
    limit = job.get("limit")
    if limit is None:
        return ", ".join(job.get("waiting_for") or ())
    name = limit if limit == "max-workers" else f"pool {limit}"
    return f"{name} (number {job['position']})" if job.get("position") else str(name)


@click.command("cancel", cls=Verb, accepts=("reason",))
@click.argument("job", type=click.IntRange(min=0), metavar="JOB")
@click.pass_obj
def cancel(session: Session, job: int) -> int:
    """End a job that has not finished; what it has done stays done."""
    try:
        reply = _cancel(session, job)
    except ConnectionLostError:
        if session.client.is_replaced():
            return session.fail(SupervisorReplacedError("Cancel"))
        # Whether it was cancelled is to be seen: a job that is still there was not.
        if any(found["job"] == job for found in session.call("Jobs")["jobs"]):
            reply = _cancel(session, job)
        else:
            reply = {"job": job, "durable": True}
    warn_unless_durable(session, reply)
    if session.wants_json:
        session.emit(reply)
    else:
        session.echo(f"cancelled job {job}")
    return 0


def _cancel(session: Session, job: int) -> dict[str, Any]:
    return session.call("Cancel", job=job, reason=session.options.reason)
