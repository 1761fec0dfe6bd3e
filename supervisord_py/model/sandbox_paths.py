"""What the keys of ``[sandbox]`` that protect parts of the system mean as paths. Source: systemd src/core/namespace.c
(the tables protect_system, protect_home, protect_kernel_tunables, ...); paths that are not there do not matter."""

from collections.abc import Iterator

from supervisord_py.model.mount_plan import Kind, Lay, Rule
from supervisord_py.model.sandbox import Bind, Sandbox

_HOMES = ("/home", "/root", "/run/user")
_TUNABLES = (
    "/proc/acpi", "/proc/apm", "/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/latency_stats",
    "/proc/mtrr", "/proc/scsi", "/proc/sys", "/proc/sysrq-trigger", "/proc/timer_stats", "/sys",
)  # fmt: skip
_HIDDEN_TUNABLES = ("/proc/kallsyms", "/proc/kcore")
_OWN_SYS = ("/sys/fs/bpf", "/sys/fs/cgroup", "/sys/fs/selinux", "/sys/kernel/debug", "/sys/kernel/tracing")
_MODULES = ("/lib/modules", "/usr/lib/modules")
_LOGS = ("/proc/kmsg", "/dev/kmsg")
_SYSTEM = {"yes": ("/usr", "/boot", "/efi"), "full": ("/usr", "/boot", "/efi", "/etc")}
_NOT_SYSTEM = ("/proc", "/sys", "/dev", "/home", "/root", "/run/user")


def needs_mounts(sandbox: Sandbox) -> bool:
    """Say whether a unit needs a mount namespace of its own."""
    return (
        bool(sandbox.private_mounts)
        or next(iter(rules_of(sandbox)), None) is not None
        or next(iter(lays_of(sandbox, {})), None) is not None
    )


def needs_namespace(sandbox: Sandbox, *, has_root: bool) -> bool:
    """Say whether a process needs any namespace that takes CAP_SYS_ADMIN to make."""
    return (
        sandbox.private_network
        or sandbox.private_ipc
        or sandbox.private_users
        or sandbox.network_namespace_path is not None
        or needs_mounts(sandbox)
        or has_root
    )


def rules_of(sandbox: Sandbox) -> Iterator[Rule]:
    """What may be written and run where."""
    if sandbox.protect_system == "strict":
        yield Rule("/", "protect-system", read_only=True)
        yield from (Rule(path, "protect-system", read_only=False, may_miss=True) for path in _NOT_SYSTEM)
    for path in _SYSTEM.get(sandbox.protect_system, ()):
        yield Rule(path, "protect-system", read_only=True, may_miss=True)
    if sandbox.protect_home == "read-only":
        yield from (Rule(path, "protect-home", read_only=True, may_miss=True) for path in _HOMES)
    if sandbox.protect_kernel_tunables:
        yield from (Rule(path, "protect-kernel-tunables", read_only=True, may_miss=True) for path in _TUNABLES)
        yield from (Rule(path, "protect-kernel-tunables", read_only=False, may_miss=True) for path in _OWN_SYS)
    if sandbox.protect_control_groups:
        yield Rule("/sys/fs/cgroup", "protect-control-groups", read_only=True, may_miss=True)
    for key, paths, read_only, no_exec in (
        ("read-only-paths", sandbox.read_only_paths, True, None),
        ("read-write-paths", sandbox.read_write_paths, False, None),
        ("no-exec-paths", sandbox.no_exec_paths, None, True),
        ("exec-paths", sandbox.exec_paths, None, False),
    ):
        for path in paths:
            yield Rule(path.removeprefix("-"), key, read_only, no_exec, may_miss=path.startswith("-"))


def lays_of(sandbox: Sandbox, folders: dict[str, str]) -> Iterator[Lay]:
    """What is laid over paths; ``folders`` are the unit's own, for ``private-tmp``, path to folder: a process beside
    its life has none."""
    if sandbox.private_tmp:
        for path in ("/tmp", "/var/tmp"):
            if path in folders:
                yield Lay(path, Kind.FOLDER, "private-tmp", source=folders[path])
            else:
                yield Lay(path, Kind.TMPFS, "private-tmp", options="mode=1777")
    if sandbox.private_devices:
        yield Lay("/dev", Kind.DEVICES, "private-devices")
    if (sandbox.private_network or sandbox.network_namespace_path is not None) and sandbox.private_mounts is not False:
        key = "private-network" if sandbox.network_namespace_path is None else "network-namespace-path"
        yield Lay("/sys", Kind.SYSFS, f"{key} (/sys)", may_miss=True)
    if options := _proc_options(sandbox):
        key = "proc-subset" if sandbox.proc_subset == "pid" else "protect-proc"
        yield Lay("/proc", Kind.PROC, key, options=options)
    for key, hides, paths in (
        ("protect-home", sandbox.protect_home == "yes", _HOMES),
        ("protect-kernel-tunables", sandbox.protect_kernel_tunables, _HIDDEN_TUNABLES),
        ("protect-kernel-modules", sandbox.protect_kernel_modules, _MODULES),
        ("protect-kernel-logs", sandbox.protect_kernel_logs, _LOGS),
    ):
        for path in paths if hides else ():
            yield Lay(path, Kind.INACCESSIBLE, key, may_miss=True)
    if sandbox.protect_home == "tmpfs":
        for path in _HOMES:
            yield Lay(path, Kind.TMPFS, "protect-home", options="mode=0755", may_miss=True, read_only=True)
    for path in sandbox.inaccessible_paths:
        yield Lay(path.removeprefix("-"), Kind.INACCESSIBLE, "inaccessible-paths", may_miss=path.startswith("-"))
    for path, options in sandbox.temporary_file_system:
        words = [word for word in options.split(",") if word and word != "ro"]
        if not any(word.startswith("mode=") for word in words):
            words.append("mode=0755")
        yield Lay(
            path, Kind.TMPFS, "temporary-file-system", options=",".join(words), read_only="ro" in options.split(",")
        )
    yield from _binds("bind-paths", sandbox.bind_paths, read_only=False)
    yield from _binds("bind-read-only-paths", sandbox.bind_read_only_paths, read_only=True)


def _binds(key: str, binds: tuple[Bind, ...], *, read_only: bool) -> Iterator[Lay]:
    for bind in binds:
        yield Lay(
            bind.target, Kind.BIND, key, source=bind.source, may_miss=bind.may_miss, recursive=bind.recursive,
            read_only=read_only,
        )  # fmt: skip


def interfaces_of(sandbox: Sandbox) -> Iterator[Lay]:
    """What of the machine is laid into another root so that programs find the kernel there; another key may say that
    something else is."""
    if not sandbox.mount_apivfs:
        return
    others = {lay.path for lay in lays_of(sandbox, {})}
    for path in ("/proc", "/sys", "/dev"):
        if path not in others:
            yield Lay(path, Kind.BIND, "mount-apivfs", source=path)
    if "/run" not in others:
        yield Lay("/run", Kind.TMPFS, "mount-apivfs", options="mode=0755")


def _proc_options(sandbox: Sandbox) -> str:
    options = [] if sandbox.protect_proc == "default" else [f"hidepid={sandbox.protect_proc}"]
    return ",".join([*options, "subset=pid"] if sandbox.proc_subset == "pid" else options)
