"""``supervisord.toml``: values, rules, presets."""

from itertools import pairwise

import pytest
from unitset_rig import KEY_TABLE

from supervisord_py.model.changes import compare_settings
from supervisord_py.model.commands import COMMANDS, PRESETS, command_set
from supervisord_py.model.log import Rate
from supervisord_py.model.problems import Problem
from supervisord_py.model.settings import (
    AllowRule,
    BusSettings,
    ControlSettings,
    HotDirectorySettings,
    RemoteSettings,
    Settings,
    parse_settings,
    settings_texts,
)


def parse(text: str) -> tuple[Settings, tuple[Problem, ...]]:
    return parse_settings(text, "s.toml", KEY_TABLE)


def good(text: str) -> Settings:
    settings, problems = parse(text)
    assert not problems, [problem.text() for problem in problems]
    return settings


def test_everything_that_is_built() -> None:
    """Each key lands in its field."""
    settings = good(
        """\
[supervisor]
name = "main-2"
allowed-commands = ["operator", "daemon-reload"]
shutdown-timeout-sec = "2min"
pass-environment = ["LANG", "TZ"]
[control]
socket-group = "adm"
socket-mode = "0666"
require-reason = true
[[control.allow]]
group = "operators"
commands = "operator"
units = ["web*", "@backend"]
[[control.allow]]
uid = 1000
commands = ["restart", "monitoring"]
[[control.allow]]
unit = "planner"
commands = "run-as-self"
[journal]
max-bytes = "1G"
max-age = "infinity"
payload-max = 100
reserve = 0
when-full = "refuse-commands"
sync = "always"
keep-last = { "unit.heartbeat" = 0, metrics = 5 }
[bus]
rate-limit = "30/min"
queue = 7
on-full = "block"
"""
    )
    assert settings.supervisor.allowed_commands == ("operator", "daemon-reload")
    assert settings.supervisor.shutdown_timeout_ns == 120_000_000_000
    assert settings.supervisor.pass_environment == ("LANG", "TZ")
    assert (settings.control.socket_group, settings.control.socket_mode) == ("adm", 0o666)
    assert settings.control.require_reason
    assert settings.control.allow == (
        AllowRule("operator", group="operators", units=("web*", "@backend")),
        AllowRule(("restart", "monitoring"), uid=1000),
        AllowRule(("run-as-self",), unit="planner"),
    )
    journal = settings.journal
    assert (journal.max_bytes, journal.max_age_ns, journal.payload_max, journal.reserve) == (1 << 30, None, 100, 0)
    assert (journal.when_full, journal.sync, journal.keep_last) == (
        "refuse-commands",
        "always",
        {"unit.heartbeat": 0, "metrics": 5},
    )
    assert settings.bus == BusSettings(Rate(30, 60_000_000_000), 7, "block")
    assert settings.path == "s.toml"
    assert good('[supervisor]\npass-environment = "all"\n').supervisor.pass_environment == "all"


def test_an_empty_list_of_commands_allows_nothing() -> None:
    """In the settings ``[]`` is a value and no reset: a locked door is not opened by reading it wrong."""
    settings = good("[supervisor]\nallowed-commands = []\n[[control.allow]]\nuid = 5\ncommands = []\n")
    assert settings.supervisor.allowed_commands == ()
    assert settings.control.allow[0].commands == ()
    assert command_set(()) == frozenset()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[[control.allow]]\nuid = 1\n", "a rule without the key 'commands'", None),
        (
            '[[control.allow]]\ncommands = "admin"\n',
            "a rule has one of group, user, uid, gid, unit, key",
            "say whom it is for",
        ),
        (
            '[[control.allow]]\nuid = 1\ngid = 2\ncommands = "admin"\n',
            "a rule has one of group, user, uid, gid, unit, key",
            "make a rule each for uid and gid",
        ),
        (
            '[[control.allow]]\nuid = 1\ncommands = ["operater"]\n',
            "there is no command or preset 'operater'",
            "did you mean 'operator'?",
        ),
        ('[[control.allow]]\nuid = -1\ncommands = "admin"\n', "-1 is too small", None),
        ("[control.allow]\nuid = 1\n", "[[control.allow]] is a list of tables", None),
        (
            '[supervisor]\nmode = "empty"\n',
            "'empty' is not possible here",
            "did you mean 'until-empty'? possible are daemon, until-empty",
        ),
        ("[supervisor]\nmax-workers = -3\n", "-3 is too small", None),
        ("[bus]\nqueue = 0\n", "0 is too small", None),
        ("[bus]\nrate-limit = 1000\n", "1000 is not a rate", 'write text such as "1000/s" or "30/min"'),
        ("[bus]\nrate-limit = '0/s'\n", "'0/s' lets nothing through", None),
        ("[[hooks]]\nevent = 'unit.failed'\n", "a hook without the key 'command'", None),
        ("[[hooks]]\ncommand = '/bin/page'\n", "a hook without the key 'event'", 'write event = "unit.failed"'),
        (
            "[[hooks]]\nevent = 'unit.fail'\ncommand = '/bin/page'\n",
            "no hook is called by 'unit.fail'",
            "did you mean 'unit.failed'?",
        ),
        ("[[hooks]]\nevent = 'unit.heartbeat'\ncommand = '/bin/page'\n", "no hook is called by 'unit.heartbeat'", None),
        ("[[hooks]]\nevent = 'unit.*'\ncommand = '/bin/page %x'\n", "unknown specifier '%x'", None),
        ("[[hooks]]\nevent = '*'\ncommand = '/bin/page'\ntimeout = 0\n", "0 is not possible here", None),
        ("[pools.x]\nsize = 1\n", "unknown key 'size' in [pools.NAME]", None),
        ("[pools.'x y']\nmax-workers = 1\n", "'x y' is not the name of a pool", None),
        ('[journal]\nkeep-last = { "unit.exited" = 5 }\n', "'unit.exited' cannot be kept in a ring", None),
        ("[control]\nsocket-mode = 660\n", "a mode is written as text", None),
        ("[service]\n", "unknown table [service]", None),
    ],
)
def test_wrong_settings(text: str, message: str, hint: str | None) -> None:
    """Each is an error with its place."""
    _, problems = parse(text)
    assert [problem.message for problem in problems] == [message]
    assert problems[0].line > 0 and problems[0].severity == "error"
    if hint is not None:
        assert problems[0].hint == hint


def test_a_rule_for_a_group_that_cannot_open_the_socket_is_a_warning() -> None:
    """Unless it is the socket's group, or the mode lets everybody in."""
    rule = '[[control.allow]]\ngroup = "ops"\ncommands = "operator"\n'
    settings, problems = parse(rule)
    assert len(settings.control.allow) == 1
    assert [problem.severity for problem in problems] == ["warning"]
    assert problems[0].hint == 'write socket-group = "ops" or socket-mode = "0666" into [control]'
    good('[control]\nsocket-group = "ops"\n' + rule)
    good('[control]\nsocket-mode = "0666"\n' + rule)


def test_presets_are_a_chain_and_admin_is_everything() -> None:
    """monitoring < read-only < operator < admin, as the contract lists them."""
    sizes = [PRESETS[name] for name in ("monitoring", "read-only", "operator", "admin")]
    assert all(less < more for less, more in pairwise(sizes))
    assert PRESETS["admin"] == COMMANDS
    assert {"ping", "list", "wait"} <= PRESETS["monitoring"] and "show" not in PRESETS["monitoring"]
    assert "stop" in PRESETS["operator"] and "set" not in PRESETS["operator"]
    assert command_set("read-only") == PRESETS["read-only"]
    assert command_set(("restart", "monitoring")) == PRESETS["monitoring"] | {"restart"}
    with pytest.raises(KeyError):
        command_set("nobody")


def test_changed_settings_are_told_by_key() -> None:
    """Values as the file has them; what only a start of the supervisor brings is told as that."""
    old = good('[journal]\nmax-bytes = "1G"\n[[control.allow]]\nuser = "ann"\ncommands = "operator"\n')
    new = good(
        '[supervisor]\nname = "x"\nshutdown-timeout-sec = "infinity"\n[control]\nsocket-mode = "0600"\n'
        'require-reason = true\n[journal]\nmax-age = "1h"\n'
    )
    assert [(each.key, each.old, each.new, each.effect.value) for each in compare_settings(old, new)] == [
        ("supervisor.name", "main", "x", "restart"),
        ("supervisor.shutdown-timeout-sec", "1min 30s", "infinity", "live"),
        ("control.socket-mode", "0660", "0600", "restart"),
        ("control.require-reason", "false", "true", "live"),
        ("control.allow.1", "commands=operator user=ann", None, "live"),
        ("journal.max-bytes", "1G", "256M", "live"),
        ("journal.max-age", "4w 2d", "1h", "live"),
    ]


def test_every_setting_that_is_built_is_compared() -> None:
    """No key of docs/keys.toml is forgotten."""
    every = {
        f"{table.name}.{key}"
        for table in KEY_TABLE.of("settings")
        for key, spec in table.keys.items()
        if spec.built and table.form == "table"
    }
    hot = HotDirectorySettings(path="/hot", keys="/keys")
    remote = RemoteSettings("tcp://*:1", "/keys")
    control = ControlSettings(socket_group="adm", remote=remote)
    told = settings_texts(Settings(control=control, hot_directory=hot, bus=BusSettings(remote=remote)))
    assert every == told.keys()


def test_pools_and_hooks_are_compared() -> None:
    """Each pool by its name, each hook as a whole; the mode and the limits are taken over at once."""
    old = good('[pools.a]\nmax-workers = 1\n[[hooks]]\nevent = "unit.*"\ncommand = "/bin/a %n"\n')
    new = good('[supervisor]\nmode = "until-empty"\nmax-workers = 3\n[pools.a]\nmax-workers = 2\n')
    assert [(each.key, each.old, each.new, each.effect.value) for each in compare_settings(old, new)] == [
        ("supervisor.mode", "daemon", "until-empty", "live"),
        ("supervisor.max-workers", "0", "3", "live"),
        ("pools.a.max-workers", "1", "2", "live"),
        ("hooks.1", "unit.*: /bin/a %n (10s)", None, "live"),
    ]
