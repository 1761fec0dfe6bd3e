"""Cycles: refused with the whole path and the files, or broken at a ``wants``."""

from unitset_rig import headlines, load_texts, service

from supervisord_py.model.drawing import draw_dot, draw_mermaid, draw_text, draw_waves, graph_document, waves


def test_a_cycle_is_refused_with_its_path_and_files() -> None:
    """Its units are bad-setting, and all that require them; the rest runs."""
    result = load_texts(
        {
            "a": service('requires = "b"'),
            "b": service('after = "c"'),
            "c": service('before = ["x", "b"]\nbinds-to = "a"'),
            "x": service(),
            "needs": service('requires = { unit = "a", ordered = false }'),
            "needs-needs": service('binds-to = "needs"'),
            "likes": service('wants = "a"'),
        }
    )
    assert list(result.unit_set.bad) == ["a", "b", "c", "needs", "needs-needs"]
    assert list(result.unit_set.units) == ["likes", "x"]
    cycle = result.problems[0]
    assert cycle.message == (
        "ordering cycle: a -> b -> c -> a (u/a.toml:2: a has requires = b; u/b.toml:2: b has after = c; "
        "u/c.toml:3: c has binds-to = a)"
    )
    assert cycle.hint == 'take one of them out, or write { unit = "b", ordered = false } into a'
    assert "a is bad-setting: u/a.toml:2:12" in headlines(result)[1]
    assert result.unit_set.bad["c"].reason == cycle.headline()


def test_a_wants_gives_way() -> None:
    """A cycle through a wants drops its order, with a warning that tells the way round; both units are loaded."""
    result = load_texts({"a": service('wants = ["x", "b"]'), "b": service('requires = "a"'), "x": service()})
    assert headlines(result) == [
        "u/a.toml:2:15: unit.wants: not ordered after b, which would close the cycle a -> b -> a"
    ]
    assert not result.has_errors and not result.unit_set.bad
    assert [(item.unit, item.ordered) for item in result.unit_set.units["a"].wants] == [("x", True), ("b", False)]


def test_a_wants_that_is_an_order_too_does_not_give_way() -> None:
    """``after`` beside ``wants`` is a hard order."""
    result = load_texts({"a": service('wants = "b"\nafter = "b"'), "b": service('requires = "a"')})
    assert list(result.unit_set.bad) == ["a", "b"]


def test_unordered_relations_make_no_cycle() -> None:
    """ordered = false is the way out, conflicts are no order; until is one whatever it says."""
    result = load_texts(
        {
            "a": service('requires = { unit = "b", ordered = false }\nconflicts = "c"'),
            "b": service('requires = "a"'),
            "c": service('after = "a"\nconflicts = "a"'),
        }
    )
    assert not result.problems
    result = load_texts(
        {"a": service('after = { unit = "b", until = "exited" }'), "b": service('wants = "a"\nafter = "a"')}
    )
    assert list(result.unit_set.bad) == ["a", "b"]


def test_two_cycles_are_two_problems() -> None:
    """Each unit's reason is its own cycle."""
    result = load_texts(
        {
            "a": service('after = "b"'),
            "b": service('after = "a"'),
            "y": service('after = "z"'),
            "z": service('after = "y"'),
        }
    )
    assert len(result.problems) == 2
    assert "a -> b -> a" in result.unit_set.bad["b"].reason
    assert "y -> z -> y" in result.unit_set.bad["z"].reason


GRAPH = {
    "web": service(
        'requires = ["db", { unit = "mig", until = "exited" }]\n'
        'wants = { unit = "cache", ordered = false }\nconflicts = "old"'
    ),
    "db": service('groups = "back"'),
    "mig": service('binds-to = "db"\nbefore = "z"'),
    "cache": service(),
    "old": service(),
    "z": service('after = "nowhere"'),
}


def test_waves() -> None:
    """Each unit starts in the wave after the last thing that it waits for."""
    unit_set = load_texts(GRAPH).unit_set
    assert waves(unit_set) == [["cache", "db", "old"], ["mig"], ["web", "z"]]
    assert draw_waves(unit_set) == "1  cache db old\n2  mig\n3  web z"


def test_drawings() -> None:
    """Text, DOT and Mermaid show the same edges; what is unusual about one is in its label."""
    unit_set = load_texts(GRAPH).unit_set
    assert draw_text(unit_set).split("\n")[-8:] == [
        "old",
        "web",
        "  requires: db",
        "  requires, until exited: mig",
        "  wants, unordered: cache",
        "  conflicts: old",
        "z",
        "  after: nowhere",
    ]
    dot = draw_dot(unit_set, order=True)
    assert '  "web" -> "mig" [label = "requires, until exited", style = solid]' in dot.split("\n")
    assert '{ rank = same; "cache"; "db"; "old" }' in dot
    mermaid = draw_mermaid(unit_set).split("\n")
    assert mermaid[0] == "graph LR"
    ids = {line.split('"')[1]: line.split("[")[0].strip() for line in mermaid if "[" in line}
    assert f'  {ids["web"]} -->|"requires"| {ids["db"]}' in mermaid
    assert f'  {ids["mig"]} ==>|"binds-to"| {ids["db"]}' in mermaid
    assert 'subgraph w2["wave 2"]' in draw_mermaid(unit_set, order=True)


def test_graph_document() -> None:
    """Units, edges and waves for programs."""
    document = graph_document(load_texts(GRAPH).unit_set)
    assert {"name": "db", "kind": "service", "groups": ["back"], "path": "u/db.toml"} in document["units"]
    assert {"from": "web", "to": "cache", "kind": "wants", "until": None, "ordered": False} in document["edges"]
    assert document["waves"][1] == ["mig"]
