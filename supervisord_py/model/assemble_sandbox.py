"""``[sandbox]`` of one unit: entries of several forms into sets, filters and places. Source: systemd.exec(5)."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar, cast

from msgspec.structs import replace

from supervisord_py.model.capabilities import ALL_CAPABILITIES, SECURE_BITS, capability_names, parse_capabilities
from supervisord_py.model.digits import parse_digits
from supervisord_py.model.fields import Fields
from supervisord_py.model.problems import BadValue, Problem
from supervisord_py.model.sandbox import (
    ADDRESS_FAMILIES,
    NAMESPACES,
    NEW_TIME,
    Access,
    Architecture,
    Bind,
    Families,
    Sandbox,
)
from supervisord_py.model.system_calls import KILL, CallFilter, call_names, parse_call_filter, parse_errno
from supervisord_py.model.values import shown

Value = TypeVar("Value")

TABLE = "sandbox"
_DEFAULT = Sandbox()
_PLAIN = (
    "enforce", "no-new-privileges", "keyring-mode", "restrict-realtime", "restrict-suid-sgid", "lock-personality",
    "memory-deny-write-execute", "protect-hostname", "protect-clock", "protect-kernel-modules", "protect-kernel-logs",
    "protect-kernel-tunables", "protect-control-groups", "private-tmp", "private-devices", "private-network",
    "private-ipc", "private-users", "private-mounts", "protect-system", "protect-home", "protect-proc", "proc-subset",
    "remove-ipc", "mount-apivfs",
)  # fmt: skip
"""Keys whose value stands as it is."""

_OF_SEVERAL = frozenset({f"{TABLE}.mount-apivfs"})
"""Keys that are wrong because of what another says."""

_ARCHITECTURES = {
    "x86-64": "x86-64", "x86": "x86", "x32": "x32", "arm64": "arm64", "aarch64": "arm64", "arm": "arm", "native": "",
}  # fmt: skip


def assemble_sandbox(fields: Fields, problems: list[Problem]) -> Sandbox:
    """Return what ``[sandbox]`` says, and what ``dynamic-user`` implies: the unit must not leave anything behind that
    would be its id's next owner's."""
    written = _written(fields, problems)
    if not fields.get("service", "dynamic-user", False):
        return written
    return replace(
        written,
        private_tmp=True,
        remove_ipc=True,
        no_new_privileges=True,
        restrict_suid_sgid=True,
        protect_system="strict",
        protect_home="read-only" if written.protect_home == "no" else written.protect_home,
    )


def wrong_values(fields: Fields) -> list[Problem]:
    """Return what is wrong with single values, whatever else is wrong with the unit."""
    problems: list[Problem] = []
    _written(fields, problems)
    return [each for each in problems if each.severity == "error" and each.key not in _OF_SEVERAL]


def _written(fields: Fields, problems: list[Problem]) -> Sandbox:
    if not fields.has(TABLE):
        return _DEFAULT
    reader = _Reader(fields, problems)
    if fields.get(TABLE, "mount-apivfs", False) and fields.decoded("service", "root-directory") is None:
        message, hint = "nothing is to be mounted without another root", "write root-directory, or take it out"
        problems.append(fields.problem(TABLE, "mount-apivfs", message, hint))
    values: dict[str, Any] = {
        key.replace("-", "_"): fields.get(TABLE, key, getattr(_DEFAULT, key.replace("-", "_"))) for key in _PLAIN
    }
    bounding = reader.read("capability-bounding-set", lambda lines: parse_capabilities(lines, ALL_CAPABILITIES), None)
    ambient = reader.read("ambient-capabilities", lambda lines: parse_capabilities(lines, 0), 0)
    if bounding is not None and ambient & ~bounding:
        message = f"{' '.join(capability_names(ambient & ~bounding))} cannot be given, it is not in its bounding set"
        hint = "write it into capability-bounding-set too, or no start succeeds"
        problems.append(fields.problem(TABLE, "ambient-capabilities", message, hint, warning=True))
    return Sandbox(
        **values,
        capability_bounding_set=bounding,
        ambient_capabilities=ambient,
        secure_bits=reader.read("secure-bits", _secure_bits, 0),
        system_call_filter=reader.read("system-call-filter", reader.call_filter, None),
        system_call_error_number=reader.read("system-call-error-number", _error_number, None),
        system_call_architectures=reader.read("system-call-architectures", _architectures, None),
        restrict_address_families=reader.read("restrict-address-families", _families, None),
        restrict_namespaces=reader.read("restrict-namespaces", _namespaces, 0),
        landlock=reader.read("landlock", _landlock, ()),
        network_namespace_path=reader.read("network-namespace-path", lambda lines: normal_path(lines[-1]), None),
        read_only_paths=reader.read("read-only-paths", _paths, ()),
        read_write_paths=reader.read("read-write-paths", _paths, ()),
        inaccessible_paths=reader.read("inaccessible-paths", _paths, ()),
        exec_paths=reader.read("exec-paths", _paths, ()),
        no_exec_paths=reader.read("no-exec-paths", _paths, ()),
        bind_paths=reader.read("bind-paths", _binds, ()),
        bind_read_only_paths=reader.read("bind-read-only-paths", _binds, ()),
        temporary_file_system=reader.read("temporary-file-system", _temporary, ()),
    )


class _Reader:
    """Decodes values whose entries together make one thing; what is wrong is a problem at its key."""

    def __init__(self, fields: Fields, problems: list[Problem]) -> None:
        self._fields, self._problems = fields, problems

    def read(self, key: str, parse: Callable[[tuple[str, ...]], Value], default: Value) -> Value:
        decoded = self._fields.decoded(TABLE, key)
        if decoded is None:
            return default
        value: Any = decoded.value
        try:
            return parse(value if isinstance(value, tuple) else (value,))
        except BadValue as bad:
            self._problems += [decoded.entry.problem(one.message, one.hint, one.at) for one in bad.all()]
            return default

    def call_filter(self, lines: tuple[str, ...]) -> CallFilter | None:
        found, unknown = parse_call_filter(lines)
        for name in dict.fromkeys(unknown):
            message = f"no system call is called {name!r}, so it is left out"
            near = get_close_matches(name, call_names(), 1)
            hint = f"did you mean {near[0]!r}?" if near else "systemd-analyze syscall-filter lists them"
            self._problems.append(self._fields.problem(TABLE, "system-call-filter", message, hint, warning=True))
        return found


def _each(lines: tuple[str, ...]) -> list[str]:
    return [word for line in lines for word in line.split()]


def _secure_bits(lines: tuple[str, ...]) -> int:
    bits = 0
    for word in _each(lines):
        if word not in SECURE_BITS:
            raise BadValue(f"{word!r} is not a secure bit", f"they are {', '.join(SECURE_BITS)}")
        bits |= SECURE_BITS[word]
    return bits


def _error_number(lines: tuple[str, ...]) -> int | None:
    number = parse_errno(lines[-1])
    return None if number == KILL else number


def _architectures(lines: tuple[str, ...]) -> tuple[Architecture, ...]:
    found = []
    for word in _each(lines):
        if word not in _ARCHITECTURES:
            raise BadValue(f"{word!r} is not an architecture known here", f"they are {', '.join(_ARCHITECTURES)}")
        if _ARCHITECTURES[word]:
            found.append(cast(Architecture, _ARCHITECTURES[word]))
    return tuple(dict.fromkeys(found))


def _families(lines: tuple[str, ...]) -> Families | None:
    """As with system calls, the first line decides what is listed, and a later one of the other kind takes back."""
    allows: bool | None = None
    found: dict[int, None] = {}
    for line in lines:
        if line == "none":
            allows, found = True, {}
            continue
        inverts = line.startswith("~")
        allows = not inverts if allows is None else allows
        for word in line.removeprefix("~").split():
            if word not in ADDRESS_FAMILIES:
                near = get_close_matches(word.upper(), ADDRESS_FAMILIES, 1)
                hint = f"did you mean {near[0]}?" if near else "write AF_INET, AF_UNIX and so on, or none"
                raise BadValue(f"{word!r} is not an address family", hint)
            if inverts is not allows:
                found[ADDRESS_FAMILIES[word]] = None
            else:
                found.pop(ADDRESS_FAMILIES[word], None)
    return None if allows is None else Families(allows, tuple(sorted(found)))


def _namespaces(lines: tuple[str, ...]) -> int:
    """Return the flags of the kinds that are refused; each line allows more, or less with ``~``."""
    every = NEW_TIME
    for flag in NAMESPACES.values():
        every |= flag
    allowed: int | None = None
    for line in lines:
        if line in ("yes", "no"):
            allowed = 0 if line == "yes" else every
            continue
        named = 0
        for word in line.removeprefix("~").split():
            if word not in NAMESPACES:
                raise BadValue(f"{word!r} is not a kind of namespace", f"they are {', '.join(NAMESPACES)}")
            named |= NAMESPACES[word]
        if line.startswith("~"):
            allowed = (every if allowed is None else allowed) & ~named
        else:
            allowed = named if allowed is None else allowed | named
    if allowed is None:
        return 0
    refused = every & ~allowed
    return 0 if refused in (0, NEW_TIME) else refused


def _landlock(lines: tuple[str, ...]) -> tuple[Access, ...]:
    return tuple(_access(line) for line in lines)


def _access(line: str) -> Access:
    place, _, access = line.rpartition(":")
    if place.startswith("tcp:"):
        port = parse_digits(place.removeprefix("tcp:"))
        if port is None or port > 65535 or access not in ("bind", "connect"):
            raise BadValue(f"{shown(line)} is not a port", "write tcp:PORT:bind or tcp:PORT:connect")
        return Access(port=port, access=access)
    path = normal_path(place.removeprefix("-"))
    if not access or set(access) - set("rwx") or len(set(access)) != len(access):
        raise BadValue(
            f"{line!r} does not say what is allowed", "write PATH:ACCESS with letters of rwx, such as /srv:rw"
        )
    return Access(path, access, may_miss=place.startswith("-"))


def _paths(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Read paths with ``-`` (it may be missing) and ``+`` (below ``root-directory``, where all of them are)."""
    found: list[str] = []
    for line in lines:
        path = line
        while path[:1] in ("-", "+"):
            path = path[1:]
        sign = "-" if "-" in line[: len(line) - len(path)] else ""
        found.append(sign + normal_path(path))
    return tuple(dict.fromkeys(found))


def _binds(lines: tuple[str, ...]) -> tuple[Bind, ...]:
    found: dict[str, Bind] = {}
    for line in lines:
        source, *rest = line.removeprefix("-").split(":")
        if len(rest) > 2 or (len(rest) == 2 and rest[1] not in ("rbind", "norbind")):
            raise BadValue(f"{line!r} is not a bind", "write SOURCE:TARGET, and :norbind to leave out mounts below it")
        target = normal_path(rest[0] if rest else source)
        found.pop(target, None)
        recursive = len(rest) < 2 or rest[1] == "rbind"
        found[target] = Bind(normal_path(source), target, line.startswith("-"), recursive)
    return tuple(found.values())


def _temporary(lines: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for line in lines:
        path, _, options = line.partition(":")
        if normal_path(path) == "/":
            raise BadValue("an empty file system over / hides the program too", "name folders below it")
        if any(character.isspace() for character in options):
            raise BadValue(f"{options!r} are no mount options", "write them as in size=10%,mode=0700,ro")
        found[normal_path(path)] = options
    return tuple(found.items())


def normal_path(path: str) -> str:
    """Return an absolute path without what says nothing; raises BadValue."""
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts:
        raise BadValue(f"{path!r} is not an absolute path", "write one that begins with / and has no ..")
    return "/" + "/".join(part for part in parts if part not in ("", "."))


PATH_KEYS = frozenset(
    {
        "read-only-paths", "read-write-paths", "inaccessible-paths", "exec-paths", "no-exec-paths", "bind-paths",
        "bind-read-only-paths", "temporary-file-system",
    }
)  # fmt: skip
ITEM_PARSERS: dict[str, Callable[[tuple[str, ...]], object]] = {
    "capability-bounding-set": lambda lines: parse_capabilities(lines, ALL_CAPABILITIES),
    "ambient-capabilities": lambda lines: parse_capabilities(lines, 0),
    "secure-bits": _secure_bits,
    "system-call-filter": parse_call_filter,
    "system-call-architectures": _architectures,
    "restrict-address-families": _families,
    "restrict-namespaces": _namespaces,
    **dict.fromkeys(sorted(key for key in PATH_KEYS if key.endswith("-paths") and "bind" not in key), _paths),
    "bind-paths": _binds,
    "bind-read-only-paths": _binds,
    "temporary-file-system": _temporary,
}
"""What reads the keys that are lists, for those who ask of each member whether it is good; of ``PATH_KEYS`` a member is
one entry, of the others a word of one."""
