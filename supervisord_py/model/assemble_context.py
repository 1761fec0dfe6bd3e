"""How the processes of one unit are made: keys of ``[service]`` and ``[limits]``."""

from supervisord_py.model.assemble_sandbox import assemble_sandbox
from supervisord_py.model.context import Belongings, FolderKind, Folders, Priorities, Resources, Streams
from supervisord_py.model.fields import Fields
from supervisord_py.model.problems import Problem
from supervisord_py.model.unit import ExecContext

_CONTEXT = ExecContext()
RLIMITS = (
    "nofile", "nproc", "core", "cpu", "fsize", "as", "data", "stack", "memlock", "rss", "sigpending", "msgqueue",
    "rtprio", "locks", "rttime",
)  # fmt: skip
"""The keys of ``[limits]`` that are resource limits, in the order in which they are set."""


def assemble_context(fields: Fields, added: tuple[tuple[str, str], ...], problems: list[Problem]) -> ExecContext:
    environment: dict[str, str] = fields.get("service", "environment", {})
    limits = [(key, fields.decoded("limits", key)) for key in RLIMITS]
    return ExecContext(
        user=fields.get("service", "user", None),
        group=fields.get("service", "group", None),
        supplementary_groups=tuple(dict.fromkeys(fields.get("service", "supplementary-groups", ()))),
        dynamic_user=fields.get("service", "dynamic-user", False),
        working_directory=fields.get("service", "working-directory", None),
        root_directory=fields.get("service", "root-directory", None),
        search_path=fields.get("service", "exec-search-path", ()),
        umask=fields.get("service", "umask", _CONTEXT.umask),
        environment=(*environment.items(), *added),
        ignore_sigpipe=fields.get("service", "ignore-sigpipe", True),
        personality=fields.get("service", "personality", None),
        timer_slack_ns=fields.get("service", "timer-slack-nsec", None),
        belongings=_belongings(fields),
        streams=_streams(fields, problems),
        rlimits=tuple((key, decoded.value) for key, decoded in limits if decoded is not None),
        nice=fields.get("limits", "nice", None),
        priorities=Priorities(
            oom_score_adjust=fields.get("limits", "oom-score-adjust", None),
            cpu_affinity=fields.get("limits", "cpu-affinity", ()),
            io_class=fields.get("limits", "io-scheduling-class", None),
            io_priority=fields.get("limits", "io-scheduling-priority", None),
            cpu_policy=fields.get("limits", "cpu-scheduling-policy", None),
            cpu_priority=fields.get("limits", "cpu-scheduling-priority", None),
        ),
        resources=Resources(
            memory_max=fields.get("limits", "memory-max", None),
            memory_high=fields.get("limits", "memory-high", None),
            memory_swap_max=fields.get("limits", "memory-swap-max", None),
            cpu_quota=fields.get("limits", "cpu-quota", None),
            cpu_weight=fields.get("limits", "cpu-weight", None),
            tasks_max=fields.get("limits", "tasks-max", None),
            io_weight=fields.get("limits", "io-weight", None),
        ),
        enforce=fields.get("limits", "enforce", _CONTEXT.enforce),
        sandbox=assemble_sandbox(fields, problems),
    )


def _streams(fields: Fields, problems: list[Problem]) -> Streams:
    texts, data = fields.get("service", "standard-input-text", ()), fields.get("service", "standard-input-data", ())
    given = fields.get("service", "standard-input", "data" if texts or data else _CONTEXT.streams.input)
    for key, value in (("standard-input-text", texts), ("standard-input-data", data)):
        if value and given != "data":
            hint = 'write standard-input = "data", or take it out'
            problems.append(fields.problem("service", key, f"it is not read: standard-input is {given}", hint))
    return Streams(
        input=given,
        output=fields.get("service", "standard-output", None),
        error=fields.get("service", "standard-error", None),
        identifier=fields.get("service", "syslog-identifier", None),
        facility=fields.get("service", "syslog-facility", _CONTEXT.streams.facility),
        level=fields.get("service", "syslog-level", _CONTEXT.streams.level),
        level_prefix=fields.get("service", "syslog-level-prefix", True),
        texts=texts,
        data=data,
    )


def _belongings(fields: Fields) -> Belongings:
    return Belongings(
        environment_files=fields.get("service", "environment-file", ()),
        pass_environment=fields.get("service", "pass-environment", ()),
        unset_environment=fields.get("service", "unset-environment", ()),
        **{kind.value: _folders(fields, kind) for kind in FolderKind},
        runtime_preserve=fields.get("service", "runtime-directory-preserve", "no"),
        load_credentials=fields.get("service", "load-credential", ()),
        set_credentials=fields.get("service", "set-credential", ()),
    )


def _folders(fields: Fields, kind: FolderKind) -> Folders:
    key = f"{kind.value}-directory"
    return Folders(fields.get("service", key, ()), fields.get("service", f"{key}-mode", Folders().mode))
