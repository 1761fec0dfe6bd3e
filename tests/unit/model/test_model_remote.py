"""``[control.remote]`` and ``[bus.remote]`` of the settings: what is good, and what each mistake is told."""

import pytest

from supervisord_py.host.unit_files import key_table
from supervisord_py.model.changes import compare_settings
from supervisord_py.model.problems import BadValue
from supervisord_py.model.settings import RemoteSettings, Settings, parse_settings
from supervisord_py.model.targets import parse_endpoint

GOOD = 'address = "tcp://127.0.0.1:7700"\nkeys = "/keys"\n'


def parsed(text: str) -> tuple[Settings, list[str]]:
    settings, problems = parse_settings(text, "s.toml", key_table())
    return settings, [f"{problem.line}:{problem.key}: {problem.message}" for problem in problems]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("tcp://127.0.0.1:7700", "tcp://127.0.0.1:7700"),
        ("127.0.0.1:7700", "tcp://127.0.0.1:7700"),
        ("localhost:7700", "tcp://127.0.0.1:7700"),
        ("*:7700", "tcp://*:7700"),
        ("tcp://[::1]:1", "tcp://[::1]:1"),
        ("[0:0::1]:65535", "tcp://[::1]:65535"),
    ],
)
def test_addresses_to_listen_on(written: str, meant: str) -> None:
    assert parse_endpoint(written, listens=True) == meant


@pytest.mark.parametrize(
    "text",
    ["", "7700", "host:7700", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "1.2.3:5", "ipc://x:1", "[::g]:1", "::1:5",
     "tcp://tcp://127.0.0.1:1", "127.0.0.1:7700 ", "@:5"],
)  # fmt: skip
def test_what_is_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(BadValue):
        parse_endpoint(text, listens=True)


def test_addresses_to_connect_to() -> None:
    """A name is one, and everything is not."""
    assert parse_endpoint("example.org:7700", listens=False) == "tcp://example.org:7700"
    with pytest.raises(BadValue):
        parse_endpoint("*:7700", listens=False)


def test_commands_for_all_keys_or_by_name() -> None:
    """A preset, a list, or a table of these."""
    for written, meant in (
        ("", {"*": "monitoring"}),
        ('commands = "operator"', {"*": "operator"}),
        ('commands = ["start", "monitoring"]', {"*": ("start", "monitoring")}),
        ('commands = { alice = "operator", "ops-*" = "start" }', {"alice": "operator", "ops-*": ("start",)}),
        ('[control.remote.commands]\nbob = "admin"', {"bob": "admin"}),
    ):
        settings, problems = parsed(f"[control.remote]\n{GOOD}{written}\n")
        assert not problems
        assert settings.control.remote == RemoteSettings("tcp://127.0.0.1:7700", "/keys", meant)
        assert settings.bus.remote is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[bus.remote]\nkeys = "/k"', "1:bus.remote: [bus.remote] without the key 'address'"),
        ('[control.remote]\naddress = "*:1"', "1:control.remote: [control.remote] without the key 'keys'"),
        (
            f"[control.remote]\n{GOOD}commands = 'admn'",
            "4:control.remote.commands: there is no command or preset 'admn'",
        ),
        (
            f"[control.remote]\n{GOOD}commands = {{ a = 'start', b = 'strt' }}",
            "4:control.remote.commands.b: there is no command or preset 'strt'",
        ),
        (
            f"[control.remote]\n{GOOD}commands = {{ '@x' = 'start' }}",
            "4:control.remote.commands.@x: '@x' is not the name",
        ),
        (
            f"[control.remote]\n{GOOD}[bus.remote]\n{GOOD}",
            "5:bus.remote.address: this is the address of [control.remote]",
        ),
        (f"[control.remote]\n{GOOD}kees = 1", "4:control.remote.kees: unknown key"),
    ],
)
def test_mistakes_are_told_where_they_are(text: str, problem: str) -> None:
    """What is wrong has no listener, so nothing ever listens without keys."""
    settings, problems = parsed(text)
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    if "without" in problem:
        assert settings.control.remote is None
        assert settings.bus.remote is None


def test_a_rule_may_be_about_a_key() -> None:
    """As about a user, with units."""
    settings, problems = parsed('[[control.allow]]\nkey = "ops-*"\ncommands = "operator"\nunits = ["web*"]\n')
    assert not problems
    assert (settings.control.allow[0].key, settings.control.allow[0].units) == ("ops-*", ("web*",))


def test_a_reload_tells_what_has_changed() -> None:
    """Each key by its name, and all of them in force at once."""
    old, _ = parsed(f"[control.remote]\n{GOOD}commands = {{ alice = 'operator' }}\n")
    new, _ = parsed(f"[control.remote]\n{GOOD.replace('7700', '7701')}commands = {{ alice = 'admin' }}\n")
    changes = compare_settings(old, new)
    assert [(change.key, change.old, change.new) for change in changes] == [
        ("control.remote.address", "tcp://127.0.0.1:7700", "tcp://127.0.0.1:7701"),
        ("control.remote.commands", "alice=operator", "alice=admin"),
    ]
    assert {change.effect.value for change in changes} == {"live"}
