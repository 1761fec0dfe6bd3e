"""Folders of a unit's own for ``private-tmp``: one for each life, for all its commands, and gone when it ends.

What is made is written down in ``private/UNIT.json`` of the runtime folder before it is made, so a later manager
removes what an earlier one left when both it and the keeper were killed. Removing is done in a thread: a unit may leave
millions of files. Names hold what nobody can guess, and the folder that is entered is the supervisor's alone.
"""

import contextlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

PREFIX = "supervisord-py-private-"
BASES = ("/tmp", "/var/tmp")


class PrivateFolders:
    """Makes and removes them.

    Args:
        runtime: The instance's runtime folder.
    """

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self._notes = runtime / "private"
        self._removing: list[threading.Thread] = []

    def provide(self, unit: str, invocation: str) -> dict[str, str]:
        """Return the folders of a life, by the path over which each is laid; raises OSError."""
        folders = self.of(unit)
        if self._read(unit).get("invocation") == invocation and all(map(os.path.isdir, folders.values())):
            return folders
        self.release(unit)
        token = secrets.token_hex(8)
        folders = {base: f"{base}/{PREFIX}{token}-{unit[:100]}/tmp" for base in BASES}
        self._notes.mkdir(mode=0o700, exist_ok=True)
        path = self._notes / f"{unit}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"invocation": invocation, "folders": folders}))
        fresh.rename(path)
        for folder in folders.values():
            os.mkdir(os.path.dirname(folder), mode=0o700)
            os.mkdir(folder)
            os.chmod(folder, 0o1777)
        return folders

    def of(self, unit: str) -> dict[str, str]:
        """Return the folders of the life that a unit has now; none when it has no life."""
        return {str(path): str(folder) for path, folder in self._read(unit).get("folders", {}).items()}

    def release(self, unit: str) -> None:
        """Remove the folders of a unit's last life, if it had any."""
        note = self._read(unit)
        if not note:
            return
        outer = [os.path.dirname(str(folder)) for folder in note["folders"].values()]
        gone: list[str] = []
        for folder in outer:
            # Renamed at once: a new life of the unit makes its own while this one is taken apart.
            with contextlib.suppress(OSError):
                os.rename(folder, f"{folder}.gone")
            gone.append(f"{folder}.gone")
        note_path = self._notes / f"{unit}.json"
        aside = self._notes / f"{secrets.token_hex(8)}.gone"
        note_path.rename(aside)

        def remove() -> None:
            for folder in gone:
                shutil.rmtree(folder, ignore_errors=True)
            aside.unlink(missing_ok=True)

        self._removing = [thread for thread in self._removing if thread.is_alive()]
        thread = threading.Thread(target=remove, name=f"remove the folders of {unit}")
        thread.start()
        self._removing.append(thread)

    def sweep(self, living: Collection[str]) -> None:
        """Remove what lives have left that nobody knows any more: the supervisor was killed with them."""
        with contextlib.suppress(OSError):
            for path in list(self._notes.iterdir()):
                if path.suffix == ".json" and path.stem not in living:
                    self.release(path.stem)
                elif path.suffix == ".gone":
                    with contextlib.suppress(OSError, ValueError, KeyError):
                        for folder in json.loads(path.read_bytes())["folders"].values():
                            shutil.rmtree(f"{os.path.dirname(folder)}.gone", ignore_errors=True)
                        path.unlink()

    def settle(self) -> None:
        """Wait until all that was released is gone."""
        for thread in self._removing:
            thread.join()

    def _read(self, unit: str) -> dict[str, Any]:
        try:
            found = json.loads((self._notes / f"{unit}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and isinstance(found.get("folders"), dict) else {}
