"""Records in the Journal Export Format of systemd, for ``systemd-journal-remote`` and what else reads it.

An entry is lines ``FIELD=VALUE`` and an empty line. A value that is no plain text of one line is written behind its
length: ``FIELD``, a newline, 64 bits little-endian, the value, a newline.

Source: systemd, Journal Export Format (systemd.io/JOURNAL_EXPORT_FORMATS); systemd.journal-fields(7).
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from supervisord_py.model.event_text import event_words

PREFIX = "SUPERVISORD_PY_"
"""Of every field that systemd has no name for."""

_PRIORITIES = {"error": 3, "warning": 4, "info": 6}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAMED = frozenset({"ts", "mono_ns", "boot", "severity", "invocation"})
"""Fields of a record that stand under names of systemd's."""


def export_entry(record: Mapping[str, Any]) -> bytes:
    """Return one record as an entry, with the empty line that ends it."""
    realtime_us = (datetime.fromisoformat(str(record["ts"])) - _EPOCH) // timedelta(microseconds=1)
    subject = f"{record['unit']}: " if record.get("unit") else ""
    fields: dict[str, object] = {
        "__REALTIME_TIMESTAMP": realtime_us,
        "__MONOTONIC_TIMESTAMP": int(record["mono_ns"]) // 1000,
        "_BOOT_ID": record["boot"],
        "MESSAGE": f"{subject}{record['event']} {event_words(record)}".rstrip(),
        "PRIORITY": _PRIORITIES.get(str(record.get("severity")), 6),
        "SYSLOG_IDENTIFIER": "supervisord-py",
        "INVOCATION_ID": record.get("invocation"),
    }
    fields |= {PREFIX + key.upper().replace("-", "_"): value for key, value in record.items() if key not in _NAMED}
    return b"".join(_field(name, value) for name, value in fields.items() if value is not None) + b"\n"


def _field(name: str, value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    data = text.encode(errors="surrogateescape")
    if all(character.isprintable() or character == "\t" for character in text):
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
