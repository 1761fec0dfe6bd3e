"""``supervisord-py exec``: supervise one command without a file, as the first process of a small container.

The command becomes a unit in a temporary folder that the keeper removes at its end, with everything else that was kept
there. It gets standard input, output and error, environment, folder, umask and limit on files of this process; the
keeper passes signals on to it. SIGTERM is an ordered stop, so that a command that does not listen ends in time.
"""

import contextlib
import json
import os
import resource
import shutil
import tempfile
from pathlib import Path

import click

from supervisord_py.host.places import RUNTIME_DIR_MAX, default_places, moved
from supervisord_py.host.run import CONTAINER_SHUTDOWN_NS, become_keeper, hold_signals, keeper_config, span_ns
from supervisord_py.host.unit_files import load
from supervisord_py.model.names import is_unit_name
from supervisord_py.model.settings import Settings

FOLDERS = ("/dev/shm", "/run")
"""Where the temporary folder goes when none of the usual places can be written (a read-only root)."""
PREFIXES = "-@:+!|"
"""What systemd and we take off the front of a command."""


@click.command("exec", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", metavar="NAME", help="Name of the unit and of this instance (default: that of the program).")
@click.option(
    "--restart",
    type=click.Choice(["no", "on-failure", "always"]),
    default="no",
    help="When it is started again; with delays that grow, until it has failed five times.",
)
@click.option("--shutdown-timeout", metavar="SPAN", help="Time between SIGTERM and the kill (default: 8s).")
@click.option("--runtime-dir", metavar="DIR", help="Sockets and lock (default: a temporary folder).")
@click.option("--state-dir", metavar="DIR", help="Journal and state (default: a temporary folder).")
@click.option("--socket", "socket_path", metavar="PATH", help="Control socket (default: in the runtime folder).")
def exec_command(
    command: tuple[str, ...],
    name: str | None,
    restart: str,
    shutdown_timeout: str | None,
    runtime_dir: str | None,
    state_dir: str | None,
    socket_path: str | None,
) -> None:
    """Supervise one command without a file, and exit with its code.

    128 + n for a signal, 125 when it never started. Signals are passed on to it, orphans are reaped; nothing is left
    behind. The command is never run by a shell.
    """
    hold_signals()
    if name is not None and not is_unit_name(name):
        raise click.UsageError(f"--name: {name} is not a unit's name: letters, digits and :_.- after the first")
    if command[0][:1] in PREFIXES:
        raise click.UsageError(f"give the path of {command[0]}: a command does not begin with {command[0][:1]}")
    timeout_ns = span_ns(shutdown_timeout) or CONTAINER_SHUTDOWN_NS
    unit = name or program_name(command[0])
    folder = temporary_folder()
    try:
        for below in ("units", "run", "state"):
            Path(folder, below).mkdir(mode=0o700)
        path = Path(folder, "units", f"{unit}.toml")
        path.write_text(unit_text(command, restart), encoding="utf-8")
        places = moved(
            default_places(dict(os.environ), os.getuid(), folder),
            runtime=runtime_dir or f"{folder}/run",
            state=state_dir or f"{folder}/state",
            settings=f"{folder}/supervisord.toml",
            socket=socket_path,
        )
        loaded = load([str(path)], places)
        for problem in loaded.problems:
            click.echo(problem.text(), err=True)
        if loaded.has_errors:
            raise SystemExit(1)
        config = keeper_config(places, Settings(), [str(path)], name, "all", False)
        config |= {"forward": unit, "remove": folder, "events": "none"}
        become_keeper(places, Settings(), loaded.unit_set, config, timeout_ns)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def program_name(program: str) -> str:
    """Return the name of a program as one of a unit."""
    name = os.path.basename(program)
    return name if is_unit_name(name) else "command"


def temporary_folder() -> str:
    """Make a folder for sockets and journal, where there is room for one with a path that is short enough."""
    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp(prefix="supervisord-py-")
        if len(os.fsencode(folder)) + len("/run") <= RUNTIME_DIR_MAX:
            return folder
        os.rmdir(folder)
    for parent in FOLDERS:
        with contextlib.suppress(OSError):
            return tempfile.mkdtemp(prefix="supervisord-py-", dir=parent)
    raise click.ClickException(
        f"no folder for sockets and journal can be made in $TMPDIR, /tmp, {' or '.join(FOLDERS)}; "
        "mount a tmpfs on one of them"
    )


def unit_text(command: tuple[str, ...], restart: str) -> str:
    """Return the unit file of a command that is to find everything as this process does."""
    try:
        argv = ", ".join(quoted(word) for word in command)
        folder = quoted(os.getcwd())
    except UnicodeEncodeError:
        raise click.ClickException("the command or the working directory is not UTF-8") from None
    umask = os.umask(0)
    os.umask(umask)
    soft, hard = (
        "infinity" if limit == resource.RLIM_INFINITY else str(limit)
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return f"""[unit]
exit-supervisor-on = "exit"

[service]
exec-start = [{argv}]
restart = "{restart}"
kill-mode = "mixed"
timeout-stop-sec = "infinity"
working-directory = {folder}
umask = "{umask:04o}"
ignore-sigpipe = false

[limits]
nofile = "{soft}:{hard}"
enforce = "best-effort"
"""


def quoted(text: str) -> str:
    """Return text as a TOML string in which no specifier is expanded.

    Raises:
        UnicodeEncodeError: It holds bytes that are no UTF-8.
    """
    text.encode()
    return json.dumps(text.replace("%", "%%"), ensure_ascii=False).replace("\x7f", "\\u007f")
