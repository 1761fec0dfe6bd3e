"""``journal replay --until SEQ``: the state at a record, from the journal of a real supervisor."""

import json
from typing import Any

import pytest

from supervisord_py.ctl.client import ControlError
from tests.integration.bus_rig import is_ack, puppets, with_puppets
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'


def state_at(running: RunningSupervisor, seq: int) -> dict[str, dict[str, Any]]:
    told = json.loads(running.supctl("journal", "replay", "--until", str(seq), "--json").stdout)
    assert told["seq"] == seq
    return {unit["name"]: unit for unit in told["units"]}


def stats(running: RunningSupervisor) -> dict[str, Any]:
    with running.client() as client:
        return dict(client.call("Journal.Stats"))


def last_seq(running: RunningSupervisor) -> int:
    return int(stats(running)["last_seq"])


def test_the_state_then_is_what_status_said_then() -> None:
    """Through starts, stops, a crash loop, the death of the manager and a whole new supervisor."""
    crash = '[service]\nexec-start = ["sh", "-c", "exit 3"]\nrestart-sec = "10ms"\n[quarantine]\nfailures = 2\n'
    needing = SLEEP + '[unit]\nrequires = ["web"]\n'
    with supervisor({"web": SLEEP, "api": needing, "crash": crash}) as running:
        seen: dict[int, dict[str, dict[str, Any]]] = {}

        def look() -> None:
            """Remember what status says, at a number at which nothing happens."""

            def at_rest() -> bool:
                before = last_seq(running)
                shown = {name: running.status(name) for name in ("web", "api", "crash")}
                if last_seq(running) != before:
                    return False
                seen[before] = shown
                return True

            until(at_rest, "a moment in which nothing happens")

        running.wait_state("crash", "quarantined")
        running.wait_state("api", "active")
        look()
        assert running.supctl("stop", "web").returncode == 0
        look()
        running.kill_manager()
        assert running.supctl("start", "web").returncode == 0
        look()
        assert running.supctl("reset-failed", "crash").returncode == 0
        look()
        running.stop()
        running.start_again()
        running.wait_state("crash", "quarantined")
        running.wait_state("api", "active")
        look()
        for seq, shown in seen.items():
            told = state_at(running, seq)
            for name, status in shown.items():
                assert told[name]["active_state"] == status["active_state"], (seq, told[name])
                assert told[name]["uncertain"] is None
                assert told[name]["pid"] == status["pid"]
                assert told[name]["invocation"] == status["invocation"]
                assert told[name]["jobs"] == []
                if status["active_state"] == "quarantined":
                    assert (told[name]["failures"], told[name]["exit"]["code"]) == (2, 3)
        first = min(seen)
        text = running.supctl("journal", "replay", "--until", str(first), "-u", "web", "-u", "crash").stdout
        assert f"at record {first}, " in text and "the supervisor was running" in text
        assert "web    active" in text and "crash  quarantined" in text and "api" not in text


def test_what_cannot_be_known_is_said() -> None:
    """A number that retention has dropped, one that is not given yet, and units of which nothing was told since."""
    small = '[journal]\nmax-bytes = "128K"\n'
    with supervisor({"quiet": SLEEP}, prepare=with_puppets("a"), settings=small) as running:
        running.wait_state("quiet", "active")
        with puppets(running, "a") as (a,):
            count = 0
            while not count or stats(running)["first_seq"] < 30:
                a.send(*({"id": f"f{n}", "event": "x", "pad": "x" * 500} for n in range(count, count + 50)))
                a.receive_all(is_ack, 50)
                count += 50
        last = last_seq(running)
        refused = running.supctl("journal", "replay", "--until", "1")
        assert refused.returncode == 2
        assert "record 1 is no longer kept: the journal begins with" in refused.stderr
        with running.client() as client, pytest.raises(ControlError, match="there is no record 999999"):
            client.call("Journal.State", seq=999999)
        told = state_at(running, last)
        assert "quiet" not in told and told["a"]["active_state"] is None
        text = running.supctl("journal", "replay", "--until", str(last)).stdout
        assert "the journal begins with record" in text and "the supervisor was unknown" in text
