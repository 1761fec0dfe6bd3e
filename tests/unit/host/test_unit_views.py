"""Lives out of the records of the journal."""

from typing import Any

from supervisord_py.host.unit_views import build_lives

SECOND_NS = 1_000_000_000


def record(event: str, at_s: int, boot: str = "b", **fields: Any) -> dict[str, Any]:
    ts = f"2026-11-20T12:00:{at_s:02}.000000Z"
    return {"ts": ts, "mono_ns": at_s * SECOND_NS, "boot": boot, "event": event, "invocation": "i", **fields}


def test_a_life_of_several_commands_ran_as_long_as_its_last_command() -> None:
    """A oneshot ran from its beginning to its end, through all of its commands, as the two moments say; not at all
    where the machine has booted in between and its clock says nothing."""
    begun = record("unit.starting", 10)
    ended = {"role": "main", "code": 0, "signal": None, "runtime_ms": 100}
    (life,) = build_lives([begun, record("unit.exited", 13, **ended), record("unit.exited", 14, **ended)])
    assert (life["start"], life["end"]) == (begun["ts"], "2026-11-20T12:00:14.000000Z")
    assert life["runtime_ms"] == 4000
    (life,) = build_lives([begun, record("unit.exited", 14, "another boot", **ended)])
    assert (life["end"], life["runtime_ms"]) == ("2026-11-20T12:00:14.000000Z", None)
