"""Who may do what: every row of the contract's section 6, and the laws of the module."""

import grp
import os
import pwd

import pytest

from supervisord_py.host.access import Access, hypothetical_peer
from supervisord_py.host.facade import Peer
from supervisord_py.model.commands import COMMANDS, PRESETS
from supervisord_py.model.settings import AllowRule, ControlSettings, Settings, SupervisorSettings

OWN_UID = 4000
ROOT = Peer(uid=0, gid=0, pid=10, user="root")
OWN = Peer(uid=OWN_UID, gid=4000, pid=11, user="super")
ALICE = Peer(uid=5001, gid=5001, pid=12, groups=(5001, 6000), user="alice")
PLANNER = Peer(uid=0, gid=0, pid=13, user="root", unit="planner")
STRAY = Peer(uid=0, gid=0, pid=14, user="root", stray=True)
GROUPS = {"db": ("backend",), "cache": ("backend",)}


def access(*rules: AllowRule, ceiling: str | tuple[str, ...] = "admin", require_reason: bool = False) -> Access:
    settings = Settings(
        SupervisorSettings(allowed_commands=ceiling), ControlSettings(allow=rules, require_reason=require_reason)
    )
    return Access(settings, own_uid=OWN_UID, groups_of=lambda unit: GROUPS.get(unit, ()))


@pytest.mark.parametrize("peer", [ROOT, OWN], ids=["root", "own user"])
def test_root_and_the_own_user_are_admin(peer: Peer) -> None:
    """Root and the supervisor's own user may do everything and see secrets."""
    assert access().allowed(peer) == COMMANDS
    assert access().sees_secrets(peer)


def test_others_monitor() -> None:
    """Any other peer that may open the socket has the preset monitoring and no more."""
    assert access().allowed(ALICE) == PRESETS["monitoring"]
    assert not access().sees_secrets(ALICE)
    decision = access().decide(ALICE, "restart", "web")
    assert not decision.allowed
    assert decision.why == (
        "user alice may not restart web: an admin may grant it with a rule in supervisord.toml, [[control.allow]]"
    )


@pytest.mark.parametrize("uid", [0, OWN_UID, 5001])
def test_a_units_process_is_that_unit_whatever_its_uid(uid: int) -> None:
    """A process of a unit pings and sees its own status, also as root, and rules about uids do not speak of it."""
    peer = Peer(uid=uid, gid=0, pid=1, unit="planner")
    judge = access(AllowRule("admin", uid=uid))
    assert judge.allowed(peer) == {"ping", "status"}
    assert judge.decide(peer, "status", "planner").allowed
    assert not judge.decide(peer, "status", "web").allowed
    assert not judge.decide(peer, "stop", "planner").allowed
    assert not judge.sees_secrets(peer)


def test_a_rule_about_a_unit_speaks_of_no_orphan_that_only_claims_to_be_of_it() -> None:
    """The mark of a unit can be made by others: it may see that unit's status, as its own, and no more."""
    claimed = Peer(uid=OWN_UID, gid=0, pid=1, unit="planner", claimed=True)
    judge = access(AllowRule("admin", unit="planner"), AllowRule("admin", uid=OWN_UID))
    assert judge.allowed(claimed) == {"ping", "status"}
    assert judge.decide(claimed, "stop", "web").why == (
        "process 1, by its own word of unit planner, may not stop web: "
        "no rule speaks of an orphan whose unit nobody else can tell"
    )


def test_a_rule_may_grant_a_unit_more() -> None:
    """A rule with unit grants it to that unit's processes and to nobody else, templates and globs included."""
    judge = access(AllowRule(("restart", "logs"), unit="plan*", units=("web",)))
    assert judge.allowed(PLANNER) == {"ping", "status", "restart", "logs"}
    assert judge.decide(PLANNER, "restart", "web").allowed
    assert not judge.decide(PLANNER, "restart", "db").allowed
    assert not judge.decide(Peer(uid=0, gid=0, pid=1, unit="other"), "restart", "web").allowed
    assert not judge.decide(ALICE, "restart", "web").allowed
    instances = access(AllowRule("operator", unit="worker@"))
    assert instances.decide(Peer(uid=0, gid=0, pid=1, unit="worker@3"), "stop", "web").allowed


def test_a_stray_may_only_ping() -> None:
    """A descendant that belongs to no unit pings, whatever its uid and whatever the rules say."""
    judge = access(AllowRule("admin", uid=0), AllowRule("admin", unit="*"))
    assert judge.allowed(STRAY) == {"ping"}
    assert not judge.sees_secrets(STRAY)
    assert "belongs to no unit" in judge.decide(STRAY, "status").why


@pytest.mark.parametrize(
    "rule",
    [
        AllowRule("operator", uid=5001),
        AllowRule("operator", gid=5001),
        AllowRule("operator", gid=6000),
    ],
    ids=["uid", "gid", "supplementary gid"],
)
def test_rules_name_peers_by_number(rule: AllowRule) -> None:
    """A rule holds for its uid or gid, supplementary groups included, and for nobody else."""
    assert access(rule).decide(ALICE, "restart", "web").allowed
    assert not access(rule).decide(Peer(uid=5002, gid=5002, pid=1), "restart", "web").allowed


def test_rules_name_peers_by_name() -> None:
    """A rule holds for the user or group of that name; a name that the system does not know holds for nobody."""
    user, group = pwd.getpwuid(1), grp.getgrgid(2)
    peer = Peer(uid=user.pw_uid, gid=9999, pid=1, groups=(group.gr_gid,))
    assert access(AllowRule("operator", user=user.pw_name)).decide(peer, "stop", "web").allowed
    assert access(AllowRule("operator", group=group.gr_name)).decide(peer, "stop", "web").allowed
    unknown = access(AllowRule("operator", user="no-such-user"), AllowRule("operator", group="no-such-group"))
    assert not unknown.decide(peer, "stop", "web").allowed


def test_rules_add_up() -> None:
    """Two rules together grant what each grants, and units of one are not lent to the other."""
    judge = access(
        AllowRule(("restart",), uid=5001, units=("web*",)), AllowRule(("stop",), gid=6000, units=("@backend",))
    )
    assert judge.decide(ALICE, "restart", "web-1").allowed
    assert judge.decide(ALICE, "stop", "db").allowed
    assert not judge.decide(ALICE, "stop", "web-1").allowed
    assert not judge.decide(ALICE, "restart", "db").allowed
    assert judge.decide(ALICE, "restart", "db").why == "user alice may not restart db: it is granted for web* only"


def test_units_hold_reading_too_but_not_what_monitoring_gives() -> None:
    """A rule for some units shows the logs of those only; status of all is monitoring's."""
    judge = access(AllowRule("operator", uid=5001, units=("web*",)))
    assert judge.scope(ALICE, "logs").holds("web-1")
    assert not judge.scope(ALICE, "logs").holds("db")
    assert judge.scope(ALICE, "status").everything


def test_what_stops_everything_needs_all_units() -> None:
    """A grant for some units is none for shutdown, which would stop the others too."""
    assert not access(AllowRule("admin", uid=5001, units=("web*",))).decide(ALICE, "shutdown").allowed
    assert access(AllowRule("admin", uid=5001)).decide(ALICE, "shutdown").allowed


def test_admin_by_rule_sees_secrets_of_its_units() -> None:
    """The whole preset admin shows secrets, for the units that it is granted for; an operator sees none."""
    judge = access(AllowRule("admin", uid=5001, units=("web*",)), AllowRule("operator", uid=5002))
    assert judge.sees_secrets(ALICE, "web")
    assert not judge.sees_secrets(ALICE, "db")
    assert not judge.sees_secrets(ALICE)
    assert not judge.sees_secrets(Peer(uid=5002, gid=1, pid=1), "web")


@pytest.mark.parametrize("peer", [ROOT, OWN, ALICE, PLANNER, STRAY], ids=lambda peer: repr(peer.pid))
def test_the_ceiling_is_for_everyone(peer: Peer) -> None:
    """allowed-commands leaves nobody more than it says, root included."""
    judge = access(AllowRule("admin", uid=5001), AllowRule("admin", unit="*"), ceiling=("ping", "status"))
    assert judge.allowed(peer) <= {"ping", "status"}
    assert not judge.decide(peer, "restart", "web").allowed
    assert judge.decide(ROOT, "stop", "web").why == (
        "user root may not stop web: allowed-commands in supervisord.toml leaves it to nobody"
    )


def test_presets_are_a_chain_and_lists_mix() -> None:
    """A rule takes a preset, commands, or both in a list."""
    judge = access(AllowRule(("read-only", "restart"), uid=5001))
    assert judge.allowed(ALICE) == PRESETS["read-only"] | {"restart"}


def test_reasons() -> None:
    """Where a reason is required, blanks are none."""
    assert access(require_reason=True).lacks_reason(" ")
    assert not access(require_reason=True).lacks_reason("new release")
    assert not access().lacks_reason("")


def test_a_hypothetical_peer_is_what_the_user_would_be() -> None:
    """The peer of a user has its groups; numbers work, and unknown users are none."""
    entry = pwd.getpwuid(os.getuid())
    peer = hypothetical_peer(entry.pw_name)
    assert peer is not None
    assert (peer.uid, peer.gid, peer.unit, peer.stray) == (entry.pw_uid, entry.pw_gid, None, False)
    assert hypothetical_peer(str(entry.pw_uid)) == peer
    assert hypothetical_peer("no-such-user") is None
    assert hypothetical_peer("9" * 30) is None
    assert hypothetical_peer("a\0b") is None
