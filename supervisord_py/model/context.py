"""What a process is given besides its command: variables, folders, credentials, streams (part of ``[service]``)."""

from enum import StrEnum

from msgspec import Struct


class FolderKind(StrEnum):
    """The roots below which folders are made; the variable that names them is ``RUNTIME_DIRECTORY`` and so on."""

    RUNTIME = "runtime"
    STATE = "state"
    CACHE = "cache"
    LOGS = "logs"
    CONFIGURATION = "configuration"


class Folder(Struct, frozen=True):
    """One folder of a unit, relative to its root, and a link to it there."""

    path: str
    link: str | None = None


class Folders(Struct, frozen=True):
    """All folders of one kind."""

    folders: tuple[Folder, ...] = ()
    mode: int = 0o755


class Credential(Struct, frozen=True):
    """A secret, read from ``path`` (relative: one that the supervisor was given itself), or ``value``."""

    name: str
    path: str | None = None
    value: str | None = None


class Belongings(Struct, frozen=True):
    """What is read or made for a unit before its processes are."""

    environment_files: tuple[str, ...] = ()
    pass_environment: tuple[str, ...] = ()
    unset_environment: tuple[str, ...] = ()
    runtime: Folders = Folders()
    state: Folders = Folders()
    cache: Folders = Folders()
    logs: Folders = Folders()
    configuration: Folders = Folders()
    runtime_preserve: str = "no"
    load_credentials: tuple[Credential, ...] = ()
    set_credentials: tuple[Credential, ...] = ()

    def of(self, kind: FolderKind) -> Folders:
        found: Folders = getattr(self, kind.value)
        return found

    def outlives(self, kind: FolderKind) -> bool:
        """Whether folders of a kind are the unit's and stay when it ends."""
        return kind is not FolderKind.CONFIGURATION and (
            kind is not FolderKind.RUNTIME or self.runtime_preserve != "no"
        )

    @property
    def all_folders(self) -> list[tuple[FolderKind, Folders]]:
        """The kinds of which there are any."""
        return [(kind, self.of(kind)) for kind in FolderKind if self.of(kind).folders]

    @property
    def credentials(self) -> tuple[Credential, ...]:
        """Values first: they are the defaults of files that are missing."""
        return (*self.set_credentials, *self.load_credentials)


class Amount(Struct, frozen=True):
    """A bound: so many bytes or tasks, or a share of what the machine has; with neither there is none."""

    count: int | None = None
    permyriad: int | None = None
    """Hundredths of a percent."""

    def of(self, whole: int) -> int | None:
        """Return the bound on a machine that has ``whole``; None: no bound."""
        return self.count if self.permyriad is None else whole * self.permyriad // 10_000


class Resources(Struct, frozen=True):
    """The keys of ``[limits]`` that bound all processes of a unit together."""

    memory_max: Amount | None = None
    memory_high: Amount | None = None
    memory_swap_max: Amount | None = None
    cpu_quota: int | None = None
    """Hundredths of a percent of one processor."""
    cpu_weight: int | None = None
    tasks_max: Amount | None = None
    io_weight: int | None = None


class Priorities(Struct, frozen=True):
    """The keys of ``[limits]`` that say who goes first; None leaves what the supervisor has."""

    oom_score_adjust: int | None = None
    cpu_affinity: tuple[int, ...] = ()
    io_class: str | None = None
    io_priority: int | None = None
    cpu_policy: str | None = None
    cpu_priority: int | None = None


class Streams(Struct, frozen=True):
    """``standard-input``, ``-output``, ``-error``; of the last two None is our capture, and as the output.

    ``texts`` are lines and ``data`` bytes in base64: what is read where ``input`` is ``data``.
    """

    input: str = "null"
    output: str | None = None
    error: str | None = None
    identifier: str | None = None
    """Of lines that go to the system's journal, as the three after it."""
    facility: str = "daemon"
    level: str = "info"
    level_prefix: bool = True
    texts: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
