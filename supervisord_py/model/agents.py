"""``[agent]``: what a unit that is a Python agent runs.

Its process is the SDK's runner, in the interpreter of the supervisor or in one of its own, and is told on its command
line which class it is. Its configuration is in its environment instead, where other users cannot read it.

Source: contract, section 3; supervisord_py/agent/runner.py reads what is written here.
"""

import posixpath
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, json

from supervisord_py.model.unit import Command, ExitStatuses

CONFIG = "SUPERVISORD_PY_AGENT_CONFIG"
"""The variable with ``[agent] config`` as JSON."""

UNITS_FOLDER = "supervisord_py_units"
"""Where a wheel of agents has its unit files: the code that they name lies beside this folder."""

PREVENT = ExitStatuses(codes=(78,))
"""EX_CONFIG: the runner ends with it where the class or its configuration is wrong, and so would every restart."""

_NO_CONFIG: Mapping[str, Any] = {}


class AgentRunner(Struct, frozen=True):
    """The interpreter and the script that run agents: paths on this machine, which only the host knows."""

    python: str
    script: str


class AgentKeys(Struct, frozen=True):
    """The table as it is written; None: not written, the class decides.

    ``cycle_timeout_ns`` of 0 is infinity. ``is_once``: each process makes one cycle, because a timer starts them.
    """

    cls: str
    every_ns: int | None = None
    cycle_timeout_ns: int | None = None
    config: Mapping[str, Any] = _NO_CONFIG
    python: str | None = None
    path: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    is_once: bool = False


def agent_command(keys: AgentKeys, runner: AgentRunner, folder: str) -> Command:
    """Return the command of an agent's process.

    Args:
        keys: ``[agent]``.
        runner: Who runs it.
        folder: The folder of the unit's file: ``python`` and ``path`` may be relative to it. The classes of units in
            a ``UNITS_FOLDER`` are looked for beside it, too.
    """
    python = posixpath.join(folder, keys.python) if keys.python is not None else runner.python
    # Unbuffered, or what an agent prints would reach its log when it is too late to help.
    words = [posixpath.normpath(python), "-u", runner.script, keys.cls]
    if keys.every_ns is not None:
        words.append(f"--every={_seconds(keys.every_ns)}")
    if keys.cycle_timeout_ns is not None:
        words.append(f"--cycle-timeout={_seconds(keys.cycle_timeout_ns) if keys.cycle_timeout_ns else 'infinity'}")
    words += [f"--path={posixpath.normpath(posixpath.join(folder, entry))}" for entry in keys.path]
    if posixpath.basename(folder) == UNITS_FOLDER:
        words.append(f"--path={posixpath.dirname(folder)}")
    words += [f"--plugin={plugin}" for plugin in keys.plugins]
    if keys.is_once:
        words.append("--once")
    return Command(tuple(words))


def agent_environment(keys: AgentKeys) -> tuple[tuple[str, str], ...]:
    """Return the variables of an agent's process besides those of ``[service] environment``."""
    return ((CONFIG, json.encode(keys.config).decode()),) if keys.config else ()


def _seconds(span_ns: int) -> str:
    return f"{span_ns / 1_000_000_000:.9f}".rstrip("0").rstrip(".")
