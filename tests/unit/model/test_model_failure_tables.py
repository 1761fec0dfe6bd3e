"""Pools, timers, health checks, quarantine and hooks as files say them: each key reaches its field, and what
contradicts itself is told."""

import ast
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from unitset_rig import CONTEXT, KEY_TABLE, SLEEP, headlines, load_texts, service, unit_files

from supervisord_py.model import hooks
from supervisord_py.model.calendar import Calendar, format_calendar, parse_calendar
from supervisord_py.model.hooks import CALLING, is_called_by, with_specifiers
from supervisord_py.model.names import aux_owner, base_unit, is_aux_owner, is_unit_name, parse_unit_name
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.settings import parse_settings
from supervisord_py.model.specifiers import Specifiers
from supervisord_py.model.states import Overrun, ProbeAction, ProbeKind, SupervisorMode, TimerFrom
from supervisord_py.model.targets import Url, split_address, split_url
from supervisord_py.model.unit import SECOND_NS, Command, PoolPlace, Probe, Quarantine, Timer, Unit
from supervisord_py.model.unitset import NOWHERE, LoadResult, build_unit_set, no_zones

ONESHOT = '[service]\ntype = "oneshot"\nexec-start = ["/bin/true"]\n'
OFTEN = '[timer]\nevery = "1h"\n'


def load_within(texts: dict[str, str], max_workers: int = 0, **pools: int) -> LoadResult:
    return build_unit_set(unit_files(texts), CONTEXT, key_table=KEY_TABLE, limits=PoolLimits(max_workers, pools))


def unit(text: str, name: str = "web") -> Unit:
    result = load_texts({name: text})
    assert not result.problems, headlines(result)
    return result.unit_set.units[name]


def check(lines: str, name: str = "x") -> str:
    return f"{SLEEP}[health.{name}]\n{lines}\n"


# health


def test_health_checks_reach_the_unit() -> None:
    """Every key, specifiers expanded, sorted by name; what is not written is the kubelet's default."""
    made = unit(
        SLEEP
        + """\
[health.up]
kind = "startup"
exec = "-/bin/check %n $A"
[health.answers]
kind = "readiness"
http = "http://localhost:8080/a?b=1"
interval = "1s"
timeout = 0.5
initial-delay = "2s"
failure-threshold = 5
success-threshold = 2
[health.alive]
kind = "liveness"
unix = "%t/%n.sock"
action = "kill"
"""
    )
    assert made.health == (
        Probe("alive", ProbeKind.LIVENESS, unix="/run/web.sock", action=ProbeAction.KILL),
        Probe(
            "answers",
            ProbeKind.READINESS,
            http="http://localhost:8080/a?b=1",
            interval_ns=SECOND_NS,
            timeout_ns=SECOND_NS // 2,
            initial_delay_ns=2 * SECOND_NS,
            failure_threshold=5,
            success_threshold=2,
            action=ProbeAction.NONE,
        ),
        Probe("up", ProbeKind.STARTUP, exec=Command(("/bin/check", "web", "$A"), expand=True, ignore_failure=True)),
    )
    assert [probe.is_command for probe in made.health] == [False, False, True]


@pytest.mark.parametrize(
    ("lines", "key", "message"),
    [
        ('kind = "liveness"', "health.x", "a check that looks at nothing"),
        ('kind = "liveness"\ntcp = "a:1"\nfile = "/a"', "health.x.file", "one check too many: tcp and file"),
        ('tcp = "a:1"', "health.x", "a check without the key 'kind'"),
        ('kind = "liveness"\ntcp = "a:1"\nfailure-threshold = 0', "health.x.failure-threshold", "0 is too small"),
        ('kind = "liveness"\ntcp = "a:1"\ninterval = 0', "health.x.interval", "0 is not possible here"),
        ('kind = "liveness"\ntcp = "a:1"\ntimeout = "infinity"', "health.x.timeout", "'infinity' is not possible here"),
        ('kind = "liveness"\ntcp = "a:1"\ninitial-delay = "infinity"', "health.x.initial-delay", "never comes"),
        ('kind = "readiness"\ntcp = "a:1"\naction = "restart"', "health.x.action", "does nothing"),
        ('kind = "liveness"\ntcp = "a"', "health.x.tcp", "'a' is not an address"),
        ('kind = "liveness"\ntcp = 80', "health.x.tcp", "80 is not a string"),
        ('kind = "liveness"\ntcp = "a:65536"', "health.x.tcp", "there is no port 65536"),
        ('kind = "liveness"\ntcp = "::1:80"', "health.x.tcp", "is not an address"),
        ('kind = "liveness"\nhttp = "localhost:80"', "health.x.http", "is not a URL"),
        ('kind = "liveness"\nhttp = "http://me@a/"', "health.x.http", "is not a URL"),
        ('kind = "liveness"\nhttp = "http://a:0/"', "health.x.http", "there is no port 0"),
        ('kind = "liveness"\nhttp = "http://a/b c"', "health.x.http", "is not a URL"),
        ('kind = "liveness"\nunix = "a.sock"', "health.x.unix", "is not the path of a socket"),
        (f'kind = "liveness"\nunix = "/{"a" * 107}"', "health.x.unix", "too long for a socket"),
        ('kind = "liveness"\nfile = "a"', "health.x.file", "is not an absolute path"),
        ('kind = "liveness"\nlog = "(a"', "health.x.log", "is not a regular expression"),
        ('kind = "liveness"\nlog = ""', "health.x.log", "matches every line"),
        ('kind = "liveness"\nexec = [["/a"], ["/b"]]', "health.x.exec", "is not a string"),
    ],
)
def test_wrong_checks(lines: str, key: str, message: str) -> None:
    """Each is an error at its key, and its unit is not used."""
    result = load_texts({"web": check(lines)})
    problem = result.problems[0]
    assert (problem.key.startswith(key), problem.severity) == (True, "error"), problem
    assert message in problem.message
    assert problem.line > 0 and "web" in result.unit_set.bad


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (check('kind = "liveness"\ntcp = "a:1"\nsuccess-threshold = 2'), "of a liveness check one success is enough"),
        (ONESHOT + '[health.x]\nkind = "readiness"\nfile = "/a"\n', "is never checked"),
        (SLEEP + "[quarantine]\nfailures = 0\nretry-after = 5\n", "the unit is never quarantined"),
        (SLEEP + '[timer]\nevery = "1h"\npersistent = true\n', "only times of on-calendar"),
        (SLEEP + '[timer]\non-calendar = "daily"\nfrom = "end"\n', "from means nothing without every"),
        (SLEEP + "[timer]\non-unit-active-sec = 5\n", "nothing brings the first one about"),
    ],
)
def test_what_means_nothing_is_a_warning(text: str, message: str) -> None:
    """The unit is used; the file says something that it does not do."""
    result = load_texts({"web": text})
    assert [problem.severity for problem in result.problems] == ["warning"], headlines(result)
    assert message in result.problems[0].message
    assert "web" in result.unit_set.units


def test_the_name_of_a_check_is_a_name() -> None:
    """It is part of keys and of what people type."""
    result = load_texts({"web": SLEEP + "[health.'a b']\nkind = 'liveness'\nfile = '/a'\n"})
    assert [problem.message for problem in result.problems] == ["'a b' is not the name of a check"]


def test_a_drop_in_replaces_what_a_check_looks_at() -> None:
    """Taking the old one back and writing another; alone the new one is one too many."""
    base = check('kind = "liveness"\ntcp = "a:1"')
    result = load_texts({"web": base, "web.d/1": "[health.x]\nfile = '/a'\ntcp = []\n"})
    assert result.unit_set.units["web"].health == (Probe("x", ProbeKind.LIVENESS, file="/a"),)
    assert "web" in load_texts({"web": base, "web.d/1": "[health.x]\nfile = '/a'\n"}).unit_set.bad


def test_targets_are_taken_apart() -> None:
    """As they are given to sockets: without brackets, with the port and path that are not written."""
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("a.b:8080") == ("a.b", 8080)
    assert split_url("http://a") == Url(False, "a", 80, "/")
    assert split_url("https://[fe80::1]:8443?x") == Url(True, "fe80::1", 8443, "/?x")


@pytest.mark.parametrize("key", ["watchdog-sec = 5", "progress-sec = '1min'", "error-threshold = 3"])
def test_who_is_to_tell_something_is_listened_to(key: str) -> None:
    """A process that is expected to beat is given a notify socket; notify-access can still widen it."""
    own = unit(SLEEP + key + "\n").service
    assert own is not None and own.notify_access.value == "main"
    wide = unit(SLEEP + key + '\nnotify-access = "all"\n').service
    assert wide is not None and wide.notify_access.value == "all"


@pytest.mark.parametrize("key", ["watchdog-sec = 0", 'progress-sec = "infinity"', "error-threshold = 0"])
def test_nothing_is_expected_of_who_is_not_to_tell(key: str) -> None:
    """0 and infinity switch a watchdog off."""
    own = unit(SLEEP + key + "\n").service
    assert own is not None and own.notify_access.value == "none"
    assert own.watchdog_ns is None and own.progress_ns is None


# timers


def test_timers_reach_the_unit() -> None:
    """Every key in its field; one value is a list of one."""
    made = unit(
        ONESHOT
        + """\
[timer]
every = "1h"
from = "end"
on-active-sec = 0
on-boot-sec = ["5min", 10]
on-startup-sec = "1s"
on-unit-active-sec = "2s"
on-unit-inactive-sec = "3s"
on-calendar = ["daily", "Mon 09:00"]
accuracy-sec = "1us"
randomized-delay-sec = "1min"
persistent = true
overrun = "queue"
"""
    )
    assert made.timer == Timer(
        every_ns=3600 * SECOND_NS,
        every_from=TimerFrom.END,
        on_active_ns=(0,),
        on_boot_ns=(300 * SECOND_NS, 10 * SECOND_NS),
        on_startup_ns=(SECOND_NS,),
        on_unit_active_ns=(2 * SECOND_NS,),
        on_unit_inactive_ns=(3 * SECOND_NS,),
        on_calendar=(parse_calendar("daily", no_zones), parse_calendar("Mon 09:00", no_zones)),
        accuracy_ns=1000,
        randomized_delay_ns=60 * SECOND_NS,
        persistent=True,
        overrun=Overrun.QUEUE,
    )
    assert unit(SLEEP + OFTEN).timer == Timer(every_ns=3600 * SECOND_NS)
    assert unit(SLEEP).timer is None


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (SLEEP + "[timer]\n", "timer", "a timer without a time"),
        (SLEEP + "[timer]\npersistent = true\n", "timer", "a timer without a time"),
        (SLEEP + "[timer]\nevery = 0\n", "timer.every", "0 is not possible here"),
        (SLEEP + '[timer]\non-boot-sec = [5, "infinity"]\n', "timer.on-boot-sec", "a time that never comes"),
        (SLEEP + '[timer]\non-calendar = ["daily", ""]\n', "timer.on-calendar", "an empty time"),
        (SLEEP + '[timer]\non-calendar = ["daily", "dayly"]\n', "timer.on-calendar", "dayly"),
        (SLEEP + '[timer]\non-calendar = "daily Europe/Berlin"\n', "timer.on-calendar", "there is no time zone"),
        (SLEEP + 'restart = "always"\n' + OFTEN, "service.restart", "a run is never over"),
        (ONESHOT + "remain-after-exit = true\n" + OFTEN, "service.remain-after-exit", "never over"),
        ("[target]\n" + OFTEN, "timer", "a target has no process"),
    ],
)
def test_wrong_timers(text: str, key: str, message: str) -> None:
    """What would never run, or never end, is an error."""
    result = load_texts({"web": text})
    problem = next(problem for problem in result.problems if problem.severity == "error")
    assert problem.key == key and message in problem.message, problem
    assert "web" in result.unit_set.bad


def test_zones_come_from_the_machine() -> None:
    """Which there are is not for the model to know."""
    files = unit_files({"web": SLEEP + '[timer]\non-calendar = "daily Mars/Olympus"\n'})
    machine = replace(NOWHERE, zones={"Mars/Olympus": UTC}.get)
    result = build_unit_set(files, CONTEXT, key_table=KEY_TABLE, machine=machine)
    assert not result.problems
    timer = result.unit_set.units["web"].timer
    assert timer is not None
    (calendar,) = timer.on_calendar
    assert isinstance(calendar, Calendar) and format_calendar(calendar) == "*-*-* 00:00:00 Mars/Olympus"


def test_defaults_make_nothing_a_timer() -> None:
    """What defaults.toml says of timers counts for units that are timers, of checks for those that have processes."""
    result = load_texts(
        {
            "defaults": '[timer]\naccuracy-sec = 1\n[health.x]\nkind = "liveness"\nfile = "/a"\n[pool]\npriority = 2\n',
            "web": SLEEP,
            "report": SLEEP + OFTEN,
            "all": "[target]\n",
        }
    )
    assert not result.problems, headlines(result)
    units = result.unit_set.units
    assert units["web"].timer is None and units["report"].timer == Timer(3600 * SECOND_NS, accuracy_ns=SECOND_NS)
    assert [probe.name for probe in units["web"].health] == ["x"] and units["web"].pool.priority == 2
    assert units["all"].health == () and units["all"].pool == PoolPlace()


# quarantine


def test_quarantine_reaches_the_unit() -> None:
    """The stub is one command; on-quarantine is resolved as a relation is, and brings instances about."""
    text = (
        '[quarantine]\nfailures = 2\nstub = "/bin/sorry %n"\nretry-after = "1h"\non-quarantine = ["page@web", "@ops"]\n'
    )
    result = load_texts(
        {
            "web": SLEEP + text,
            "page@": ONESHOT,
            "log": service('groups = "ops"'),
        }
    )
    assert not result.problems, headlines(result)
    web = result.unit_set.units["web"]
    stub = Command(("/bin/sorry", "web"), expand=True)
    assert web.quarantine == Quarantine(stub, 3600 * SECOND_NS, ("page@web", "log"))
    assert web.service is not None and web.service.restart.failures == 2
    assert result.unit_set.units["page@web"].enabled is False
    assert unit(SLEEP).quarantine == Quarantine()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[agent]\nclass = 'a:B'\npython = 'venv/bin/python'\npath = 'lib'\nevery = 5\nplugins = 'a:P'\n"
            "[quarantine]\nstub-class = 'a:Stub'\nstub-path = ['/stubs']\n",
            ("u/venv/bin/python", "-u", "runner.py", "a:Stub", "--path=/stubs", "--path=u/lib"),
        ),
        (
            SLEEP + "[timer]\nevery = 5\n[quarantine]\nstub-class = 'a:Stub'\n",
            ("python3", "-u", "runner.py", "a:Stub"),
        ),
    ],
    ids=["of an agent", "of a program"],
)
def test_a_stub_class_is_run_by_the_runner_in_the_interpreter_of_the_unit(text: str, words: tuple[str, ...]) -> None:
    """It finds the modules that the agent finds; what makes the agent's cycles is not the stub's."""
    assert unit(text).quarantine == Quarantine(Command(words))


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (SLEEP + "[quarantine]\nretry-after = 0\n", "quarantine.retry-after", "0 is not possible here"),
        (SLEEP + "[quarantine]\nstub = '/a'\nstub-class = 'a:B'\n", "quarantine.stub-class", "together with stub"),
        (SLEEP + "[quarantine]\nstub-class = 'a.B'\n", "quarantine.stub-class", "is not the name of a class"),
        (SLEEP + "[quarantine]\nstub-path = 'x'\n", "quarantine.stub-path", "there is no stub-class"),
        (SLEEP + "[quarantine]\non-quarantine = 'web'\n", "quarantine.on-quarantine", "web names itself"),
        (
            service("start-limit-burst = 3", "[quarantine]\nretry-after = 5\n"),
            "unit.start-limit-burst",
            "together with",
        ),
        ("[target]\n[quarantine]\nstub = '/a'\n", "quarantine", "a target has no process"),
    ],
)
def test_wrong_quarantines(text: str, key: str, message: str) -> None:
    """Each is an error at its key."""
    result = load_texts({"web": text})
    assert [(problem.key, problem.severity) for problem in result.problems] == [(key, "error")], headlines(result)
    assert message in result.problems[0].message


def test_a_missing_unit_of_on_quarantine_is_a_warning() -> None:
    """As with on-failure."""
    result = load_texts({"web": SLEEP + "[quarantine]\non-quarantine = 'page'\n"})
    assert [problem.headline() for problem in result.problems] == [
        "u/web.toml:4:17: quarantine.on-quarantine: there is no unit page"
    ]
    assert result.problems[0].severity == "warning"


# pools


def test_pool_and_priority_reach_the_unit() -> None:
    """Name and priority; a pool that is not set up bounds nothing, which is told."""
    text = SLEEP + '[pool]\nname = "render"\npriority = -3\n'
    result = load_within({"web": text}, render=2)
    assert not result.problems
    assert result.unit_set.units["web"].pool == PoolPlace("render", -3)
    (problem,) = load_within({"web": text}, renders=2).problems
    assert (problem.key, problem.severity, problem.hint) == ("pool.name", "warning", "did you mean 'renders'?")
    assert not load_texts({"web": text}).problems


CHAIN = {"web": service('requires = "api"'), "api": service('binds-to = ["db", "cache"]'), "db": SLEEP, "cache": SLEEP}


def test_what_cannot_run_at_the_same_time_is_an_error_with_the_chain() -> None:
    """It is said of the unit that asks for too much, and not again of all above it; all are loaded."""
    result = load_within(CHAIN, 2)
    (problem,) = result.problems
    assert problem.headline() == (
        "u/api.toml:2:12: unit.binds-to: it can never start: it needs 3 slots of max-workers at a time, "
        "and there are 2 (api -> db; api -> cache)"
    )
    assert problem.severity == "error" and len(result.unit_set.units) == 4 and not result.unit_set.bad
    (problem,) = load_within(CHAIN, 3).problems
    assert problem.message.startswith("it can never start: it needs 4 slots") and "web -> api -> db" in problem.message
    assert not load_within(CHAIN, 4).problems and not load_within(CHAIN, 0).problems


def test_a_named_pool_counts_its_own_units() -> None:
    """Whoever is in no pool, or another, takes no slot of it."""
    in_a = "[pool]\nname = 'a'\n"
    texts = {**CHAIN, "db": SLEEP + in_a, "web": CHAIN["web"] + in_a}
    (problem,) = load_within(texts, a=1).problems
    assert "needs 2 slots of [pools.a] max-workers at a time, and there are 1 (web -> api -> db)" in problem.message
    assert not load_within(texts, a=2).problems


def test_only_what_stays_takes_a_slot() -> None:
    """A oneshot that is done, a timer that waits, a target and what must have exited leave room."""
    texts = {
        "web": service('requires = ["once", "often", "all", { unit = "job", until = "exited" }]'),
        "once": ONESHOT,
        "often": SLEEP + OFTEN,
        "job": SLEEP,
        "all": "[target]\n",
    }
    assert not load_within(texts, 1).problems
    texts["all"] = '[unit]\nrequires = "db"\n[target]\n'
    (problem,) = load_within({**texts, "db": SLEEP}, 1).problems
    assert "(web -> all -> db)" in problem.message


def test_a_target_that_needs_more_than_there_is() -> None:
    """It takes no slot itself, and can still never be up."""
    texts = {"all": '[unit]\nrequires = ["a", "b"]\n[target]\n', "a": SLEEP, "b": SLEEP}
    (problem,) = load_within(texts, 1).problems
    assert "it needs 2 slots of max-workers at a time, and there are 1 (all -> a; all -> b)" in problem.message
    assert not load_within(texts, 2).problems


def test_units_that_require_each_other_are_told_once() -> None:
    """Neither is above the other: the first by name is named."""
    texts = {
        "a": service('requires = { unit = "b", ordered = false }'),
        "b": service('requires = { unit = "a", ordered = false }'),
    }
    assert [problem.file for problem in load_within(texts, 1).problems] == ["u/a.toml"]


def test_a_drop_in_scales_a_template() -> None:
    """The number of instances is a key as any other: what is laid over the template decides."""
    texts = {"worker@": SLEEP + "[instances]\ncount = 2\n", "worker@.d/90": "[instances]\ncount = 3\n"}
    result = load_texts(texts)
    assert list(result.unit_set.units) == ["worker@1", "worker@2", "worker@3"]
    texts["worker@.d/90"] = "[instances]\ncount = 0\n"
    assert not load_texts(texts).unit_set.units


# settings of a unit


def test_settings_of_the_tables_have_file_and_line() -> None:
    """Named tables too; defaults where the table is, and those that follow from others."""
    text = SLEEP + '[health.x]\nkind = "readiness"\nfile = "%t/x"\n[timer]\nevery = 5\n'
    settings = load_texts({"web": text}).settings("web")
    told = {setting.key: (setting.value, setting.line) for setting in settings}
    assert told["health.x.kind"] == ("readiness", 4)
    assert told["health.x.file"] == ("/run/x", 5)
    assert told["health.x.action"] == ("none", None)
    assert told["health.x.interval"] == ("10s", None)
    assert told["timer.every"] == (5, 7)
    assert told["timer.overrun"] == ("skip", None)
    assert told["pool.priority"] == (0, None)


# supervisord.toml


def test_settings_of_pools_and_hooks() -> None:
    """Limits, mode and hooks reach their fields; a hook's specifiers stand until it is called."""
    text = """\
[supervisor]
mode = "until-empty"
max-workers = 8
[pools.render]
max-workers = 3
[pools.idle]
[[hooks]]
event = "unit.quarantined"
command = ["/bin/page", "%n", "100%%"]
timeout = "5s"
[[hooks]]
event = "job.*"
command = "-/bin/log %i $A"
"""
    settings, problems = parse_settings(text, "s.toml", KEY_TABLE)
    assert not problems
    assert (settings.supervisor.mode, settings.supervisor.max_workers) == (SupervisorMode.UNTIL_EMPTY, 8)
    assert settings.limits == PoolLimits(8, {"idle": 0, "render": 3})
    page, log = settings.hooks
    assert (page.event, page.timeout_ns, log.timeout_ns) == ("unit.quarantined", 5 * SECOND_NS, 10 * SECOND_NS)
    expand = Specifiers(CONTEXT, parse_unit_name("worker@7")).expand
    assert with_specifiers(page.command, expand).words == ("/bin/page", "worker@7", "100%")
    assert with_specifiers(log.command, expand) == Command(("/bin/log", "7", "$A"), expand=True, ignore_failure=True)


def test_what_the_core_decides_calls_for_hooks_and_nothing_else_does() -> None:
    """A hook on an event that never calls for it would be a silent mistake."""
    decided = {
        str(node.args[0].value)
        for path in Path(hooks.__file__).parents[1].glob("core/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "record"
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert decided - set(CALLING) == {"unit.heartbeat", "hook.failed", "hook.dropped"}
    assert set(CALLING) - decided <= {"job.changed", "job.finished", "timer.elapsed", "unit.rejected"}
    for event in ("command", "daemon.started", "hook.failed", "journal.*"):
        _, (problem,) = parse_settings(f'[[hooks]]\nevent = "{event}"\ncommand = "/bin/x"\n', "s.toml", KEY_TABLE)
        assert "no hook is called by" in problem.message


def test_which_events_call_for_a_hook() -> None:
    """Names and globs; a beat calls for none, or there would be one a second."""
    assert is_called_by("unit.failed", "unit.failed") and is_called_by("unit.*", "unit.stuck")
    assert not is_called_by("unit.*", "job.queued") and not is_called_by("*", "unit.heartbeat")


@pytest.mark.parametrize(("name", "limit"), [("", 4), ("a", 2), ("b", None), ("c", None)])
def test_limits_of_pools(name: str, limit: Any) -> None:
    """0 is no limit, and neither is a pool that nobody has set up."""
    assert PoolLimits(4, {"a": 2, "b": 0}).of(name) == limit
    assert PoolLimits().of("") is None


# owners


def test_the_owner_of_what_runs_beside_a_unit() -> None:
    """It is no unit, and leads back to one."""
    owner = aux_owner("worker@3", 17)
    assert owner == "worker@3!17" and not is_unit_name(owner)
    assert base_unit(owner) == base_unit("worker@3") == "worker@3"
    assert is_aux_owner(owner) and not is_aux_owner("worker@3")


def test_an_https_check_that_verifies_nothing_said_so_in_the_manual_alone() -> None:
    """An info of check with file and key: it changes nothing, and makes nothing bad."""
    https = check('kind = "liveness"\nhttp = "https://localhost:8443/up"')
    result = load_texts({"web": https, "api": check('kind = "liveness"\nhttp = "http://localhost:8080/"')})
    [told] = result.problems
    assert (told.severity, told.key) == ("info", "health.x.http")
    assert told.file.endswith("web.toml")
    assert told.line == https.splitlines().index('http = "https://localhost:8443/up"') + 1
    assert "no certificate is verified" in told.text()
    assert "(info)" in told.text()
    assert sorted(result.unit_set.units) == ["api", "web"]
    assert not result.has_errors
