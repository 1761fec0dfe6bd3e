"""``supervisord-py run``: validate everything, then become the keeper."""

import contextlib
import fcntl
import grp
import os
import pwd
import resource
import signal
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import click

from supervisord_py.core.manager import Manager
from supervisord_py.core.view import is_stopping
from supervisord_py.host.adoption import LostKeeper, end_leftovers, find_lost_keeper, hand_over, take_over
from supervisord_py.host.hot_check import load_all
from supervisord_py.host.places import KEEPS_OUT, RUNTIME_DIR_MAX, Places, closed_to_others, default_places, moved
from supervisord_py.host.sources import SOURCES_KEY, Sources, with_options
from supervisord_py.host.stop_with import KEY as stop_with_key
from supervisord_py.host.stop_with import identity_of
from supervisord_py.host.unit_files import load_settings
from supervisord_py.keeper.protocol import keeper_argv
from supervisord_py.model.environment_file import is_variable_name
from supervisord_py.model.settings import Settings
from supervisord_py.model.states import KillMode, SupervisorMode
from supervisord_py.model.unit import SECOND_NS, Unit, UnitSet
from supervisord_py.model.values import parse_timespan

STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGRTMIN + 3}
HELD = STOPS | {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
DEFAULT_CONTROL_GROUP = "supervisord-py"
CONTAINER_SHUTDOWN_NS = 8 * SECOND_NS
"""The time for an ordered stop as process 1: container engines kill after 10 s, and the end needs a moment too."""


def _variable_names(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name.strip() for text in given for name in text.split(","))
    for name in names:
        if not is_variable_name(name):
            raise click.BadParameter(f"{name!r} is not a variable's name", context, parameter)
    return names


@click.command("run")
@click.argument("paths", metavar="[PATH...]", nargs=-1, type=click.Path())
@click.option(
    "--config", "settings_path", metavar="FILE", help="Settings file (default: the one of root or of the user)."
)
@click.option("--name", metavar="NAME", help="Name of this instance.")
@click.option("--runtime-dir", metavar="DIR", help="Sockets and lock.")
@click.option("--state-dir", metavar="DIR", help="Journal and state.")
@click.option("--log-dir", metavar="DIR", help="Output of units.")
@click.option(
    "--socket", "socket_path", metavar="PATH", help="Control socket (default: control.sock in the runtime folder)."
)
@click.option(
    "--pass-env",
    "pass_environment",
    metavar="NAME",
    multiple=True,
    callback=_variable_names,
    help="Pass this variable to every unit.",
)
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in SupervisorMode]),
    help="until-empty: end when nothing is left to do (default: what the settings say, else daemon).",
)
@click.option(
    "--max-workers", type=click.IntRange(min=0), metavar="N", help="So many units run at a time; 0: no limit."
)
@click.option(
    "--output",
    type=click.Choice(["file", "stdout"]),
    default="file",
    help="stdout: every line of every unit there too, after its unit's name.",
)
@click.option("--timestamps", is_flag=True, help="With --output stdout, the time before each line.")
@click.option(
    "--stop-with", type=click.IntRange(min=1), metavar="PID", help="Stop everything in order when this process ends."
)
@click.option(
    "--shutdown-timeout",
    metavar="SPAN",
    help="Time for the ordered stop (default: shutdown-timeout-sec; as process 1, unless that is written, 8s).",
)
def run_command(
    paths: tuple[str, ...],
    settings_path: str | None,
    name: str | None,
    runtime_dir: str | None,
    state_dir: str | None,
    log_dir: str | None,
    socket_path: str | None,
    pass_environment: tuple[str, ...],
    mode: str | None,
    max_workers: int | None,
    output: str,
    timestamps: bool,
    stop_with: int | None,
    shutdown_timeout: str | None,
) -> None:
    """Supervise in the foreground the units in these files and folders (default: the unit path).

    SIGTERM or SIGINT stop everything in order, a second SIGINT kills, SIGHUP is daemon-reload.
    """
    hold_signals()
    places = moved(
        default_places(dict(os.environ), os.getuid(), os.path.expanduser("~")),
        runtime=runtime_dir,
        state=state_dir,
        log=log_dir,
        settings=settings_path,
        socket=socket_path,
    )
    settings, problems = load_settings(places.settings, required=settings_path is not None)
    for problem in problems:
        click.echo(problem.text(), err=True)
    if any(problem.severity == "error" for problem in problems):
        raise SystemExit(1)
    settings = with_options(settings, mode, max_workers)
    unit_paths = [os.path.abspath(path) for path in paths]
    missing = [path for path in unit_paths if not os.path.lexists(path)]
    if missing:
        raise click.ClickException(f"no such file or folder: {', '.join(missing)}")
    loaded = load_all(unit_paths or None, places, settings, os.environ)
    for problem in loaded.problems:
        click.echo(problem.text(), err=True)
    if not loaded.unit_set.units and not loaded.unit_set.bad and settings.hot_directory.path is None:
        searched = ", ".join(unit_paths or map(str, places.unit_path))
        click.echo(f"no unit files in {searched}; `supervisord-py new NAME` writes one to start from", err=True)
    if os.getuid() == 0 and any(map(has_own_user, loaded.unit_set.units.values())):
        closed = closed_to_others(places.runtime)
        if closed is not None:
            click.echo(f"{closed} {KEEPS_OUT}; chmod o+x {closed}, or another --runtime-dir", err=True)
    if timestamps and output != "stdout":
        raise click.UsageError("--timestamps is for --output stdout")
    config = keeper_config(places, settings, unit_paths, name, list(pass_environment), settings_path is not None)
    config |= {"output": output, "timestamps": timestamps, "mode": mode, "max_workers": max_workers}
    if stop_with is not None:
        config[stop_with_key] = identity_of(stop_with)
        if config[stop_with_key] is None:
            raise click.ClickException(f"--stop-with: there is no process {stop_with}")
    become_keeper(places, settings, loaded.unit_set, config, span_ns(shutdown_timeout))


def has_own_user(unit: Unit) -> bool:
    """Tell whether a unit runs as somebody else than root."""
    context = None if unit.service is None else unit.service.context
    return context is not None and (context.dynamic_user or context.user not in (None, "root", "0"))


def hold_signals() -> None:
    """As process 1, let signals wait until the keeper can act on them: the kernel drops what process 1 has no handler
    for, and a container that is stopped while it starts would be killed after all of its grace."""
    if os.getpid() == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def span_ns(text: str | None) -> int | None:
    """Read a time that was typed; None when there is none."""
    if text is None:
        return None
    try:
        timeout_ns = parse_timespan(text)
    except ValueError as error:
        raise click.UsageError(f"--shutdown-timeout: {error}") from None
    if timeout_ns is None or timeout_ns <= 0:
        raise click.UsageError("--shutdown-timeout: a time above 0 is needed")
    return timeout_ns


def become_keeper(
    places: Places, settings: Settings, units: UnitSet, config: dict[str, object], shutdown_timeout_ns: int | None
) -> NoReturn:
    """Prepare folders, take over what a killed keeper left, and replace this process by the keeper."""
    check_proc()
    if shutdown_timeout_ns is None and os.getpid() == 1 and not is_shutdown_timeout_written(settings):
        shutdown_timeout_ns = CONTAINER_SHUTDOWN_NS
    if shutdown_timeout_ns is not None:
        config |= {"shutdown_timeout_ns": shutdown_timeout_ns, "shutdown_timeout_s": shutdown_timeout_ns / 1e9}
    gid = control_gid(settings)
    config["socket_gid"] = gid
    made: list[Path] = []
    try:
        prepare_folders(places, gid, made)
        lock_folder(places.state, "--state-dir")
        if not places.log.samefile(places.state):
            lock_folder(places.log, "--log-dir")
        lost = adopt_of_lost_keeper(places, units)
        if lost is None:
            refuse_second(places.runtime)
    except click.ClickException:
        # Who is refused leaves nothing behind.
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    os.chdir("/")
    # Keeper and manager hold a descriptor or two a unit; units get their own limit (1024 unless they say otherwise).
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    argv = keeper_argv(config)
    if lost is not None:
        argv += ["--resume", str(hand_over(lost))]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)


def check_proc() -> None:
    """Refuse to run where /proc does not show our own processes: whose a process is could not be told."""
    try:
        shown = os.readlink("/proc/self")
    except OSError:
        raise click.ClickException("/proc is not mounted: processes cannot be told apart without it") from None
    if shown != str(os.getpid()):
        raise click.ClickException(
            f"/proc is that of another PID namespace (it calls us {shown}, we are {os.getpid()}); mount it anew there, "
            "as unshare --mount-proc does"
        )


def is_shutdown_timeout_written(settings: Settings) -> bool:
    """Tell whether the settings file writes ``shutdown-timeout-sec``."""
    if not settings.path:
        return False
    try:
        written = tomllib.loads(Path(settings.path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "shutdown-timeout-sec" in written.get("supervisor", {})


def control_gid(settings: Settings) -> int | None:
    """Return the gid that may open the control socket and read the journal: as set, else the group of our own name,
    if any."""
    group = settings.control.socket_group
    try:
        gid = grp.getgrnam(group or DEFAULT_CONTROL_GROUP).gr_gid
    except KeyError:
        if group is not None:
            raise click.ClickException(
                f"no such group: {group} (socket-group in {settings.path}); create it or name another"
            ) from None
        return None
    if is_mapped(gid):
        return gid
    if group is not None:
        raise click.ClickException(
            f"the group {group} ({gid}) does not exist in this user namespace (socket-group in {settings.path}); "
            "map it (unshare --map-auto, a container's gid map) or name another"
        )
    return None


def is_mapped(gid: int) -> bool:
    """Tell whether files can be given to a group in this user namespace."""
    try:
        lines = Path("/proc/self/gid_map").read_text().splitlines()
    except OSError:
        return True
    return any(first <= gid < first + count for first, _, count in (map(int, line.split()) for line in lines))


def prepare_folders(places: Places, gid: int | None, made: list[Path]) -> None:
    """Make runtime, state and log folders; state is for its owner and the control group only, from the start.

    Every folder that is made is written into ``made``, what lies in another one behind that.
    """
    if len(os.fsencode(places.runtime)) > RUNTIME_DIR_MAX:
        raise click.ClickException(
            f"the runtime folder's path is longer than {RUNTIME_DIR_MAX} bytes, sockets would not fit: "
            f"{places.runtime}; choose a shorter --runtime-dir"
        )
    # State before what may lie in it: a parent is never made with more rights than are written here.
    for folder, mode in (
        (places.state, 0o750),
        (places.log, 0o750),
        (places.runtime, 0o755 if os.getuid() == 0 else 0o700),
    ):
        try:
            if not folder.is_dir():
                made += reversed([each for each in (folder, *folder.parents) if not each.exists()])
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
                if gid is not None and folder != places.runtime and (os.getuid() == 0 or gid in os.getgroups()):
                    os.chown(folder, -1, gid)
                folder.chmod(mode)
        except OSError as error:
            raise click.ClickException(
                f"cannot use {folder}: {error.strerror}; see --runtime-dir, --state-dir, --log-dir"
            ) from error


def lock_folder(folder: Path, option: str) -> None:
    """Lock a folder for as long as the keeper lives: it inherits the descriptor, and gives it to nobody."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise click.ClickException(
            f"another supervisor uses {folder} (it is locked); stop it, or choose another {option}"
        ) from None
    os.set_inheritable(descriptor, True)


def refuse_second(runtime: Path) -> None:
    """Refuse to run where a keeper lives. The keeper takes the lock itself, and says the same if another is quicker."""
    try:
        lock = os.open(runtime / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode().partition("\n")[0]
        raise click.ClickException(
            f"already running here as pid {holder} ({runtime}/lock is locked); stop it, or choose another --runtime-dir"
        ) from None
    finally:
        os.close(lock)


def adopt_of_lost_keeper(places: Places, units: UnitSet) -> LostKeeper | None:
    """Take over what a killed keeper of this runtime folder left, or end it, so that nothing is started twice."""
    lost = find_lost_keeper(places.runtime)
    if lost is None:
        return None
    take_over(lost, places.runtime, lambda unit: may_leave_processes(units, unit), why_not_go_on)
    click.echo(f"the keeper before (pid {lost.pid}) was killed", err=True)
    living = [tree for tree in lost.trees if tree.pidfds]
    if living:
        names = ", ".join(f"{tree.unit} (pid {min(tree.pidfds)})" for tree in living)
        click.echo(f"going on with the units as they were loaded, and what lives of them: {names}", err=True)
    if lost.ended:
        names = ", ".join(f"{leftover.unit or '?'} (pid {leftover.pid})" for leftover in lost.ended)
        click.echo(f"ending what cannot go on{lost.why_not and f' ({lost.why_not})'}: {names}", err=True)
    stubborn = end_leftovers(lost)
    if stubborn:
        pids = ", ".join(str(leftover.pid) for leftover in stubborn)
        raise click.ClickException(f"processes of the keeper before do not die: {pids}; look at them first")
    return lost


def why_not_go_on(state: Mapping[str, str]) -> str:
    """Say why a manager cannot go on from what was in custody; nothing when it can."""
    if SOURCES_KEY not in state:
        return "its units were not loaded yet"
    try:
        _, loaded = Sources.unpack(state[SOURCES_KEY]).build()
        manager = Manager.restore(
            {key: text for key, text in state.items() if not key.startswith("host/")}, loaded.unit_set
        )
    except Exception as error:  # noqa: BLE001  whatever it is: units that begin anew are better than none
        return f"its state cannot be read: {type(error).__name__}: {error}"
    return "it was stopping everything" if is_stopping(manager) else ""


def may_leave_processes(units: UnitSet, name: str) -> bool:
    """Say whether the unit's text leaves alone what its main process leaves behind."""
    unit = units.units.get(name)
    return unit is not None and unit.service is not None and unit.service.kill.mode is KillMode.PROCESS


def keeper_config(
    places: Places,
    settings: Settings,
    unit_paths: list[str],
    name: str | None,
    pass_environment: list[str] | str,
    is_settings_typed: bool,
) -> dict[str, object]:
    """Put together what the keeper is started with and hands to every manager, unchanged."""
    shutdown_ns = settings.supervisor.shutdown_timeout_ns
    return {
        "name": name or settings.supervisor.name,
        "runtime_dir": str(places.runtime),
        "state_dir": str(places.state),
        "log_dir": str(places.log),
        "socket": str(places.socket),
        "socket_mode": settings.control.socket_mode,
        "shutdown_timeout_s": None if shutdown_ns is None else shutdown_ns / 1e9,
        "settings_path": str(places.settings),
        "is_settings_typed": is_settings_typed,
        "unit_paths": unit_paths,
        "pass_environment": pass_environment,
        "user": pwd.getpwuid(os.getuid()).pw_name if _has_passwd_entry() else str(os.getuid()),
        "colour": sys.stdout.isatty() and "NO_COLOR" not in os.environ,
        "events": "all" if sys.stdout.isatty() else "warnings",
    }


def _has_passwd_entry() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True
