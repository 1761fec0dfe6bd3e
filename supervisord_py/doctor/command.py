"""``supervisord-py doctor``: what this machine offers, or the invariants of a running supervisor."""

import json
import os
from pathlib import Path

import click

from supervisord_py.ctl.address import find_socket
from supervisord_py.ctl.client import Client, UnreachableError
from supervisord_py.ctl.session import error_document
from supervisord_py.doctor.findings import Finding, Level, degraded, document, text
from supervisord_py.errors import SupervisordError
from supervisord_py.host.places import default_places, moved
from supervisord_py.host.unit_files import load_settings

TIMEOUT_S = 60.0


@click.command("doctor")
@click.option("--instance", is_flag=True, help="Check the invariants of a running supervisor in place of the machine.")
@click.option("--socket", metavar="PATH", help="Its control socket (default: as supctl finds it).")
@click.option("--user", is_flag=True, help="The user's own supervisor.")
@click.option("--system", is_flag=True, help="The system's supervisor.")
@click.option("--config", metavar="FILE", help="Settings file (default: the one of root or of the user).")
@click.option("--runtime-dir", metavar="DIR", help="Where run is told to put sockets and lock.")
@click.option("--state-dir", metavar="DIR", help="Where run is told to put journal and state.")
@click.option("--log-dir", metavar="DIR", help="Where run is told to put the output of units.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor_command(
    instance: bool,
    socket: str | None,
    user: bool,
    system: bool,
    config: str | None,
    runtime_dir: str | None,
    state_dir: str | None,
    log_dir: str | None,
    as_json: bool,
) -> None:
    """Say what this machine offers, what is degraded because of it, and what to do about that.

    With --instance: check from outside and over its control socket that a running supervisor keeps what it promises.
    Exits 1 when something is wrong, not when it is merely degraded.
    """
    try:
        if instance:
            findings = _of_instance(socket, user=user, system=system)
        else:
            findings = _of_machine(config, runtime_dir, state_dir, log_dir, socket)
    except SupervisordError as error:
        if as_json:
            click.echo(json.dumps({"error": error_document(error, str(error))}, indent=2))
        click.echo(str(error), err=True)
        raise SystemExit(error.exit_status) from None
    click.echo(json.dumps(document(findings), indent=2) if as_json else text(findings))
    if any(finding.level is Level.WRONG for finding in findings):
        raise SystemExit(1)


def _of_instance(socket: str | None, *, user: bool, system: bool) -> list[Finding]:
    from supervisord_py.doctor.belongings import who_is_there
    from supervisord_py.doctor.instance import examine

    address = find_socket(os.environ, os.geteuid(), socket=socket, user=user, system=system)
    try:
        with Client(address.path, timeout_s=TIMEOUT_S) as client:
            return examine(client)
    except UnreachableError as error:
        found = who_is_there(Path(os.path.abspath(address.path)).parent)
        if found is None:
            raise
        raise UnreachableError(error.path, f"{error.reason}; {found.fact} ({found.cure})") from error


def _of_machine(
    config: str | None, runtime: str | None, state: str | None, log: str | None, socket: str | None
) -> list[Finding]:
    from supervisord_py.doctor.machine import machine_findings

    places = moved(
        default_places(dict(os.environ), os.getuid(), os.path.expanduser("~")),
        runtime=runtime,
        state=state,
        log=log,
        settings=config,
        socket=socket,
    )
    settings, problems = load_settings(Path(places.settings), required=config is not None)
    findings = machine_findings(places, settings)
    for problem in problems:
        findings.append(degraded("settings", problem.text().splitlines()[0], "supervisord-py check shows all"))
    return findings
