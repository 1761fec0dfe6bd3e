"""The execution domain of a process (personality(2)), and how late its timers may be (PR_SET_TIMERSLACK).

Source: systemd.exec(5), Personality=, TimerSlackNSec=.
"""

import os
from typing import Any

from supervisord_py.model.unit import ExecContext

PR_SET_TIMERSLACK = 29
PER_LINUX = 0
PER_LINUX32 = 8
_KNOWN = {
    "x86_64": {"x86-64": PER_LINUX, "x86": PER_LINUX32},
    "aarch64": {"arm64": PER_LINUX, "arm": PER_LINUX32},
    "i686": {"x86": PER_LINUX},
}


def personality_of(name: str | None) -> int | None:
    """Return the number of an execution domain, None for no name.

    Raises:
        LookupError: This machine has no such one.
    """
    return None if name is None else _KNOWN.get(os.uname().machine, {})[name]


def domain_operations(context: ExecContext) -> list[dict[str, Any]]:
    """Return what the child does; raises LookupError as ``personality_of``."""
    operations: list[dict[str, Any]] = []
    if context.timer_slack_ns is not None:
        call = {"do": "call", "name": "prctl", "args": [PR_SET_TIMERSLACK, context.timer_slack_ns, 0, 0, 0]}
        operations.append({"step": "timer-slack", "key": "timer-slack-nsec", **call})
    if (domain := personality_of(context.personality)) is not None:
        operations.append({"step": "personality", "do": "call", "name": "personality", "args": [domain]})
    return operations
