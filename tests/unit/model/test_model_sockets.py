"""``[[socket]]``: addresses as text, what a file may say, and what ``check`` says of two units with one address."""

import json
from pathlib import Path
from typing import Any

import pytest
from unitset_rig import SLEEP, load_texts

from supervisord_py.model.problems import BadValue
from supervisord_py.model.sockets import Activation, parse_socket_address

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "systemd" / "values.json").read_text())["socket_address"]
NOT_OURS: dict[str, str] = {}


@pytest.mark.parametrize("vector", VECTORS, ids=[str(vector["input"]) for vector in VECTORS])
def test_addresses_are_read_as_systemd_reads_them(vector: dict[str, Any]) -> None:
    """The vectors of its own tests, and some around them: what is refused there is refused here."""
    if vector["error"] is not None:
        with pytest.raises(BadValue):
            parse_socket_address(vector["input"])
        return
    found = parse_socket_address(vector["input"])
    assert (found.family.value, str(found)) == (vector["family"], vector["printed"])


@pytest.mark.parametrize("value", [True, 0, 65536, "", "/", "@", "/run/", "/" + "x" * 107, "127.0.0.1:1:2", "/a\nb"])
def test_what_is_no_address(value: object) -> None:
    with pytest.raises(BadValue):
        parse_socket_address(value)


def load(text: str, **more: str) -> Any:
    return load_texts({"web": text, **more})


def test_a_unit_with_sockets_is_on_demand_unless_it_says_otherwise() -> None:
    """Each table is a socket, with a name of its own or that of the unit; accept has a limit of its own."""
    found = load(
        SLEEP + '[[socket]]\nlisten-stream = [80, "/run/web"]\n[[socket]]\nname = "x"\nlisten-fifo = "/run/f"\n'
    )
    sockets = found.unit_set.units["web"].sockets
    assert [each.name for each in sockets.sockets] == ["web", "x"]
    assert sockets.addresses == ("[::]:80", "/run/web", "/run/f")
    assert sockets.activation is Activation.DEMAND and sockets.sockets[0].trigger_burst == 20
    at_start = load(SLEEP + 'activation = "start"\n[[socket]]\nlisten-stream = 80\n').unit_set.units["web"]
    assert at_start.sockets.activation is Activation.START
    accepting = load(SLEEP + "[[socket]]\nlisten-stream = 80\naccept = true\n").unit_set.units["web"]
    assert accepting.sockets.sockets[0].trigger_burst == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[socket]]\n", "a socket without an address"),
        ('activation = "demand"\n', "nothing is there to ask for the unit"),
        ("idle-exit-sec = 5\n", "without [[socket]] nothing would start the unit again"),
        ("[[socket]]\nlisten-stream = [80, 80]\n", "[::]:80 stands here twice"),
        ("[[socket]]\nlisten-stream = 80\n[timer]\nevery = 5\n", "run by its timer or by its sockets"),
        ("remain-after-exit = true\n[[socket]]\nlisten-stream = 80\n", "a run that stays active is never over"),
        (
            "[[socket]]\nlisten-stream = 80\naccept = true\n[[socket]]\nlisten-stream = 81\n",
            "another socket of the unit",
        ),
        ("[[socket]]\nlisten-datagram = 80\naccept = true\n", "datagrams and FIFOs have no connections"),
        ('activation = "start"\n[[socket]]\nlisten-stream = 80\naccept = true\n', "has a process each"),
        ("[[socket]]\nlisten-stream = 80\nmax-connections = 3\n", "the process itself accepts"),
        ('activation = "start"\nidle-exit-sec = 5\n[[socket]]\nlisten-stream = 80\n', "nothing would start the unit"),
        ("idle-exit-sec = 0\n[[socket]]\nlisten-stream = 80\n", "the unit would be ended at once"),
        ("[[socket]]\nlisten-stream = 80\nname = 'a:b'\n", "'a:b' is not the name of a descriptor"),
        ("[[socket]]\nlisten-fifo = 'x'\n", "'x' is not an absolute path"),
    ],
)
def test_combinations_that_cannot_be(text: str, message: str) -> None:
    problems = load(SLEEP + text).problems
    assert len(problems) == 1 and message in problems[0].message


def test_two_units_with_one_address_are_told() -> None:
    """Not where both share the port, and not of a stream and a datagram socket with the same number."""
    one, other = (SLEEP + f"[[socket]]\n{key} = 80\n" for key in ("listen-stream", "listen-datagram"))
    shared = SLEEP + "[[socket]]\nlisten-stream = 80\nreuse-port = true\n"
    assert not load(one, other=other).problems
    assert not load(shared, other=shared).problems
    (problem,) = load(one, other=shared).problems
    assert problem.severity == "warning" and problem.message.startswith("web and other listen on [::]:80")


@pytest.mark.parametrize(("word", "is_told"), [("%i", True), ("%%%I", True), ("%%i", False), ("%n", False)])
def test_the_instance_of_a_connection_was_silently_empty(word: str, is_told: bool) -> None:
    """The text is expanded once, before anybody has connected."""
    text = f"[service]\nexec-start = ['/bin/echo', '{word}']\n[[socket]]\nlisten-stream = 80\n"
    assert not load(text).problems
    problems = load(text + "accept = true\n").problems
    assert [(each.severity, "REMOTE_ADDR" in each.hint) for each in problems] == [("warning", True)] * is_told
