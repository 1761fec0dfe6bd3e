"""Commands are run while managers die: each once, and each answered with its own code."""

import threading
from collections import Counter
from typing import Any

from supervisord_py.ctl.client import Client
from tests.integration.supervisor_rig import supervisor, until

PEOPLE = 3
EACH = 8
KILLS = 5


def test_every_command_is_run_once_and_answered() -> None:
    """Whatever the manager had done of a request when it died, its repetition means the same unit, also when that has
    ended and is forgotten; afterwards nothing is left but the failed ones, and these until their failure is."""
    with supervisor({"web": '[service]\nexec-start = ["sleep", "1000"]\n'}) as running:
        told: list[tuple[int, dict[str, Any]]] = []

        def person(first: int) -> None:
            for number in range(first, first + EACH):
                with Client(str(running.socket), timeout_s=120) as client:
                    code = number % 4
                    reply = client.call(
                        "Run", command=["/bin/sh", "-c", f"exit {code}"], save=False, properties=[],
                        collect=number % 2 == 0, until="exit", wait=True, plan=False,
                    )  # fmt: skip
                    told.append((code, reply))

        people = [threading.Thread(target=person, args=(number * EACH,)) for number in range(PEOPLE)]
        for each in people:
            each.start()
        for count in range(1, KILLS + 1):
            # One death after so many answers, so that each finds others half done.
            until(
                lambda count=count: len(told) >= count * 3 or not any(each.is_alive() for each in people),
                "answers",
                120,
            )
            running.kill_manager()
        for each in people:
            each.join(120)
        assert [(code, reply["ended"]["exit"]) for code, reply in told] == [
            (code, {"code": code, "signal": None}) for code, _ in told
        ]
        assert len(told) == PEOPLE * EACH
        starts = Counter(record["unit"] for record in running.records() if record["event"] == "unit.starting")
        assert starts == Counter(["web", *(reply["unit"] for _, reply in told)])
        assert running.supctl("reset-failed").returncode == 0
        until(lambda: "run-" not in running.supctl("list").stdout, "the end of all that was run")
