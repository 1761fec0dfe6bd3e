"""Moments as people type them, words of replies, the tables of verbs, completion scripts."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import pytest

from supervisord_py.ctl import client
from supervisord_py.ctl.cli import ALIASES, COMMANDS, make_cli
from supervisord_py.ctl.client import new_token, qualify
from supervisord_py.ctl.completion import SHELLS, completion_script
from supervisord_py.ctl.elsewhere import OTHERS_WORDS
from supervisord_py.ctl.moments import format_rfc3339, parse_moment
from supervisord_py.ctl.options import Verb, asks_for_json, skip_common
from supervisord_py.ctl.replies import STATUS_FIELDS, explain_exit, is_problem, state_text, unit_from_wire
from supervisord_py.model.states import ActiveState, LoadState, Result, SubState
from supervisord_py.model.status import UnitStatus
from supervisord_py.wire.interface import parse_interface

ROOT = Path(__file__).parent.parent.parent.parent
ZONE = timezone(timedelta(hours=2))
NOW = datetime(2026, 11, 20, 13, 30, 15, tzinfo=ZONE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("today", datetime(2026, 11, 20, tzinfo=ZONE)),
        ("Yesterday", datetime(2026, 11, 19, tzinfo=ZONE)),
        ("tomorrow", datetime(2026, 11, 21, tzinfo=ZONE)),
        ("10m", NOW - timedelta(minutes=10)),
        ("-10m", NOW - timedelta(minutes=10)),
        ("10 min ago", NOW - timedelta(minutes=10)),
        ("1h 30min ago", NOW - timedelta(minutes=90)),
        ("+10m", NOW + timedelta(minutes=10)),
        ("13:00", datetime(2026, 11, 20, 13, tzinfo=ZONE)),
        ("9:05:07", datetime(2026, 11, 20, 9, 5, 7, tzinfo=ZONE)),
        ("2026-11-19", datetime(2026, 11, 19, tzinfo=ZONE)),
        ("2026-11-19 08:00", datetime(2026, 11, 19, 8, tzinfo=ZONE)),
        ("2026-11-19T08:00:00Z", datetime(2026, 11, 19, 8, tzinfo=UTC)),
        ("@0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("@1.5", datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)),
    ],
)
def test_moments(text: str, expected: datetime) -> None:
    """Every form of the contract, and what hands know from journalctl."""
    assert parse_moment(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "2026-13-01", "@x", "@1e400", "10 parsecs", "infinity", "9" * 40]
)
def test_what_is_no_moment(text: str) -> None:
    """An error with a form that works, never a traceback."""
    with pytest.raises(ValueError, match="not a"):
        parse_moment(text, NOW)


def test_moments_are_sent_in_utc() -> None:
    """The form of the journal's own times, so that they compare as text."""
    assert format_rfc3339(NOW) == "2026-11-20T11:30:15.000000Z"


def test_status_fields_are_those_of_the_model() -> None:
    """``status --json`` and ``model.status.UnitStatus`` name the same fields in the same order."""
    assert UnitStatus.__struct_fields__ == STATUS_FIELDS


@pytest.mark.parametrize("words", [ActiveState, LoadState, SubState, Result])
def test_every_word_survives_the_wire(words: Any) -> None:
    """``-`` becomes ``_`` on the wire and comes back; no word has an underscore of its own."""
    for word in words:
        field = {ActiveState: "active_state", LoadState: "load_state", SubState: "sub_state", Result: "result"}[words]
        raw: dict[str, Any] = {"name": "x", field: word.value.replace("-", "_")}
        assert dict(unit_from_wire(raw))[field] == word.value


def status(**fields: Any) -> Any:
    base = {"name": "x", "load_state": "loaded", "active_state": "active", "sub_state": "running", "result": "success"}
    return unit_from_wire(base | fields)


@pytest.mark.parametrize(
    ("fields", "text", "problem"),
    [
        ({}, "active", False),
        ({"sub_state": "exited"}, "active (exited)", False),
        ({"active_state": "inactive", "sub_state": "dead"}, "inactive", False),
        ({"active_state": "inactive", "sub_state": "dependency"}, "inactive (dependency)", True),
        ({"active_state": "activating", "sub_state": "auto_restart"}, "activating (auto-restart)", True),
        ({"active_state": "activating", "sub_state": "start"}, "activating", False),
        ({"active_state": "failed", "sub_state": "failed"}, "failed", True),
        ({"active_state": "quarantined", "sub_state": "stub"}, "quarantined (stub)", True),
        ({"active_state": "deactivating", "sub_state": "stuck"}, "deactivating (stuck)", True),
        ({"active_state": "inactive", "sub_state": "dead", "load_state": "bad_setting"}, "bad-setting", True),
        ({"active_state": "inactive", "sub_state": "dead", "load_state": "masked"}, "masked", False),
    ],
)
def test_states_in_words(fields: dict[str, str], text: str, problem: bool) -> None:
    """The sub-state is shown where it says more, and what needs a look is marked as such."""
    assert (state_text(status(**fields)), is_problem(status(**fields))) == (text, problem)


def test_exits_are_decoded() -> None:
    """systemd's codes, a shell's 128 + n, and signals say what they mean; others stand alone."""
    assert explain_exit({"code": 203}).startswith("code 203 (EXEC")
    assert "SIGTERM" in explain_exit({"code": 143})
    assert explain_exit({"code": 3}) == "code 3"
    assert "memory ran out" in explain_exit({"signal": "SIGKILL"})
    assert "system-call-error-number" in explain_exit({"signal": "SIGSYS"})
    assert explain_exit({"signal": "SIGUSR1"}) == "signal SIGUSR1"


def test_every_verb_is_where_the_table_says() -> None:
    """Each entry of the lazy table leads to the command of that name, with help and the common options."""
    cli = make_cli()
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
        assert isinstance(command, Verb) or name == "journal"
        assert {"socket", "json", "timeout"} <= {parameter.name for parameter in command.params}
    for words in ALIASES.values():
        assert words[0] in COMMANDS


def test_no_option_hides_another() -> None:
    """No verb has two parameters of one name: one of them would never arrive."""
    cli = make_cli()
    context = click.Context(cli)
    commands = [command for name in COMMANDS if (command := cli.get_command(context, name)) is not None]
    commands += [sub for command in commands if isinstance(command, click.Group) for sub in command.commands.values()]
    for command in commands:
        names = [parameter.name for parameter in command.params if not getattr(parameter, "hidden", False)]
        words = [word for parameter in command.params for word in parameter.opts]
        assert len(names) == len(set(names)), command.name
        assert len(words) == len(set(words)), command.name


def test_a_word_is_either_ours_or_explained() -> None:
    """What is built is not called missing, and every verb of the contract is built, an alias, or explained."""
    assert not set(COMMANDS) & set(OTHERS_WORDS)
    contract = (
        "status list show cat start stop restart try-restart reload reload-or-restart kill pause resume trigger "
        "reset-failed release enable disable mask unmask scale set edit apply deps jobs cancel why lives logs "
        "journal top stats wait run can commands daemon-reload daemon-restart daemon-reexec health shutdown ping "
        "version idl completion ps ls list-units list-timers list-sockets list-jobs list-dependencies is-active "
        "is-failed is-enabled set-property freeze thaw signal describe history update all "
    )
    assert set(contract.split()) <= set(COMMANDS) | set(ALIASES) | set(OTHERS_WORDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_files_are_what_the_command_prints(shell: str) -> None:
    """``packaging/completions`` is generated: it never differs from ``supctl completion``."""
    assert (ROOT / f"packaging/completions/supctl.{shell}").read_text() == completion_script(shell)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--json", "status"], True), (["status", "-o", "json"], True), (["status", "-ojson"], True),
        (["status"], False), (["run", "--", "tool", "--json"], False), (["journal", "-o", "short"], False),
    ],
)  # fmt: skip
def test_json_is_seen_before_everything_is_parsed(arguments: list[str], expected: bool) -> None:
    """A usage error of a caller who wants JSON is JSON; what stands behind ``--`` is not ours."""
    assert asks_for_json(arguments) is expected


def test_common_options_are_skipped_with_their_values() -> None:
    """``journal --socket X --json verify`` has its subcommand in the fourth place."""
    assert skip_common(["--socket", "X", "--json", "verify", "--json"]) == 3
    assert skip_common(["-ojson", "--timeout=3", "-f"]) == 2
    assert skip_common(["--socket"]) == 1


def test_names_of_methods() -> None:
    """Short names are of the manager, ``Journal.`` of the journal, full names stay."""
    assert qualify("Ping") == "py.supervisord.Manager.Ping"
    assert qualify("Journal.Query") == "py.supervisord.Journal.Query"
    assert qualify("org.varlink.service.GetInfo") == "org.varlink.service.GetInfo"


def test_tokens_are_random_uuids() -> None:
    """Version and variant are those of RFC 9562, and no two are the same."""
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    for token in tokens:
        parsed = uuid.UUID(token)
        assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, token)


def test_every_method_with_a_token_is_given_one() -> None:
    """A change that the interface lets be repeated is repeated by supctl after a lost connection, and bounded by it."""
    manager = parse_interface((ROOT / "packaging" / "py.supervisord.Manager.varlink").read_text())
    for name, method in manager.methods.items():
        fields = {field for field, _ in method.input.fields}
        assert ("token" in fields) == (qualify(name) in client.TOKEN), name
        assert ("timeout_ms" in fields) == (qualify(name) in client.TIMEOUT), name
