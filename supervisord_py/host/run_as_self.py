"""``run-as-self``: what somebody may run who is nobody's operator, as exactly who they are.

Theory of operation
-------------------
The kernel says who connected: uid, gid and groups (``host.peers``). The process is made with exactly these ids, by the
unit's ``Identity``, which no key of the unit can change. Of the keys only those are taken that give nothing which the
caller could not have by starting the program alone (``KEYS``): none that is read or opened by the supervisor, with its
rights, none that lets anything restart, listen, or be scheduled before others.

What a process is held to beside its ids would be lost on the way, for the new process is a child of the keeper and not
of the caller. So the limits, the niceness and the oom score of the caller are written into the unit, and so is
no-new-privileges; a caller that is confined in any other way that can be seen (a namespace, a root, a filter of system
calls, a bounding set, a profile, ``[sandbox]`` or bounds of its unit) is refused: what runs for it would not be
confined. Landlock cannot be seen from outside.

What was read belongs to the process that connected: its start time is compared with that at the connection.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from supervisord_py.host.facade import Peer
from supervisord_py.host.limits import parse_proc_limits
from supervisord_py.host.peers import read_start_ns
from supervisord_py.model.assemble_context import RLIMITS as RLIMITS_WITH_KEY
from supervisord_py.model.context import Resources
from supervisord_py.model.sandbox import Sandbox
from supervisord_py.model.unit import Identity, Limit, Unit

_BOUNDS = ("memory-max", "memory-high", "cpu-quota", "tasks-max")
_WITHOUT_KEY = ("nice", "rttime")
"""Limits of the kernel that a unit cannot be given: nice is the priority itself there, rttime is ours."""

RLIMITS = tuple(name for name in RLIMITS_WITH_KEY if name not in _WITHOUT_KEY)
KEYS = frozenset(
    {
        "unit.description", "unit.documentation", "service.type", "service.runtime-max-sec",
        "service.timeout-start-sec", "service.kill-signal", "service.success-exit-status",
        "service.remain-after-exit", "service.umask", "service.unset-environment", "service.ignore-sigpipe",
        "service.working-directory", "sandbox.no-new-privileges", "limits.nice", "limits.oom-score-adjust",
        "limits.enforce", *(f"limits.{name}" for name in (*RLIMITS, *_BOUNDS)),
    }
)  # fmt: skip
"""The keys that may be given with it."""

LOG = {"max-bytes": "8M", "backups": 1}
"""Of the output, which is the supervisor's disk."""

_NAMESPACES = ("user", "mnt", "net", "pid", "ipc", "uts")


class NotAsSelfError(Exception):
    """It is not run: why."""


class Caller(Struct, frozen=True):
    """What holds for the process that called, besides its ids."""

    rlimits: dict[str, Limit] = {}
    nice: int = 0
    oom_score_adjust: int = 0
    no_new_privileges: bool = False


def own_name(uid: int) -> str:
    """Return what the names of such units begin with."""
    return f"run-{uid}-"


def identity_of(peer: Peer) -> Identity:
    """Return whom the process is made as.

    Raises:
        NotAsSelfError: The kernel does not say who the peer is.
    """
    if peer.remote is not None:
        raise NotAsSelfError("a key from elsewhere is no user here, so nothing can be run as it")
    return Identity(peer.uid, peer.gid, peer.groups)


def refused_keys(settings: Mapping[tuple[str, ...], Any]) -> list[str]:
    """Return the keys that may not be given."""
    return [key for keys in settings if (key := ".".join(keys)) not in KEYS]


def read_caller(peer: Peer, proc: Path = Path("/proc")) -> Caller:
    """Look at the process that called; blocks.

    Raises:
        NotAsSelfError: It is confined, or cannot be looked at.
    """
    folder, own = proc / str(peer.pid), proc / "self"
    try:
        status, mine = _status(folder), _status(own)
        why = _confined(folder, own, status, mine)
        rlimits = parse_proc_limits((folder / "limits").read_text())
        ours = parse_proc_limits((own / "limits").read_text())
        nice = int((folder / "stat").read_text().rpartition(")")[2].split()[16])
        oom_score_adjust = int((folder / "oom_score_adj").read_text())
        is_same = peer.started_ns is not None and read_start_ns(peer.pid) == peer.started_ns
    except (OSError, ValueError, KeyError) as error:
        raise NotAsSelfError(f"what the caller is held to cannot be seen ({error}), so nothing is run for it") from None
    if not is_same:
        raise NotAsSelfError("the process that called has ended")
    for name in _WITHOUT_KEY:
        if why is None and not is_within(Limit(0, ours[name].hard), rlimits[name]):
            why = f"its limit {name} is lower than the supervisor's"
    if why is not None:
        raise NotAsSelfError(f"the caller is confined, and what is run for it would not be: {why}")
    known = {name: _lower(rlimits[name], ours[name]) for name in RLIMITS}
    return Caller(known, max(0, nice), max(0, oom_score_adjust), no_new_privileges=status["NoNewPrivs"] != "0")


def _lower(limit: Limit, own: Limit) -> Limit:
    """Return the limit, as far as we have it ourselves: more cannot be given."""
    if own.hard is None:
        return limit
    soft, hard = (own.hard if each is None else min(each, own.hard) for each in (limit.soft, limit.hard))
    return Limit(soft, hard)


def _status(folder: Path) -> dict[str, str]:
    lines = (folder / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _confined(folder: Path, own: Path, status: Mapping[str, str], mine: Mapping[str, str]) -> str | None:
    """Say what of the caller's confinement a process of ours would not have."""
    for name in _NAMESPACES:
        if os.readlink(folder / "ns" / name) != os.readlink(own / "ns" / name):
            return f"it is in another namespace ({name})"
    if not os.path.samestat(os.stat(folder / "root"), os.stat(own / "root")):
        return "it has another root"
    filters = [(int(each["Seccomp"]), int(each.get("Seccomp_filters", "0"))) for each in (status, mine)]
    if filters[0] != filters[1] and filters[0][0]:
        return "its system calls are filtered"
    sets = ["CapBnd"] if status["Uid"].split()[0] != "0" else ["CapBnd", "CapPrm"]
    for name in sets:
        if int(mine[name], 16) & ~int(status[name], 16):
            return f"it lacks capabilities ({name})"
    profile, ours = (_profile(each) for each in (folder, own))
    return f"it has the profile {profile}" if profile not in (ours, "", "unconfined") else None


def _profile(folder: Path) -> str:
    try:
        return (folder / "attr" / "apparmor" / "current").read_text().strip("\0\n ")
    except OSError:  # no AppArmor
        return ""


def confined_unit(unit: Unit | None) -> str | None:
    """Say what a unit, whose process calls, is held to that another would not be; None: nothing."""
    if unit is None or unit.service is None:
        return "its unit is gone"
    context = unit.service.context
    if context.sandbox != Sandbox() or context.root_directory is not None:
        return "its unit has a sandbox"
    return "its unit has bounds" if context.resources != Resources() else None


def tables_of(caller: Caller, identity: Identity) -> dict[str, dict[str, Any]]:
    """Return what is written into the unit for everybody to see."""
    service: dict[str, Any] = {"user": str(identity.uid), "group": str(identity.gid)}
    if identity.groups:
        service["supplementary-groups"] = [str(gid) for gid in identity.groups]
    limits: dict[str, Any] = {name: _written(limit) for name, limit in caller.rlimits.items()}
    if caller.nice:
        limits["nice"] = caller.nice
    if caller.oom_score_adjust:
        limits["oom-score-adjust"] = caller.oom_score_adjust
    tables = {"service": service, "limits": limits, "log": dict(LOG)}
    return tables | ({"sandbox": {"no-new-privileges": True}} if caller.no_new_privileges else {})


def _written(limit: Limit) -> str:
    soft, hard = ("infinity" if each is None else str(each) for each in (limit.soft, limit.hard))
    return f"{soft}:{hard}"


def objection_by(caller: Caller) -> Callable[[Unit], str | None]:
    """Return what says why a unit is more than the caller is, None where it is not."""

    def objection(unit: Unit) -> str | None:
        service = unit.service
        if service is None:
            return "it is no service"
        commands = (*service.exec_start, *service.exec_start_pre, *service.exec_start_post, *service.exec_condition)
        commands += (*service.exec_reload, *service.exec_stop, *service.exec_stop_post)
        if len(commands) != 1 or commands[0].privileged or commands[0].keeps_user:
            return "a command may not be privileged"
        context = service.context
        for name, limit in context.rlimits:
            if name in caller.rlimits and not is_within(limit, caller.rlimits[name]):
                return f"limits.{name} is above the caller's own"
        if (context.nice or 0) < caller.nice:
            return "limits.nice is above the caller's own"
        if (context.priorities.oom_score_adjust or 0) < caller.oom_score_adjust:
            return "limits.oom-score-adjust is below the caller's own"
        if caller.no_new_privileges and not context.sandbox.no_new_privileges:
            return "sandbox.no-new-privileges holds for the caller"
        directory = context.working_directory
        return "working-directory may not be tried" if directory is not None and directory.startswith("-") else None

    return objection


def is_within(limit: Limit, most: Limit) -> bool:
    """Tell whether both parts of a limit are at most the hard part of another."""
    return most.hard is None or all(each is not None and each <= most.hard for each in (limit.soft, limit.hard))
