"""``wait``: return when a unit is ready, active or inactive, or when its present life has ended, with its exit code."""

import click

from supervisord_py.ctl.client import Client, ConnectionLostError
from supervisord_py.ctl.describe import life_from_wire
from supervisord_py.ctl.options import Verb, unit_argument
from supervisord_py.ctl.replies import ExitReply, UnitReply, explain_exit, state_text, status_document, unit_from_wire
from supervisord_py.ctl.session import Session

NEVER_STARTED = 125
INTERRUPTED = 130


@click.command("wait", cls=Verb)
@unit_argument()
@click.option(
    "--for", "until", type=click.Choice(("ready", "active", "inactive", "exit")), default="ready", show_default=True,
    help="What is waited for.",
)  # fmt: skip
@click.pass_obj
def wait(session: Session, unit: str, until: str) -> int:
    """Wait for a unit.

    With --for exit: until its present life has ended, and then exit with the unit's own code (128 + n for signal n,
    125 when it never started). Exits 124 when --timeout runs out.
    """
    try:
        found = _wait_for_exit(session, unit) if until == "exit" else _wait(session, unit, until)
    except KeyboardInterrupt:
        return INTERRUPTED
    if session.wants_json:
        session.emit({"unit": status_document(found)})
    elif until != "exit":
        pid = f", pid {found['pid']}" if found["pid"] else ""
        session.echo(f"{found['name']} is {state_text(found)}{pid}")
    if until != "exit":
        return 0
    return _exit_code(session, found)


def _wait(session: Session, unit: str, until: str) -> UnitReply:
    return unit_from_wire(session.call("Wait", unit=unit, until=until)["unit"])


def _wait_for_exit(session: Session, unit: str) -> UnitReply:
    """Wait for the end of the life that the unit has now.

    A connection that is lost is not simply tried again: the life may have ended while no manager answered, and the
    next one is not the one that was meant. Then the journal tells how it ended.
    """
    before = unit_from_wire(session.call("List", units=[unit], failed=False)["units"][0])
    invocation = before["invocation"]
    lost = False

    def remember() -> None:
        nonlocal lost
        lost = True

    address, timeout_s = session.address, session.options.timeout_s
    with Client(address.path, timeout_s=timeout_s, on_loss=remember, keys=address.keys) as client:
        found = unit_from_wire(client.call("Wait", unit=before["name"], until="exit")["unit"])
    if not lost or invocation is None or found["invocation"] == invocation:
        return found
    try:
        told = session.call("Lives", unit=before["name"], last=50)["lives"]
    except ConnectionLostError:
        return found
    for life in map(life_from_wire, told):
        if life["invocation"] == invocation and life["end"] is not None:
            found["exit"] = life["exit"]
            found["result"] = life["result"] or found["result"]
            found["invocation"] = invocation
            found["has_run"] = found["exit"] is not None
    return found


def _exit_code(session: Session, unit: UnitReply) -> int:
    # The code of what kept the program from running (203 and the like), or an older life's, is not its own.
    ended: ExitReply | None = unit["exit"] if unit["has_run"] else None
    if ended is None:
        if unit["result"] == "unknown":
            session.note(f"{unit['name']} has ended, and the kernel no longer tells how: see supctl why {unit['name']}")
            return 1
        session.note(f"{unit['name']} never started: see supctl why {unit['name']}")
        return NEVER_STARTED
    if not session.wants_json:
        session.echo(f"{unit['name']} ended with {explain_exit(ended)}")
    code = ended.get("code")
    return code if code is not None else 128 + signal_number(str(ended.get("signal")))


def signal_number(name: str) -> int:
    """Return the number of a signal by the name that the supervisor has for it."""
    import signal

    try:
        return int(signal.Signals[name])
    except KeyError:
        # A real-time signal: SIGRTMIN+n has no name of its own.
        base, plus, offset = name.partition("+")
        return int(signal.Signals[base]) + int(offset) if plus and base == "SIGRTMIN" and offset.isdigit() else 0
