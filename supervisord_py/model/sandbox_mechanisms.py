"""By what each key of ``[sandbox]`` is enforced, in words: what ``status`` shows as applied."""

from supervisord_py.model.sandbox import SANDBOX_KEYS, Sandbox

_MOUNTS, _FILTER = "mount namespace", "seccomp"
MECHANISMS: dict[str, str] = {
    "no-new-privileges": "prctl",
    "capability-bounding-set": "capabilities",
    "ambient-capabilities": "capabilities",
    "secure-bits": "prctl",
    "keyring-mode": "kernel keyring",
    "system-call-filter": _FILTER,
    "system-call-architectures": _FILTER,
    "restrict-address-families": _FILTER,
    "restrict-namespaces": _FILTER,
    "restrict-realtime": _FILTER,
    "restrict-suid-sgid": _FILTER,
    "lock-personality": _FILTER,
    "memory-deny-write-execute": _FILTER,
    "protect-hostname": _FILTER,
    "protect-clock": _FILTER,
    "protect-kernel-modules": f"{_FILTER}, {_MOUNTS}",
    "protect-kernel-logs": f"{_FILTER}, {_MOUNTS}",
    "protect-kernel-tunables": f"{_FILTER}, {_MOUNTS}",
    "protect-control-groups": _MOUNTS,
    "landlock": "Landlock",
    "private-tmp": _MOUNTS,
    "private-devices": f"{_FILTER}, {_MOUNTS}",
    "private-network": "network namespace",
    "private-ipc": "IPC namespace",
    "private-users": "user namespace",
    "mount-apivfs": _MOUNTS,
    "private-mounts": _MOUNTS,
    "network-namespace-path": "network namespace",
    "protect-system": _MOUNTS,
    "protect-home": _MOUNTS,
    "protect-proc": _MOUNTS,
    "proc-subset": _MOUNTS,
    "read-only-paths": _MOUNTS,
    "read-write-paths": _MOUNTS,
    "inaccessible-paths": _MOUNTS,
    "exec-paths": _MOUNTS,
    "no-exec-paths": _MOUNTS,
    "bind-paths": _MOUNTS,
    "bind-read-only-paths": _MOUNTS,
    "temporary-file-system": _MOUNTS,
    "remove-ipc": "the supervisor, when the unit stops",
}
"""All keys but those that only say how another is meant (``enforce``, ``system-call-error-number``)."""


def applied(
    sandbox: Sandbox, degraded: tuple[str, ...], *, implies_privileges: bool, implies_namespace: bool, abi: int
) -> list[str]:
    """Return what confines a process, ``KEY: MECHANISM``.

    Args:
        sandbox: What its unit says.
        degraded: What it does without, ``KEY: reason``.
        implies_privileges: It can gain no privileges because of its filters.
        implies_namespace: It has a user namespace because its supervisor may make no other without one.
        abi: Of Landlock.
    """
    without = {line.partition(":")[0] for line in degraded}
    default = Sandbox()
    has_namespace = (implies_namespace or sandbox.private_users) and "private-users" not in without
    found = []
    for key in SANDBOX_KEYS:
        field = key.replace("-", "_")
        value = getattr(sandbox, field)
        says_something = value is not False and value != getattr(default, field)
        if key in MECHANISMS and says_something and key not in without:
            mechanism = MECHANISMS[key]
            if key == "landlock":
                mechanism += f" ABI {abi}"
            if key == "ambient-capabilities" and has_namespace:
                mechanism += ", in its user namespace only"
            found.append(f"{key}: {mechanism}")
    if implies_privileges and not sandbox.no_new_privileges:
        found.append("no-new-privileges: prctl (implied)")
    if implies_namespace and not sandbox.private_users and "private-users" not in without:
        found.append("private-users: user namespace (implied)")
    return found
