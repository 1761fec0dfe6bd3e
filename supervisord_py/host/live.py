"""What a process really has now, by psutil: the ``live.*`` rows of ``supctl show``."""

from typing import Any

from supervisord_py.host.limits import describe_live, format_limit
from supervisord_py.host.usage import details


def describe_process(pid: int) -> dict[str, Any]:
    """Return names and values in the words of unit files; what cannot be read is left out, all of it when there is no
    such process."""
    limits, process = describe_live(pid), details(pid)
    found: dict[str, Any] = {}
    if limits is not None:
        found |= {name: format_limit(limit) for name, limit in sorted(limits.rlimits.items())}
        found |= {
            "nice": limits.nice,
            "io-scheduling-class": limits.io_class,
            "io-scheduling-priority": limits.io_priority,
            "cpu-affinity": list(limits.cpu_affinity),
            "oom-score-adjust": limits.oom_score_adjust,
        }
    if process is not None:
        found |= {
            "command": process.command,
            "descriptors": process.descriptors,
            "shared-fairly-bytes": process.shared_fairly_bytes,
            "read-bytes": process.read_bytes,
            "write-bytes": process.write_bytes,
        }
    return {name: value for name, value in found.items() if value is not None}
