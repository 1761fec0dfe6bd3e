"""What a process is told of the machine, and how late its timers may be."""

import json
import platform

import pytest

from supervisord_py.host.streams import stream_operations
from supervisord_py.model.context import Streams
from tests.integration.supervisor_rig import AS_USER, SYSTEM_PYTHON, supervisor, until

SHOW = (
    "import ctypes, json, os; l = ctypes.CDLL(None); slack = l.prctl(30, 0, 0, 0, 0); "
    "print(json.dumps([os.uname().machine, slack, l.personality(0xffffffff), l.personality(0), l.personality(8)]))"
)
SISTERS = {"x86_64": ("x86", "i686"), "aarch64": ("arm", "armv8l")}


def service(more: str) -> str:
    return f"[service]\nexec-start = ['{SYSTEM_PYTHON}', '-c', '{SHOW}']\ntype = 'oneshot'\n{more}"


@pytest.mark.skipif(platform.machine() not in SISTERS, reason="needs a machine with a 32-bit kind")
@pytest.mark.parametrize("uid", AS_USER)
def test_personality_and_timer_slack(uid: int | None) -> None:
    """As the unit says, and lock-personality keeps what it says; a machine that this one never is fails the start."""
    kind, machine = SISTERS[platform.machine()]
    other = "arm" if kind == "x86" else "x86"
    texts = {
        "kind": service(f"personality = '{kind}'\ntimer-slack-nsec = '1ms'\n"),
        "locked": service(f"personality = '{kind}'\ntimer-slack-nsec = 70000\n[sandbox]\nlock-personality = true\n"),
        "plain": service(""),
        "wrong": service(f"personality = '{other}'\n"),
    }
    with supervisor(texts, uid=uid) as running:
        seen = {}
        for unit in ("kind", "locked", "plain"):
            running.wait_state(unit, "inactive")
            text = until(lambda unit=unit: running.supctl("logs", unit).stdout, f"output of {unit}")
            seen[unit] = json.loads(text)
        assert seen["kind"][:3] == [machine, 1_000_000, 8]
        assert seen["locked"][:2] == [machine, 70_000]
        assert seen["locked"][3] == -1  # another one is refused
        assert seen["locked"][4] == 8
        assert seen["plain"][0] == platform.machine()
        assert seen["plain"][2] == 0
        assert running.wait_state("wrong", "failed")["exit"]["code"] == 230
        assert f"is never {other}" in running.supctl("why", "wrong").stdout


def test_lines_for_the_systems_journal_are_named_as_the_unit_says() -> None:
    """The head of the stream: identifier, unit, facility and level as one number, whether lines may have their own."""

    def head(streams: Streams) -> list[str]:
        operations = stream_operations("web", "program", streams)
        (text,) = {operation["text"] for operation in operations if operation["do"] == "connect"}
        return str(text).split("\n")

    usual = head(Streams(output="journald"))
    assert (usual[0], usual[2], usual[3]) == ("program", "30", "1")
    named = Streams(output="journald", identifier="shop", facility="local3", level="err", level_prefix=False)
    assert [head(named)[place] for place in (0, 2, 3)] == ["shop", str(19 << 3 | 3), "0"]
