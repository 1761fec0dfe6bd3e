"""Laws of values, words and the ordering graph, on whatever Hypothesis can think of."""

import string
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.model.command import Command, expand_words, extract_word, parse_commands
from supervisord_py.model.ordering import Edge, drop_soft, hard_cycles, start_waves
from supervisord_py.model.problems import BadValue
from supervisord_py.model.values import (
    format_mode,
    format_signal,
    format_size,
    format_timespan,
    parse_limit,
    parse_mode,
    parse_signal,
    parse_size,
    parse_timespan,
)

_text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@given(st.none() | st.integers(0, 10**18).map(lambda usec: usec * 1000))
def test_time_spans_are_read_back(ns: int | None) -> None:
    """What is written, to the microsecond, is read again."""
    assert parse_timespan(format_timespan(ns)) == ns


@given(st.integers(0, 2**63 - 1))
def test_sizes_are_read_back(size: int) -> None:
    """With the largest suffix that fits."""
    assert parse_size(format_size(size)) == size


@given(st.integers(1, 64), st.integers(0, 0o7777))
def test_signals_and_modes_are_read_back(number: int, mode: int) -> None:
    """Every signal has a name or a number, every mode its digits."""
    assert parse_signal(format_signal(number)) == number
    assert parse_mode(format_mode(mode)) == mode


@given(_text | st.text("0123456789.:+-% smhdwyMKGTB infty", max_size=10))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No parser raises anything but BadValue, and every message is fit for people."""
    for parse in (parse_timespan, parse_size, parse_signal, parse_mode, lambda value: parse_limit(value, "seconds")):
        try:
            parse(text)
        except BadValue as bad:
            assert bad.message and "\n" not in bad.message


@given(st.lists(_text.filter(lambda word: "\0" not in word), min_size=1, max_size=5))
def test_quoted_words_come_back(words: list[str]) -> None:
    """Any words, put in double quotes with their escapes, are split into themselves."""
    quoted = " ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)
    position, found = 0, []
    while (extracted := extract_word(quoted, position)) is not None:
        found.append(extracted[0])
        position = extracted[1]
    assert found == words


@given(st.text(string.printable, max_size=30))
def test_any_command_line_is_read_or_refused(text: str) -> None:
    """And what is read has a program and expands without an error."""
    try:
        commands = parse_commands(text, str)
    except BadValue:
        return
    for command in commands:
        assert command.words[0]
        assert expand_words(command, {"A": "'"})


@given(st.lists(_text, max_size=4), st.dictionaries(st.text("AB_", min_size=1, max_size=3), _text, max_size=3))
def test_an_argv_is_never_expanded(words: list[str], environment: dict[str, str]) -> None:
    """Whatever stands in it."""
    assert expand_words(Command(("/p", *words)), environment) == ["/p", *words]


_units = st.sampled_from("abcdef")
_edges = st.lists(
    st.builds(
        lambda first, then, key: Edge(first, then, first if key == "before" else then, key),
        _units,
        _units,
        st.sampled_from(["requires", "wants", "wants", "after", "before"]),
    ).filter(lambda edge: edge.first != edge.then),
    max_size=14,
    unique=True,
)


def is_acyclic(edges: list[Edge]) -> bool:
    left = {unit for edge in edges for unit in (edge.first, edge.then)}
    while True:
        free = {unit for unit in left if not any(edge.then == unit and edge.first in left for edge in edges)}
        if not free:
            return not left
        left -= free


@given(_edges)
def test_hard_cycles_are_cycles_and_all_of_them(edges: list[Edge]) -> None:
    """Each is closed and hard; without their units the hard edges are acyclic; an acyclic graph has none."""
    knots = hard_cycles(edges)
    for knot, cycle in knots:
        assert [edge.then for edge in cycle] == [edge.first for edge in (*cycle[1:], cycle[0])]
        assert set(cycle) <= {edge for edge in edges if not edge.soft}
        assert {edge.first for edge in cycle} <= set(knot)
    members = {unit for knot, _ in knots for unit in knot}
    hard = [edge for edge in edges if not edge.soft]
    assert is_acyclic([edge for edge in hard if edge.first not in members and edge.then not in members])
    assert bool(knots) != is_acyclic(hard)


@given(_edges, st.randoms(use_true_random=False))
def test_dropping_soft_edges(edges: list[Edge], random: Random) -> None:
    """What is left is acyclic; only soft edges go; none that went could have stayed; the order of the input is
    nothing."""
    members = {unit for knot, _ in hard_cycles(edges) for unit in knot}
    edges = [edge for edge in edges if edge.first not in members and edge.then not in members]
    dropped = [item.edge for item in drop_soft(edges)]
    left = [edge for edge in edges if edge not in dropped]
    assert all(edge.soft for edge in dropped)
    assert is_acyclic(left)
    assert not any(is_acyclic([*left, edge]) for edge in dropped)
    shuffled = list(edges)
    random.shuffle(shuffled)
    assert [item.edge for item in drop_soft(shuffled)] == dropped
    waves = start_waves({unit for edge in left for unit in (edge.first, edge.then)}, left)
    place = {unit: number for number, wave in enumerate(waves) for unit in wave}
    assert all(place[edge.first] < place[edge.then] for edge in left)


def test_waves_of_a_cycle_are_a_bug_of_the_caller() -> None:
    """A cycle that nobody broke is an assertion, not a short list."""
    with pytest.raises(AssertionError):
        start_waves("ab", [Edge("a", "b", "b", "after"), Edge("b", "a", "a", "after")])
