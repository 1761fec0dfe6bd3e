"""What the journal is told of a life, field by field: the stories of ``tests/scripts`` leave out what is noise."""

from core_rig import Rig, commands, notify

from supervisord_py.model.states import Restart, Role, Severity
from supervisord_py.model.unit import SECOND_NS, RestartPolicy

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
