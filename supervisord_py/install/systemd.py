"""The supervisor as a service of systemd: the system's, or a user's.

What is made: the folders of the contract's places, one unit file, one link that starts it with the machine (with the
user's manager), and nothing else. Removing takes back the same; what people wrote, and what the supervisor remembers,
goes only when that is asked for.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

from supervisord_py.host.places import PROJECT, Places
from supervisord_py.install.service import MARK, service_text
from supervisord_py.install.steps import Steps, read_text

NAME = f"{PROJECT}.service"
XDG_VARIABLES = {"XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share", "XDG_STATE_HOME": ".local/state"}
LINGER = Path("/var/lib/systemd/linger")


@dataclass(frozen=True, slots=True)
class Target:
    """For whom, and where; paths are those of the machine that the service will run on."""

    is_user: bool
    places: Places
    unit: Path
    link: Path
    environment: dict[str, str]
    """Variables that say where this user's files are, where it is not the usual place."""
    is_running: bool
    """Whether the systemd that will run the service runs now, and is to be told."""
    gid: int | None
    """Group that may read state and output."""
    home: Path | None = None
    """Of the user."""

    @property
    def systemctl(self) -> list[str]:
        return ["systemctl", "--user"] if self.is_user else ["systemctl"]

    @property
    def own_folders(self) -> list[tuple[Path, int]]:
        """The folders that are ours alone, outermost first, with their modes."""
        config, state, log = self.places.settings.parent, self.places.state, self.places.log
        mode = 0o700 if self.is_user else 0o755
        return [(config, mode), (config / "units", mode), (state, 0o750), (log, 0o750)]


def system_target(places: Places, *, is_running: bool, gid: int | None) -> Target:
    folder = Path("/etc/systemd/system")
    link = folder / "multi-user.target.wants" / NAME
    return Target(False, places, folder / NAME, link, {}, is_running, gid)


def user_target(places: Places, home: str, environment: dict[str, str], *, is_running: bool) -> Target:
    folder = Path(environment.get("XDG_CONFIG_HOME") or f"{home}/.config") / "systemd" / "user"
    moved = {
        name: environment[name]
        for name, usual in XDG_VARIABLES.items()
        if environment.get(name) and Path(environment[name]) != Path(home) / usual
    }
    return Target(
        True, places, folder / NAME, folder / "default.target.wants" / NAME, moved, is_running, None, Path(home)
    )


def template(*, is_user: bool) -> str:
    """The packaged unit: beside this module in a wheel, in a checkout in ``packaging``."""
    name = f"{PROJECT}.user.service" if is_user else NAME
    packaged = resources.files("supervisord_py.install").joinpath(name)
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return Path(__file__).parents[2].joinpath("packaging", "systemd", name).read_text(encoding="utf-8")


def install(target: Target, steps: Steps, *, now: bool, show_text: bool) -> None:
    """Make the service; with ``now`` start it and wait until it is ready.

    Raises:
        click.ClickException: Something speaks against it, or a step failed; those before it are done.
    """
    _refuse_foreign(target, steps, "move it away")
    python = _checked_python()
    version = steps.ask(["systemctl", "--version"]).split()[1:2] if target.is_running else []
    systemd = int(version[0]) if version and version[0].isdigit() else None
    text = service_text(template(is_user=target.is_user), python, target.environment, systemd=systemd)
    was_active = target.is_running and steps.ask([*target.systemctl, "is-active", NAME]) == "active"
    if now and not was_active and _answers(target.places.socket):
        raise click.ClickException(
            f"a supervisor that is no service runs already ({target.places.socket}): stop it first (supctl shutdown)"
        )
    for folder, mode in target.own_folders:
        steps.make_folder(folder, mode, target.gid if folder in (target.places.state, target.places.log) else None)
    is_changed = steps.write(target.unit, text)
    if show_text:
        for line in text.splitlines():
            steps.say(f"    {line}".rstrip())
    steps.link(target.link, target.unit)
    if not target.is_user and (owner := _who_else_may_write(python)) is not None:
        steps.say(f"warning: {owner}; whoever may change it is root when the service starts")
    if target.is_running and is_changed:
        steps.run([*target.systemctl, "daemon-reload"], "the files are in their places; try it by hand")
    if now:
        logs = "journalctl --user -u" if target.is_user else "journalctl -u"
        steps.run([*target.systemctl, "start", NAME], f"see {logs} {PROJECT}")
        status = steps.ask([*target.systemctl, "show", "-P", "StatusText", NAME])
        steps.say(f"{NAME} is {steps.ask([*target.systemctl, 'is-active', NAME])}" + (f": {status}" if status else ""))
    if was_active and is_changed:
        steps.say(
            "the service runs as it was started; `supctl daemon-reexec` puts a new version in its place, and "
            f"`{' '.join(target.systemctl)} restart {PROJECT}` new settings of the service (that stops its units)"
        )
    if target.is_running and target.is_user:
        _tell_of_lingering(steps)
    if not target.is_running:
        steps.say("systemd was not told: the service starts with the machine, or with systemctl start")
    steps.say(f"unit files go to {target.places.unit_path[0]}, then: {supctl_to_type()} daemon-reload")


def supctl_to_type() -> str:
    """What to type for the supctl that was installed with this interpreter: its path where a shell finds none of it."""
    own = os.path.join(os.path.dirname(sys.executable), "supctl")
    found = shutil.which("supctl")
    is_found = found is not None and os.path.realpath(found) == os.path.realpath(own)
    return own if not is_found and os.access(own, os.X_OK) else "supctl"


def uninstall(target: Target, steps: Steps, *, purge: bool) -> None:
    """Stop the service with every unit of it, and take away what ``install`` made.

    Raises:
        click.ClickException: The service is not ours, or does not stop.
    """
    _refuse_foreign(target, steps, "remove it with what installed it")
    if target.is_running and steps.at(target.unit).exists():
        steps.run([*target.systemctl, "stop", NAME], "nothing is removed")
    if purge and _answers(target.places.socket):
        raise click.ClickException(
            f"a supervisor that is no service runs here ({target.places.socket}): stop it first (supctl shutdown)"
        )
    drop_ins = target.unit.with_name(f"{NAME}.d")
    steps.remove(target.link)
    steps.remove_if_empty(target.link.parent)
    had_unit = steps.at(target.unit).exists()
    steps.remove(target.unit)
    if purge:
        steps.remove_tree(drop_ins)
        for folder in (target.places.log, target.places.state, target.places.runtime, target.places.settings.parent):
            steps.remove_tree(folder)
    else:
        steps.remove_if_empty(target.places.runtime)
        for folder, _ in reversed(target.own_folders):
            steps.remove_if_empty(folder)
    _remove_ways(target, steps)
    if target.is_running and had_unit:
        steps.run([*target.systemctl, "daemon-reload"], "")
        steps.run([*target.systemctl, "reset-failed", NAME])
    kept = [path for path in (drop_ins, *dict.fromkeys(path for path, _ in target.own_folders)) if not purge]
    kept = [path for path in kept if steps.at(path).is_dir() and not any(p in path.parents for p in kept)]
    if kept and not steps.is_rehearsal:
        steps.say(f"kept: {', '.join(str(steps.at(path)) for path in kept)}; `uninstall --purge` removes them too")


def _remove_ways(target: Target, steps: Steps) -> None:
    """Remove what ``install`` may have made of the way to a user's folders (``~/.local/state``), where it is empty."""
    if target.home is None:
        return
    ends = (target.unit, target.places.state, target.places.log, target.places.settings.parent)
    ways = {folder for end in ends for folder in end.parents if target.home in folder.parents}
    for folder in sorted(ways, key=lambda folder: len(folder.parts), reverse=True):
        steps.remove_if_empty(folder)


def _refuse_foreign(target: Target, steps: Steps, remedy: str) -> None:
    unit = steps.at(target.unit)
    text = read_text(unit)
    if text is not None and not text.startswith(MARK):
        raise click.ClickException(f"{unit} was not written by `supervisord-py install`: {remedy}")


def _checked_python() -> str:
    """Return this interpreter, when it finds this package without our environment and working folder."""
    python = os.path.abspath(sys.executable)
    found = subprocess.run(
        [python, "-P", "-c", "import supervisord_py, supervisord_py.cli"],
        env={"HOME": os.path.expanduser("~"), "PATH": os.defpath},
        cwd="/",
        capture_output=True,
        check=False,
    )
    if found.returncode != 0:
        raise click.ClickException(
            f"{python} does not find supervisord_py by itself, so a service could not: install it there with pip"
        )
    return python


def _who_else_may_write(python: str) -> str | None:
    """Say whose the interpreter or the package is, when it is not root's alone."""
    for path in (Path(python), Path(os.path.realpath(python)), Path(__file__).parents[1]):
        for part in (path, *path.parents):
            found = part.stat()
            if found.st_uid != 0:
                return f"{part} belongs to uid {found.st_uid}"
            if found.st_mode & 0o022 and not found.st_mode & 0o1000:
                return f"{part} may be written by others than root"
    return None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):  # too long a path: then nobody is there
        return client.connect_ex(str(path)) == 0
    return False


def _tell_of_lingering(steps: Steps) -> None:

    name = pwd.getpwuid(os.getuid()).pw_name
    if not (LINGER / name).exists():
        steps.say(
            f"lingering is off for {name}: the service ends with your last session and does not start with the "
            f"machine; turn it on with: loginctl enable-linger {name}"
        )
