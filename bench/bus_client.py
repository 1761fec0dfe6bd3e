"""One client of a message bus, in plain pyzmq: ``bus_client.py WHAT DIALECT ADDRESS COUNT OUT``.

WHAT is ``send`` (COUNT messages, at most WINDOW without an answer), ``listen`` (until COUNT have come), ``fan`` (the
same, by SUBSCRIBERS connections, each of which gets all), ``probe``
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
SUBSCRIBERS = 10
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
    client = connect(address)
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
    elif what in ("listen", "fan"):
        figures["per_s"] = listen(1 if what == "listen" else SUBSCRIBERS, address, int(count), Path(out + ".ready"))
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


def listen(subscribers: int, address: str, count: int, ready: Path) -> float:
    """Return how many deliveries a second came, to all subscribers together, from the first to the last."""
    poller = zmq.Poller()
    left: dict[object, int] = {}
    for _ in range(subscribers):
        client = connect(address)
        client.send(json.dumps({"v": 1, "id": "s", "subscribe": TOPIC}).encode())
        answer = json.loads(client.recv())
        assert "error" not in answer, answer
        poller.register(client, zmq.POLLIN)
        left[client] = count
    ready.touch()
    begun = 0.0
    while left:
        for client, _ in poller.poll():
            begun = begun or time.monotonic()
            while client in left and client.poll(0):
                delivery = json.loads(client.recv())
                assert "dropped" not in delivery, delivery
                left[client] -= 1
                if not left[client]:
                    del left[client]
    return subscribers * count / (time.monotonic() - begun)


def connect(address: str) -> "zmq.Socket[bytes]":
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.linger = 0
    client.connect(os.environ["SUPERVISORD_PY_BUS"] if address == "-" else address)
    return client


if __name__ == "__main__":
    main()
