"""``supervisord-py install`` and ``uninstall``."""

import os
from pathlib import Path

import click

from supervisord_py.host.places import default_places
from supervisord_py.host.run import control_gid
from supervisord_py.host.unit_files import load_settings
from supervisord_py.install import systemd
from supervisord_py.install.steps import Steps


def _target(
    *, system: bool, user: bool, root: str | None, init: str, dry_run: bool, now: bool
) -> tuple[systemd.Target, Steps]:
    if init != "systemd":
        raise click.UsageError(
            f"--init {init} is not supported yet: let a script of {init} run `supervisord-py run` in the foreground"
        )
    if system and user:
        raise click.UsageError("--system and --user are different services: give one of them")
    uid, home, environment = os.getuid(), os.path.expanduser("~"), dict(os.environ)
    is_user = user or (uid != 0 and not system)
    if is_user and uid == 0:
        raise click.UsageError("root's supervisor is the system's: leave out --user, or do this as the user meant")
    if now and root is not None:
        raise click.UsageError("--now starts the service on this machine, not on the one in --root")
    if not is_user and uid != 0 and root is None and not dry_run:
        raise click.ClickException("only root may install or remove the system's service (--user is yours)")
    if is_user:
        environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{uid}")
        is_running = root is None and os.path.exists(f"{environment['XDG_RUNTIME_DIR']}/systemd")
        places = default_places(environment, uid, home)
        target = systemd.user_target(places, home, environment, is_running=is_running)
    else:
        is_running = root is None and os.path.isdir("/run/systemd/system")
        places = default_places(environment, 0, home)
        gid = control_gid(load_settings(places.settings, required=False)[0]) if uid == 0 and root is None else None
        target = systemd.system_target(places, is_running=is_running, gid=gid)
    if now and not target.is_running:
        raise click.ClickException("systemd does not run here, so nothing can be started: leave out --now")
    steps = Steps(Path(root or "/").absolute(), click.echo, rehearsal=dry_run, environment=environment)
    return target, steps


_INIT = click.option(
    "--init",
    type=click.Choice(["systemd", "openrc"]),
    default="systemd",
    help="The service manager (only systemd yet).",
)
_SYSTEM = click.option("--system", is_flag=True, help="The machine's service (the default for root).")
_USER = click.option("--user", is_flag=True, help="A service of your own (the default for everybody else).")
_ROOT = click.option("--root", metavar="DIR", help="Into the system below this folder, which does not run.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


@click.command("install")
@_SYSTEM
@_USER
@click.option("--now", is_flag=True, help="Start it too, and wait until it is ready.")
@_DRY_RUN
@_ROOT
@_INIT
def install_command(system: bool, user: bool, now: bool, dry_run: bool, root: str | None, init: str) -> None:
    """Make the supervisor a service that starts with the machine, run by this very interpreter.

    Says each thing it does. Doing it again changes nothing that is as it should be.
    """
    target, steps = _target(system=system, user=user, root=root, init=init, dry_run=dry_run, now=now)
    systemd.install(target, steps, now=now, show_text=dry_run)


@click.command("uninstall")
@_SYSTEM
@_USER
@click.option("--purge", is_flag=True, help="Remove unit files, settings, journal and output too.")
@_DRY_RUN
@_ROOT
@_INIT
def uninstall_command(system: bool, user: bool, purge: bool, dry_run: bool, root: str | None, init: str) -> None:
    """Stop the service with all its units, and remove what install made.

    Unit files, settings, journal and output are kept, and it says where, unless --purge is given.
    """
    target, steps = _target(system=system, user=user, root=root, init=init, dry_run=dry_run, now=False)
    systemd.uninstall(target, steps, purge=purge)
