"""One client of a message bus, in plain pyzmq: ``bus_client.py WHAT DIALECT ADDRESS COUNT OUT``.

WHAT is ``send`` (COUNT messages, at most WINDOW without an answer), ``listen`` (until COUNT have come), ``probe``
(COUNT messages one after the other, each with its answer, or as many as there is time for) or ``flood`` (without
reading, until it is killed). OUT is where the figures go. ADDRESS ``-`` is ``$SUPERVISORD_PY_BUS``.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmq

WINDOW = 200
PATIENCE_S = 20
"""For all probes together, and for one: what is not answered by then took so long at least."""

TOPIC = "bench"

DIALECTS: dict[str, Callable[[str], dict[str, object]]] = {
    "bus": lambda id: {"v": 1, "id": id, "to": f"topic:{TOPIC}", "event": "bench", "text": "x" * 100},
    # What circus answers at once, without a watcher: its ROUTER and JSON, no journal and no subscriber.
    "circus": lambda id: {"id": id, "command": "numwatchers", "properties": {"text": "x" * 100}},
}


def main() -> None:
    what, dialect, address, count, out = sys.argv[1:]
    made = DIALECTS[dialect]
    prefix = f"{os.getpid()}-"
    client = zmq.Context().socket(zmq.DEALER)
    client.linger = 0
    client.connect(os.environ["SUPERVISORD_PY_BUS"] if address == "-" else address)
    figures: dict[str, float] = {}
    begun = time.monotonic()
    if what == "send":
        sent = answered = 0
        while answered < int(count):
            while sent < int(count) and sent - answered < WINDOW:
                client.send(json.dumps(made(f"{prefix}{sent}")).encode())
                sent += 1
            answer = json.loads(client.recv())
            assert "error" not in answer, answer
            answered += 1
        figures["per_s"] = int(count) / (time.monotonic() - begun)
    elif what == "listen":
        client.send(json.dumps({"v": 1, "id": "s", "subscribe": TOPIC}).encode())
        client.recv()
        Path(out + ".ready").touch()
        client.recv()
        begun = time.monotonic()
        for _ in range(int(count) - 1):
            client.recv()
        figures["per_s"] = int(count) / (time.monotonic() - begun)
    elif what == "probe":
        times = []
        while len(times) < int(count) and time.monotonic() - begun < PATIENCE_S:
            asked = time.monotonic()
            client.send(json.dumps(made(f"{prefix}{len(times)}")).encode())
            is_answered = client.poll(1000 * PATIENCE_S)
            times.append(time.monotonic() - asked)
            if is_answered:
                answer = json.loads(client.recv())
                assert "error" not in answer, answer
            time.sleep(0.01)
        times.sort()
        figures |= {"median_s": times[len(times) // 2], "p99_s": times[len(times) * 99 // 100]}
    else:
        number = 0
        while True:
            client.send(json.dumps(made(f"{prefix}{number}")).encode())
            number += 1
    Path(out + "~").write_text(json.dumps(figures))
    os.rename(out + "~", out)


if __name__ == "__main__":
    main()
