"""What this machine gives a supervisor: cgroups, limits, Python, folders with their rights, the sockets."""

import contextlib
import grp
import os
import platform
import pwd
import resource
import socket
import stat
import struct
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from supervisord_py.doctor.belongings import who_is_there
from supervisord_py.doctor.findings import Finding, degraded, ok, wrong
from supervisord_py.doctor.kernel import kernel_findings
from supervisord_py.host.cgroups import Hierarchy, find_place
from supervisord_py.host.inotify import Inotify
from supervisord_py.host.places import KEEPS_OUT, RUNTIME_DIR_MAX, Places, closed_to_others
from supervisord_py.host.resources import find_v1
from supervisord_py.host.signing import read_keyring
from supervisord_py.host.trusted_files import FileRefused, TrustedReader, trusted_uids
from supervisord_py.model.settings import Settings
from supervisord_py.model.values import format_size

CAP_SYS_RESOURCE = 24
DESCRIPTORS_MIN = 4096
"""Keeper and manager hold a handful a unit: below this some hundred units are the end."""
PROCESSES_MIN = 1024
PIDS_MIN = 4096
WATCHES_MIN = 1024
JOURNAL_MIN = 16 << 20
"""Bytes below which the journal cannot go on for long."""
LIBRARIES = ("click", "msgspec", "packaging", "psutil", "pynacl", "pyzmq", "sdnotify", "tomli")


def machine_findings(places: Places, settings: Settings) -> list[Finding]:
    """Look at everything that does not need a running supervisor."""
    return [
        *kernel_findings(),
        _control_groups(),
        *_controllers(),
        *_limits(),
        _inotify(),
        _python(),
        _runtime_path(places),
        *_folders(places),
        *_unit_files(places),
        *_hot_directory(places, settings),
        _journal_space(places, settings),
        _socket(places),
        _lingering(),
    ]


def _control_groups() -> Finding:
    finding = find_place()
    reasons = "; ".join(finding.reasons)
    if finding.place is None:
        fact = f"none ({reasons}): processes are told apart by their tag alone"
        cure = "Delegate=yes in the service, or in a container a writable /sys/fs/cgroup"
        return degraded("cgroups", fact, cure)
    how = "cgroup v2" if finding.place.hierarchy is Hierarchy.UNIFIED else "cgroup v1 (name=systemd)"
    return ok("cgroups", f"{how}: a group a unit below {finding.place.folder}")


def _controllers() -> list[Finding]:
    """Which resources could be limited for a whole tree: by the unified hierarchy, or by one of the old ones."""
    unified: set[str] = set()
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            try:
                unified |= set(Path(before.split()[4], "cgroup.controllers").read_text().split())
            except OSError:
                pass  # not for our eyes: as good as none
    wanted = ("memory", "pids", "cpu", "io")
    have = [name for name in wanted if name in unified]
    if len(have) == len(wanted):
        return [ok("controllers", f"cgroup v2: {' '.join(sorted(unified))}")]
    v1 = {controller.value for controller in find_v1()}
    in_old = [name for name in wanted if name in v1 and name not in have]
    kept = [f"{how} has {' '.join(names)}" for how, names in (("cgroup v2", have), ("cgroup v1", in_old)) if names]
    if len(have) + len(in_old) == len(wanted):
        return [ok("controllers", f"{', '.join(kept)}: limits of all of a unit are the kernel's, but memory-high")]
    lacking = [name for name in wanted if name not in have and name not in in_old]
    sampled = " (memory-max and tasks-max are sampled)" if {"memory", "pids"} & set(lacking) else ""
    fact = f"{', '.join(kept) or 'none'}; without {' '.join(lacking)} limits of all of a unit fail its start{sampled}"
    cure = "Delegate=yes in the service, or systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
    return [degraded("controllers", fact, cure)]


def _limits() -> list[Finding]:
    found = []
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors != resource.RLIM_INFINITY and descriptors < DESCRIPTORS_MIN:
        fact = f"at most {descriptors} a process: keeper and manager need several a unit"
        found.append(degraded("descriptors", fact, "raise the hard limit (LimitNOFILE=, ulimit -Hn, --ulimit nofile=)"))
    else:
        found.append(ok("descriptors", f"at most {_amount(descriptors)} a process"))
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes != resource.RLIM_INFINITY and processes < PROCESSES_MIN:
        fact = f"at most {processes} of this user, who may have others"
        found.append(degraded("processes", fact, "raise the limit (LimitNPROC=, ulimit -u)"))
    else:
        found.append(ok("processes", f"at most {_amount(processes)} of this user"))
    pids = _number("/proc/sys/kernel/pid_max")
    if pids is not None and pids < PIDS_MIN:
        found.append(degraded("pids", f"at most {pids} on this machine", "sysctl kernel.pid_max=4194304"))
    if os.geteuid() == 0 and not capabilities() >> CAP_SYS_RESOURCE & 1:
        fact = "root without CAP_SYS_RESOURCE: a unit's limit above the supervisor's own hard limit fails its start"
        found.append(degraded("CAP_SYS_RESOURCE", fact, "--cap-add SYS_RESOURCE, or lower limits in the units"))
    return found


def _amount(limit: int) -> str:
    return "any number" if limit == resource.RLIM_INFINITY else str(limit)


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def capabilities() -> int:
    """Return the effective capabilities as bits; none where they cannot be read."""
    try:
        words = Path("/proc/self/status").read_text().partition("\nCapEff:")[2].split()
        return int(words[0], 16)
    except (OSError, ValueError, IndexError):
        return 0


def _inotify() -> Finding:
    cure = "sysctl fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=65536"
    try:
        Inotify().close()
    except OSError as error:
        fact = f"no more may be had ({os.strerror(error.errno or 0)}): changed unit files are not noticed by themselves"
        return degraded("inotify", fact, cure)
    watches = _number("/proc/sys/fs/inotify/max_user_watches")
    if watches is not None and watches < WATCHES_MIN:
        return degraded("inotify", f"at most {watches} watches of this user", cure)
    return ok("inotify", f"at most {watches if watches is not None else '?'} watches of this user")


def _python() -> Finding:
    missing = []
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        # Importable all the same perhaps (a distribution's package): `run` says at once when not.
        fact = f"{platform.python_version()}; pip does not know {' '.join(missing)}"
        return degraded("Python", fact, f"pip install {' '.join(missing)}")
    return ok("Python", f"{platform.python_version()}; {', '.join(versions)}")


def _runtime_path(places: Places) -> Finding:
    length = len(os.fsencode(places.runtime))
    if length > RUNTIME_DIR_MAX:
        fact = f"{places.runtime} is {length} bytes long, sockets would not fit below it"
        return wrong("runtime path", fact, f"--runtime-dir with a path of at most {RUNTIME_DIR_MAX} bytes")
    if os.geteuid() == 0:
        closed = closed_to_others(places.runtime)
        if closed is not None:
            return degraded("runtime path", f"{closed} {KEEPS_OUT}", f"chmod o+x {closed}, or another --runtime-dir")
    return ok("runtime path", f"{places.runtime}: short enough for sockets")


def _folders(places: Places) -> list[Finding]:
    named = (("runtime folder", places.runtime), ("state folder", places.state), ("log folder", places.log))
    return [_folder(topic, folder) for topic, folder in named]


def _folder(topic: str, folder: Path) -> Finding:
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        above = _nearest(folder)
        if os.access(above, os.W_OK | os.X_OK):
            return ok(topic, f"{folder} is made by the first run")
        return wrong(
            topic, f"{folder} does not exist, and may not be made in {above}", f"mkdir it as {_own()}, or move it"
        )
    except OSError as error:
        return wrong(topic, f"{folder}: {error.strerror}", "make the way to it searchable, or move it")
    who = f"{_user(status.st_uid)}:{_group(status.st_gid)} {stat.S_IMODE(status.st_mode):04o}"
    if not stat.S_ISDIR(status.st_mode):
        return wrong(topic, f"{folder} is no folder", "remove it")
    if status.st_uid != os.geteuid():
        return wrong(topic, f"{folder} belongs to {who}", f"chown {_own()} {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return wrong(
            topic, f"{folder} cannot be written ({who})", f"chmod u+rwx {folder}, or a disk that is not read-only"
        )
    if status.st_mode & stat.S_IWOTH:
        return wrong(topic, f"everybody may write to {folder} ({who})", f"chmod o-w {folder}")
    return ok(topic, f"{folder} ({who})")


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest above it that is there, or may be: a folder that is closed to us hides it."""
    for each in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with contextlib.suppress(PermissionError):
                each.stat()
            return each
    return Path("/")


def _unit_files(places: Places) -> list[Finding]:
    """Folders of units and the settings: as root nothing is believed that others could have written."""
    reader = TrustedReader(trusted_uids(os.environ, typed=False))
    found = []
    present: list[str] = []
    reads: list[tuple[str, Path, Callable[[str], object]]] = [
        *(("unit path", folder, reader.list) for folder in places.unit_path),
        ("settings", places.settings, reader.read),
    ]
    for topic, path, read in reads:
        try:
            read(str(path))
            present.append(str(path))
        except FileNotFoundError:
            continue
        except FileRefused as refused:
            found.append(wrong(topic, refused.message, refused.hint or "look at the file"))
        except OSError as error:
            found.append(wrong(topic, f"{path} cannot be read: {error.strerror}", f"make it readable for {_own()}"))
    folders = ", ".join(map(str, places.unit_path))
    if present:
        found.append(ok("unit path", f"{', '.join(present)} of {folders}, {places.settings}"))
    else:
        found.append(ok("unit path", f"nothing yet in {folders}"))
    return found


def _hot_directory(places: Places, settings: Settings) -> list[Finding]:
    own, topic = settings.hot_directory, "hot directory"
    if own.path is None:
        return []
    if os.path.realpath(own.path) in map(os.path.realpath, places.unit_path):
        fact = f"{own.path} is in the unit path, too: its unit files are loaded whether they are signed or not"
        return [wrong(topic, fact, "give it a folder of its own")]
    if not os.path.isdir(own.path):
        return [degraded(topic, f"{own.path} is not there: nothing comes from it", f"mkdir -p {own.path}")]
    if not own.require_signature:
        return [degraded(topic, f"{own.path}: signatures are not looked at", "require-signature = true")]
    keys = own.keys or str(places.keys)
    ring = read_keyring(keys, os.environ)
    if not ring.keys:
        why = "; ".join(ring.problems) or f"no key in {keys}"
        cure = f"supervisord-py keygen makes a key, its .pub goes into {keys}"
        return [wrong(topic, f"nothing can be loaded from {own.path}: {why}", cure)]
    found = [ok(topic, f"{own.path}, signed by {', '.join(key.name for key in ring.keys)}")]
    return found + [degraded(topic, problem, "see supervisord-py keygen") for problem in ring.problems]


def _journal_space(places: Places, settings: Settings) -> Finding:
    folder = _nearest(places.journal)
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        return wrong("journal space", f"{folder}: {error.strerror}", "move it with --state-dir")
    free = disk.f_bavail * disk.f_frsize
    fact = f"{_rounded(free)} free at {folder}; the journal takes up to {_rounded(settings.journal.max_bytes)}"
    if free < JOURNAL_MIN:
        return wrong("journal space", fact, "make room, or move it with --state-dir")
    if free < settings.journal.max_bytes + settings.journal.reserve:
        return degraded("journal space", fact, "make room, or lower [journal] max-bytes in supervisord.toml")
    return ok("journal space", fact)


def _rounded(count: int) -> str:
    """Return bytes in the largest unit that leaves a whole number above 9."""
    for power in (3, 2, 1):
        if count >= 10 * 1024**power:
            return format_size(count // 1024**power * 1024**power)
    return format_size(count)


def _socket(places: Places) -> Finding:
    try:
        status = os.stat(places.socket)
    except FileNotFoundError:
        return who_is_there(places.runtime) or ok("control socket", f"no supervisor at {places.socket}")
    except OSError as error:
        return degraded(
            "control socket", f"{places.socket}: {error.strerror}", "become a member of its group, or use sudo"
        )
    who = f"{_user(status.st_uid)}:{_group(status.st_gid)} {stat.S_IMODE(status.st_mode):04o}"
    if not stat.S_ISSOCK(status.st_mode):
        return wrong("control socket", f"{places.socket} is no socket", "remove it")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(places.socket))
        except ConnectionRefusedError:
            fact = f"{places.socket} ({who}) is what a killed supervisor left"
            left = degraded("control socket", fact, "start the supervisor: run takes over what is left")
            return who_is_there(places.runtime) or left
        except PermissionError:
            return degraded(
                "control socket", f"{places.socket} ({who}) keeps {_own()} out", "join its group, or use sudo"
            )
        except OSError as error:
            return wrong("control socket", f"{places.socket}: {error.strerror}", "supervisord-py doctor --instance")
        pid, uid, _ = struct.unpack("=iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    fact = f"{places.socket} ({who}) is served by pid {pid} of {_user(uid)}"
    if uid != status.st_uid:
        return wrong("control socket", f"{fact}, which is not its owner", f"find out what pid {pid} is")
    if status.st_mode & stat.S_IWOTH:
        return degraded("control socket", f"{fact}; everybody may connect", '[control] socket-mode = "0660"')
    return ok("control socket", fact)


def _lingering() -> Finding:
    if os.geteuid() == 0:
        return ok("lingering", "not needed: root's supervisor outlives every login")
    if not os.path.isdir("/run/systemd/system"):
        return ok("lingering", "no systemd here that would end this user's processes")
    name = _user(os.geteuid())
    if os.path.exists(f"/var/lib/systemd/linger/{name}"):
        return ok("lingering", f"{name}'s services go on without a login")
    fact = f"{name}'s services end with the last logout, and do not start with the machine"
    return degraded("lingering", fact, "loginctl enable-linger")


def _own() -> str:
    return _user(os.geteuid())


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
