"""Fault profiles: which kinds of trouble a seed makes, and how much of it.

Swarm testing: each seed switches a random subset of the fault classes on. A run in which everything fails at once
never gets far enough to reach the rare states, and one fault can hide another (Groce et al., "Swarm Testing", 2012).
"""

from random import Random

from msgspec import Struct

RARE = 0.02
SOME = 0.12
OFTEN = 0.4


class Profile(Struct, frozen=True):
    """How much of what happens; probabilities, 0 where the fault class is off.

    Processes: per process. Clients: per request. Manager: per batch of events. Machine: per request (they share the
    requests' pace).
    """

    units_max: int = 8
    requests: int = 60
    gap_max_ms: int = 4000

    # processes
    exec_slow: float = 0.0
    spawn_failed: float = 0.0
    never_ready: float = 0.0
    ready_slow: float = 0.0
    exit_before_ready: float = 0.0
    double_ready: float = 0.0
    crash: float = 0.0
    crash_at_once: float = 0.0
    clean_exit: float = 0.0
    ignore_term: float = 0.0
    slow_term: float = 0.0
    bad_term_status: float = 0.0
    grandchild: float = 0.0
    grandchild_ignores: float = 0.0
    main_pid: float = 0.0
    unkillable: float = 0.0
    command_failed: float = 0.0
    command_hung: float = 0.0
    command_leaves: float = 0.0
    no_daemon: float = 0.0
    two_daemons: float = 0.0
    pid_file_late: float = 0.0
    pid_file_never: float = 0.0
    pid_file_wrong: float = 0.0
    reload_deaf: float = 0.0
    chatter: float = 0.0
    watchdog_trigger: float = 0.0
    silent: float = 0.0
    watchdog_usec: float = 0.0
    unknown_status: float = 0.0
    pid_reuse: float = 0.0
    stray: float = 0.0

    # commands beside a unit's life
    beside_fails: float = 0.0
    beside_slow: float = 0.0
    beside_hangs: float = 0.0
    beside_leaves: float = 0.0
    stub_ends: float = 0.0
    reports_errors: float = 0.0
    freeze_slow: float = 0.0
    freeze_fails: float = 0.0

    # clients
    no_wait: float = 0.0
    plan: float = 0.0
    token: float = 0.0
    token_repeated: float = 0.0
    client_gone: float = 0.0
    cancel: float = 0.0
    kill: float = 0.0
    trigger: float = 0.0
    reset_failed: float = 0.0
    restart: float = 0.0
    reload: float = 0.0
    odd_mode: float = 0.0
    unknown_job: float = 0.0
    bad_unit: float = 0.0
    daemon_reload: float = 0.0
    apply: float = 0.0
    rolling: float = 0.0
    cancel_rollout: float = 0.0
    pause: float = 0.0
    release: float = 0.0
    scale: float = 0.0
    new_settings: float = 0.0

    # manager
    death_in_batch: float = 0.0
    death_after_commit: float = 0.0
    death_after_replies: float = 0.0
    keeper_lost: float = 0.0
    late: float = 0.0
    early_deadline: float = 0.0
    repeated_deadline: float = 0.0
    repeated_spawn: float = 0.0
    spawn_refused: float = 0.0
    large_batch: float = 0.0
    records_lost: float = 0.0

    # machine
    wall_jump: float = 0.0
    suspend: float = 0.0
    stopped: float = 0.0
    look_slow: float = 0.0
    unwell: float = 0.0
    probe_slow: float = 0.0
    probe_impossible: float = 0.0
    condition_fails: float = 0.0
    conditions_change: float = 0.0
    check_slow: float = 0.0
    shutdown: float = 0.0
    forced: float = 0.0

    # units
    relations: float = 0.4
    conflicts: float = 0.0
    missing: float = 0.0
    kill_process: float = 0.0
    no_sigkill: float = 0.0
    infinite_timeout: float = 0.0
    forking: float = 0.0
    idle: float = 0.0
    notify_reload: float = 0.0
    exec_condition: float = 0.0
    start_post: float = 0.0
    runtime_max: float = 0.0
    watchdogs: float = 0.0
    probes: float = 0.0
    timers: float = 0.0
    sockets: float = 0.0
    accepts: float = 0.0
    idle_exits: float = 0.0
    breaches: float = 0.0
    new_bounds: float = 0.0
    degraded: float = 0.0
    statuses: float = 0.0
    odd_signals: float = 0.0
    start_limit: float = 0.0
    requisite: float = 0.0
    part_of: float = 0.0
    upholds: float = 0.0
    hooks: float = 0.0
    conditions: float = 0.0
    job_timeout: float = 0.0
    bad_release: float = 0.0
    exits_supervisor: float = 0.0
    limits: float = 0.0
    pools: float = 0.0
    quarantine: float = 0.0
    event_hooks: float = 0.0
    until_empty: float = 0.0
    targets: float = 0.1
    tiny_set: float = 0.0

    def switched_on(self) -> list[str]:
        """Name the fault classes that are on, with their strength: what a failure report prints."""
        return [
            f"{name}={value:g}"
            for name in self.__struct_fields__
            if isinstance(value := getattr(self, name), float) and value > 0
        ]


FAULTS: tuple[str, ...] = tuple(
    name for name, default in zip(Profile.__struct_fields__, Profile.__struct_defaults__, strict=True) if default == 0.0
)
"""Every fault class a seed may switch on."""

MODEST: dict[str, float] = {
    "death_in_batch": 0.05, "death_after_commit": 0.05, "death_after_replies": 0.05, "shutdown": 0.01,
    "daemon_reload": 0.1, "keeper_lost": 0.02, "exits_supervisor": 0.02,
}  # fmt: skip
"""The most of what would otherwise drown everything else."""

LATER: tuple[str, ...] = ("sockets", "accepts", "idle_exits", "breaches", "new_bounds", "degraded")
"""The classes that came last: each is drawn from a generator of its own, so what was drawn before stays what it was."""

QUIET = Profile()
"""No faults: processes do what they should, clients start and stop."""


def draw_profile(rng: Random) -> Profile:
    """Switch a random subset of the fault classes on, each with a random strength."""
    share = rng.choice((0.1, 0.3, 0.5, 0.8))
    strengths = {name: rng.choice((RARE, SOME, OFTEN)) for name in FAULTS if name not in LATER and rng.random() < share}
    own = Random(repr(strengths))
    for name in LATER:
        if own.random() < share:
            strengths[name] = own.choice((RARE, SOME, OFTEN))
    # a manager that dies in every third batch, or a shutdown at every third request, ends the story before it begins
    for name, most in MODEST.items():
        if name in strengths:
            strengths[name] = min(strengths[name], most)
    return Profile(
        units_max=rng.choice((3, 6, 10, 14)),
        requests=rng.choice((20, 40, 120)),
        gap_max_ms=rng.choice((50, 1000, 4000, 12_000)),
        relations=rng.choice((0.0, 0.2, 0.4, 0.7)),
        targets=rng.choice((0.0, 0.1, 0.3)),
        **strengths,
    )
