"""Specifiers: ``%i %I %n %p %h %t %S %L %u %U %H %b %%`` and a few more in the strings of unit files.

Source: systemd.unit(5), "Specifiers". Differences: names have no suffix, so ``%n`` of ``web`` is ``web``; an unknown
specifier is an error, and so is a ``%`` at the end.
"""

import re
from typing import Any

from msgspec import Struct

from supervisord_py.model.names import UnitName
from supervisord_py.model.problems import BadValue

_SPECIFIER = re.compile(r"%(.?)", re.DOTALL)


class SpecifierContext(Struct, frozen=True):
    """What specifiers stand for on this machine; the host reads it once a load.

    ``runtime_dir``, ``state_dir`` and ``logs_dir`` are the roots (``/run``, ``/var/lib``, ``/var/log`` for root, the
    user's own else); ``user``, ``uid`` and ``home`` are of the user the supervisor runs as. ``folder`` is where a
    relative path begins: one that was typed for ``check``, which shows it as it was typed. ``credentials_dir`` holds a
    folder for each unit that is given any; what comes behind it is of the user and of the machine, too.
    """

    home: str
    runtime_dir: str
    state_dir: str
    logs_dir: str
    user: str
    uid: int
    host: str
    boot_id: str
    folder: str = "/"
    credentials_dir: str = "/run/supervisord-py/credentials"
    group: str = "root"
    gid: int = 0
    shell: str = "/bin/sh"
    kernel: str = ""
    architecture: str = ""
    machine_id: str = ""


class Specifiers:
    """Expands the specifiers of one unit's strings."""

    def __init__(self, context: SpecifierContext, name: UnitName, path: str = "") -> None:
        """``path`` is the unit's main file, for ``%y``, and for ``%Y`` its folder."""
        self.used: set[str] = set()
        instance = name.instance or ""
        if not path.startswith("/"):
            path = f"{context.folder.rstrip('/')}/{path}"
        self._meanings = {
            "%": "%",
            "i": instance,
            "I": instance.replace("-", "/"),
            "n": str(name),
            "p": name.prefix,
            "h": context.home,
            "t": context.runtime_dir,
            "S": context.state_dir,
            "L": context.logs_dir,
            "u": context.user,
            "U": str(context.uid),
            "H": context.host,
            "b": context.boot_id,
            "d": f"{context.credentials_dir}/{name}",
            "g": context.group,
            "G": str(context.gid),
            "s": context.shell,
            "l": context.host.partition(".")[0],
            "v": context.kernel,
            "a": context.architecture,
            "m": context.machine_id,
            "y": path,
            "Y": path.rpartition("/")[0] or "/",
        }

    def expand(self, text: str) -> str:
        """Replace every specifier.

        Raises:
            BadValue: A ``%`` that is followed by nothing or by no specifier.
        """
        if "%" not in text:
            return text
        return _SPECIFIER.sub(self._meaning, text)

    def expand_all(self, value: Any) -> Any:
        """Expand every string within a TOML value (not the keys)."""
        if isinstance(value, str):
            return self.expand(value)
        if isinstance(value, list):
            return [self.expand_all(item) for item in value]
        if isinstance(value, dict):
            return {key: self.expand_all(item) for key, item in value.items()}
        return value

    def _meaning(self, match: re.Match[str]) -> str:
        self.used.add(match[1])
        try:
            return self._meanings[match[1]]
        except KeyError:
            raise BadValue(
                f"unknown specifier {match[0]!r}",
                f"write %% for a percent sign; specifiers are {' '.join('%' + letter for letter in self._meanings)}",
            ) from None


def check_specifiers(text: str) -> str:
    """The text as it is: its specifiers are replaced later, when it is known what they stand for.

    Raises:
        BadValue: A ``%`` that is followed by nothing or by no specifier.
    """
    Specifiers(_ANYWHERE, UnitName("any")).expand(text)
    return text


_ANYWHERE = SpecifierContext("/", "/", "/", "/", "", 0, "", "")
