"""Random histories of writing, failing, power failures and killed managers, against what was promised."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisord_py.host.journal_log import Line, SegmentLog
from supervisord_py.host.journal_reader import JournalReader
from supervisord_py.host.journal_recovery import plan_recovery
from supervisord_py.model.records import Record
from supervisord_py.model.settings import JournalSettings
from supervisord_py.store.query import Query
from supervisord_py.store.record import Chain, Stamp, pack
from supervisord_py.store.segment import verify
from tests.faults.journal_fake_disk import FakeDisk

SETTINGS = JournalSettings(max_bytes=1 << 20, reserve=0, max_age_ns=None)
FAULTS = ("create", "append", "fsync", "truncate", "rename", "remove", "entries", "reopen")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 5)),
        st.tuples(st.just("sync"), st.just(0)),
        st.tuples(st.just("rotate"), st.just(0)),
        st.tuples(st.sampled_from(FAULTS), st.integers(1, 3)),
        st.tuples(st.just("full"), st.integers(0, 800)),
        st.tuples(st.just("room"), st.just(0)),
        st.tuples(st.just("kill"), st.just(0)),
        st.tuples(st.just("power"), st.just(0)),
    ),
    max_size=25,
)


class History:
    """One supervisor's journal with its keeper's custody, and what was promised to people."""

    def __init__(self) -> None:
        self.disk = FakeDisk()
        self.custody: list[Line] = []
        self.texts: dict[int, str] = {}
        self.promised = 0
        self.faults: dict[str, int] = {}
        self.given_up: str | None = None
        self.start()

    def start(self) -> None:
        self.disk.on_step = None
        plan = plan_recovery(self.disk, [(line.seq, line.data[:-1].decode()) for line in self.custody], self.given_up)
        self.chain: Chain = plan.chain
        self.log = SegmentLog(self.disk, SETTINGS, boot="b", at=plan.at, start=plan.start, written=plan.written)
        self.log.add(plan.missing)
        self.disk.on_step = self.fail

    def fail(self, operation: str, _name: str) -> None:
        # "sync" is a step of a history.
        operation = "fsync" if operation == "sync" else operation
        if self.faults.get(operation, 0) > 0:
            self.faults[operation] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(self, number: int) -> None:
        lines: list[Line] = []
        for _ in range(number):
            seq = self.chain.next_seq
            record = Record("unit.message", fields={"n": len(self.texts)})
            data, self.chain = pack(record, Stamp(0, 0, "b"), self.chain, payload_max=99)
            lines.append(Line(seq, data))
            self.texts[seq] = data.decode()
        self.custody += lines
        self.log.add(lines)
        self.log.flush(0)

    def step(self, name: str, argument: int) -> None:
        match name:
            case "write":
                self.write(argument)
            case "sync":
                self.log.sync(0)
            case "rotate":
                self.log.rotate(0)
            case "full":
                self.disk.capacity = sum(len(data) for data in self.disk.files.values()) + argument
            case "room":
                self.disk.capacity = 1 << 40
            case "kill":
                decided = self.chain.next_seq
                self.start()
                assert self.chain.next_seq == decided, "a record went with the manager"
            case "power":
                self.lose_power()
            case _:
                self.faults[name] = argument
        self.promised = max(self.promised, self.log.durable)
        self.custody = [line for line in self.custody if line.seq > self.log.written]
        self.given_up = self.log.given_up

    def lose_power(self) -> None:
        """Keeper, manager and everything that was not synced are gone; numbers may be given anew above what was
        promised."""
        capacity, self.disk = self.disk.capacity, self.disk.lose_power()
        self.disk.capacity = capacity
        self.custody.clear()
        self.given_up = None
        self.start()
        assert self.chain.next_seq > self.promised, "a durable record is gone"
        self.texts = {seq: text for seq, text in self.texts.items() if seq < self.chain.next_seq}


@settings(max_examples=300, deadline=None)
@given(steps)
@example(
    [("truncate", 1), ("full", 383), ("write", 1), ("write", 1), ("room", 0), ("kill", 0), ("sync", 0), ("power", 0)]
).via("a file was set aside and its writer killed: its lines were called durable, and nobody had synced them")
@example([("write", 1), ("fsync", 1), ("full", 0), ("sync", 0), ("kill", 0), ("room", 0), ("write", 1), ("sync", 0),
          ("power", 0)]).via("the same after a failed sync: a later one of that file keeps nothing")  # fmt: skip
@example([("write", 1), ("fsync", 1), ("rename", 1), ("sync", 0), ("kill", 0), ("sync", 0), ("power", 0)]).via(
    "a file that could not be set aside in time was continued after its failed sync"
)
@example([("write", 1), ("kill", 0), ("fsync", 1), ("write", 1), ("sync", 0), ("power", 0)]).via(
    "what a continued file held already was taken for durable when its first sync failed"
)
@example(
    [("write", 3), ("truncate", 1), ("full", 60), ("write", 1), ("full", 500), ("write", 1), ("kill", 0), ("room", 0)]
).via("of a file set aside only a part was written again when the manager was killed: the rest was not read any more")
@example(
    [("write", 1), ("fsync", 3), ("sync", 0), ("fsync", 3), ("write", 1), ("create", 3), ("sync", 0), ("kill", 0)]
).via("a file that was written while the disk failed was removed, and custody had let go")
def test_what_was_promised_is_there_and_the_chain_is_whole(history_steps: list[tuple[str, int]]) -> None:
    """After any history: each line is read exactly once, as it was decided, in order, nothing durable is missing, and
    verify agrees."""
    history = History()
    for name, argument in history_steps:
        history.step(name, argument)
    history.faults.clear()
    history.disk.capacity = 1 << 40
    history.write(1)
    history.log.sync(0)
    assert history.log.failing is None
    last = history.chain.next_seq - 1
    assert history.log.durable == last >= history.promised
    with TemporaryDirectory() as directory:
        history.disk.dump(Path(directory))
        records = list(JournalReader(Path(directory)).all(Query()))
    assert [record["seq"] for record in records] == list(range(1, last + 1))
    assert [record["hash"] for record in records] == [history.texts[seq][-35:-3] for seq in range(1, last + 1)]
    assert verify(list(history.disk.files), lambda name: bytes(history.disk.files[name]), written=last).ok
