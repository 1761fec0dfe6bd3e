"""``supctl journal`` and ``supctl logs`` against a fake supervisor: formats, filters, following across managers."""

import json
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supctl_fake import FakeSupervisor, HangUp, Later, Raise, unit
from tests.integration.supctl_run import Supctl


@pytest.fixture
def supctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Supctl]:
    fake = FakeSupervisor(tmp_path / "control.sock")
    yield Supctl(fake, capsys)
    fake.close()


def record(seq: int | None, event: str = "unit.started", unit: str = "web", **fields: Any) -> dict[str, Any]:
    return {
        "seq": seq, "ts": "2026-11-20T12:00:00.123456Z", "mono_ns": 1, "boot": "b", "event": event, "severity": "info",
        "unit": unit, "invocation": "i", "cause": None, "hash": "h",
    } | fields  # fmt: skip


def records(*found: dict[str, Any]) -> Any:
    """Return a handler that answers as the supervisor does: with ``more`` a record a reply."""
    return lambda _: [{"records": [one]} for one in found] or [{"records": []}]


def followed(*found: dict[str, Any]) -> list[Any]:
    return [{"record": one, "dropped": None} for one in found]


def exported(data: bytes) -> list[dict[str, bytes]]:
    """Read the Journal Export Format as its description says."""
    entries: list[dict[str, bytes]] = [{}]
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not line:
            entries.append({})
        elif equals:
            entries[-1][name.decode()] = value
        else:
            size = int.from_bytes(data[:8], "little")
            entries[-1][name.decode()] = data[8 : 8 + size]
            assert data[8 + size : 9 + size] == b"\n"
            data = data[9 + size :]
    assert entries.pop() == {}, "an empty line ends each entry"
    return entries


def test_export_is_what_systemd_reads(supctl: Supctl) -> None:
    """Each record is an entry with the times in microseconds; what is no line of text is written by its length."""
    ended = record(7, "unit.exited", pid=3, role="main", code=1, runtime_ms=1200, mono_ns=5_000_123, severity="warning")
    told = record(8, "unit.error", message="two\nlines, \x1b and ü", peers=["a", "b"], unit=None)
    supctl.fake.on("Journal.Query", records(ended, told))
    ran = supctl("journal", "export", "-u", "web")
    assert (ran.code, ran.err) == (0, "")
    first, second = exported(ran.out.encode())
    assert first["__REALTIME_TIMESTAMP"] == b"1795176000123456"
    assert first["__MONOTONIC_TIMESTAMP"] == b"5000"
    assert (first["_BOOT_ID"], first["PRIORITY"], first["INVOCATION_ID"]) == (b"b", b"4", b"i")
    assert first["MESSAGE"] == b"web: unit.exited pid 3 exited 1 after 1.2 s"
    assert (first["SUPERVISORD_PY_UNIT"], first["SUPERVISORD_PY_SEQ"]) == (b"web", b"7")
    assert second["SUPERVISORD_PY_MESSAGE"] == "two\nlines, \x1b and ü".encode()
    assert json.loads(second["SUPERVISORD_PY_PEERS"]) == ["a", "b"]
    assert "SUPERVISORD_PY_UNIT" not in second
    assert supctl.fake.called("Journal.Query")[0]["filter"]["units"] == ["web"]
    assert supctl("journal", "export", "--json").code == 2


def test_bare_journal_is_the_last_fifty(supctl: Supctl) -> None:
    """``supctl journal`` is ``journal tail``, short, a line a record."""
    supctl.fake.on("Journal.Query", records(record(1), record(2, "unit.exited", role="main", pid=7, code=3)))
    ran = supctl("journal")
    assert supctl.fake.called("Journal.Query") == [{"filter": {"units": [], "events": []}, "last": 50}]
    assert len(ran.lines) == 2
    assert "unit.exited" in ran.lines[1]
    assert "exited 3" in ran.lines[1]


def test_filters_are_sent(supctl: Supctl) -> None:
    """Every filter of ``tail`` reaches the supervisor; times as RFC 3339 in UTC."""
    supctl.fake.on("Journal.Query", records())
    supctl(
        "journal", "tail", "-n", "3", "-u", "web*", "-u", "@db", "-e", "unit.exited", "--severity", "error",
        "--after", "9", "--grep", "x.y", "--since", "10 min ago", "--until", "2026-11-20T13:00:00+01:00",
        "--invocation", "abc",
    )  # fmt: skip
    call = supctl.fake.called("Journal.Query")[0]
    since = datetime.fromisoformat(call["filter"].pop("since"))
    assert abs(datetime.now(UTC) - timedelta(minutes=10) - since) < timedelta(minutes=1)
    assert call == {
        "filter": {
            "units": ["web*", "@db"], "events": ["unit.exited"], "severity": "error", "after": 9, "grep": "x.y",
            "until": "2026-11-20T12:00:00.000000Z", "invocation": "abc",
        },
        "last": 3,
    }  # fmt: skip


def test_a_misspelt_event_showed_an_empty_journal(supctl: Supctl) -> None:
    """It is told, as nothing else could be called like that; a glob and an agent's own event are not."""
    for event, told in (("unit.startd", "did you mean unit.started?"), ("unit.x*", ""), ("sale", "")):
        supctl.fake.on("Journal.Query", records())
        ran = supctl("journal", "query", "-e", event)
        assert (ran.code, told in ran.err, bool(ran.err)) == (0, True, bool(told))


@pytest.mark.parametrize("arguments", [["journal", "query"], ["history"]])
def test_query_asks_for_everything(supctl: Supctl, arguments: list[str]) -> None:
    """``query`` (and the alias ``history``) has no limit unless one is given."""
    supctl.fake.on("Journal.Query", records(record(1)))
    assert supctl(*arguments).code == 0
    assert supctl.fake.called("Journal.Query") == [{"filter": {"units": [], "events": []}}]


def test_query_goes_on_behind_what_it_has(supctl: Supctl) -> None:
    """A query that is cut goes on after the last record that came: none twice, none missing."""
    supctl.fake.on(
        "Journal.Query", lambda _: [{"records": [record(1)]}, {"records": [record(2)]}, HangUp()], records(record(3))
    )
    ran = supctl("journal", "query", "--json")
    assert [found["seq"] for found in ran.document["records"]] == [1, 2, 3]
    assert supctl.fake.called("Journal.Query")[1] == {"filter": {"units": [], "events": [], "after": 2}}


def test_formats(supctl: Supctl) -> None:
    """``-o verbose`` prints every field, ``-o json`` the document, before or behind the verb."""
    supctl.fake.on("Journal.Query", records(record(5, "job.finished", result="done")))
    verbose = supctl("journal", "tail", "-o", "verbose").out
    assert verbose.startswith("5 job.finished 2026-11-20 ")
    assert "    result      done" in verbose
    for arguments in (["journal", "--json"], ["--json", "journal"], ["journal", "tail", "-o", "json"]):
        assert supctl(*arguments).document["records"][0]["seq"] == 5


def test_records_cannot_drive_the_terminal(supctl: Supctl) -> None:
    """What a unit put into the journal is shown without its control characters."""
    supctl.fake.on("Journal.Query", records(record(1, "unit.message", text="\x1b[2J\x07")))
    for arguments in (["journal"], ["journal", "-o", "verbose"]):
        out = supctl(*arguments).out
        assert "\x1b" not in out
        assert "\x07" not in out


def test_follow_misses_nothing_when_the_manager_dies(supctl: Supctl) -> None:
    """``tail -f`` goes on after the last record that it showed, one JSON object a line, and says what a slow reader
    missed, and what is gone."""
    supctl.fake.on("Journal.Query", records(record(7)))
    supctl.fake.on(
        "Journal.Follow",
        lambda _: [*followed(record(8), record(9)), HangUp()],
        lambda _: [{"record": record(20), "dropped": 10, "gone": 15}],
    )
    ran = supctl("journal", "tail", "-f", "-n", "1", "--json")
    assert [json.loads(line)["seq"] for line in ran.lines] == [8, 9, 20]
    first, second = supctl.fake.called("Journal.Follow")
    assert first == {"filter": {"units": [], "events": []}, "last": 1}
    assert second == {"filter": {"units": [], "events": [], "after": 9}}
    assert "10 records are missing here" in ran.err
    assert "the records up to 15 are no longer in the journal" in ran.err


def test_follow_that_had_seen_nothing_yet_misses_nothing_either(supctl: Supctl) -> None:
    """``tail -f -n 0`` knows where the journal stood when it began, so a loss before the first record loses none."""
    supctl.fake.on("Journal.Query", records(record(7)))
    supctl.fake.on("Journal.Follow", HangUp(), lambda _: followed(record(8)))
    ran = supctl("journal", "tail", "-f", "-n", "0", "--json")
    assert [json.loads(line)["seq"] for line in ran.lines] == [8]
    assert supctl.fake.called("Journal.Follow")[1]["filter"]["after"] == 7


def test_follow_ends_quietly_on_ctrl_c(supctl: Supctl) -> None:
    """Each record is there as soon as it comes, and Ctrl-C ends the following without a traceback."""
    supctl.fake.on("Journal.Query", records())
    supctl.fake.on("Journal.Follow", lambda _: iter([*followed(record(1), record(2)), Later(threading.Event())]))
    process = supctl.spawn("journal", "tail", "-f", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["seq"] == 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


def test_follow_obeys_timeout(supctl: Supctl) -> None:
    """``--timeout`` ends the following with 124."""
    supctl.fake.on("Journal.Query", records())
    supctl.fake.on("Journal.Follow", lambda _: [Later(threading.Event())])
    ran = supctl("journal", "tail", "-f", "--timeout", "100ms")
    assert ran.code == 124
    assert "followed for 0.1s" in ran.err


def test_verify_names_the_first_bad_record(supctl: Supctl) -> None:
    """A whole journal exits 0, a damaged one 1 with record, file and problem."""
    good = {"ok": True, "records": 12, "first_seq": 1, "last_seq": 12, "bad_seq": None, "file": None, "problem": None}
    bad = good | {"ok": False, "bad_seq": 4, "file": "journal/000001.ndjson", "problem": "its hash is wrong"}
    supctl.fake.on("Journal.Verify", good, bad, bad)
    ran = supctl("journal", "verify")
    assert (ran.code, ran.out) == (0, "the journal is whole: 12 records, 1 to 12\n")
    ran = supctl("journal", "verify")
    assert ran.code == 1
    assert "record 4 in journal/000001.ndjson: its hash is wrong" in ran.err
    ran = supctl("journal", "--json", "verify")
    assert (ran.code, ran.document["bad_seq"]) == (1, 4)


def test_stats(supctl: Supctl) -> None:
    """``journal stats`` prints counts, the most frequent first, and whether the journal can be written."""
    reply = {
        "records": 3, "bytes": 2048, "segments": 1, "first_seq": 1, "last_seq": 3, "lost": 0,
        "oldest": "2026-11-20T12:00:00Z",
        "degraded": "no space left", "by_event": {"a": 1, "b": 2}, "by_unit": {},
    }  # fmt: skip
    supctl.fake.on("Journal.Stats", reply)
    out = supctl("journal", "stats").out
    assert "2.0K in 1 segments" in out
    assert "degraded  no space left" in out
    assert out.index("b  ") < out.index("a  ")


def test_journal_unavailable_is_1(supctl: Supctl) -> None:
    """An error of the journal's own interface is told as any other."""
    supctl.fake.on("Journal.Stats", Raise("py.supervisord.Journal.JournalUnavailable", {"message": "no journal: EIO"}))
    ran = supctl("journal", "stats", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (1, "journal-unavailable")


def line(unit: str, text: str) -> dict[str, str]:
    return {"unit": unit, "text": text}


def test_logs_of_one_unit_are_raw(supctl: Supctl) -> None:
    """One unit's output is printed as it was written, so that it can be piped on."""
    supctl.fake.on("Logs", lambda _: [line("web", "one"), line("web", "two\x1b[31m red")])
    ran = supctl("logs", "web", "--tail", "2", "--grep", "o")
    assert ran.out == "one\ntwo\x1b[31m red\n"
    assert supctl.fake.called("Logs") == [
        {"units": ["web"], "lines": 2, "follow": False, "previous": False, "grep": "o"}
    ]


def test_logs_of_several_units_say_whose(supctl: Supctl) -> None:
    """With several units each line has its unit in front; JSON is one document."""
    supctl.fake.on("Logs", lambda _: [line("web", "one"), line("worker@1", "two")])
    assert supctl("logs", "web", "worker@1").lines == ["web      | one", "worker@1 | two"]
    assert supctl("logs").lines == ["web      | one", "worker@1 | two"]
    assert supctl("logs", "--json").document == {"lines": [line("web", "one"), line("worker@1", "two")]}


def test_an_empty_log_prints_nothing(supctl: Supctl) -> None:
    """The one reply that an empty log must have is no line."""
    supctl.fake.on("Logs", line("", ""))
    assert supctl("logs", "web").out == ""


def test_logs_of_a_unit_that_writes_elsewhere_were_empty(supctl: Supctl) -> None:
    """Where its output goes is said; a unit that has written nothing, and a caller who may not look, get nothing."""
    supctl.fake.on("Logs", line("", ""))
    setting = {"key": "service.standard-output", "value": "append:/var/log/web", "file": None, "line": None}
    supctl.fake.on("Show", {"status": unit("web"), "settings": [setting]})
    assert supctl("logs", "web").err.endswith("its standard-output is append:/var/log/web\n")
    supctl.fake.on("Show", {"status": unit("web"), "settings": [setting | {"value": "journal"}]})
    quiet = supctl("logs", "web")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_logs_with_events_follow_both(supctl: Supctl) -> None:
    """``logs -f --events`` shows output and the journal's records of the same units as they come."""
    supctl.fake.on("Logs", lambda _: [line("web", "hello")])
    supctl.fake.on("Journal.Follow", lambda _: followed(record(3, "unit.exited", role="main", pid=7, code=1)))
    supctl.fake.on("Journal.Query", records(record(2)))
    ran = supctl("logs", "web", "-f", "--events")
    assert "hello" in ran.lines
    assert any(text.startswith("-- 2026") and "unit.exited" in text for text in ran.lines)
    assert supctl.fake.called("Journal.Follow") == [{"filter": {"units": ["web"], "events": []}, "last": 0}]


def test_events_beside_logs_go_on_where_they_were(supctl: Supctl) -> None:
    """A manager that dies before the first record loses none: the next is asked for those after where it began."""
    supctl.fake.on("Logs", HangUp(), lambda _: [line("web", "b")])
    supctl.fake.on("Journal.Query", records(record(5)))
    supctl.fake.on("Journal.Follow", lambda _: [Later(threading.Event())], lambda _: followed(record(6)))
    supctl("logs", "web", "-f", "--events")
    assert {"filter": {"units": ["web"], "events": [], "after": 5}} in supctl.fake.called("Journal.Follow")


def test_logs_follow_goes_on_with_the_next_manager(supctl: Supctl) -> None:
    """After a loss following starts again without the lines that were shown, and says that some may be missing."""
    supctl.fake.on("Logs", lambda _: [line("web", "a"), HangUp()], lambda _: [line("web", "b")])
    ran = supctl("logs", "web", "-f")
    assert ran.out == "a\nb\n"
    assert [call["lines"] for call in supctl.fake.called("Logs")] == [10, 0]
    assert "following again" in ran.err


def test_a_reader_that_has_had_enough_is_no_error(supctl: Supctl) -> None:
    """``supctl journal | head -1``: no traceback, no message."""
    supctl.fake.on("Journal.Query", records(*(record(number) for number in range(20_000))))
    process = supctl.spawn("journal", "query")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == 141
