"""Refusals are on record, and nobody can fill the journal with them."""

import asyncio

from supervisord_py.host.facade import Peer
from supervisord_py.host.refusals import DENIED, INVALID, SUBJECTS_MAX, Refusals
from supervisord_py.model.records import Record

ALICE = Peer(uid=5001, gid=5001, pid=12, user="alice", login_uid=5001, command="supctl stop web --password=hunter2")


class Notebook:
    """Keeps what it is given; ``now_s`` is the clock of the refusals."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.now_s = 0.0
        self.came = asyncio.Event()

    async def note(self, record: Record) -> int | None:
        self.records.append(record)
        self.came.set()
        return len(self.records)

    def clock_s(self) -> float:
        return self.now_s


def test_a_refusal_says_who_and_what() -> None:
    """command.denied carries the fields of the contract, without the secrets of the peer's command line."""
    notebook = Notebook()
    refusals = Refusals(notebook.note, clock_s=notebook.clock_s)
    asyncio.run(refusals.denied(ALICE, "stop", ["web"], "because", "user alice may not stop web", duration_ms=3))
    [record] = notebook.records
    assert (record.event, record.severity.value, record.unit) == ("command.denied", "warning", "web")
    assert record.fields == {
        "uid": 5001,
        "gid": 5001,
        "pid": 12,
        "login_uid": 5001,
        "peer_command": "supctl stop web --password=[redacted]",
        "peer_unit": None,
        "verb": "stop",
        "units": ["web"],
        "reason": "because",
        "result": "NotPermitted",
        "duration_ms": 3,
        "message": "user alice may not stop web",
    }


def test_what_the_peer_chose_is_bounded() -> None:
    """A refused call of a megabyte makes a small record, and what is no unit's name does not stand as one."""
    notebook = Notebook()
    refusals = Refusals(notebook.note, clock_s=notebook.clock_s)
    asyncio.run(refusals.denied(ALICE, "stop", ["x" * 100_000] * 5000, "y" * 100_000, "z" * 100_000))
    asyncio.run(refusals.denied(ALICE, "stop", ["*"], "", ""))
    assert len(str(notebook.records[0].fields)) < 30_000
    assert notebook.records[1].unit is None


def test_a_flood_is_counted() -> None:
    """Beyond its bucket a subject's calls are counted, and the count follows when there is room again."""

    async def flood() -> Notebook:
        notebook = Notebook()
        refusals = Refusals(notebook.note, clock_s=notebook.clock_s)
        for _ in range(INVALID.burst + 30):
            await refusals.invalid(ALICE, "", "garbage")
        assert len(notebook.records) == INVALID.burst
        await refusals.invalid(Peer(uid=1, gid=1, pid=1), "a.b.C", "no interface a.b")
        assert notebook.records[-1].fields["method"] == "a.b.C"
        notebook.came.clear()
        notebook.now_s += INVALID.interval_s
        await asyncio.wait_for(notebook.came.wait(), 10)
        await refusals.close()
        return notebook

    notebook = asyncio.run(flood())
    assert notebook.records[-1].event == "command.invalid"
    assert notebook.records[-1].fields["suppressed"] == 30
    assert len(notebook.records) == INVALID.burst + 2


def test_what_is_only_counted_is_written_at_the_end() -> None:
    """Closing writes the counts that are left."""

    async def flood() -> Notebook:
        notebook = Notebook()
        refusals = Refusals(notebook.note, clock_s=notebook.clock_s)
        for _ in range(DENIED.burst + 2):
            await refusals.denied(ALICE, "stop", [], "", "no")
        await refusals.close()
        return notebook

    assert asyncio.run(flood()).records[-1].fields["suppressed"] == 2


def test_many_subjects_do_not_pile_up() -> None:
    """The bucket of who was refused longest ago is forgotten, its count written first."""

    async def many() -> Notebook:
        notebook = Notebook()
        refusals = Refusals(notebook.note, clock_s=notebook.clock_s)
        for _ in range(INVALID.burst + 1):
            await refusals.invalid(Peer(uid=0, gid=0, pid=1), "", "garbage")
        for uid in range(1, SUBJECTS_MAX + 1):
            await refusals.invalid(Peer(uid=uid, gid=0, pid=1), "", "garbage")
        await asyncio.sleep(0)
        assert any(record.fields.get("suppressed") == 1 for record in notebook.records)
        await refusals.close()
        return notebook

    assert len(asyncio.run(many()).records) == INVALID.burst + SUBJECTS_MAX + 1
