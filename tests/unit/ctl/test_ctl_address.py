"""Which socket is meant."""

import pytest

from supervisord_py.ctl.address import SYSTEM_SOCKET, Address, find_socket
from supervisord_py.errors import UsageError

MINE = "/run/user/7/supervisord-py/control.sock"
STATE = "/home/u/.local/state/supervisord-py/run/control.sock"
HOME = {"HOME": "/home/u"}


def find(environment: dict[str, str], *there: str, uid: int = 7, **options: object) -> Address:
    return find_socket(environment, uid, exists=set(there).__contains__, **options)  # type: ignore[arg-type]


def test_the_order() -> None:
    """The variable, the user's, the system's: the first that exists."""
    named = HOME | {"SUPERVISORD_PY_SOCKET": "/named"}
    assert find(named, "/named", MINE, SYSTEM_SOCKET).path == "/named"
    assert find(named, MINE, SYSTEM_SOCKET).path == MINE
    assert find(HOME, MINE, SYSTEM_SOCKET).path == MINE
    assert find(HOME, SYSTEM_SOCKET).path == SYSTEM_SOCKET


def test_a_variable_that_names_nothing_is_told() -> None:
    """Going past ``$SUPERVISORD_PY_SOCKET`` is said aloud."""
    note = find(HOME | {"SUPERVISORD_PY_SOCKET": "/gone"}, MINE).note
    assert note is not None
    assert "/gone" in note
    assert MINE in note


def test_a_socket_that_was_typed_is_taken() -> None:
    """``--socket`` never falls through: a command meant for one supervisor must not reach another."""
    assert find(HOME, MINE, SYSTEM_SOCKET, socket="/typed").path == "/typed"


def test_the_places_of_a_user() -> None:
    """XDG places first, those of a login without them too."""
    assert find(HOME | {"XDG_RUNTIME_DIR": "/x"}, "/x/supervisord-py/control.sock", STATE).path.startswith("/x/")
    assert find(HOME | {"XDG_RUNTIME_DIR": "/x"}, STATE).path == STATE
    assert find(HOME | {"XDG_STATE_HOME": "/s"}, "/s/supervisord-py/run/control.sock").path.startswith("/s/")
    assert find(HOME, MINE, STATE).path == MINE


def test_user_and_system_are_exact() -> None:
    """``--user`` and ``--system`` ignore the variable and each other's sockets; together they are an error."""
    named = HOME | {"SUPERVISORD_PY_SOCKET": "/named"}
    assert find(named, "/named", MINE, SYSTEM_SOCKET, system=True).path == SYSTEM_SOCKET
    assert find(named, "/named", SYSTEM_SOCKET, user=True).path == MINE
    with pytest.raises(UsageError):
        find(HOME, user=True, system=True)
    with pytest.raises(UsageError):
        find(HOME, socket="/x", user=True)


def test_the_hint_names_system_where_it_would_help() -> None:
    """A user's socket that refuses: the system's is named when there is one, and only then."""
    hint = find(HOME, MINE, SYSTEM_SOCKET).hint
    assert hint is not None
    assert "--system" in hint
    assert find(HOME, MINE).hint is None
    assert find(HOME, SYSTEM_SOCKET, uid=0).hint is None


def test_nothing_anywhere_says_where_it_looked() -> None:
    """Without any socket the message lists every place."""
    hint = find(HOME).hint
    assert hint is not None
    for place in (MINE, STATE, SYSTEM_SOCKET):
        assert place in hint
