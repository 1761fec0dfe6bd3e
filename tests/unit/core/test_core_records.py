"""What the journal is told of a life, field by field: the stories of ``tests/scripts`` leave out what is noise."""

from core_rig import Rig, commands, notify, service

from supervisord_py.model.records import UNNUMBERED
from supervisord_py.model.states import Restart, Role, Severity
from supervisord_py.model.unit import SECOND_NS, BadUnit, Condition, Dependency, RestartPolicy, UnitSet

WORDS = ("message", "reason")
"""What the stories hold already."""

EXITED = {"core": False, "rusage": {"user_us": 1}, "runtime_ms": 5}

TOLD: list[tuple[str, Severity, dict[str, object]]] = [
    ("unit.loaded", Severity.INFO, {"change": "added", "path": "", "digest": ""}),
    ("job.queued", Severity.INFO, {"job": 1, "type": "start", "origin": "command"}),
    ("unit.starting", Severity.INFO, {"spawn_id": 1, "role": "start-pre", "program": "/bin/prepare"}),
    ("unit.exited", Severity.INFO, {"spawn_id": 1, "pid": 101, "role": "start-pre", "code": 0, **EXITED}),
    ("unit.starting", Severity.INFO, {"spawn_id": 2, "role": "main", "program": "/bin/web"}),
    ("unit.started", Severity.INFO, {"spawn_id": 2, "pid": 102}),
    ("unit.error", Severity.WARNING, {"count": 1}),
    ("unit.ready", Severity.INFO, {}),
    ("job.finished", Severity.INFO, {"job": 1, "type": "start", "result": "done"}),
    ("unit.heartbeat", Severity.INFO, {"progress": "3/4"}),
    ("job.queued", Severity.INFO, {"job": 2, "type": "reload", "origin": "command"}),
    ("unit.reloading", Severity.INFO, {}),
    ("unit.starting", Severity.INFO, {"spawn_id": 3, "role": "reload", "program": "/bin/reload"}),
    ("unit.exited", Severity.WARNING, {"spawn_id": 3, "pid": 103, "role": "reload", "code": 1, **EXITED}),
    ("unit.ready", Severity.WARNING, {"reloaded": False}),
    ("job.finished", Severity.WARNING, {"job": 2, "type": "reload", "result": "failed"}),
    ("unit.exited", Severity.WARNING, {"spawn_id": 2, "pid": 102, "role": "main", "code": 3, **EXITED}),
    ("unit.stopping", Severity.INFO, {}),
    ("unit.stuck", Severity.ERROR, {"spawn_ids": []}),
    ("unit.starting", Severity.INFO, {"spawn_id": 4, "role": "stop-post", "program": "/bin/sweep"}),
    (
        "unit.exited",
        Severity.WARNING,
        {
            "spawn_id": 4,
            "pid": 1,
            "role": "stop-post",
            "signal": "SIGKILL",
            "core": True,
            "rusage": {"user_us": 1},
            "runtime_ms": 5,
        },
    ),
    (
        "unit.restart-scheduled",
        Severity.WARNING,
        {"result": "exit-code", "delay_ms": 2000, "restarts": 1, "failures": 1},
    ),
    ("job.queued", Severity.INFO, {"job": 3, "type": "start", "origin": "automatic"}),
    ("unit.starting", Severity.INFO, {"spawn_id": 5, "role": "start-pre", "program": "/bin/prepare"}),
    (
        "unit.exited",
        Severity.WARNING,
        {
            "spawn_id": 5,
            "pid": None,
            "role": "start-pre",
            "code": 200,
            "core": False,
            "rusage": {},
            "runtime_ms": 0,
            "step": "chdir",
            "errno": 2,
            "detail": "",
        },
    ),
    ("unit.starting", Severity.INFO, {"spawn_id": 6, "role": "stop-post", "program": "/bin/sweep"}),
    ("unit.exited", Severity.INFO, {"spawn_id": 6, "pid": 1, "role": "stop-post", "code": 0, **EXITED}),
    ("unit.failed", Severity.ERROR, {"result": "exit-code", "runtime_ms": 0, "failures": 2, "limit_hit": True}),
    ("unit.quarantined", Severity.ERROR, {"failures": 2, "result": "exit-code"}),
    ("job.finished", Severity.WARNING, {"job": 3, "type": "start", "result": "failed"}),
]


def test_the_records_of_two_lives_have_all_their_fields() -> None:
    """A start with a command before it, a reload that fails, an end that hangs, a restart that cannot be."""
    policy = RestartPolicy(restart=Restart.ON_FAILURE, delay_ns=2 * SECOND_NS, failures=2, jitter=0.0)
    keys = {"exec_start_pre": "/bin/prepare", "exec_reload": "/bin/reload", "exec_stop_post": "/bin/sweep"}
    rig = Rig(notify("web", restart=policy, **{key: commands(word) for key, word in keys.items()}))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0, role=Role.START_PRE)
    rig.spawned("web")
    rig.says("web", READY="1", X_PROGRESS="3/4", X_ERROR="no", ERRNO="5")
    rig.later(7)
    rig.ask("reload", "web")
    rig.spawned("web")
    rig.exited("web", 1, role=Role.RELOAD)
    rig.exited("web", 3, role=Role.MAIN, empty=False)
    rig.later(200)
    rig.emptied("web")
    rig.exited("web", signal=9, core=True, role=Role.STOP_POST)
    rig.later(2)
    rig.failed_to_spawn("web", "chdir", 200, 2)
    rig.exited("web", 0, role=Role.STOP_POST)
    told = [
        (record.event, record.severity, {key: value for key, value in record.fields.items() if key not in WORDS})
        for record in rig.records
    ]
    assert told == TOLD


FOLLOWS = [
    ("unit.loaded db", "-"),
    ("unit.loaded web", "-"),
    ("job.queued web", "-"),
    ("job.queued db", "-"),
    ("unit.queued web", "job.queued web"),
    ("unit.starting db", "job.queued db"),
    ("unit.error db", "unit.starting db"),
    ("unit.started db", "unit.starting db"),
    ("unit.ready db", "unit.started db"),
    ("job.finished db", "unit.ready db"),
    ("unit.heartbeat db", "unit.started db"),
    ("unit.starting web", "job.queued web"),
    ("unit.started web", "unit.starting web"),
    ("unit.ready web", "unit.started web"),
    ("job.finished web", "unit.ready web"),
    ("unit.rejected db", "-"),
    ("unit.exited db", "unit.ready db"),
    ("unit.failed db", "unit.exited db"),
    ("job.queued web", "unit.exited db"),
    ("unit.stopping web", "job.queued web"),
    ("unit.exited web", "unit.stopping web"),
    ("unit.stopped web", "unit.exited web"),
    ("job.finished web", "unit.stopped web"),
    ("unit.loaded db", "-"),
    ("job.queued db", "-"),
    ("unit.starting db", "job.queued db"),
    ("job.changed db", "-"),
    ("unit.stopping db", "job.changed db"),
    ("unit.exited db", "unit.stopping db"),
    ("unit.stopped db", "unit.exited db"),
    ("unit.starting db", "job.changed db"),
    ("unit.started db", "unit.starting db"),
    ("unit.ready db", "unit.started db"),
    ("job.finished db", "unit.ready db"),
    ("job.queued web", "unit.ready db"),
    ("unit.skipped web", "job.queued web"),
    ("job.finished web", "job.queued web"),
    ("unit.removed web", "unit.skipped web"),
]
"""What each record follows from: the last one of its unit that matters, another unit's, or nothing."""


def test_each_record_follows_from_the_one_that_led_to_it() -> None:
    """db fails and takes web with it, its file breaks and is mended, it comes back; somebody asks in between."""
    db = notify("db", restart=RestartPolicy(restart=Restart.NO, jitter=0.0))
    web = service("web", relations={"binds_to": (Dependency("db"),), "conditions": (Condition("path-exists", "/x"),)})
    rig = Rig(db, web)
    rig.ask("start", "web", wait=False)
    rig.says("db", X_ERROR="early")
    rig.spawned("db")
    rig.says("db", READY="1", X_ERROR="late", WATCHDOG="1")
    rig.checked("web")
    rig.spawned("web")
    rig.load(web, bad=UnitSet(bad={"db": BadUnit("db", "db.toml", "db.toml:1:1: no")}))
    rig.crash("db")
    rig.exited("web", signal=15)
    rig.load(db, web)
    rig.ask("start", "db", wait=False)
    rig.ask("restart", "db", wait=False)
    rig.spawned("db")
    rig.exited("db", signal=15)
    rig.up("db")
    rig.checked("web", condition='condition-path-exists = "/x"')
    rig.load(db)
    numbered = [record for record in rig.records if record.event not in UNNUMBERED]
    told = []
    for record in rig.records:
        cause = None if record.cause is None else numbered[record.cause - 1]
        told.append((f"{record.event} {record.unit}", "-" if cause is None else f"{cause.event} {cause.unit}"))
    assert told == FOLLOWS
