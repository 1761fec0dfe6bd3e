"""Conditions as text: what is read, what can never hold, and the comparisons they are made of."""

import random
import shutil
import subprocess

import pytest
from unitset_rig import KEY_TABLE, SLEEP, load_texts

from supervisord_py.model.conditions import (
    KINDS,
    Pressure,
    compare_versions,
    format_condition,
    holds_version,
    parse_amount,
    parse_condition,
    parse_fields,
    parse_pressure,
    parse_versions,
)
from supervisord_py.model.problems import BadValue
from supervisord_py.model.unit import Condition


def read(kind: str, value: object) -> Condition:
    return parse_condition(kind, value, lambda text: text.replace("%H", "here"))


def test_every_key_has_its_kind() -> None:
    """The table of keys has a condition and an assert for each kind, and no others."""
    table = KEY_TABLE.find("unit", "unit")
    assert table is not None
    kinds = {key: spec.values[0] for key, spec in table.keys.items() if spec.type == "conditions"}
    assert kinds == {f"{prefix}-{kind}": kind for prefix in ("condition", "assert") for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "value", "read_as"),
    [
        ("path-exists", "/a//./b", Condition("path-exists", "/a/b")),
        ("path-exists", "|!/a", Condition("path-exists", "/a", trigger=True, negate=True)),
        ("path-exists", "| ! /a", Condition("path-exists", "/a", trigger=True, negate=True)),
        ("host", "%H", Condition("host", "here")),
        ("ac-power", False, Condition("ac-power", "false")),
        ("virtualization", True, Condition("virtualization", "true")),
        ("cpus", 4, Condition("cpus", "4")),
        ("memory", "!=1G", Condition("memory", "=1G", negate=True)),
        ("kernel-version", "!$=6*", Condition("kernel-version", "$=6*", negate=True)),
        ("user", 0, Condition("user", "0")),
        ("capability", "CAP_SYS_ADMIN", Condition("capability", "CAP_SYS_ADMIN")),
        ("firmware", "smbios-field(board_vendor $= A*)", Condition("firmware", "smbios-field(board_vendor $= A*)")),
    ],
)
def test_marks_and_values(kind: str, value: object, read_as: Condition) -> None:
    """``|`` and ``!`` in that order; booleans and numbers need no quotes where they are meant."""
    assert read(kind, value) == read_as


def test_a_condition_is_written_as_it_was_read() -> None:
    """What is told of one that does not hold is what the file could say."""
    for text in ("/a", "!/a", "|/a", "|!/a"):
        assert format_condition("assert", read("path-exists", text)) == f'assert-path-exists = "{text}"'


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("path-exists", "a", "'a' is a relative path"),
        ("path-exists", "!", "an empty condition"),
        ("path-exists", 1, "1 is not a string"),
        ("path-exists", True, "true is not a string"),
        ("path-exists", "/a\n", None),
        ("path-exists", "/a\nb", "a condition with a line break or a control character"),
        ("architecture", "x86_64", "'x86_64' is no architecture known here"),
        ("virtualization", "dockr", "'dockr' is no virtual machine or container known here"),
        ("security", "selinx", "'selinx' is no security technology known here"),
        ("capability", "CAP_ROOT", "there is no capability 'CAP_ROOT'"),
        ("firmware", "bios", "'bios' is no firmware"),
        ("firmware", "smbios-field(x)", "'smbios-field(x)': no comparison"),
        ("control-group-controller", "cpu disk", "'disk' is no cgroup controller"),
        ("ac-power", "maybe", "'maybe' is neither true nor false"),
        ("memory", "1 lot", None),
        ("memory", "$=1G", "'$=1G': $= compares text"),
        ("cpus", "1.5", "'1.5' is not a count"),
        ("kernel-version", ">=", "'>=': an operator without a version"),
        ("os-release", "debian", "'debian' is no comparison of a field"),
        ("os-release", "ID= debian", "'ID=' is no comparison of a field"),
        ("credential", "a/b", "'a/b' is not the name of a credential"),
        ("environment", "A B", "'A B' is neither a variable's name nor NAME=VALUE"),
        ("memory-pressure", "a.slice:5%", "'a.slice:5%': the pressure of a slice"),
        ("io-pressure", "5%/3s", "'5%/3s': the kernel has no average over that time"),
        ("cpu-pressure", "101%", "'101%' is above 100%"),
        ("cpu-pressure", "lots", "'lots' is no bound for pressure"),
    ],
)
def test_what_can_never_hold_is_refused(kind: str, value: object, message: str | None) -> None:
    """Where systemd assumes a failed condition each time, the file is wrong here."""
    with pytest.raises(BadValue) as refused:
        read(kind, value)
    if message is not None:
        assert refused.value.message == message


def test_conditions_keep_their_order_and_every_wrong_one_is_told() -> None:
    """Entries follow each other as the file has them, over all keys; ``[]`` takes back those of one key."""
    text = f'[unit]\ncondition-cpus = 1\ncondition-path-exists = ["/b", "|/a"]\ncondition-host = "x"\n{SLEEP}'
    drop_in = "[unit]\ncondition-host = []\n"
    unit = load_texts({"web": text, "web.d/50": drop_in}).unit_set.units["web"]
    assert [(each.kind, each.parameter) for each in unit.conditions] == [
        ("cpus", "1"), ("path-exists", "/b"), ("path-exists", "/a"),
    ]  # fmt: skip
    assert not unit.asserts
    bad = load_texts({"web": f'[unit]\nassert-path-exists = ["a", "/b", ""]\nassert-memory = "x"\n{SLEEP}'})
    assert [(problem.line, problem.column) for problem in bad.problems] == [(2, 23), (2, 34), (3, 17)]


def test_amounts_versions_fields_and_pressure() -> None:
    """What the comparing kinds are made of."""
    assert parse_amount(">= 1.5G", is_size=True) == (">=", 3 << 29)
    assert parse_amount("<>5", is_size=False) == ("<>", 5)
    assert [(each.operator, each.value) for each in parse_versions("> 5 <7 '6.*'")] == [
        (">", "5"), ("<", "7"), ("$=", "6.*"),
    ]  # fmt: skip
    (first, second) = parse_fields("ID=debian 'NAME$=D* x'")
    assert (first.field, first.operator, first.value) == ("ID", "=", "debian")
    assert (second.field, second.operator, second.value) == ("NAME", "$=", "D* x")
    assert parse_pressure("10.5%") == Pressure(1050, "avg300")
    assert parse_pressure("5% / 1 min".replace(" ", "")) == Pressure(500, "avg60")


@pytest.mark.parametrize(
    ("expression", "actual", "expected"),
    [
        ("=5.10", "5.10.0", False), ("==5.10", "5.10", True), ("!=5.10", "5.10", False), ("<>5.10", "5.10", False),
        ("$=5.1*", "5.10", True), ("!$=5.1*", "5.10", False), ("$=5.[^0]*", "5.10", True), (">5.9", "5.10", True),
        ("<=5.10", "5.10", True), (">=5.10~rc1", "5.10", True), ("<5.10", "5.10~rc1", True),
    ],
)  # fmt: skip
def test_operators_on_versions(expression: str, actual: str, expected: bool) -> None:
    """One or two characters make text, pattern or version of it."""
    (comparison,) = parse_versions(expression)
    assert holds_version(comparison, actual) is expected


ASCENDING = [
    "122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1", "123.1-1", "123a-1",
    "124-1",
]  # fmt: skip
"""The example of the specification."""


def test_versions_are_ordered_as_the_specification_says() -> None:
    """Every pair of its example, both ways; and each is equal to itself."""
    for place, one in enumerate(ASCENDING):
        for other_place, other in enumerate(ASCENDING):
            assert compare_versions(one, other) == (place > other_place) - (place < other_place), (one, other)
    assert compare_versions("1.007_", "1.7") == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there to ask")
def test_versions_are_ordered_as_systemd_orders_them() -> None:
    """systemd's own tool says the same of versions nobody would write."""
    rng = random.Random(7)
    pieces = ("1", "2", "10", "01", "a", "b", "rc", "~", "-", "^", ".", "_", "0")
    for _ in range(60):
        one, other = ("1" + "".join(rng.choices(pieces, k=rng.randint(0, 5))) for _ in range(2))
        asked = subprocess.run(["systemd-analyze", "compare-versions", one, other], capture_output=True, check=False)
        assert compare_versions(one, other) == {0: 0, 11: 1, 12: -1}[asked.returncode], (one, other)
