"""What a key may do: monitoring, and what tables and rules grant; never what a user may."""

import pytest

from supervisord_py.core.orders import who
from supervisord_py.host.access import Access, hypothetical_peer
from supervisord_py.host.facade import Peer, RemoteKey, remote_peer
from supervisord_py.host.refusals import who_fields
from supervisord_py.model.commands import COMMANDS, PRESETS
from supervisord_py.model.event_text import event_words
from supervisord_py.model.settings import (
    AllowRule,
    BusSettings,
    ControlSettings,
    RemoteSettings,
    Settings,
    SupervisorSettings,
)

ALICE = remote_peer(RemoteKey("alice", "192.0.2.7:40102", "control"))
ALICE_ON_THE_BUS = remote_peer(RemoteKey("alice", "192.0.2.7:40103", "bus"))


def access(
    *rules: AllowRule,
    control: dict[str, str | tuple[str, ...]] | None = None,
    bus: dict[str, str | tuple[str, ...]] | None = None,
    ceiling: str = "admin",
) -> Access:
    settings = Settings(
        SupervisorSettings(allowed_commands=ceiling),
        ControlSettings(allow=rules, remote=RemoteSettings("tcp://*:1", "/k", control or {})),
        bus=BusSettings(remote=RemoteSettings("tcp://*:2", "/k", bus or {})),
    )
    return Access(settings, own_uid=4000, groups_of=lambda unit: ())


def test_a_key_monitors_unless_it_is_granted_more() -> None:
    judge = access()
    assert judge.allowed(ALICE) == PRESETS["monitoring"]
    decision = judge.decide(ALICE, "restart", "web")
    assert not decision.allowed
    assert decision.why == (
        "key alice may not restart web: commands in [control.remote] of supervisord.toml may grant it"
    )


@pytest.mark.parametrize("uid", [-1, 0, 4000, 4294967295])
def test_rules_about_users_and_units_never_speak_of_a_key(uid: int) -> None:
    """Its ids are nobody's."""
    rules = (AllowRule("admin", uid=uid), AllowRule("admin", gid=uid), AllowRule("admin", unit="*"))
    assert access(*rules).allowed(ALICE) == PRESETS["monitoring"]


def test_each_table_grants_to_its_own_listener() -> None:
    """By name or glob, added up; whoever comes to the bus is granted nothing by the table of the control interface."""
    judge = access(control={"al*": "operator", "*": "journal", "bob": "admin"}, bus={"alice": ("send",)})
    assert judge.allowed(ALICE) == PRESETS["operator"]
    assert judge.allowed(ALICE_ON_THE_BUS) == PRESETS["monitoring"] | {"send"}
    assert not judge.sees_secrets(ALICE)


def test_a_rule_about_a_key_is_held_to_its_units() -> None:
    judge = access(AllowRule("operator", key="ali*", units=("web*",)), AllowRule("admin", key="bob"))
    assert judge.decide(ALICE, "restart", "web@1").allowed
    assert not judge.decide(ALICE, "restart", "db").allowed
    assert not judge.decide(ALICE, "set", "web@1").allowed


def test_an_admin_may_ask_what_a_key_may() -> None:
    """``supctl can --as key/NAME``."""
    judge = access(control={"alice": "operator"})
    for name, allowed in (("alice", True), ("bob", False)):
        peer = hypothetical_peer(f"key/{name}")
        assert peer is not None
        assert judge.decide(peer, "restart", "web").allowed is allowed


def test_the_ceiling_holds_for_keys_too() -> None:
    judge = access(control={"*": "admin"}, ceiling="read-only")
    assert judge.allowed(ALICE) == PRESETS["read-only"]
    assert access(control={"*": "admin"}).allowed(ALICE) == COMMANDS


def test_a_listener_that_is_gone_grants_nothing_more() -> None:
    """What was said before the settings changed is judged by what they are now."""
    judge = Access(Settings(), own_uid=4000, groups_of=lambda unit: ())
    assert judge.allowed(ALICE) == PRESETS["monitoring"]


def test_records_and_reasons_name_the_key_and_its_address() -> None:
    """And say nothing that only the kernel could know."""
    fields = who_fields(ALICE)
    assert {name: value for name, value in fields.items() if value is not None} == {
        "key": "alice",
        "address": "192.0.2.7:40102",
    }
    assert fields.keys() > who_fields(Peer(uid=0, gid=0, pid=1)).keys()
    assert who(ALICE.origin()) == "key alice (192.0.2.7:40102)"
    record = {"event": "command", "verb": "restart", "units": ["web"], "result": "queued", **fields}
    assert event_words(record) == "key alice (192.0.2.7:40102): restart web -> queued"
