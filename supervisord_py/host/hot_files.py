"""What lies in the hot directory, and which of it is to be loaded.

Theory of operation
-------------------
*Look*: each ``*.whl`` and ``*.toml`` is read once, whole, through one descriptor, and so is the signature beside it;
everything after that is about those bytes. A signature has to be one of a trusted key, and its trusted comment has to
name what is inside: name, version and units of a wheel, the unit of a unit file. What was looked at and has not changed
since is not read again.

*Choose*: of a package the highest version counts, then the latest signature; one that is lower than the highest ever
installed (``hot_memory``) is refused. What is there and cannot be used never replaces what runs: as long as a file lies
at the place where the version in use came from, that version stays. Where there is none any more, it goes.

*Try*: a new version is unpacked and its units are built together with all others. If one of them cannot be used, the
version is refused as a whole, and the next lower one has its turn.

What is refused is a unit that is ``rejected``, so that ``status`` has it.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.host.agent_wheels import (
    WHEEL_MAX,
    WHEEL_SUFFIX,
    Wheel,
    WheelError,
    check_requirements,
    read_wheel,
    unpack,
)
from supervisord_py.host.hot_memory import Highest, HotMemory, is_lower, key_of
from supervisord_py.host.signing import SIGNATURE_SUFFIX, Keyring, SignatureRefused, verify
from supervisord_py.host.trusted_files import FILE_MAX, FileRefused, TrustedReader, trusted_uids
from supervisord_py.host.unit_files import HOT_PRIORITY, printable
from supervisord_py.model.agents import UNITS_FOLDER
from supervisord_py.model.names import is_unit_name, parse_unit_name
from supervisord_py.model.problems import Problem
from supervisord_py.model.unitset import HotFile, LoadResult, UnitFile, UnitFileKind
from supervisord_py.wire.minisign import TEXT_MAX, Claims, MinisignError, key_name, parse_claims, parse_signature

UNIT_SUFFIX = ".toml"
SETTLE_NS = 1_000_000_000
"""So long after its last change a file that is no good is given time: its signature may still be on the way."""

_DIGEST = 12


class Stamp(Struct, frozen=True):
    """What a file and its signature look like from outside; with another stamp it is read again."""

    file: tuple[int, ...]
    signature: tuple[int, ...]
    changed_ns: int


class Candidate(Struct, frozen=True):
    """One file after the look. ``files`` are its unit files, none when there is a ``problem``; ``data`` and ``wheel``
    are kept until a wheel is unpacked."""

    path: str
    stamp: Stamp
    key: str = ""
    problem: str = ""
    files: tuple[UnitFile, ...] = ()
    signer: str = ""
    data: bytes = b""
    wheel: Wheel | None = None

    @property
    def hot(self) -> HotFile:
        assert self.files and self.files[0].hot is not None, "a candidate that is no good has no version"
        return self.files[0].hot


class Look(Struct, frozen=True):
    """All files; ``problem`` says why there are none, and then nothing is removed. ``unsettled`` are in motion."""

    candidates: tuple[Candidate, ...] = ()
    problem: str = ""
    unsettled: frozenset[str] = frozenset()


class Rules(Struct, frozen=True):
    """By what files are judged."""

    require_signature: bool
    keyring: Keyring
    wheels: Path
    """Where sites are."""


def look_at(folder: str, rules: Rules, before: Mapping[str, Candidate], now_ns: int) -> Look:
    """Read what lies in the folder.

    Args:
        folder: The hot directory.
        rules: By what files are judged.
        before: What an earlier look by the same rules made of each path.
        now_ns: The time of day [ns].
    """
    reader = TrustedReader(None if rules.require_signature else trusted_uids(os.environ, typed=False))
    try:
        names = reader.list(folder)
    except (OSError, FileRefused) as error:
        return Look(problem=f"the hot directory {folder} cannot be read: {_why(error)}")
    candidates: list[Candidate] = []
    unsettled: set[str] = set()
    for name in names:
        if name.startswith(".") or not name.endswith((WHEEL_SUFFIX, UNIT_SUFFIX)):
            continue
        path = os.path.join(folder, name)
        # Before it is read: what is changed meanwhile is read again at the next look.
        stamp = _stamp(path)
        if stamp is None:
            continue
        known = before.get(path)
        candidate = known if known is not None and known.stamp == stamp else _examine(path, stamp, reader, rules)
        candidates.append(candidate)
        if candidate.problem and 0 <= now_ns - stamp.changed_ns < SETTLE_NS:
            unsettled.add(path)
    return Look(tuple(candidates), unsettled=frozenset(unsettled))


def _stamp(path: str) -> Stamp | None:
    """None: it has gone."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None if not os.path.islink(path) else Stamp((), (), 0)
    except OSError:
        return Stamp((), (), 0)
    try:
        signature = os.stat(path + SIGNATURE_SUFFIX)
    except OSError:
        return Stamp(_identity(status), (), status.st_ctime_ns)
    return Stamp(_identity(status), _identity(signature), max(status.st_ctime_ns, signature.st_ctime_ns))


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _examine(path: str, stamp: Stamp, reader: TrustedReader, rules: Rules) -> Candidate:
    try:
        is_wheel = path.endswith(WHEEL_SUFFIX)
        data = reader.read_bytes(path, WHEEL_MAX if is_wheel else FILE_MAX)
        claims, signer, seal = _verified(path, data, reader, rules) if rules.require_signature else (None, "", b"")
        digest = hashlib.blake2b(data + seal, digest_size=32).hexdigest()
        return (_wheel if is_wheel else _unit)(Candidate(path, stamp, signer=signer, data=data), claims, digest, rules)
    except (OSError, FileRefused, SignatureRefused, WheelError, MinisignError) as error:
        return Candidate(path, stamp, problem=_why(error))


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot read: {(error.strerror or str(error)).lower()}"
    return error.message if isinstance(error, FileRefused) else str(error)


def _verified(path: str, data: bytes, reader: TrustedReader, rules: Rules) -> tuple[Claims, str, bytes]:
    """Verify the signature beside a file; returns what it says, who made it, and its bytes.

    Raises:
        SignatureRefused: There is none, or it does not hold.
    """
    beside = path + SIGNATURE_SUFFIX
    try:
        seal = reader.read_bytes(beside, TEXT_MAX)
    except FileNotFoundError:
        raise SignatureRefused(f"not signed: there is no {os.path.basename(beside)} beside it") from None
    except (OSError, FileRefused) as error:
        raise SignatureRefused(f"its signature {os.path.basename(beside)}: {_why(error)}") from None
    try:
        signature = parse_signature(seal.decode())
        verify(data, signature, rules.keyring)
        return parse_claims(signature.trusted_comment), key_name(signature.key_id), seal
    except UnicodeDecodeError:
        raise SignatureRefused("its signature is not UTF-8") from None
    except MinisignError as error:
        raise SignatureRefused(f"its signature: {error}") from None


def _wheel(found: Candidate, claims: Claims | None, digest: str, rules: Rules) -> Candidate:
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

    wheel = read_wheel(found.data, os.path.basename(found.path))
    if claims is not None:
        try:
            same = (canonicalize_name(claims.name), Version(claims.version)) == (wheel.name, Version(wheel.version))
        except InvalidVersion:
            same = False
        if not same:
            said = f"{claims.name} {claims.version}".strip() or "no wheel"
            raise SignatureRefused(f"the signature is for {said}, and this is {wheel.name} {wheel.version}")
        _check_units(claims, wheel.units)
    check_requirements(wheel)
    site = rules.wheels / f"{wheel.name}-{wheel.version}-{digest[:_DIGEST]}"
    timestamp = None if claims is None else claims.timestamp
    hot = HotFile(found.path, digest, wheel.name, wheel.version, timestamp, str(site))
    folder = f"{site}/{UNITS_FOLDER}"
    files = tuple(
        UnitFile(name, f"{folder}/{name}{UNIT_SUFFIX}", text, UnitFileKind.UNIT, folder, HOT_PRIORITY, hot=hot)
        for name, text in wheel.units.items()
    )
    return replace(found, key=wheel.name, files=files, wheel=wheel)


def _unit(found: Candidate, claims: Claims | None, digest: str, rules: Rules) -> Candidate:
    folder, base = os.path.split(found.path)
    name = base.removesuffix(UNIT_SUFFIX)
    try:
        parse_unit_name(name)
        text = found.data.decode()
    except UnicodeDecodeError:
        raise SignatureRefused("not UTF-8") from None
    except ValueError as error:
        raise SignatureRefused(str(error)) from None
    if name == "defaults":
        raise SignatureRefused("a hot directory has no defaults: write them into each unit")
    if not text.strip():
        raise SignatureRefused("an empty file: units are masked by supctl mask")
    if claims is not None:
        _check_units(claims, (name,))
    hot = HotFile(found.path, digest, timestamp=None if claims is None else claims.timestamp)
    file = UnitFile(name, printable(found.path), text, UnitFileKind.UNIT, printable(folder), HOT_PRIORITY, hot=hot)
    return replace(found, key=key_of(hot, name), files=(file,), data=b"")


def _check_units(claims: Claims, units: Sequence[str] | Mapping[str, str]) -> None:
    if sorted(claims.units) != sorted(units):
        said, has = ", ".join(sorted(claims.units)) or "none", ", ".join(sorted(units))
        raise SignatureRefused(f"the signature is for other units: {said}, and here are {has}")


class Choice(Struct):
    """What is to be loaded: the unit files that are ``used``, by package; why others are ``rejected``, by path; and
    what is remembered from then on. ``fresh`` are packages that were not in use before."""

    used: dict[str, tuple[UnitFile, ...]]
    rejected: dict[str, str]
    memory: HotMemory
    fresh: dict[str, Candidate]

    def files(self, taken: Sequence[UnitFile]) -> tuple[UnitFile, ...]:
        """Return all files of the hot directory, rejected ones too; ``taken`` are those of the unit path."""
        files = [file for key in sorted(self.used) for file in self.used[key]]
        names = {file.name for file in (*files, *taken)}
        for path, why in sorted(self.rejected.items()):
            name = rejected_name(os.path.basename(path), names)
            names.add(name)
            shown = printable(path)
            problem = Problem(shown, 0, 0, "", printable(why))
            hot = HotFile(path)
            files.append(
                UnitFile(name, shown, "", UnitFileKind.UNIT, os.path.dirname(shown), HOT_PRIORITY, problem, hot)
            )
        return tuple(files)


def rejected_name(base: str, taken: set[str]) -> str:
    """Return the name under which a file that was refused is listed: a unit file's own, unless a unit has that; else
    what the file is called."""
    unit = base.removesuffix(UNIT_SUFFIX)
    if base != unit and is_unit_name(unit) and unit not in taken:
        return unit
    name = re.sub(r"[^A-Za-z0-9:_.-]", "_", os.fsencode(base).decode(errors="replace")).lstrip(":_.-")[:150] or "file"
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def choose(
    look: Look,
    in_use: Sequence[UnitFile],
    others: Sequence[UnitFile],
    memory: HotMemory,
    build: Callable[[tuple[UnitFile, ...]], LoadResult],
    *,
    unpacked: AbstractSet[str] = frozenset(),
) -> tuple[Choice, tuple[UnitFile, ...], LoadResult]:
    """Decide what is to be loaded, unpack what is new, and build everything.

    Args:
        look: What lies in the folder.
        in_use: The files of the hot directory that are loaded.
        others: All other unit files.
        memory: What is remembered.
        build: Builds the units of these files of the hot directory together with all others.
        unpacked: Sites that are not to be made: they are there, or this is but a rehearsal.

    Returns:
        The choice, all files of the hot directory, and all units.
    """
    refused = dict(memory.refused)
    made = set(unpacked)
    while True:
        choice = _choose(look, in_use, others, memory, refused, made)
        files = choice.files(others)
        loaded = build(files)
        bad = {each.path: each.reason for each in loaded.unit_set.bad.values()}
        failing = {
            new.hot.digest: bad[file.path]
            for key, new in choice.fresh.items()
            for file in choice.used[key]
            if file.path in bad
        }
        if not failing:
            raised = {key: _highest(new.hot, memory.highest.get(key)) for key, new in choice.fresh.items()}
            choice.memory = replace(memory, highest=memory.highest | raised)
            return choice, files, loaded
        refused |= failing


def _choose(
    look: Look,
    in_use: Sequence[UnitFile],
    others: Sequence[UnitFile],
    memory: HotMemory,
    refused: Mapping[str, str],
    unpacked: set[str],
) -> Choice:
    rejected = {each.path: each.problem for each in look.candidates if each.problem and each.path not in look.unsettled}
    good: dict[str, list[Candidate]] = {}
    for each in look.candidates:
        if not each.problem and each.hot.digest in refused:
            rejected[each.path] = refused[each.hot.digest]
        elif not each.problem:
            good.setdefault(each.key, []).append(each)
    now = _by_package(in_use, refused)
    choice = Choice({}, rejected, memory, {})
    # Who has its units already keeps them: what is in use, and at a start what was installed before.
    installed = {each.key: each.files for found in good.values() for each in found if _was_installed(each, memory)}
    taken = installed | {key: files for key, files in now.items() if _is_there(files, key, look)}
    for key in sorted({*now, *good}, key=lambda key: (key not in memory.highest, key)):
        old = now.get(key, ())
        for new in sorted(good.get(key, ()), key=_rank, reverse=True):
            is_known = bool(old) and _digest_of(old) == new.hot.digest
            why = "" if is_known else _cannot(new, memory, others, taken, unpacked)
            if not why:
                choice.used[key] = taken[key] = new.files
                if not is_known:
                    choice.fresh[key] = new
                break
            rejected[new.path] = why
        else:
            taken.pop(key, None)
            if _is_there(old, key, look):
                choice.used[key] = taken[key] = old
    return choice


def _was_installed(candidate: Candidate, memory: HotMemory) -> bool:
    return memory.highest.get(candidate.key) == Highest(candidate.hot.version, candidate.hot.timestamp)


def _is_there(files: Sequence[UnitFile], key: str, look: Look) -> bool:
    """Tell whether something lies where the version in use came from, be it good or not, and not another package."""
    there = {each.path for each in look.candidates if each.problem or each.key == key}
    return bool(files) and files[0].hot is not None and files[0].hot.source in there


def _rank(candidate: Candidate) -> tuple[object, int]:
    from packaging.version import Version

    return Version(candidate.hot.version or "0"), candidate.hot.timestamp or 0


def _digest_of(files: Sequence[UnitFile]) -> str:
    return files[0].hot.digest if files[0].hot is not None else ""


def _highest(hot: HotFile, before: Highest | None) -> Highest:
    if hot.timestamp is None and before is not None and before.version == hot.version:
        return before
    return Highest(hot.version, hot.timestamp)


def _cannot(
    new: Candidate,
    memory: HotMemory,
    others: Sequence[UnitFile],
    taken: Mapping[str, tuple[UnitFile, ...]],
    unpacked: set[str],
) -> str:
    """Say why a new version cannot be used; make its site when it can."""
    highest = memory.highest.get(new.key)
    if highest is not None and is_lower(new.hot, highest):
        return _downgrade(new.hot, highest)
    why = _conflict(new, others, taken)
    if why or not new.hot.site or new.hot.site in unpacked:
        return why
    assert new.wheel is not None, "a wheel that is not in use is read at each look"
    try:
        unpack(new.data, new.wheel, Path(new.hot.site))
    except WheelError as error:
        return str(error)
    except OSError as error:
        return f"cannot unpack it: {(error.strerror or str(error)).lower()}: {error.filename or new.hot.site}"
    unpacked.add(new.hot.site)
    return ""


def _by_package(files: Sequence[UnitFile], refused: Mapping[str, str]) -> dict[str, tuple[UnitFile, ...]]:
    found: dict[str, tuple[UnitFile, ...]] = {}
    for file in files:
        if file.hot is not None and file.problem is None and file.hot.digest not in refused:
            key = key_of(file.hot, file.name)
            found[key] = (*found.get(key, ()), file)
    return found


def _downgrade(hot: HotFile, highest: Highest) -> str:
    if hot.package and hot.version != highest.version:
        return f"version {hot.version} is lower than {highest.version}, the highest that was ever installed"
    return "its signature is older than that of what was installed before: sign it again to go back to it"


def _conflict(new: Candidate, others: Sequence[UnitFile], taken: Mapping[str, tuple[UnitFile, ...]]) -> str:
    """Say which of its units somebody else defines; a mask is not somebody."""
    names = {file.name for file in new.files}
    for file in others:
        if file.name in names and file.kind is UnitFileKind.UNIT and (file.text or file.problem is not None):
            return f"{file.path} defines {file.name} too: rename one of them"
    for key, files in taken.items():
        for file in files:
            if file.name in names and key != new.key and file.hot is not None:
                return f"{file.hot.source} defines {file.name} too: rename one of them"
    return ""
