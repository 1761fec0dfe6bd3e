"""The laws of the relation graph, over random ones."""

from graphlib import CycleError, TopologicalSorter

from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.core.graph import Graph, find_cycle
from supervisord_py.model.states import Until
from supervisord_py.model.unit import Dependency, Unit, UnitKind

NAMES = "abcdefg"
Edges = dict[str, list[str]]
edges = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), unique=True), max_size=7)


@given(edges)
def test_a_cycle_is_found_exactly_when_there_is_one(graph: Edges) -> None:
    """Agrees with the standard library's sorter, and what is returned is a cycle of the graph."""
    cycle = find_cycle(graph)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        assert cycle is not None
        following = [*cycle[1:], cycle[0]]
        assert all(after in graph[before] for before, after in zip(cycle, following, strict=True))
    else:
        assert cycle is None


dependencies = st.lists(
    st.builds(Dependency, unit=st.sampled_from(NAMES), until=st.sampled_from(Until), ordered=st.booleans()), max_size=3
).map(tuple)


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.builds(
            Unit,
            name=st.just(""),
            kind=st.just(UnitKind.TARGET),
            requires=dependencies,
            wants=dependencies,
            binds_to=dependencies,
            after=dependencies,
            before=st.lists(st.sampled_from(NAMES), unique=True, max_size=2).map(tuple),
            conflicts=st.lists(st.sampled_from(NAMES), unique=True, max_size=2).map(tuple),
        ),
    )
)
def test_every_relation_is_seen_from_both_ends(units: dict[str, Unit]) -> None:
    """after and before mirror each other, so do conflicts and requirements; no pair has two edges."""
    graph = Graph(units)
    for name in NAMES:
        own = graph[name]
        assert len({edge.other for edge in own.after}) == len(own.after)
        assert all(name in graph[edge.other].before for edge in own.after)
        assert all(name in [edge.other for edge in graph[other].after] for other in own.before)
        assert all(name in graph[other].conflicted_by for other in own.conflicts if other != name)
        for dependency in (*own.requires, *own.binds_to):
            assert dependency.unit == name or name in graph[dependency.unit].required_by
        assert len(set(own.required_by)) == len(own.required_by)


@given(edges)
def test_the_order_of_files_does_not_matter(graph: Edges) -> None:
    """The same units in another order give the same relations."""
    units = {
        name: Unit(name, UnitKind.TARGET, requires=tuple(Dependency(other) for other in others))
        for name, others in graph.items()
    }
    backwards = dict(reversed(units.items()))
    assert all(Graph(units)[name] == Graph(backwards)[name] for name in NAMES)
