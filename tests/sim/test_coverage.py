"""What the simulated world reaches: every cell of the core's table of transitions, every fault in every phase in which
it can happen. The figures are printed at the end of the run.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from supervisord_py.core.service import NOT_ENTERED, TRANSITIONS, Handler, Input
from supervisord_py.core.state import ARMED, BETWEEN_LIVES, REST
from supervisord_py.model.states import SubState
from supervisord_py.testing.profile import FAULTS, Profile
from supervisord_py.testing.script import run_script
from supervisord_py.testing.world import World

pytestmark = pytest.mark.xdist_group("coverage")
"""The worlds are run once, for both tests."""

WORLDS = 200
WORLDS_MAX = 1500
"""So many more, while anything has not been reached: a change of the core changes what each seed gets to."""

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.txt"))

MOST = 0.3
LESS = {
    "shutdown": 0.004, "forced": 0.5, "death_in_batch": 0.03, "death_after_commit": 0.03, "death_after_replies": 0.03,
    "keeper_lost": 0.02,
    "daemon_reload": 0.05, "suspend": 0.1, "wall_jump": 0.1, "stray": 0.02, "spawn_refused": 0.03,
    "spawn_failed": 0.08, "exec_slow": 0.1, "job_timeout": 0.1, "conditions": 0.2, "condition_fails": 0.2,
    "check_slow": 0.1, "records_lost": 0.05, "missing": 0.02, "bad_unit": 0.02, "part_of": 0.05, "upholds": 0.1,
    "hooks": 0.1, "requisite": 0.1, "tiny_set": 0.1, "late": 0.1, "crash_at_once": 0.1, "never_ready": 0.1,
    "exit_before_ready": 0.1, "apply": 0.05, "rolling": 0.05, "cancel_rollout": 0.05, "bad_release": 0.1,
    "exits_supervisor": 0.01, "stopped": 0.1, "look_slow": 0.1, "unwell": 0.1, "probe_slow": 0.1,
    "probe_impossible": 0.1, "until_empty": 0.01, "limits": 0.1, "pools": 0.1, "quarantine": 0.15, "event_hooks": 0.03,
    "reports_errors": 0.05, "pause": 0.3, "cancel": 0.1, "kill": 0.15, "reset_failed": 0.1, "silent": 0.05,
    "watchdogs": 0.15, "probes": 0.15, "timers": 0.1, "sockets": 0.3, "release": 0.1, "scale": 0.03,
    "accepts": 0.1, "breaches": 0.06, "new_bounds": 0.03, "degraded": 0.1,
    "new_settings": 0.03, "freeze_slow": 0.1, "freeze_fails": 0.1, "stub_ends": 0.1,
}  # fmt: skip
"""What would keep a world from getting far if it came as often as everything else."""

UP: dict[str, float] = {
    **LESS,
    **dict.fromkeys(
        ("conflicts", "requisite", "upholds", "conditions", "exec_condition", "job_timeout", "until_empty", "limits",
         "timers", "quarantine", "start_limit", "infinite_timeout", "shutdown", "scale"), 0.0),
    **dict.fromkeys(
        ("crash", "clean_exit", "kill", "restart", "cancel", "watchdog_trigger", "exit_before_ready", "never_ready",
         "no_daemon", "pid_file_never", "pid_file_wrong", "command_failed", "unwell", "runtime_max"), 0.05),
    "reload": 0.7, "notify_reload": 0.6, "reload_deaf": 0.5, "start_post": 0.4, "probes": 0.3, "main_pid": 0.5,
    "watchdogs": 0.3, "stopped": 0.2, "silent": 0.1, "early_deadline": 0.1,
}  # fmt: skip
"""What keeps units up and lets them reload."""

ENTERED = tuple(sub for sub in SubState if sub not in NOT_ENTERED)
NO_PROCESS = REST | BETWEEN_LIVES | ARMED
LIVE = tuple(sub for sub in ENTERED if sub not in NO_PROCESS)

MACHINE = (
    "keeper_lost",
    "daemon_reload", "wall_jump", "suspend", "death_in_the_batch", "death_after_the_commit",
    "death_after_the_replies", "death_with_the_keeper",
)  # fmt: skip

SHORT = frozenset(
    {
        SubState.FINAL_SIGTERM,
        SubState.FINAL_SIGKILL,
        SubState.RELOAD,
        SubState.STOP_WATCHDOG,
        SubState.AUTO_RESTART_QUEUED,
    }
)
RARE = SHORT | {SubState.STUB, SubState.PAUSED, SubState.WAITING, SubState.LISTENING, SubState.EXITED}  # fmt: skip

PHASES: dict[str, tuple[tuple[SubState, ...], str]] = {
    **dict.fromkeys(MACHINE, (ENTERED, "")),
    "shutdown": (tuple(sub for sub in ENTERED if sub not in RARE),
                 "an order is given once a world: the shortest and rarest phases are left to chance"),
    "forced": ((SubState.START, SubState.RUNNING, SubState.STOP_SIGTERM, SubState.STOP_POST, SubState.STOP,
                SubState.STUCK, SubState.DEAD, SubState.FAILED, SubState.CONDITION),
               "it follows a shutdown, in which little else goes on"),
    "spawn_failed": ((SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST, SubState.STOP,
                      SubState.STOP_POST, SubState.STOP_SIGTERM),
                     "elsewhere no process is being made; a reload command that cannot be made is seen in unit tests"),
    "command_hung": ((SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST, SubState.RELOAD,
                      SubState.STOP, SubState.STOP_POST),
                     "commands run in these phases; elsewhere one only begins late"),
    "ends_badly": ((SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST, SubState.RUNNING,
                    SubState.RELOAD, SubState.STOP, SubState.STOP_POST),
                   "in the other phases whatever ends was signalled, or nothing runs"),
    "ends_well": ((SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST, SubState.RUNNING,
                   SubState.RELOAD, SubState.STOP, SubState.STOP_POST),
                  "in the other phases whatever ends was signalled, or nothing runs"),
    "chatter": ((SubState.START, SubState.START_POST, SubState.RUNNING, SubState.RELOAD, SubState.STOP,
                 SubState.STOP_SIGTERM, SubState.STOP_SIGKILL),
                "only a main process speaks in the world; before exec-start and after its end there is none"),
    "main_pid": ((SubState.START, SubState.START_POST, SubState.RUNNING, SubState.RELOAD, SubState.STOP),
                 "only a main process that nobody has signalled hands its place over"),
    "grandchild": ((SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST, SubState.RUNNING,
                    SubState.RELOAD, SubState.STOP, SubState.STOP_POST, SubState.STOP_SIGTERM),
                   "a child is made by a process that has just begun"),
    "ignore_term": ((SubState.STOP_SIGTERM, SubState.STOP_SIGKILL, SubState.FINAL_SIGTERM, SubState.RUNNING,
                     SubState.START),
                    "signals are sent in these phases, and by people in any: the rest is left to chance"),
    "unkillable": ((SubState.STOP_SIGKILL, SubState.FINAL_SIGKILL, SubState.STUCK),
                   "SIGKILL is sent in these phases, and by people in any: the rest is left to chance"),
    "silent": ((SubState.RUNNING,), "a watched process falls silent when it is up; elsewhere that is left to chance"),
    "stopped": ((SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST, SubState.RUNNING,
                 SubState.RELOAD, SubState.STOP, SubState.STOP_SIGTERM, SubState.STOP_POST),
                "in the other phases nothing lives, or for a moment only"),
    "unwell": ((SubState.START, SubState.RUNNING),
               "a unit is checked in these phases; in those that are shorter that is left to chance"),
    "unknown_status": (tuple(sub for sub in LIVE if sub is not SubState.EXITED), "nothing that could end is there"),
    "accepted": ((SubState.LISTENING,), "only a unit that listens is told of connections"),
    "breach": ((SubState.START_PRE, SubState.START, SubState.START_POST, SubState.RUNNING, SubState.STOP_SIGTERM,
                SubState.STOP_POST),
               "it is seen a second later at most: the phases that are shorter are left to chance"),
    "oom": ((SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST, SubState.RUNNING,
             SubState.STOP, SubState.STOP_POST),
            "elsewhere nothing has just begun to run, or for a moment only"),
    "killed": (tuple(sub for sub in LIVE if sub not in (SubState.EXITED, SubState.STOP_WATCHDOG)),
               "nothing lives there (what kill-mode process leaves apart), or for a moment only"),
}  # fmt: skip
"""By fault: the phases in which it has to have struck, and why not in the others."""


def rich_profile(seed: int) -> Profile:
    """A profile with many fault classes on: it gets into the corners that a drawn one seldom reaches."""
    gap_ms = Random(seed).choice((400, 2500))
    strengths, relations = (UP, 0.05) if seed % 3 == 2 else (LESS, 0.2)
    faults = {fault: strengths.get(fault, MOST) for fault in FAULTS}
    return Profile(units_max=6, requests=120, gap_max_ms=gap_ms, relations=relations, **faults)


def missing_cells(cells: Counter[tuple[SubState, Input]]) -> list[str]:
    return [f"{sub.value} x {what.value}" for sub, what in TRANSITIONS if not cells[sub, what]]


def missing_strikes(strikes: Counter[tuple[str, SubState]]) -> list[str]:
    return [f"{fault} in {sub.value}" for fault, (subs, _) in PHASES.items() for sub in subs if not strikes[fault, sub]]


@pytest.fixture(scope="module")
def reached() -> Iterator[tuple[Counter[tuple[SubState, Input]], Counter[tuple[str, SubState]]]]:
    """Run the worlds and the golden scripts once, and count."""
    cells: Counter[tuple[SubState, Input]] = Counter()
    strikes: Counter[tuple[str, SubState]] = Counter()
    originals = dict(TRANSITIONS)

    def counted(cell: tuple[SubState, Input], handler: Handler) -> Handler:
        def step(*arguments: object) -> None:
            cells[cell] += 1
            handler(*arguments)  # type: ignore[arg-type]

        return step

    TRANSITIONS.update({cell: counted(cell, handler) for cell, handler in originals.items()})
    try:
        for path in SCRIPTS:
            run_script(path.read_text(encoding="utf-8"))
        for seed in range(WORLDS_MAX):
            if seed >= WORLDS and not missing_cells(cells) and not missing_strikes(strikes):
                break
            world = World(seed, rich_profile(seed))
            outcome = world.run()
            assert outcome.violation is None, f"rich {outcome.report()}"
            strikes += world.strikes
        yield cells, strikes
    finally:
        TRANSITIONS.update(originals)


def test_every_cell_of_state_and_input_is_visited(
    reached: tuple[Counter[tuple[SubState, Input]], object], record_property: Callable[[str, object], None]
) -> None:
    """No transition of the core is there without a world or a story that takes it."""
    cells, _ = reached
    missing = missing_cells(cells)
    record_property("summary", f"state x input: {len(TRANSITIONS) - len(missing)} of {len(TRANSITIONS)} cells visited")
    assert not missing, f"never taken: {', '.join(missing)}"


def test_every_fault_strikes_in_every_phase(
    reached: tuple[object, Counter[tuple[str, SubState]]], record_property: Callable[[str, object], None]
) -> None:
    """Each fault class has struck units in each of the phases in which it can; what it cannot has its reason."""
    _, strikes = reached
    missing, wanted = missing_strikes(strikes), sum(len(subs) for subs, _ in PHASES.values())
    for line in matrix(strikes):
        record_property("summary", line)
    record_property("summary", f"fault x phase: {wanted - len(missing)} of {wanted} cells struck")
    assert {fault for fault, _ in strikes} <= set(PHASES), "a fault without a row"
    assert all(reason or set(subs) == set(ENTERED) for subs, reason in PHASES.values())
    assert not missing, f"never struck: {', '.join(missing)}"


def matrix(strikes: Counter[tuple[str, SubState]]) -> list[str]:
    """The table for people: how often, and ``-`` where the fault cannot be or need not be."""
    width = max(map(len, PHASES)) + 1
    heads = [sub.value.replace("auto-restart", "auto").replace("stop-sig", "s-").replace("final-sig", "f-")[:8]
             for sub in ENTERED]  # fmt: skip
    lines = [" " * width + " ".join(f"{head:>8}" for head in heads)]
    for fault, (subs, _) in PHASES.items():
        counts = [str(strikes[fault, sub]) if strikes[fault, sub] or sub in subs else "-" for sub in ENTERED]
        lines.append(f"{fault:<{width}}" + " ".join(f"{count:>8}" for count in counts))
    return lines
