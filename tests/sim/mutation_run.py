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
too. What survives all that is shown to mypy, as ``make lint`` would. What is left then is printed; ``docs/mutation.md``
says why it may stay.

Run it on a clean tree: ``python tests/sim/mutation_run.py --sample 400 --seed 1`` (``make mutate``).
"""

import argparse
import ast
import contextlib
import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import pytest
from slips import CORE, ROOT, Changed, Mutant, exchange, find_mutants, read_enums, read_equivalent, read_given

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


def run(
    mutants: Sequence[Mutant], checks: Sequence[Check], seeds: int, workers: int, folder: Path, quick: bool
) -> list[tuple[Mutant, str]]:
    """Judge all mutants; returns each with ``survived``, ``time-out``, ``types`` or the kind of check that noticed."""
    verdicts: list[tuple[Mutant, str]] = []
    running: dict[int, Mutant] = {}
    todo = list(reversed(mutants))
    types = Types(folder)
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
        if verdict == "survived" and not quick and types.refuse(mutant):
            verdict = "types"
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


class Types:
    """A copy of the package, in which mypy looks at one changed module at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._good: dict[Path, bool] = {}
        shutil.copytree(ROOT / "supervisord_py", folder / "supervisord_py")
        shutil.copy(ROOT / "pyproject.toml", folder)

    def refuse(self, mutant: Mutant) -> bool:
        """Tell whether mypy finds something in the module that it does not find without the slip."""
        place = self._folder / mutant.path.relative_to(ROOT)
        before = place.read_text(encoding="utf-8")
        try:
            # Without comments, as the changed one will be.
            if mutant.path not in self._good:
                self._good[mutant.path] = self._look(place, ast.unparse(ast.parse(before))) == 0
            return self._good[mutant.path] and self._look(place, mutant.source) == 1
        finally:
            place.write_text(before, encoding="utf-8")

    def _look(self, place: Path, text: str) -> int:
        place.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "-p", "supervisord_py.core"]
        variables = os.environ | {"MYPYPATH": "."}
        return subprocess.run(command, cwd=self._folder, env=variables, capture_output=True, check=False).returncode


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
    parser.add_argument("--quick", action="store_true", help="leave the property tests and mypy out (more survives)")
    parser.add_argument("--again", type=Path, help="judge the survivors of this earlier --json once more")
    parser.add_argument("--listed", action="store_true", help="judge those alone that equivalent.toml lists")
    parser.add_argument("--json", type=Path, help="write the survivors there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    enums, given, equivalent = read_enums(), read_given(), read_equivalent()
    names = {path.name for path in CORE.glob("*.py")} & set(options.only or (p.name for p in CORE.glob("*.py")))
    paths = [path for path in sorted(CORE.glob("*.py")) if path.name in names - set(options.without)]
    mutants = [mutant for path in paths for mutant in find_mutants(path, enums, given)]
    known = {mutant.key for mutant in mutants}
    if unknown := [slip for slip in equivalent if slip not in known and slip.partition(":")[0] in names]:
        raise SystemExit(f"equivalent.toml lists what is no slip (any more): {unknown}")
    if options.one is not None:
        sys.meta_path.insert(0, Changed(next(mutant for mutant in mutants if mutant.name == options.one)))
        return with_checks(options.seeds, judge)
    listed = [mutant for mutant in mutants if mutant.key in equivalent]
    mutants = listed if options.listed else [mutant for mutant in mutants if mutant.key not in equivalent]
    total = len(mutants)
    if options.again is not None:
        wanted = set(json.loads(options.again.read_text(encoding="utf-8")))
        mutants = [mutant for mutant in mutants if mutant.key in wanted]
    if options.sample is not None and options.sample < len(mutants):
        mutants = random.Random(options.seed).sample(mutants, options.sample)
    _say(f"{total} mutants in {len(paths)} modules, {len(mutants)} to judge (seed {options.seed})")
    _say(f"equivalent: {len(listed)}, listed")

    def work(checks: list[Check]) -> int:
        checks = [check for check in checks if check.kind != "property" or not options.quick]
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
        with tempfile.TemporaryDirectory(prefix="supervisord-py-mutants.") as folder:
            verdicts = run(mutants, checks, options.seeds, options.workers, Path(folder), options.quick)
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
