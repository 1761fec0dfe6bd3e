"""The commands of the control interface and the presets that rules grant (contract, section 6).

Names are the verbs of ``supctl``. The presets are a chain: each holds all of the one before it. ``run-as-self`` is in
no preset but ``admin``: it is granted by name, and lets a peer ``run`` with exactly its own uid, gid and groups; so is
``send``, which lets a remote key send messages on the bus.
"""

_MONITORING = frozenset(
    {"ping", "version", "idl", "list", "status", "stats", "health", "commands", "can", "wait", "jobs"}
)
_READ_ONLY = _MONITORING | {"show", "cat", "deps", "plan", "why", "lives", "journal", "logs", "top"}
_OPERATOR = _READ_ONLY | {
    "start", "stop", "restart", "try-restart", "reload", "reload-or-restart", "kill", "cancel", "pause", "resume",
    "trigger", "reset-failed", "release", "scale",
}  # fmt: skip
_ADMIN = _OPERATOR | {
    "set", "edit", "apply", "enable", "disable", "mask", "unmask", "run", "run-as-self",
    "replay", "send", "daemon-reload", "daemon-restart", "daemon-reexec", "shutdown",
}  # fmt: skip

PRESETS: dict[str, frozenset[str]] = {
    "monitoring": _MONITORING,
    "read-only": _READ_ONLY,
    "operator": _OPERATOR,
    "admin": _ADMIN,
}
"""What each preset grants, from the least to the most."""

COMMANDS: frozenset[str] = _ADMIN
"""Every command there is."""


def command_set(granted: str | tuple[str, ...]) -> frozenset[str]:
    """The commands that a preset's name or a list of command names stands for.

    A list may hold names of presets too: ``["read-only", "restart"]``.

    Raises:
        KeyError: A name that is neither a preset nor a command; the settings were not validated.
    """
    names = (granted,) if isinstance(granted, str) else granted
    commands: set[str] = set()
    for name in names:
        if name in COMMANDS:
            commands.add(name)
        else:
            commands |= PRESETS[name]
    return frozenset(commands)
