"""What a flood of notifications costs the keeper."""

import array
import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from supervisord_py.keeper import notify
from supervisord_py.keeper.inventory import Inventory, Unit
from supervisord_py.keeper.loop import Loop

COUNT = 8


def test_each_foreign_descriptor_cost_a_fork(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody who sends descriptors that are not kept holds the keeper up: all of one reading are closed by one child;
    a pipe, which may be a barrier, is closed at once."""
    closed: list[list[int]] = []

    def close(fds: list[int]) -> int:
        closed.append(list(fds))
        for fd in fds:
            os.close(fd)
        return 1

    monkeypatch.setattr(notify, "close_elsewhere", close)
    monkeypatch.chdir(tmp_path)
    inventory: Any = Inventory(1, lambda *_: True)
    unused: Any = None
    made = notify.Notify("./n", Loop(), inventory, lambda *_: True, lambda _: None, unused, unused)
    unit = Unit("web")
    path = made.open(unit, "all")
    try:
        ours, theirs = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.connect(path)
            for number in range(COUNT):
                fd = os.memfd_create("x") if number else theirs
                rights = array.array("i", [fd])
                mouth.sendmsg([b"BARRIER=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                os.close(fd)
        cast(Any, made).drain(unit)
        assert [len(fds) for fds in closed] == [COUNT - 1]
        assert os.read(ours, 1) == b""
        os.close(ours)
    finally:
        made.close(unit)
