"""Clients that others wrote: the ``varlink`` package speaks to our server without a line from us."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.integration.control_rig import Rig, drive, running

UID = os.getuid()
MANAGER = "py.supervisord.Manager"


class Spoken:
    """What a command of the other client said."""

    def __init__(self, out: str, err: str) -> None:
        self.out, self.err = out, err

    @property
    def documents(self) -> list[Any]:
        """The JSON documents that stand one after the other in its output."""
        decoder, text, found = json.JSONDecoder(), self.out.strip(), []
        while text:
            document, end = decoder.raw_decode(text)
            found.append(document)
            text = text[end:].lstrip()
        return found


async def varlink(*words: str) -> Spoken:
    """Run ``python -m varlink.cli``; it exits with 0 even on a Varlink error, so what it says is what counts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", "varlink.cli", *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Spoken(out.decode(), err.decode())


def test_the_varlink_package(tmp_path: Path) -> None:
    """Its client reads our interfaces, calls with parameters, follows streams, and understands our errors."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            address = f"unix:{rig.path}"
            await asks_what_there_is(address)
            await calls(address, rig)

    async def asks_what_there_is(address: str) -> None:
        info = await varlink("info", address)
        assert "Vendor: supervisord-py" in info.out
        assert MANAGER in info.out
        for name in ("org.varlink.service", MANAGER, "py.supervisord.Journal"):
            text = await varlink("help", f"{address}/{name}")
            assert f"interface {name}" in text.out, text.err
            assert "method" in text.out

    async def calls(address: str, rig: Rig) -> None:
        started = await varlink(
            "call", f"{address}/{MANAGER}.Start", '{"units": ["worker@"], "wait": true, "plan": false}'
        )
        [reply] = started.documents
        assert {outcome["unit"] for outcome in reply["outcomes"]} == {"worker@1", "worker@2"}
        assert reply["durable"] is True
        listed = await varlink(
            "call", "--more", f"{address}/{MANAGER}.List", '{"units": ["worker@", "db"], "failed": false}'
        )
        assert [document["units"][0]["name"] for document in listed.documents] == ["worker@1", "worker@2", "db"]
        unknown = await varlink("call", f"{address}/{MANAGER}.Why", '{"unit": "wbe"}')
        assert f"{MANAGER}.NoSuchUnit" in unknown.err
        assert "did you mean web?" in unknown.err
        wrong = await varlink("call", f"{address}/{MANAGER}.Ping", '{"loud": true}')
        assert "InvalidParameter" in wrong.err
        assert len(rig.supervisor.events("command")) == 1

    drive(main())


CLIENT = """
import json, sys
import varlink

with varlink.Client.new_with_address(sys.argv[1]) as client:
    told = {"interfaces": client.get_interfaces()}
    with client.open("py.supervisord.Manager") as manager:
        told["ping"] = manager.Ping()["answer"]
        told["names"] = [reply["units"][0]["name"] for reply in manager.List(["web", "db"], False, _more=True)]
        told["oneway"] = manager.Start(["db"], True, False, None, None, None, None, _oneway=True)
        told["after"] = manager.Ping()["answer"]
        try:
            manager.Start(["bad"], True, False)
        except varlink.VarlinkError as error:
            told["error"] = [error.error(), error.parameters()["unit"]]
    with client.open("py.supervisord.Journal") as journal:
        told["records"] = len(journal.Query({"units": [], "events": []}, 3)["records"])
print(json.dumps(told))
"""


def test_its_api_checks_our_descriptions(tmp_path: Path) -> None:
    """Its Python API makes methods out of our description, with streams, oneway calls and exceptions."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "ignore", "-c", CLIENT, f"unix:{rig.path}",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, err = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0, err.decode()
            told = json.loads(out)
            assert told["interfaces"] == ["org.varlink.service", MANAGER, "py.supervisord.Journal"]
            assert told["ping"] == told["after"] == "pong"
            assert told["names"] == ["web", "db"]
            assert told["oneway"] is None
            assert told["error"] == [f"{MANAGER}.BadUnit", "bad"]
            assert told["records"] == 3
            assert rig.supervisor.commands[0][:2] == ("start", ("db",))

    drive(main())
