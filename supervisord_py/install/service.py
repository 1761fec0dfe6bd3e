"""The text of the systemd unit: the packaged template with this installation's own commands. Touches nothing.

The templates (``packaging/systemd``) are good units as they stand, for distributions; what differs here is where the
programs are, for whom the unit is, and what an older systemd does not know.
"""

import shlex
from collections.abc import Mapping, Sequence

MARK = "# Written by `supervisord-py install`, removed by `supervisord-py uninstall`."
"""First line of every unit that is ours to replace and to remove."""

PROGRAMS = {
    "/usr/bin/supervisord-py": "supervisord_py",
    "/usr/bin/supctl": "supervisord_py.ctl.cli",
}
"""Programs of the template, and the modules that they are."""

KNOWN_SINCE = {"DelegateSubgroup": 254, "RestartSteps": 254, "RestartMaxDelaySec": 254}
"""Directives that systemd knows since this version; an older one complains each time it reads the unit."""


def service_text(
    template: str, python: str, environment: Mapping[str, str] | None = None, *, systemd: int | None = None
) -> str:
    """Return the unit's text.

    Args:
        template: Text of the packaged unit.
        python: Absolute path of the interpreter that finds this package.
        environment: Variables that the service needs and its manager may not have.
        systemd: Version of the systemd that will read it; None: a new one.
    """
    _, _, body = template.partition("\n\n")
    change = f"# Changes: systemctl {'--user ' if '--user' in template else ''}edit supervisord-py"
    lines = [MARK, change, ""]
    for line in body.splitlines():
        key, _, value = line.partition("=")
        if systemd is not None and KNOWN_SINCE.get(key, 0) > systemd:
            continue
        if key in ("ExecStart", "ExecReload"):
            program, *arguments = shlex.split(value)
            line = f"{key}={quote_command([python, '-P', '-m', PROGRAMS[program], *arguments])}"
        lines.append(line)
        if line == "[Service]":
            lines += [f"Environment={quote(f'{name}={text}')}" for name, text in sorted((environment or {}).items())]
    return "\n".join(lines) + "\n"


def quote(word: str) -> str:
    """Write a word so that systemd reads it as it is (systemd.syntax(7), systemd.unit(5) on specifiers)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(character in " \t\"'\\;" for character in word) or not word else escaped


def quote_command(words: Sequence[str]) -> str:
    """Write a command line; in it a dollar would name a variable, but for the program itself."""
    return " ".join([quote(words[0]), *(quote(word).replace("$", "$$") for word in words[1:])])
