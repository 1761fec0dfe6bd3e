"""A mutation run over ``supervisord_py/core``: one small slip at a time, and the fast tests have to notice.

Theory of operation
-------------------
Every module of the core is parsed, and every place where a plausible slip can be made is a *mutant*: a comparison
flipped, ``and`` for ``or``, a condition negated, a constant off by one, a statement left out, a return value dropped,
another member of the same enum, ``+`` for ``-``.

What judges a mutant are *checks*: the single tests of ``TESTS``, and single seeds of the simulated world. This process
runs them all once, and writes down which lines of the core each of the quick ones executes and how long it takes. Then
it forks a child for each mutant. A slip in a function is put into the function that the child has inherited (its code
is exchanged, so all who hold the function have it); one outside of functions needs a fresh process, in which an import
hook gives it the changed module. The child runs the checks that come to the changed statement, those first that execute
little else and are quick, until one fails. A check that needs many times its usual processor time has found the mutant
too. What survives is printed; ``docs/mutation.md`` says why what is left may stay.

Run it on a clean tree: ``python tests/sim/mutation_run.py --sample 400 --seed 1`` (``make mutate``).
"""

import argparse
import ast
import contextlib
import copy
import gc
import importlib.abc
import importlib.machinery
import io
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "supervisord_py" / "core"
ENUMS = (ROOT / "supervisord_py" / "model" / "states.py", *sorted(CORE.glob("*.py")))
TESTS = (
    "tests/unit/core", "tests/scripts", "tests/compat/test_rows.py", "tests/property/test_jobs.py",
    "tests/property/test_graph.py", "tests/property/test_any_facts.py", "tests/property/test_snapshot.py",
    "tests/property/test_reload.py", "tests/property/test_rollout.py",
)  # fmt: skip
SEEDS_PER_TEST = 40
"""Of a test that is made for more seeds than this, the first ones judge."""
CPU_FACTOR, CPU_AT_LEAST_S = 20, 3
"""A check that needs so many times its usual processor time, and at least so much, has noticed something."""
MEMORY_BYTES = 4 << 30
SURVIVED, KILLED_BY, TIMED_OUT, CRASHED = 0, 10, 3, 4
"""Exit codes of a child: ``KILLED_BY`` plus the number of the kind of check."""
KINDS = ("unit", "scripts", "compat", "world", "property")


@dataclass(frozen=True)
class Mutant:
    """One slip: where, what, and how it is made."""

    module: str
    path: Path
    line: int
    where: str
    what: str
    place: tuple[object, ...] = field(repr=False)
    new: ast.AST = field(repr=False)
    lines: range = field(repr=False)
    """The lines of the statement that is changed (of its head, if it holds others); one of them is executed by every
    check that can notice.
    """

    @property
    def source(self) -> str:
        """The module as it would be."""
        tree = ast.parse(self.path.read_text(encoding="utf-8"))
        _put(tree, self.place, self.new)
        return ast.unparse(ast.fix_missing_locations(tree))

    @property
    def name(self) -> str:
        """A name for this run alone."""
        return f"{self.path.name}/{'/'.join(map(str, self.place))}/{self.what}"

    @property
    def key(self) -> str:
        """A name that outlives a change of line numbers."""
        return f"{self.path.name}: {self.where}: {self.what}"


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
}  # fmt: skip


def read_enums() -> dict[str, list[str]]:
    """Return the members of every enum that the core uses, by its name."""
    found: dict[str, list[str]] = {}
    for path in ENUMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Enum" for base in node.bases):
                members = [stmt.targets[0].id for stmt in node.body if _is_member(stmt)]  # type: ignore[attr-defined]
                found[node.name] = members
    return found


def _is_member(stmt: ast.stmt) -> bool:
    return isinstance(stmt, ast.Assign) and isinstance(stmt.targets[0], ast.Name)


class Planter(ast.NodeVisitor):
    """Finds every place for a slip in one module; each is told as a path into the tree and what would stand there."""

    def __init__(self, enums: dict[str, list[str]]) -> None:
        self.enums = enums
        self.places: list[tuple[int, str, str, list[object], ast.AST, range]] = []
        self._path: list[object] = []
        self._statement: ast.stmt | None = None
        self._scope: list[str] = []

    def plant(self, node: ast.AST, new: ast.AST, what: str) -> None:
        line = getattr(node, "lineno", 0)
        where = ".".join(self._scope) or "module"
        self.places.append((line, where, what, list(self._path), new, _lines(self._statement)))

    def visit(self, node: ast.AST) -> None:
        outer = self._statement
        if isinstance(node, ast.stmt):
            self._statement = node
        super().visit(node)
        self._statement = outer

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            if isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, ast.AST):
                        self._path += [name, index]
                        self.visit(item)
                        del self._path[-2:]
            elif isinstance(value, ast.AST):
                self._path.append(name)
                self.visit(value)
                self._path.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = {getattr(base, "id", "") for base in node.bases}
        if "Enum" in bases:
            return
        self._scope.append(node.name)
        for index, item in enumerate(node.body):
            self._path += ["body", index]
            self.visit(item)
            del self._path[-2:]
        self._scope.pop()

    def visit_Assert(self, node: ast.Assert) -> None:
        """An assertion tells of a bug: without one nothing changes."""

    def visit_Raise(self, node: ast.Raise) -> None:
        """What is raised is a refusal that tests look for, or a bug."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Words for people."""

    def visit_If(self, node: ast.If) -> None:
        self._negate(node.test, "test")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test, "test")
        self.generic_visit(node)

    def _negate(self, test: ast.expr, name: str) -> None:
        if isinstance(test, ast.Compare) or (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            return
        self._path.append(name)
        self.plant(test, ast.UnaryOp(ast.Not(), test), f"`{ast.unparse(test)}` negated")
        self._path.pop()

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, op in enumerate(node.ops):
            new = copy.deepcopy(node)
            new.ops[index] = COMPARISONS[type(op)]()
            self.plant(node, new, f"`{ast.unparse(node)}` -> `{ast.unparse(new)}`")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        new = copy.deepcopy(node)
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.plant(node, new, f"`{ast.unparse(node)}` -> `{ast.unparse(new)}`")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.plant(node, node.operand, f"`{ast.unparse(node)}` -> `{ast.unparse(node.operand)}`")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in OPERATORS:
            new = copy.deepcopy(node)
            new.op = OPERATORS[type(node.op)]()
            self.plant(node, new, f"`{ast.unparse(node)}` -> `{ast.unparse(new)}`")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.plant(node, ast.Constant(not node.value), f"{node.value} -> {not node.value}")
        elif isinstance(node.value, int):
            self.plant(node, ast.Constant(node.value + 1), f"{node.value} -> {node.value + 1}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.attr in (members := self.enums.get(node.value.id, [])):
            other = members[(members.index(node.attr) + 1) % len(members)]
            if other != node.attr:
                new = ast.Attribute(node.value, other, node.ctx)
                self.plant(node, new, f"{ast.unparse(node)} -> {ast.unparse(new)}")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        self.plant(node, ast.Pass(), f"without `{ast.unparse(node)}`")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._scope and all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self.plant(node, ast.Pass(), f"without `{ast.unparse(node)}`")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.plant(node, ast.Pass(), f"without `{ast.unparse(node)}`")
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self.plant(node, ast.Pass(), f"without `{ast.unparse(node)}`")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.plant(node, ast.Pass(), "without `continue`")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self.plant(node, ast.Return(ast.Constant(None)), f"`{ast.unparse(node)}` -> `return None`")
        if node.value is None:
            self.plant(node, ast.Pass(), "without `return`")
        self.generic_visit(node)


def find_mutants(path: Path, enums: dict[str, list[str]]) -> Iterator[Mutant]:
    """Yield every mutant of one module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    planter = Planter(enums)
    planter.visit(tree)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for line, where, what, place, new, lines in planter.places:
        yield Mutant(module, path, line, where, " ".join(what.split())[:160], tuple(place), new, lines)


def _lines(statement: ast.stmt | None) -> range:
    match statement:
        case None:
            return range(0)
        case ast.If(test=head) | ast.While(test=head) | ast.For(iter=head) | ast.Match(subject=head):
            last = head
        case ast.With(items=items):
            last = items[-1].context_expr
        case _:
            last = statement
    return range(statement.lineno, (last.end_lineno or last.lineno) + 1)


def _put(tree: ast.AST, place: tuple[object, ...], new: ast.AST) -> None:
    owner: object = tree
    for step in place[:-1]:
        owner = owner[step] if isinstance(step, int) else getattr(owner, str(step))  # type: ignore[index]
    last = place[-1]
    if isinstance(last, int):
        owner[last] = new  # type: ignore[index]
    else:
        setattr(owner, str(last), new)


# judging, in a child


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives one module from a text, as if its file said that."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self._source = mutant, mutant.source

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.mutant.module:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self.mutant.path))

    def get_filename(self, fullname: str) -> str:
        return str(self.mutant.path)

    def get_data(self, path: str | bytes) -> bytes:
        return self._source.encode()

    def get_code(self, fullname: str) -> object:
        return compile(self._source, str(self.mutant.path), "exec")


def exchange(mutant: Mutant) -> bool:
    """Put the changed code into the function that is loaded already; False if the slip is in no function's body."""
    owner: object = sys.modules.get(mutant.module)
    code = compile(mutant.source, str(mutant.path), "exec")
    if owner is None or {"defaults", "kw_defaults"} & set(mutant.place):
        return False
    for name in mutant.where.split("."):
        owner = vars(owner).get(name)
        found = [each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name]
        if isinstance(owner, classmethod | staticmethod):
            owner = owner.__func__
        if isinstance(owner, property):
            owner = owner.fget
        if not isinstance(owner, type | FunctionType) or len(found) != 1:
            return False
        code = found[0]
        if isinstance(owner, FunctionType):
            owner.__code__ = code
            return True
    return False


@dataclass
class Check:
    """One thing that judges: a test, or a seed of the simulated world."""

    name: str
    kind: str
    run: Callable[[], bool]
    """Runs it; True if all is well."""
    cpu_s: float = 0.0
    lines: frozenset[tuple[str, int]] | None = None
    """What it executes of the core; None: any line, as far as is known."""


class Judge:
    """The plugin that turns a session of pytest into a mutation run: it has collected the tests, ``work`` uses them."""

    def __init__(self, seeds: int, work: Callable[[list[Check]], int]) -> None:
        self.verdict = CRASHED
        self._seeds, self._work = seeds, work
        self._is_good = True

    def pytest_sessionstart(self) -> None:
        """Set hypothesis: the same examples each time, and a failure is enough, no smaller one is looked for."""
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            "mutation", parent=hypothesis.settings.get_profile("loaded"), derandomize=True, database=None, phases=phases
        )
        hypothesis.settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._is_good &= not report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.verdict = self._work(list(self._checks(session)))
        return True

    def _checks(self, session: pytest.Session) -> Iterator[Check]:
        made: Counter[str] = Counter()
        for item in session.items:
            name = item.nodeid.partition("[")[0]
            made[name] += 1
            kind = item.nodeid.split("/")[1]
            if kind != "property" or made[name] <= SEEDS_PER_TEST:
                yield Check(item.nodeid, kind, self._runner(item))
        for seed in range(self._seeds):
            yield Check(f"world {seed}", "world", _world(seed))

    def _runner(self, item: pytest.Item) -> Callable[[], bool]:
        def run() -> bool:
            self._is_good = True
            # What follows needs nothing but the session: so tests can run in any order, and again.
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=item.session)
            return self._is_good

        return run


def _world(seed: int) -> Callable[[], bool]:
    def run() -> bool:
        from supervisord_py.testing.world import run_seeds

        return all(outcome.violation is None for outcome in run_seeds([seed]))

    return run


def with_checks(seeds: int, work: Callable[[list[Check]], int]) -> int:
    """Collect all checks in this process and hand them to ``work``; returns what it returns."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    judge = Judge(seeds, work)
    options = ["-q", "-s", "--tb=no", "-W", "ignore", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*options, *TESTS], plugins=[judge])
    return judge.verdict


def measure(checks: Sequence[Check]) -> list[str]:
    """Run every check once, note its time, and the lines that it executes if it is quick; returns what fails."""
    failing: list[str] = []
    for check in checks:
        seen: set[tuple[str, int]] = set()
        tracing = check.kind in ("unit", "scripts", "compat")
        began_s = time.process_time()
        with _lines_to(seen) if tracing else contextlib.nullcontext():
            if not check.run():
                failing.append(check.name)
        check.cpu_s = time.process_time() - began_s
        check.lines = frozenset(seen) if tracing else None
    return failing


@contextlib.contextmanager
def _lines_to(seen: set[tuple[str, int]]) -> Iterator[None]:
    core = f"{CORE}/"

    def on_call(frame: FrameType, what: str, argument: object) -> Callable[..., Any] | None:
        if not (path := frame.f_code.co_filename).startswith(core):
            return None

        def on_line(frame: FrameType, what: str, argument: object) -> Callable[..., Any]:
            seen.add((path, frame.f_lineno))
            return on_line

        return on_line

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(None)


def in_order(mutant: Mutant, checks: Sequence[Check]) -> list[Check]:
    """Return the checks that can notice this mutant, those first that probably notice it soon."""
    wanted = {(str(mutant.path), line) for line in mutant.lines}
    close = [check for check in checks if check.lines is not None and not wanted.isdisjoint(check.lines)]
    close.sort(key=lambda check: check.cpu_s * len(check.lines or ()))
    return close + [check for check in checks if check.lines is None]


def judge(checks: Sequence[Check]) -> int:
    """Run checks in this process until one fails; returns the exit code of a child."""
    signal.signal(signal.SIGVTALRM, lambda *_: os._exit(TIMED_OUT))
    for check in checks:
        signal.setitimer(signal.ITIMER_VIRTUAL, max(CPU_AT_LEAST_S, CPU_FACTOR * check.cpu_s))
        try:
            is_good = check.run()
        except BaseException:  # noqa: BLE001 - whatever it raises, it was noticed
            is_good = False
        if not is_good:
            return KILLED_BY + KINDS.index(check.kind)
    return SURVIVED


# the run


def run(mutants: Sequence[Mutant], checks: Sequence[Check], seeds: int, workers: int) -> list[tuple[Mutant, str]]:
    """Judge all mutants; returns each with ``survived``, ``time-out`` or the kind of check that noticed."""
    verdicts: list[tuple[Mutant, str]] = []
    running: dict[int, Mutant] = {}
    todo = list(reversed(mutants))
    gc.collect()
    gc.freeze()
    while todo or running:
        while todo and len(running) < workers:
            mutant = todo.pop()
            pid = os.fork()
            if pid == 0:
                _judge_in_child(mutant, checks, seeds)
            running[pid] = mutant
        pid, status = os.wait()
        if (mutant := running.pop(pid, None)) is None:
            continue
        verdict = _verdict(os.waitstatus_to_exitcode(status))
        verdicts.append((mutant, verdict))
        if verdict in ("survived", "crash"):
            _say(f"{verdict}: {mutant.path.name}:{mutant.line} {mutant.where}: {mutant.what}")
        if len(verdicts) % 50 == 0:
            _say(f"  {len(verdicts)} of {len(mutants)} judged")
    return verdicts


def _judge_in_child(mutant: Mutant | None, checks: Sequence[Check], seeds: int) -> None:
    code = CRASHED
    try:
        os.setsid()
        _quiet()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        if mutant is None:
            os._exit(judge(checks))
        if not exchange(mutant):
            os.execv(sys.executable, [sys.executable, __file__, "--one", mutant.name,
                                      "--only", mutant.path.name, "--seeds", str(seeds)])  # fmt: skip
        code = judge(in_order(mutant, checks))
    finally:
        os._exit(code)


def _verdict(code: int) -> str:
    if code == SURVIVED:
        return "survived"
    number = code - KILLED_BY
    return KINDS[number] if 0 <= number < len(KINDS) else "time-out" if code == TIMED_OUT else "crash"


def _quiet() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the run; the exit status is 1 when five in a hundred mutants or more survive."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, help="judge so many, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the drawing (default 1)")
    parser.add_argument("--seeds", type=int, default=60, help="worlds that each mutant has to survive (default 60)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="children at a time")
    parser.add_argument("--only", nargs="*", help="modules of the core to mutate: life.py engine.py ...")
    parser.add_argument("--without", nargs="*", default=[], help="modules of the core to leave alone")
    parser.add_argument("--again", type=Path, help="judge the survivors of this earlier --json once more")
    parser.add_argument("--json", type=Path, help="write the survivors there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    enums = read_enums()
    names = {path.name for path in CORE.glob("*.py")} & set(options.only or (p.name for p in CORE.glob("*.py")))
    paths = [path for path in sorted(CORE.glob("*.py")) if path.name in names - set(options.without)]
    mutants = [mutant for path in paths for mutant in find_mutants(path, enums)]
    total = len(mutants)
    if options.one is not None:
        sys.meta_path.insert(0, Changed(next(mutant for mutant in mutants if mutant.name == options.one)))
        return with_checks(options.seeds, judge)
    if options.again is not None:
        wanted = set(json.loads(options.again.read_text(encoding="utf-8")))
        mutants = [mutant for mutant in mutants if mutant.key in wanted]
    if options.sample is not None and options.sample < len(mutants):
        mutants = random.Random(options.seed).sample(mutants, options.sample)
    _say(f"{total} mutants in {len(paths)} modules, {len(mutants)} to judge (seed {options.seed})")

    def work(checks: list[Check]) -> int:
        if failing := measure(checks):
            _say(f"{len(failing)} checks fail without any mutant: mend that first: {failing[:5]}")
            return 2
        _say(f"{len(checks)} checks in {sum(check.cpu_s for check in checks):.0f} s")
        if (pid := os.fork()) == 0:
            _judge_in_child(None, checks, options.seeds)
        if _verdict(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) != "survived":
            _say("a child without any slip does not survive: what ends the others is not their slip")
            return 2
        began_s = time.monotonic()
        verdicts = run(mutants, checks, options.seeds, options.workers)
        _report(verdicts, time.monotonic() - began_s, options.json)
        return int(20 * sum(verdict == "survived" for _, verdict in verdicts) >= len(verdicts))

    return with_checks(options.seeds, work)


def _say(line: str) -> None:
    """Print to the people: what pytest says of the single tests goes nowhere."""
    print(line, file=sys.__stdout__, flush=True)


def _report(verdicts: Sequence[tuple[Mutant, str]], took_s: float, json_path: Path | None) -> None:
    survivors = [mutant for mutant, verdict in verdicts if verdict == "survived"]
    by_kind = dict(Counter(verdict for _, verdict in verdicts))
    share = 100 * len(survivors) / max(1, len(verdicts))
    _say(f"{len(verdicts)} mutants, {len(survivors)} survived ({share:.1f} %), {by_kind}, {took_s:.0f} s")
    if json_path is not None:
        json_path.write_text(json.dumps(sorted(mutant.key for mutant in survivors), indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
