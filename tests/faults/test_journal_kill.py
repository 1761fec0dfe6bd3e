"""kill -9 of a process that writes a journal, again and again: with custody nothing is lost, doubled or torn."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from supervisord_py.host.journal_reader import JournalReader, verify_directory
from supervisord_py.store.query import Query

ROUNDS = 12

WRITER = """
import asyncio, json, pathlib, sys, time
from supervisord_py.core.events import Now
from supervisord_py.host.journal_file import Journal
from supervisord_py.model.records import Record
from supervisord_py.model.settings import JournalSettings

def tell(*words):
    sys.stdout.write(json.dumps(words) + "\\n")
    sys.stdout.flush()

async def main():
    pending = [tuple(line) for line in json.load(sys.stdin)]
    journal = Journal(pathlib.Path(sys.argv[1]), JournalSettings(reserve=0, max_bytes=1 << 22), boot_id="b",
                      loop=asyncio.get_running_loop())
    journal.open(pending)
    def note(records):
        lines = journal.encode(records, Now(time.monotonic_ns(), 0, time.time_ns(), journal.next_seq))
        tell("commit", journal.journalled, lines)
        journal.append(lines)
    journal.attach(note)
    number = 0
    while True:
        number += 1
        fields = {"text": "x" * (number * 37 % 3000)}
        note([Record("unit.message", unit="web", fields=fields) for _ in range(number % 7 + 1)])
        if number % 5 == 0:
            last = journal.next_seq - 1
            if await journal.wait_durable(last):
                tell("durable", last)
        await asyncio.sleep(0)

asyncio.run(main())
"""


@pytest.mark.slow
def test_kill_at_any_moment_loses_no_committed_line(tmp_path: Path) -> None:
    """After each kill the next writer goes on with what custody holds; all committed lines are there once."""
    root = Path(__file__).parents[2]
    seeded = random.Random(7)
    custody: dict[int, str] = {}
    committed: dict[int, str] = {}
    durable = 0
    for _ in range(ROUNDS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "journal")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert writer.stdin is not None and writer.stdout is not None
        with writer.stdin as stdin:
            json.dump(sorted(custody.items()), stdin)
        messages = 0
        kill_after = seeded.randint(1, 120)
        for line in writer.stdout:
            messages += 1
            if messages == kill_after:
                writer.kill()
            if not line.endswith("\n"):
                break
            kind, number, *more = json.loads(line)
            if kind == "durable":
                durable = number
                continue
            custody = {seq: text for seq, text in custody.items() if seq > number}
            for seq, text in more[0]:
                assert seq not in committed, "a number was given twice"
                custody[seq] = committed[seq] = text
        writer.stdout.close()
        assert writer.wait(20) == -9
        assert messages >= kill_after, "the writer died by itself"
        found = list(JournalReader(tmp_path / "journal").all(Query()))
        assert found[-1]["seq"] >= durable
    whole = tmp_path / "journal"
    seqs = [record["seq"] for record in JournalReader(whole).all(Query())]
    missing = set(range(seqs[0], max(committed) + 1)) - set(seqs)
    assert missing <= set(custody)
    assert seqs == sorted(set(seqs))
    lines = [line for path in whole.iterdir() for line in path.read_text().splitlines()]
    kept = {json.loads(line)["seq"]: line for line in lines if line.startswith('{"seq":')}
    assert all(committed[seq] == kept[seq] for seq in seqs)
    assert verify_directory(whole).ok
