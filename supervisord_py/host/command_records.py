"""The host's own records: of an accepted command, of output that is lost, of a bug of ours."""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from supervisord_py.host.facade import Peer
from supervisord_py.host.output_capture import OutputTrouble
from supervisord_py.host.output_drops import DroppedLines
from supervisord_py.host.refusals import who_fields
from supervisord_py.model.records import Record
from supervisord_py.model.states import Severity
from supervisord_py.model.values import format_rate


def command_record(verb: str, units: Sequence[str], peer: Peer, reason: str) -> Record:
    """The ``command`` record of an accepted command; the driver adds what became of it."""
    return Record(
        "command",
        fields={
            "verb": verb,
            "units": list(units),
            **who_fields(peer),
            "reason": reason or None,
            "result": None,
            "duration_ms": 0,
        },
    )


def with_fields(record: Record, **fields: Any) -> Record:
    return replace(record, fields={**record.fields, **fields})


def trouble_record(trouble: OutputTrouble) -> Record:
    """Return the record of output that cannot be written, or can again."""
    fields = {"limit": "output", "problem": trouble.problem, "dropped_bytes": trouble.dropped_bytes}
    return Record("unit.limit", Severity.WARNING, unit=trouble.unit, fields=fields)


def dropped_record(dropped: DroppedLines) -> Record:
    """Return the record of lines that were above a unit's rate limit."""
    fields = {"limit": "output-rate", "rate": format_rate(dropped.rate), "dropped_lines": dropped.lines}
    return Record("unit.limit", Severity.WARNING, unit=dropped.unit, fields=fields)


def bug_record(where: str, error: Exception) -> Record:
    """Print a bug of ours where developers look, and return what the journal has of it."""
    print(f"manager: internal error in {where}:", file=sys.stderr)
    traceback.print_exception(error)
    return Record("unit.error", Severity.ERROR, fields={"message": f"internal error in {where}: {error!r}"[:500]})


def reload_in_shutdown(peer: Peer) -> Record:
    """SIGHUP while everything is being stopped: what a reload would bring could not start, and nobody waits for an
    answer.
    """
    message = "cannot daemon-reload: the supervisor is shutting down"
    record = with_fields(command_record("daemon-reload", (), peer, ""), result="ShuttingDown", message=message)
    return replace(record, severity=Severity.WARNING)
