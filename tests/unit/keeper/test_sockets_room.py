"""A keeper that has no descriptors left."""

import errno
import os
import socket
from typing import Any

from supervisord_py.keeper.loop import Loop
from supervisord_py.keeper.sockets import Sockets


class Spawner:
    """One that has no room at first."""

    room = False

    def check_room(self, *_: int) -> None:
        if not self.room:
            raise OSError(errno.EMFILE, "too many open files")


def test_who_came_without_room_was_accepted_and_closed() -> None:
    """Whoever connects as there are no descriptors waits in the queue, and is told of when there are."""
    loop, spawner, facts = Loop(), Spawner(), list[dict[str, Any]]()

    def put(fact: dict[str, Any], _: str) -> bool:
        facts.append(fact)
        return True

    unused: Any = spawner
    helpers = set[int]()
    sockets = Sockets(loop, unused, put, helpers)
    spec = {
        "name": "web",
        "text": "web",
        "family": int(socket.AF_INET),
        "type": int(socket.SOCK_STREAM),
        "address": ["127.0.0.1", 0],
        "path": None,
        "fifo": False,
        "mode": 0o666,
        "uid": None,
        "gid": None,
        "backlog": 9,
        "reuse_port": False,
        "accept": True,
    }
    spawner.room = True
    sockets.request({"do": "listen", "unit": "web", "id": 1, "sockets": [spec]})
    spawner.room = False
    (fd,) = sockets.fds()
    listener = socket.socket(fileno=fd)
    address = listener.getsockname()
    listener.detach()
    try:
        sockets.request({"do": "await", "unit": "web"})
        with socket.create_connection(address) as client:
            client.setblocking(False)
            loop.turn(busy=False)
            loop.turn(busy=False)  # looked at once more, after a while
            assert [fact["fact"] for fact in facts] == ["listening"] and len(sockets.fds()) == 1
            spawner.room = True
            while len(facts) < 2:
                loop.turn(busy=False)
            assert (facts[1]["fact"], facts[1]["number"], len(sockets.fds())) == ("connection", 1, 2)
    finally:
        sockets.close("web")
        for pid in helpers:
            os.waitpid(pid, 0)
