"""The least that a bus can be, in plain pyzmq: ``bus_plain.py ADDRESS``. Numbers messages, answers and forwards them.

No journal, no identity, no limit, and what is lost is lost.
"""

import json
import sys

import zmq


def main() -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    router.sndhwm = 0
    router.bind(sys.argv[1])
    subscribers: list[bytes] = []
    seq = 0
    while True:
        sender, frame = router.recv_multipart()
        request = json.loads(frame)
        if "subscribe" in request:
            subscribers.append(sender)
        seq += 1
        router.send_multipart((sender, json.dumps({"v": 1, "ack": request.get("id"), "seq": seq}).encode()))
        if "to" in request:
            delivery = json.dumps({**request, "seq": seq, "from": "somebody"}).encode()
            for subscriber in subscribers:
                router.send_multipart((subscriber, delivery))


if __name__ == "__main__":
    main()
