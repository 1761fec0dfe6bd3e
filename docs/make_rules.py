"""Writes ``docs/restart-rules.md``: what is restarted, after how long, what is counted, and what quarantine means.

``python docs/make_rules.py`` writes, with ``--check`` it only says whether the page is out of date (exit 1). Nothing in
the tables is typed: each cell is what the core decides when it is asked, or what it has come to when the story is
played on a stage without a machine.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from supervisord_py.core.events import ExitStatus
from supervisord_py.core.restart import exit_result, jitter_ns, restart_delay_ns, wants_restart
from supervisord_py.core.state import REST, STOPPING
from supervisord_py.core.view import unit_status
from supervisord_py.model.states import Restart, Result, Role, SubState
from supervisord_py.model.unit import (
    SECOND_NS,
    Command,
    Dependency,
    ExitStatuses,
    Quarantine,
    RestartPolicy,
    Service,
    Unit,
    UnitKind,
)
from supervisord_py.model.values import format_signal, format_timespan
from supervisord_py.testing.scene import Scene

PAGE = Path(__file__).resolve().parent / "restart-rules.md"
MINUTE_NS = 60 * SECOND_NS

HEAD = """\
# When a unit is restarted, and when no more

<!-- Written by docs/make_rules.py: the tables are what the code decides. -->

A life of a unit ends with a *result*. The policy (`restart`) says after which results another life follows,
`restart-sec` and its companions after how long. Each failure is counted; at `[quarantine] failures` of them the unit is
*quarantined*: stopped, loud, and started by nobody but a person or its `retry-after`. What people ask for wins over all
of it. `supctl why UNIT` says where a unit stands in these tables, `supctl lives UNIT` how
it got there.
"""

ENDS = """\
## Which result an end is

`success-exit-status` adds codes and signals that are a success as well. Other results are found by the supervisor:
`timeout`, `watchdog`, `progress`, `errors`, `health`, `protocol`, `resources`. The first failure of a life is its
result.
"""
POLICIES = """\
## After which result a unit is restarted

An order to stop, the shutdown, and the end of a unit that it is bound to are followed by no restart, whatever the
policy says; nor is a start that was not made (`dependency`, `start-limit-hit`).
"""
DELAYS = """\
## After how long

The delay of each restart that nobody asked for, counted from the last time that the unit was healthy for
`restart-reset-sec`. On top comes a random part of at most `restart-jitter` (a tenth): JITTER.
"""
RESETS_HEAD = """\
## When the counts begin anew

A unit with the defaults has failed three times within seconds and is up again.
"""
QUARANTINE = """\
## Quarantine

A unit with the defaults (and `retry-after = "10min"` where that is said) has failed five times. *On trial* is the one
more life that `retry-after` gives it: its next failure brings it back at once, its health clears it. Each cell is what
the unit is then, and how many failures are counted against it.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


# what is restarted


def ends() -> str:
    """Which result a main process's end is."""
    statuses = [ExitStatus(code=0), ExitStatus(code=1), ExitStatus()]
    statuses += [ExitStatus(signal=number) for number in (1, 2, 13, 15, 9, 11)]
    statuses.append(ExitStatus(signal=6, core_dumped=True))

    def words(status: ExitStatus) -> str:
        if status.code is not None:
            return f"exit code {status.code}"
        if status.signal is None:
            return "nobody saw how"
        return f"{format_signal(status.signal)}{' with a core dump' if status.core_dumped else ''}"

    rows = [
        (
            words(status),
            exit_result(status, daemon=True).value,
            exit_result(status, daemon=False).value,
        )
        for status in statuses
    ]
    return table(("a process ends by", "main process of a daemon", "oneshot, or any other command"), rows)


def policies() -> str:
    """Whether each policy restarts after each result."""

    def cell(restart: Restart, result: Result, *, oneshot: bool = False) -> str:
        return "yes" if wants_restart(RestartPolicy(restart=restart), result, oneshot=oneshot) else ""

    rows = []
    for result in Result:
        if result in (Result.START_LIMIT_HIT, Result.DEPENDENCY):
            # No life has ended like that: a start was not made.
            continue
        rows.append([f"`{result.value}`", *(cell(restart, result) for restart in Restart)])
        for_oneshot = [cell(restart, result, oneshot=True) for restart in Restart]
        if for_oneshot != rows[-1][1:]:
            rows.append([f"`{result.value}` of a oneshot", *for_oneshot])
    return table(("result", *(f"`{restart.value}`" for restart in Restart)), rows)


def forced() -> str:
    """What the two lists of exit statuses do to it."""
    among, none = ExitStatuses(frozenset({7})), ExitStatuses()
    rows = []
    for prevent in (none, among):
        for force in (none, among):
            decided = [
                wants_restart(
                    RestartPolicy(restart=restart, prevent=prevent, force=force),
                    Result.EXIT_CODE,
                    oneshot=False,
                    main=ExitStatus(code=7),
                )
                for restart in (Restart.NO, Restart.ALWAYS)
            ]
            named = ["7" if each is among else "" for each in (prevent, force)]
            rows.append((*named, *("yes" if each else "no" for each in decided)))
    head = ("`restart-prevent-exit-status`", "`restart-force-exit-status`", '`restart = "no"`', '`restart = "always"`')
    return table(head, rows)


# after how long

SCHEDULES = (
    ("the defaults", RestartPolicy()),
    ("`restart-sec = 1`, `restart-steps = 4`, `restart-max-delay-sec = \"5min\"`",
     RestartPolicy(delay_ns=SECOND_NS, steps=4, max_delay_ns=5 * MINUTE_NS)),
    ("`restart-sec = 5`, `restart-steps = 0`", RestartPolicy(delay_ns=5 * SECOND_NS, steps=0)),
)  # fmt: skip
ATTEMPTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100)


def delays() -> str:
    def words(span_ns: int) -> str:
        return format_timespan(round(span_ns, -6))

    rows = [(name, *(words(restart_delay_ns(policy, attempt)) for attempt in ATTEMPTS)) for name, policy in SCHEDULES]
    return table(("restart number", *map(str, ATTEMPTS)), rows)


def jitter() -> str:
    policy = RestartPolicy()
    most_ns = jitter_ns(policy, MINUTE_NS, (1 << 64) - 1)
    return f"{format_timespan(MINUTE_NS)} becomes up to {format_timespan(round(MINUTE_NS + most_ns, -6))}"


# stories


class Story:
    """One unit, ``web``, on a stage."""

    def __init__(
        self, *, failures: int = 5, stub: bool = False, retry: bool = False, others: Sequence[Unit] = ()
    ) -> None:
        self.stub, self.retry, self.others = stub, retry, tuple(others)
        self.scene = Scene([self._web(failures), *self.others])
        self.ask("start")

    def _web(self, failures: int) -> Unit:
        quarantine = Quarantine(
            stub=Command(("/bin/stub",)) if self.stub else None,
            retry_after_ns=10 * MINUTE_NS if self.retry else None,
        )
        policy = RestartPolicy(jitter=0.0, failures=failures)
        service = Service(exec_start=(Command(("/bin/web",)),), restart=policy)
        return Unit("web", UnitKind.SERVICE, service, quarantine=quarantine)

    def ask(self, verb: str, unit: str = "web") -> None:
        self.scene.handle(self.scene.request(verb, (unit,)))
        self.settle()

    def settle(self) -> None:
        """What was asked to run runs, what was asked to end ends; nothing else happens."""
        while True:
            pending = next((each for each in self.scene.cast.values() if not each.running), None)
            sub = unit_status(self.scene.manager, "web").sub_state
            running = next((each for each in self.scene.cast.values() if each.running and each.unit == "web"), None)
            if pending is not None:
                self.scene.handle(self.scene.spawned(pending.unit))
            elif running is not None and SubState(sub) in STOPPING:
                self.scene.handle(self.scene.exited("web", ExitStatus(signal=15)))
            else:
                return

    def wait(self, span_ns: int) -> None:
        for _ in self.scene.pass_time(span_ns):
            pass
        self.settle()

    def fail(self, times: int = 1) -> None:
        """The main process fails, and what follows by itself follows."""
        for time in range(times):
            self.scene.handle(self.scene.exited("web", ExitStatus(code=1), role=Role.MAIN))
            self.settle()
            if time + 1 < times:
                self.wait(MINUTE_NS)

    def stub_ends(self) -> None:
        self.scene.handle(self.scene.exited("web", ExitStatus(code=1), role=Role.STUB))
        self.settle()

    def load(self, failures: int) -> None:
        self.scene.load([self._web(failures), *self.others])
        self.settle()

    def new_manager(self) -> None:
        self.scene.manager_dies()
        self.settle()

    def new_supervisor(self) -> None:
        """The supervisor has ended (or was killed with all its processes) and is started again."""
        kept = self.scene.manager.snapshot()
        self.scene = Scene()
        self.scene.manager.restore_counters(kept)
        self.scene.load([self._web(5), *self.others], start_enabled=True)
        self.settle()

    def counts(self) -> tuple[str, str, str]:
        """Failures, automatic restarts, and the delay that the next failure would bring."""
        state = self.scene.manager.ledger.state("web")
        delay_ns = restart_delay_ns(RestartPolicy(jitter=0.0), state.backoff + 1)
        return str(state.failures), str(state.restarts), format_timespan(round(delay_ns, -6))

    def words(self) -> str:
        status = unit_status(self.scene.manager, "web")
        state = self.scene.manager.ledger.state("web")
        told = f"{status.active_state} ({status.sub_state})"
        if state.half_open and SubState(status.sub_state) not in REST:
            told += ", on trial"
        return f"{told}, {status.failures} counted"


Step = Callable[[Story], None]

RESETS: tuple[tuple[str, Step], ...] = (
    ("nothing", lambda story: None),
    ("it is up for a minute", lambda story: story.wait(MINUTE_NS)),
    ("it is up for `restart-reset-sec` (ten minutes)", lambda story: story.wait(10 * MINUTE_NS)),
    ("`supctl restart`", lambda story: story.ask("restart")),
    ("`supctl stop`, `supctl start`", lambda story: (story.ask("stop"), story.ask("start"))[0]),
    ("`supctl reset-failed`", lambda story: story.ask("reset-failed")),
    ("`supctl daemon-reload`", lambda story: story.load(5)),
    ("the manager is killed or replaced", lambda story: story.new_manager()),
    ("the supervisor ends and is started again", lambda story: story.new_supervisor()),
)


def resets() -> str:
    """What becomes of the counts of a unit that has failed three times and is up again."""
    rows = []
    for name, step in RESETS:
        story = Story()
        story.fail(3)
        story.wait(2 * SECOND_NS)
        step(story)
        rows.append((name, *story.counts()))
    return table(("then", "failures", "automatic restarts", "delay after the next failure"), rows)


PLACES: tuple[tuple[str, Callable[[], Story]], ...] = (
    ("quarantined", lambda: _quarantined(Story())),
    ("quarantined, a `stub` runs", lambda: _quarantined(Story(stub=True))),
    ("quarantined, with `retry-after`", lambda: _quarantined(Story(retry=True))),
    ("on trial after `retry-after`", lambda: _on_trial(Story(retry=True))),
)

STEPS: tuple[tuple[str, Step], ...] = (
    ("`supctl release`", lambda story: story.ask("release")),
    ("`supctl start`", lambda story: story.ask("start")),
    ("`supctl restart`", lambda story: story.ask("restart")),
    ("`supctl reset-failed`", lambda story: story.ask("reset-failed")),
    ("`supctl stop`", lambda story: story.ask("stop")),
    ("`supctl stop`, then an hour", lambda story: (story.ask("stop"), story.wait(60 * MINUTE_NS))[0]),
    ("ten minutes (`retry-after`, `restart-reset-sec`)", lambda story: story.wait(10 * MINUTE_NS)),
    ("its stub ends", lambda story: story.stub_ends()),
    ("it fails once more", lambda story: story.fail()),
    ("a unit that requires it is started", lambda story: story.ask("start", "app")),
    ("its file allows more failures", lambda story: story.load(50)),
    ("the manager is killed or replaced", lambda story: story.new_manager()),
    ("the supervisor ends and is started again", lambda story: story.new_supervisor()),
)


APP = Unit(
    "app",
    UnitKind.SERVICE,
    Service(exec_start=(Command(("/bin/app",)),)),
    requires=(Dependency("web"),),
    enabled=False,
)


def _quarantined(story: Story) -> Story:
    story.others = (APP,)
    story.load(5)
    story.fail(5)
    return story


def _on_trial(story: Story) -> Story:
    _quarantined(story)
    story.wait(10 * MINUTE_NS)
    return story


def _is_possible(story: Story, name: str) -> bool:
    """Whether the step can happen there at all: a stub has to run to end, and a process to fail."""
    roles = {each.role for each in story.scene.cast.values() if each.unit == "web"}
    if name == "its stub ends":
        return Role.STUB in roles
    return name != "it fails once more" or Role.MAIN in roles


def quarantine() -> str:
    """State by event: what follows."""
    rows = [["(before)", *(make().words() for _, make in PLACES)]]
    for name, step in STEPS:
        row = [name]
        for _, make in PLACES:
            story = make()
            if not _is_possible(story, name):
                row.append("")
                continue
            step(story)
            row.append(story.words())
        rows.append(row)
    return table(("then", *(name for name, _ in PLACES)), rows)


def page() -> str:
    """Return the whole page."""
    parts = [
        HEAD,
        ENDS,
        ends(),
        POLICIES,
        policies(),
        "A main process that exits with 7:\n",
        forced(),
        DELAYS.replace("JITTER", jitter()),
        delays(),
        RESETS_HEAD,
        resets(),
        QUARANTINE,
        quarantine(),
    ]
    return "\n".join(parts)


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when the page is out of date")
    options = parser.parse_args()
    wanted = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    if options.check:
        print(f"{PAGE.name} is out of date: run python docs/make_rules.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
