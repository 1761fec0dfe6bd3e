"""Which mounts make what ``[sandbox]`` says of paths true: what is laid where, and what may be written and run there.

Everything is laid in the order of depth, so that what is within comes after what it is within; then each place gets
its flags, in the same order and for all that is mounted below it. A place that may do more than what is around it
keeps the flags it had before: a copy is taken first and put back afterwards.

Of two things that would be laid on one place the stronger one stays, of two of a kind the later one. What is below an
inaccessible path is left out, except what the process must reach; that path is then an empty folder that cannot be
read or written, only gone through.

Source: systemd src/core/namespace.c (append_*, sort, drop_*, apply_mounts); systemd.exec(5), "Sandboxing".
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum

from msgspec import Struct
from msgspec.structs import replace


class Kind(IntEnum):
    """What is laid over a path, the strongest first."""

    INACCESSIBLE = 0
    BIND = 1
    FOLDER = 2
    """A folder of the unit's own (``private-tmp``)."""
    DEVICES = 3
    PROC = 4
    SYSFS = 5
    """``/sys`` as the network of the process is, with what the machine has mounted in it."""
    TMPFS = 6


class Lay(Struct, frozen=True):
    """Something mounted over ``path``, for ``key``: ``source`` of the machine, or a file system with ``options``."""

    path: str
    kind: Kind
    key: str
    source: str = ""
    options: str = ""
    may_miss: bool = False
    recursive: bool = True
    read_only: bool = False


class Rule(Struct, frozen=True):
    """What ``key`` says about a path and all below it; None: nothing."""

    path: str
    key: str
    read_only: bool | None = None
    no_exec: bool | None = None
    may_miss: bool = False


class Shade(Struct, frozen=True):
    """The flags that hold at a place. ``restores``: around it more is forbidden; ``is_laid``: a mount is there."""

    path: str
    key: str
    read_only: bool
    no_exec: bool
    may_miss: bool
    restores: bool
    is_laid: bool


class MountPlan(Struct, frozen=True):
    """What is laid, then the shades: both in the order in which they are done."""

    lays: tuple[Lay, ...] = ()
    shades: tuple[Shade, ...] = ()


def depth(path: str) -> int:
    """Return how many folders are above a path; 0 for the root."""
    return 0 if path == "/" else path.count("/")


def is_within(path: str, above: str) -> bool:
    """Say whether ``path`` is ``above`` or somewhere below it."""
    return path == above or above == "/" or path.startswith(f"{above}/")


def plan_mounts(lays: Iterable[Lay], rules: Iterable[Rule], reached: Sequence[Lay] = ()) -> MountPlan:
    """Return the mounts.

    Args:
        lays: What is laid, in the order in which it is written; paths are normal.
        rules: What is said about paths.
        reached: Binds that are needed where something else would hide their path.
    """
    chosen: dict[str, Lay] = {}
    for lay in lays:
        before = chosen.get(lay.path)
        if before is None or lay.kind <= before.kind:
            chosen[lay.path] = lay
    closed = [path for path, lay in chosen.items() if lay.kind is Kind.INACCESSIBLE]
    kept = {path: lay for path, lay in chosen.items() if not _is_below(path, closed)}
    for lay in reached:
        above = [path for path in kept if is_within(lay.path, path)]
        if not above or lay.path in kept:
            continue
        cover = max(above, key=depth)
        kept[lay.path] = replace(lay, key=kept[cover].key)
        if kept[cover].kind is Kind.INACCESSIBLE:
            kept[cover] = replace(kept[cover], kind=Kind.TMPFS, options="mode=0111", read_only=True)
    order = sorted(kept, key=lambda path: (depth(path), path))
    said = [rule for rule in rules if not _is_below(rule.path, closed) and rule.path not in closed]
    return MountPlan(tuple(kept[path] for path in order), tuple(_shades(kept, said)))


def _is_below(path: str, closed: Sequence[str]) -> bool:
    return any(path != above and is_within(path, above) for above in closed)


def _shades(lays: dict[str, Lay], rules: Sequence[Rule]) -> list[Shade]:
    """Return the flags of all places where they change: a lay is writable, and runs, unless something is said."""
    own: dict[str, Rule] = {}
    for path, lay in lays.items():
        own[path] = Rule(path, lay.key, read_only=lay.read_only, no_exec=False, may_miss=lay.may_miss)
    written: dict[str, Rule] = {}
    for rule in rules:
        before = written.get(rule.path)
        written[rule.path] = rule if before is None else _stricter(before, rule)
    for path, rule in written.items():
        before = own.get(path)
        own[path] = rule if before is None else _over(before, rule)
    shades: list[Shade] = []
    holds: dict[str, tuple[bool, bool]] = {}
    for path in sorted(own, key=lambda path: (depth(path), path)):
        rule = own[path]
        around = [other for other in holds if is_within(path, other)]
        ro, nx = holds[max(around, key=depth)] if around else (False, False)
        now = (ro if rule.read_only is None else rule.read_only, nx if rule.no_exec is None else rule.no_exec)
        holds[path] = now
        if now != (ro, nx):
            restores = (ro and not now[0]) or (nx and not now[1])
            shades.append(Shade(path, rule.key, *now, rule.may_miss, restores, path in lays))
    return shades


def _stricter(one: Rule, other: Rule) -> Rule:
    """Join two rules of one path: what forbids wins."""

    def either(first: bool | None, second: bool | None) -> bool | None:
        return second if first is None else first if second is None else first or second

    return replace(
        one,
        read_only=either(one.read_only, other.read_only),
        no_exec=either(one.no_exec, other.no_exec),
        may_miss=one.may_miss and other.may_miss,
    )


def _over(below: Rule, above: Rule) -> Rule:
    """Return what holds for a lay of which something is said: that, and for the rest what the lay is."""
    read_only = below.read_only if above.read_only is None else above.read_only or bool(below.read_only)
    return replace(above, read_only=read_only, no_exec=below.no_exec if above.no_exec is None else above.no_exec)
