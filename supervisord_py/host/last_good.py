"""The files that running units were started with, kept while something newer is loaded: what ``apply`` goes back to.

A load that changes what only a restart can bring leaves lives that run by older files. Those files are kept here, by
unit, until the unit runs by what is loaded; a rollout that fails gives them back. What was refused in that way is
*marked*, because the disk has another text than the one in use, until that text is read again.

Both are state of the host in the keeper's custody, changed in the commit of the load that they belong to.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.host.unit_files import CONTROL_PRIORITY, UnitSources
from supervisord_py.model.changes import restart_keys
from supervisord_py.model.unit import Unit
from supervisord_py.model.unitset import LoadResult, UnitFile

LAST_GOOD_KEY = "host/last-good"


class _State(Struct):
    files: dict[str, tuple[UnitFile, ...]] = {}
    applied: tuple[str, ...] = ()
    """The units that the last apply changed: it goes back with all of them."""
    refused: dict[str, str] = {}


class LastGood:
    """See the module. ``text`` is what a manager before had packed."""

    def __init__(self, text: str | None = None) -> None:
        self._state = _State() if text is None else msgspec.json.decode(text, type=_State)

    def pack(self) -> str:
        return msgspec.json.encode(self._state).decode()

    @property
    def refused_units(self) -> list[str]:
        return sorted(self._state.refused)

    def refused(self, unit: str) -> str | None:
        """Say why the file of a unit on disk is not the one in use, None where apply has not refused it."""
        return self._state.refused.get(unit)

    def note_load(
        self,
        old: LoadResult,
        new: LoadResult,
        lives: Mapping[str, Unit],
        *,
        read: Sequence[str] | None,
        in_rollout: Iterable[str] = (),
        applied: Sequence[str] | None = None,
    ) -> None:
        """Take in what a load changes, just before it is decided.

        Args:
            old: What was loaded until now.
            new: What is loaded from now on.
            lives: The text of every unit that has a life.
            read: The units whose files were read anew; None for all.
            in_rollout: Units of a rollout that is under way: it may still want to go back.
            applied: The units that an apply changes, when this load is one.
        """
        state = self._state
        if applied is not None:
            state.applied = tuple(applied)
        kept = {*in_rollout, *(applied or ())}
        if in_rollout:
            kept |= set(state.applied)
        for name in list(state.files):
            if name not in lives and name not in kept:
                del state.files[name]
        for name in sorted({*lives, *(applied or ())}):
            text = new.unit_set.units.get(name)
            if name in kept or text is None or (name in lives and restart_keys(lives[name], text)):
                if name not in state.files and (files := old.read_files(name)):
                    state.files[name] = files
            else:
                state.files.pop(name, None)
        if read is None:
            state.refused.clear()
        for name in read or ():
            state.refused.pop(name, None)

    def go_back(self, units: Iterable[str], message: str, sources: UnitSources, loaded: LoadResult) -> UnitSources:
        """Return ``sources`` with the older files of ``units``, and of all else that the same apply changed, in place
        of the newer ones, which are marked with ``message``."""
        names = [name for name in dict.fromkeys((*units, *self._state.applied)) if name in self._state.files]
        dropped: set[str] = set()
        restored: dict[str, UnitFile] = {}
        for name in names:
            # What somebody said about the unit meanwhile (enable, mask) is not part of the release.
            dropped |= {file.path for file in loaded.read_files(name) if file.priority != CONTROL_PRIORITY}
            restored |= {file.path: file for file in self._state.files[name] if file.priority != CONTROL_PRIORITY}
            self._state.refused[name] = message
        files = [file for file in sources.files if file.path not in dropped and file.path not in restored]
        return replace(sources, files=(*files, *restored.values()))
