"""Names, groups, templates and globs: what they mean, and what is suggested when they mean nothing."""

import pytest

from supervisord_py.host.control_calls import InvalidRequestError, NoSuchUnitError
from supervisord_py.host.unit_names import GLOBS_MAX, PATTERNS_MAX, UnitNames

NAMES = ["cache", "db", "web", "web-admin", "worker@1", "worker@2", "worker@10"]
GROUPS = {"backend": ["cache", "db"], "front": ["web", "web-admin"]}
ALL = UnitNames(NAMES, GROUPS)


@pytest.mark.parametrize(
    ("patterns", "units"),
    [
        (["web"], ["web"]),
        (["web", "db", "web"], ["web", "db"]),
        (["worker@"], ["worker@1", "worker@2", "worker@10"]),
        (["worker@?"], ["worker@1", "worker@2"]),
        (["*b"], ["db", "web"]),
        (["[cd]*"], ["cache", "db"]),
        (["@backend"], ["cache", "db"]),
        (["db", "@backend"], ["db", "cache"]),
        ([], []),
    ],
)
def test_what_patterns_mean(patterns: list[str], units: list[str]) -> None:
    """Each unit comes once, in the order of the patterns."""
    assert [named.unit for named in ALL.resolve(patterns)] == units


def test_a_unit_that_was_written_is_explicit() -> None:
    """A unit that was named is told from one that a pattern found, wherever in the call the name stands."""
    found = {named.unit: named.explicit for named in ALL.resolve(["@backend", "db"])}
    assert found == {"cache": False, "db": True}


@pytest.mark.parametrize(
    ("pattern", "suggestions"),
    [
        ("wbe", ["web"]),
        ("WEB", ["web"]),
        ("worker", ["worker@"]),
        ("backend", ["@backend"]),
        ("web.service", ["web"]),
        ("@backends", ["@backend"]),
        ("worker@3", ["worker@2", "worker@1", "worker@10"]),
        ("zzz*", []),
        ("zzz", []),
        ("@zzz", []),
        ("zzz@", []),
    ],
)
def test_what_was_probably_meant(pattern: str, suggestions: list[str]) -> None:
    """A name that nothing answers to is refused with what comes close."""
    with pytest.raises(NoSuchUnitError) as caught:
        ALL.resolve([pattern])
    assert caught.value.parameters["unit"] == pattern
    found = caught.value.parameters["suggestions"]
    assert found[: len(suggestions)] == suggestions if suggestions else found == []
    assert caught.value.parameters["message"].startswith(f"no such unit {pattern}: ")


def test_one_unknown_name_refuses_all() -> None:
    """A call with a name that means nothing is not half done."""
    with pytest.raises(NoSuchUnitError):
        ALL.resolve(["web", "nothing"])


def test_one_unit_is_one_unit() -> None:
    """A question about one unit takes a pattern that means one, and no other."""
    assert ALL.resolve_one("d*") == "db"
    with pytest.raises(InvalidRequestError, match="worker@ is 3 units"):
        ALL.resolve_one("worker@")


def test_what_a_peer_may_not_know_of_is_not_found() -> None:
    """Neither patterns nor suggestions tell a peer of units that are none of its business; a full name is judged
    later."""
    own = UnitNames(NAMES, GROUPS, is_visible=lambda unit: unit == "web")
    assert [named.unit for named in own.everything()] == ["web"]
    assert [named.unit for named in own.resolve(["*"])] == ["web"]
    assert [named.unit for named in own.resolve(["db"])] == ["db"]
    for pattern in ("dbb", "@backend", "@backen", "worker@", "d*"):
        with pytest.raises(NoSuchUnitError) as caught:
            own.resolve([pattern])
        assert caught.value.parameters["suggestions"] == []


def test_costs_are_bounded() -> None:
    """More patterns or globs than anybody needs are refused, and names too long for a unit are not compared."""
    with pytest.raises(InvalidRequestError):
        ALL.resolve(["web"] * (PATTERNS_MAX + 1))
    with pytest.raises(InvalidRequestError):
        ALL.resolve(["*"] * (GLOBS_MAX + 1))
    with pytest.raises(NoSuchUnitError) as caught:
        ALL.resolve(["w" * 1_000_000])
    assert len(str(caught.value)) < 200
