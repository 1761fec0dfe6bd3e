"""``convert horust``, ``process-compose`` and ``pm2``: services, processes and apps."""

from collections import Counter
from collections.abc import Callable

import pytest

from supervisord_py.convert.draft import ConvertError, SourceFile
from supervisord_py.convert.literals import parse_literals
from supervisord_py.convert.tree import cron_calendar
from supervisord_py.convert.yaml_text import load_yaml
from supervisord_py.model.calendar import parse_calendar
from supervisord_py.model.problems import BadValue
from tests.convert.bench import check_passes, converted, fixture, loaded, lost_of, read_all, text_of


def test_a_service_of_horust() -> None:
    """Health is both readiness and liveness; the name is that of the file."""
    text = (
        'command = "/bin/bash -c \'echo 100%\'"\nstart-delay = "2s"\nstart-after = ["db.toml"]\n'
        '[restart]\nstrategy = "on-failure"\nbackoff = "500millis"\nattempts = 2\n[healthiness]\n'
        'http-endpoint = "http://localhost:1/x"\n[failure]\nsuccessful-exit-code = [0, 3]\n[environment]\n'
        "keep-env = true\n"
    )
    conversion = converted("horust", [SourceFile("/s/web.toml", text, "/s"), SourceFile("/s/db.toml", 'command="x"')])
    unit = loaded(conversion).unit_set.units["web"]
    assert unit.service is not None and unit.service.restart.failures == 3
    assert unit.service.exec_start[0].words == ("/bin/bash", "-c", "echo 100%")
    assert unit.service.restart.delay_ns == 500_000_000 and unit.service.success.codes == (3,)
    assert [(probe.name, probe.http) for probe in unit.health] == [
        ("http-liveness", "http://localhost:1/x"),
        ("http-readiness", "http://localhost:1/x"),
    ]
    assert [each.unit for each in unit.after] == ["db"]
    assert [(line, key) for line, key, _ in lost_of(conversion)] == [(13, "environment.keep-env")]


COMPOSE = """
version: "0.5"
environment: ["A=1"]
processes:
  db:
    command: "run $$HOME"
    ready_log_line: "is ready."
    replicas: 2
  web:
    command: serve
    depends_on:
      db: {condition: process_log_ready}
      once: {condition: process_completed_successfully}
      gone: {condition: process_started}
    availability: {restart: on_failure, max_restarts: 3}
    readiness_probe:
      http_get: {host: 127.0.0.1, port: 80}
      period_seconds: 5
    is_tty: true
  once:
    command: "true"
    schedule: {cron: "*/5 8-18 * * mon-fri"}
"""


def test_a_project_of_process_compose() -> None:
    """Commands are run by a shell, dependencies wait for what they say, and lines are told."""
    conversion = converted("process-compose", [SourceFile("/p/c.yaml", COMPOSE, "/p")])
    units = loaded(conversion).unit_set.units
    web, database = units["web"], units["db@1"]
    assert database.service is not None and database.service.exec_start[0].words == ("/bin/bash", "-c", "run $HOME")
    assert database.service.context.environment == (("A", "1"),) and database.health[0].log == r"is\ ready\."
    assert sorted((each.unit, each.until.value) for each in web.requires) == [
        ("db@1", "ready"), ("db@2", "ready"), ("once", "exited"),
    ]  # fmt: skip
    assert web.service is not None and web.service.restart.failures == 4
    assert web.health[0].http == "http://127.0.0.1:80/" and web.health[0].interval_ns == 5_000_000_000
    assert units["once"].timer is not None
    assert {(line, key) for line, key, _ in lost_of(conversion)} == {
        (11, "processes.web.depends_on"), (19, "processes.web.is_tty"),
    }  # fmt: skip


ECOSYSTEM = """
// what pm2 reads
const where = './srv';
module.exports = {
  apps: [{
    name: 'api',
    script: 'app.js',
    cwd: where,
    args: ["--port", 8080],
    node_args: '--max-old-space-size=100',
    instances: "2", exec_mode: "cluster",
    env: { NODE_ENV: 'production', DEBUG: true },
    env_staging: { NODE_ENV: "staging", },
    min_uptime: '10s', max_restarts: 5,
  }, /* and */ { script: "tools/job.py", autorestart: false, "watch": true }],
};
"""


def test_an_ecosystem_of_pm2() -> None:
    """Interpreters follow from suffixes, numbers of restarts count as they do there."""
    conversion = converted("pm2", [SourceFile("/a/ecosystem.config.js", ECOSYSTEM, "/a")])
    units = loaded(conversion).unit_set.units
    api, job = units["api@1"], units["job"]
    assert api.service is not None and job.service is not None
    assert api.service.exec_start[0].words == (
        "node", "--max-old-space-size=100", "/a/srv/app.js", "--port", "8080",
    )  # fmt: skip
    assert dict(api.service.context.environment) == {"NODE_ENV": "production", "DEBUG": "true"}
    policy = api.service.restart
    assert (policy.failures, policy.reset_ns, policy.restart.value) == (5, 10_000_000_000, "always")
    assert job.service.exec_start[0].words == ("python3", "/a/tools/job.py")
    assert job.service.kill.signal == 2 and job.service.timeout_stop_ns == 1_600_000_000
    assert {(line, key) for line, key, _ in lost_of(conversion)} == {
        (11, "apps.0.exec_mode"), (13, "apps.0.env_staging"), (15, "apps.1.watch"),
    }  # fmt: skip


def test_an_ecosystem_in_json_and_yaml() -> None:
    """All three ways of writing an ecosystem say the same."""
    json_text = '{"apps": [{"name": "a", "script": "./x.sh"}]}'
    yaml_text = "apps:\n  - name: a\n    script: ./x.sh\n"
    made = [
        text_of("pm2", json_text, "/e/ecosystem.json"),
        text_of("pm2", yaml_text, "/e/process.yaml"),
        text_of("pm2", f"module.exports = {json_text}", "/e/ecosystem.config.cjs"),
    ]
    assert made[0] == made[1] == made[2] and 'exec-start = ["bash", "/x.sh"]' in made[0]


@pytest.mark.parametrize(
    "value", ["process.env.X", "require('x')", "`${y}`", "1 + 2", "{a: 1", "[1, ", "'x\n'", "", "a"]
)
def test_what_would_have_to_be_executed_is_an_error(value: str) -> None:
    """Nothing of a file is executed: what is no plain value is an error with its line."""
    with pytest.raises(ConvertError, match=r"^e.js:\d+: "):
        parse_literals(f"module.exports = {value}", "e.js")


@pytest.mark.parametrize(
    ("line", "calendar"),
    [
        ("*/5 * * * *", "*-*-* *:0/5:00"),
        ("0 3 * * 1-5", "Mon..Fri *-*-* 3:0:00"),
        ("15,45 8-18/2 1 jan,jul *", "*-1,7-1 8..18/2:15,45:00"),
        ("30 0 4 * * sun", "Sun *-*-* 4:0:30"),
        ("@daily", "daily"),
    ],
)
def test_lines_of_cron(line: str, calendar: str) -> None:
    """A line of cron elapses when it did."""
    assert cron_calendar(line) == calendar
    parse_calendar(calendar, lambda name: None)


@pytest.mark.parametrize("line", ["", "* * * *", "60 * * * *", "x * * * *", "0 0 1 * 1", "* * * * */2"])
def test_what_is_no_line_of_cron(line: str) -> None:
    """What cannot be said as one calendar expression is refused."""
    with pytest.raises(BadValue):
        cron_calendar(line)


def test_yaml_without_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a reader of YAML the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(ConvertError, match=r"pip install 'supervisord-py\[yaml\]'"):
        load_yaml("a: 1", "c.yaml")


@pytest.mark.parametrize(
    "text", ["a: [1", "a: &x [*x]", "- !!python/object:os.system {}", "? [1]\n: 2\n", "\t- a", "a: 1\n---\nb: 2"]
)
def test_yaml_that_is_none(text: str) -> None:
    """A clear error, or a document that is no project."""
    with pytest.raises(ConvertError, match=r"^c\.yaml"):
        converted("process-compose", [SourceFile("c.yaml", text)])


@pytest.mark.parametrize(("name", "source"), [("horust", "horust"), ("process-compose", "process-compose")])
def test_every_file(name: str, source: str, record_property: Callable[[str, object], None]) -> None:
    """Every file of others becomes units that pass ``check``, or is refused for what it is."""
    folder = fixture(name)
    counts: Counter[str] = Counter()
    for path in sorted(folder.iterdir()):
        try:
            conversion = converted(source, read_all([str(path)]))
        except ConvertError as error:
            counts["refused"] += 1
            counts[str(error).partition(": ")[2][:40]] += 1
            continue
        check_passes(conversion)
        counts["files"] += 1
        counts["units"] += len(conversion.drafts)
        counts.update("awaited" if use.awaited else use.fate.value for use in conversion.ledger.uses)
    record_property("summary", f"convert {source}: {dict(counts)}")
    assert counts["files"] >= 40 and counts["refused"] <= 2
