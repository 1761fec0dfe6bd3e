"""What is laid where: the plan of mounts against what it is to mean, path by path."""

from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.model.mount_plan import Kind, Lay, MountPlan, Rule, depth, is_within, plan_mounts
from supervisord_py.model.sandbox import Bind, Sandbox
from supervisord_py.model.sandbox_paths import lays_of, needs_mounts, rules_of

PATHS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4).map(lambda parts: "/" + "/".join(parts))
BELOW = PATHS.filter(lambda path: path != "/")
LAYS = st.builds(Lay, BELOW, st.sampled_from(Kind), st.just("lay"), read_only=st.booleans())
RULES = st.builds(Rule, PATHS, st.just("rule"), *[st.sampled_from([None, True, False])] * 2)


def in_effect(plan: MountPlan, path: str) -> tuple[bool, bool]:
    """Carry out the plan in mind: each shade sets the flags of all below, and what restores begins anew."""
    flags = (False, False)
    for shade in plan.shades:
        if is_within(path, shade.path):
            before = (False, False) if shade.restores else flags
            flags = (before[0] or shade.read_only, before[1] or shade.no_exec)
    return flags


def wanted(lays: list[Lay], rules: list[Rule], path: str) -> tuple[bool, bool]:
    """What is said of a path: by the nearest that says something, of one place the stricter; a lay begins anew."""
    found = []
    for ask in (lambda rule: rule.read_only, lambda rule: rule.no_exec):
        said = False
        for above in sorted({one.path for one in (*lays, *rules) if is_within(path, one.path)}, key=depth):
            here = [ask(rule) for rule in rules if rule.path == above and ask(rule) is not None]
            laid = [lay for lay in lays if lay.path == above]
            if laid:
                said = laid[-1].read_only if ask(Rule("/", "", read_only=True)) else False
                said = said or any(here)
            elif here:
                said = any(here)
        found.append(said)
    return found[0], found[1]


@given(lays=st.lists(LAYS, max_size=4, unique_by=lambda lay: lay.path), rules=st.lists(RULES, max_size=6), path=PATHS)
def test_every_path_has_the_flags_that_are_said_of_it(lays: list[Lay], rules: list[Rule], path: str) -> None:
    """However the entries lie within each other; what is below an inaccessible path does not matter."""
    plan = plan_mounts(lays, rules)
    if not any(lay.kind is Kind.INACCESSIBLE and is_within(path, lay.path) for lay in lays):
        assert in_effect(plan, path) == wanted(lays, rules, path)


@given(st.lists(LAYS, max_size=8), st.lists(RULES, max_size=8))
def test_what_is_within_comes_later(lays: list[Lay], rules: list[Rule]) -> None:
    """Both lists go from the root downwards, one entry a path, nothing below what is inaccessible."""
    plan = plan_mounts(lays, rules)
    for paths in ([lay.path for lay in plan.lays], [shade.path for shade in plan.shades]):
        assert len(set(paths)) == len(paths)
        assert all(not is_within(earlier, later) for at, later in enumerate(paths) for earlier in paths[:at])
    for closed in (lay for lay in plan.lays if lay.kind is Kind.INACCESSIBLE):
        inside = [one.path for one in (*plan.lays, *plan.shades) if one.path != closed.path]
        assert not any(is_within(path, closed.path) for path in inside)


@given(st.lists(LAYS, max_size=8), st.lists(RULES, max_size=8), BELOW)
def test_what_must_be_reached_is(lays: list[Lay], rules: list[Rule], path: str) -> None:
    """A path that something would hide is bound over it, and nothing that hides it is laid later."""
    needed = Lay(path, Kind.BIND, "", source=path)
    plan = plan_mounts(lays, rules, [needed])
    covers = [lay for lay in plan.lays if is_within(path, lay.path)]
    if covers:
        assert covers[-1].path == path
        assert all(lay.kind is not Kind.INACCESSIBLE for lay in covers[:-1])


def test_the_stronger_thing_stays() -> None:
    """An inaccessible path beats a bind, a bind an empty file system; of two binds the later one."""
    first, second = Lay("/a", Kind.BIND, "x", "/one"), Lay("/a", Kind.BIND, "x", "/two")
    assert plan_mounts([first, Lay("/a", Kind.TMPFS, "x"), second], []).lays == (second,)
    closed = Lay("/a", Kind.INACCESSIBLE, "x")
    assert plan_mounts([closed, first], []).lays == (closed,)


def test_a_unit_without_paths_needs_no_mounts() -> None:
    """And every key about paths needs them."""
    assert not needs_mounts(Sandbox(no_new_privileges=True))
    for sandbox in (
        Sandbox(private_tmp=True), Sandbox(private_mounts=True), Sandbox(protect_system="yes"),
        Sandbox(protect_home="tmpfs"),
        Sandbox(proc_subset="pid"), Sandbox(protect_kernel_modules=True), Sandbox(bind_paths=(Bind("/a", "/b"),)),
    ):  # fmt: skip
        assert needs_mounts(sandbox)
    strict = plan_mounts(lays_of(Sandbox(private_tmp=True), {}), rules_of(Sandbox(protect_system="strict")))
    assert in_effect(strict, "/etc") == (True, False)
    assert in_effect(strict, "/tmp") == in_effect(strict, "/dev/shm") == (False, False)
