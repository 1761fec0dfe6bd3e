"""All of ``[sandbox]`` for one process: what is done before its exec, and what can be said of it afterwards."""

import os

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.host.accounts import Account
from supervisord_py.host.belongings import OwnFolder
from supervisord_py.host.confine import (
    CannotConfine,
    Confinement,
    confine_calls,
    confine_privileges,
    decide_privileges,
)
from supervisord_py.host.confine_landlock import confine_landlock, landlock_abi
from supervisord_py.host.confine_mounts import Places, confine_namespaces, make_inaccessible
from supervisord_py.host.powers import SYS_ADMIN, own_powers
from supervisord_py.host.private_folders import PrivateFolders
from supervisord_py.keeper.inventory import read_stat
from supervisord_py.model.sandbox import Sandbox
from supervisord_py.model.sandbox_mechanisms import applied
from supervisord_py.model.sandbox_paths import needs_namespace


class Place(Struct, frozen=True):
    """Where a process is put: ``private`` makes folders of units (None: nothing with folders can be confined), ``life``
    is the invocation whose folders it shares (None: it is beside the life). ``reached`` are paths that it must reach
    wherever it is put, ``root`` is its root folder, ``own`` are the unit's folders, ``beside`` is the main process
    whose network and IPC it shares, ``personality`` its execution domain where that is not ours."""

    private: PrivateFolders | None
    unit: str
    life: str | None = None
    reached: tuple[str, ...] = ()
    root: str | None = None
    own: tuple[OwnFolder, ...] = ()
    beside: int | None = None
    personality: int | None = None


def confine(sandbox: Sandbox, account: Account, place: Place) -> Confinement:
    """Return the operations that confine a process.

    Raises:
        CannotConfine: A strict unit asks for what cannot be, or a folder for it cannot be made.
    """
    into = Confinement(sandbox.enforce)
    if sandbox == Sandbox() and place.root is None:
        return into
    has_namespace = False
    powers = own_powers()
    if place.personality is not None:
        powers = replace(powers, personality=place.personality)
    if needs_namespace(sandbox, has_root=place.root is not None):
        has_namespace = confine_namespaces(sandbox, account, powers, _places(sandbox, place), into)
    decided = confine_privileges(sandbox, account, powers, into, has_namespace=has_namespace)
    confine_landlock(sandbox, landlock_abi(), into)
    confine_calls(decided, into)
    return into


def _places(sandbox: Sandbox, place: Place) -> Places:
    """Make the folders that the mounts of a process need."""
    private = place.private
    if private is None:
        raise CannotConfine("namespace", "this supervisor has no folder for what units must not see")
    try:
        inaccessible = make_inaccessible(private.runtime / "inaccessible")
        if not sandbox.private_tmp:
            folders: dict[str, str] = {}
        else:
            folders = private.of(place.unit) if place.life is None else private.provide(place.unit, place.life)
    except OSError as error:
        number = error.errno or 0
        detail = f"private-tmp: cannot make {error.filename}: {os.strerror(number).lower()}"
        raise CannotConfine("namespace", detail, number) from None
    beside = None
    if place.beside is not None and (stat := read_stat(place.beside)) is not None:
        beside = (place.beside, stat.start)
    root = None if place.root is None else os.path.realpath(place.root)
    return Places(inaccessible, folders, place.reached, None if root == "/" else root, place.own, beside)


def applied_sandbox(sandbox: Sandbox, degraded: tuple[str, ...]) -> list[str]:
    """Return what confines a process that was made with this, ``KEY: MECHANISM``."""
    if sandbox == Sandbox():
        return []
    powers = own_powers()
    return applied(
        sandbox,
        degraded,
        implies_privileges=decide_privileges(sandbox, powers, Confinement("best-effort")).is_implied,
        implies_namespace=not powers.has(SYS_ADMIN) and needs_namespace(sandbox, has_root=False),
        abi=landlock_abi(),
    )
