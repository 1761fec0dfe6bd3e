"""docs/interface.md: every method has an example, and every example runs and answers what the page says."""

import json
import os
import pwd
import re
from pathlib import Path
from typing import Any

from tests.integration.control_rig import INTERFACES, UNITS, drive, running

PAGE = Path(__file__).parents[3] / "docs" / "interface.md"
EXAMPLES = [
    (json.loads(call), json.loads(reply))
    for call, reply in re.findall(r"```json\n(.*?)\n```\n```json\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
]
UNSTABLE = ("since", "description", "ts", "pid", "records", "last_seq")
"""What differs from run to run, or with every example that is added."""

CUT = ("settings", "commands", "allowed", "problems", "by_event", "by_unit")
"""Lists that the page shows the beginning of."""


CUT_OF = {"py.supervisord.Manager.Stats": ("units",)}
"""The same, of single methods."""


def shape(value: Any, cut: tuple[str, ...] = CUT) -> Any:
    """Reduce a value to what the page promises: names, types, and the words that do not change with every run."""
    if isinstance(value, dict):
        return {
            key: None if key in UNSTABLE else [] if key in cut else shape(entry, cut) for key, entry in value.items()
        }
    if isinstance(value, list):
        return [shape(entry, cut) for entry in value]
    if isinstance(value, str):
        value = re.sub(r"\S*/(units|control)/", "", value)
        value = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "then", value)
        value = re.sub(r"by \S+ \(uid \d+\)", "by somebody", value)
        return re.sub(r"[0-9a-f]{32}", "", value)
    return value


def test_every_method_has_an_example() -> None:
    """Nothing that can be called is missing from the page."""
    shown = {call["method"] for call, _ in EXAMPLES}
    every = {f"{interface.name}.{method}" for interface in INTERFACES.values() for method in interface.methods}
    assert shown == every


def test_every_error_is_told() -> None:
    """Nothing that can be answered is missing from the page."""
    text = PAGE.read_text()
    for name in ("py.supervisord.Manager", "py.supervisord.Journal"):
        for error in INTERFACES[name].errors:
            assert error in text, error


def test_the_examples_run(tmp_path: Path) -> None:
    """In the order of the page, each call gets the reply that stands below it."""

    async def main() -> None:
        async with running(tmp_path, own_uid=os.getuid()) as rig:
            rig.supervisor.lines["web"] = ["listening on 8080", "GET /"]
            start = {"wait": True, "plan": False}
            await rig.call("Start", units=["web"], **start)
            await rig.call("Stop", units=["web"], **start)
            await rig.call("Start", units=["web"], **start)
            await rig.call("Start", units=["slow"], wait=False, plan=False)
            for call, promised in EXAMPLES:
                if call["method"].endswith(".DaemonReload"):
                    web = UNITS["web"].replace("the web", "the new web").replace("hunter1", "hunter3")
                    rig.supervisor.write_units({"web": web, "new": UNITS["db"]})
                client = await rig.connect()
                parameters = dict(call["parameters"])
                if "path" in parameters:
                    folder = str(tmp_path / "units")
                    parameters["path"] = parameters["path"].replace("/etc/supervisord-py/units", folder)
                client.send(call["method"], more=call.get("more", False), **parameters)
                reply = await client.reply()
                told = {"error": reply.error} if reply.error is not None else {}
                told |= {"parameters": reply.parameters}
                told |= {"continues": True} if reply.continues else {}
                cut = CUT + CUT_OF.get(call["method"], ())
                if "text" in promised.get("parameters", {}):
                    own = pwd.getpwuid(os.getuid()).pw_name
                    parameters = promised["parameters"]
                    promised = promised | {
                        "parameters": parameters | {"text": parameters["text"].replace("user root", f"user {own}")}
                    }
                assert shape(told, cut) == shape(promised, cut), call
                await client.close()

    drive(main())
