"""How the processes of one unit are made: keys of ``[service]`` and ``[limits]``."""

from supervisord_py.model.assemble_sandbox import assemble_sandbox
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
        working_directory=fields.get("service", "working-directory", None),
        umask=fields.get("service", "umask", _CONTEXT.umask),
        environment=(*environment.items(), *added),
        ignore_sigpipe=fields.get("service", "ignore-sigpipe", True),
        rlimits=tuple((key, decoded.value) for key, decoded in limits if decoded is not None),
        nice=fields.get("limits", "nice", None),
        enforce=fields.get("limits", "enforce", _CONTEXT.enforce),
        sandbox=assemble_sandbox(fields, problems),
    )
