"""Keys of relations, types, limits on starts and ends: each reaches its field; what contradicts itself is told."""

import pytest
from unitset_rig import SLEEP, headlines, load_texts, problems_of, service

from supervisord_py.model.states import ServiceType
from supervisord_py.model.unit import SECOND_NS, Command, Dependency, ExitStatuses, StartLimit, Unit

FORKING = '[service]\ntype = "forking"\nexec-start = ["/bin/d"]\n'


def unit(text: str) -> Unit:
    result = load_texts({"web": text})
    assert not result.problems, headlines(result)
    return result.unit_set.units["web"]


def test_every_key_reaches_the_unit() -> None:
    """Each key lands in its field, specifiers expanded."""
    made = unit(
        """\
[unit]
job-timeout-sec = "1min"
start-limit-interval-sec = 30
start-limit-burst = 2
[service]
type = "forking"
exec-condition = "-/bin/c $A"
exec-start = ["/bin/d"]
exec-start-post = [["/bin/p"], ["/bin/q", "%n"]]
runtime-max-sec = "1h"
restart-kill-signal = "SIGHUP"
send-sighup = true
success-exit-status = [3, "TEMPFAIL SIGKILL"]
restart-prevent-exit-status = "SIGABRT"
restart-force-exit-status = 0
pid-file = "%n/./x.pid"
guess-main-pid = false
"""
    )
    assert made.job_timeout_ns == 60 * SECOND_NS
    own = made.service
    assert own is not None
    assert own.exec_condition == (Command(("/bin/c", "$A"), expand=True, ignore_failure=True),)
    assert [command.words for command in own.exec_start_post] == [("/bin/p",), ("/bin/q", "web")]
    assert own.runtime_max_ns == 3600 * SECOND_NS
    assert (own.kill.restart_signal, own.kill.send_sighup) == (1, True)
    assert own.success == ExitStatuses((3, 75), (9,))
    assert (own.restart.prevent, own.restart.force) == (ExitStatuses((), (6,)), ExitStatuses((0,)))
    assert (own.pid_file, own.guess_main_pid) == ("/run/web/x.pid", False)
    assert (own.restart.limit, own.restart.failures) == (StartLimit(30 * SECOND_NS, 2), 0)


@pytest.mark.parametrize(
    ("keys", "limit"),
    [
        ("start-limit-burst = 0", StartLimit(10 * SECOND_NS, 0)),
        ('start-limit-interval-sec = "infinity"', StartLimit(None, 5)),
    ],
)
def test_one_key_of_the_start_limit_takes_the_other_s_default(keys: str, limit: StartLimit) -> None:
    """Either key alone asks for the plain window in place of the quarantine."""
    own = unit(service(keys)).service
    assert own is not None
    assert (own.restart.limit, own.restart.failures) == (limit, 0)


def test_types_and_their_own_keys() -> None:
    """reload-signal belongs to notify-reload, which listens to its main process as notify does."""
    own = unit(SLEEP + 'type = "notify-reload"\nreload-signal = "USR1"\n').service
    assert own is not None
    assert (own.type, own.reload_signal, own.notify_access.value) == (ServiceType.NOTIFY_RELOAD, 10, "main")
    assert unit(SLEEP + 'type = "idle"\n').service is not None


def test_relations_reach_the_unit() -> None:
    """requisite orders, the others do not; groups and templates become their members everywhere."""
    result = load_texts(
        {
            "web": service(
                'requisite = [{ unit = "a", ordered = false }, "b"]\npart-of = "@g"\nupholds = "w@"\n'
                'on-failure = "b"\non-success = ["a", "b"]'
            ),
            "a": service('groups = "g"'),
            "b": service('groups = "g"'),
            "w@": SLEEP + "[instances]\ncount = 2\n",
        }
    )
    assert not result.problems, headlines(result)
    web = result.unit_set.units["web"]
    assert web.requisite == (Dependency("a", ordered=False), Dependency("b"))
    assert web.part_of == ("a", "b")
    assert web.upholds == (Dependency("w@1", ordered=False), Dependency("w@2", ordered=False))
    assert (web.on_failure, web.on_success) == (("b",), ("a", "b"))


def test_an_instance_that_only_a_handler_names_is_not_started_with_the_supervisor() -> None:
    """It exists; where it says that it is enabled, or another unit is started with it, it is."""
    result = load_texts(
        {
            "web": service('on-failure = "alert@%n"\nupholds = "up@1"\nrequisite = "there@1"\nwants = "w@1"'),
            "other": service('on-success = ["w@1", "yes@1"]'),
            "alert@": SLEEP,
            "up@": SLEEP,
            "there@": SLEEP,
            "w@": SLEEP,
            "yes@": service("enabled = true"),
        }
    )
    assert not result.problems, headlines(result)
    enabled = {name: made.enabled for name, made in result.unit_set.units.items() if "@" in name}
    assert enabled == {"alert@web": False, "there@1": False, "up@1": False, "w@1": True, "yes@1": True}


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (service("start-limit-burst = 3") + "[quarantine]\nfailures = 2\n", "unit.start-limit-burst", "[quarantine]"),
        ("[unit]\nstart-limit-burst = 3\n[target]\n", "unit.start-limit-burst", "a target has no automatic starts"),
        (SLEEP + "runtime-max-sec = 0\n", "service.runtime-max-sec", "ended at once"),
        (service('requisite = "nope"'), "unit.requisite", "there is no unit nope"),
        (service('on-failure = "web"'), "unit.on-failure", "names itself"),
        (service('upholds = { unit = "x" }'), "unit.upholds", "a table is not possible here"),
        (service('upholds = "x"\nconflicts = "x"'), "unit.upholds", "x is in conflicts too"),
        (service('part-of = "x"\nconflicts = "x"'), "unit.part-of", "x is in conflicts too"),
        (service('requisite = { unit = "x", until = "well" }'), "unit.requisite.until", "not possible here"),
        (FORKING + 'pid-file = "../x"\n', "service.pid-file", "not the path of a file"),
        (FORKING + 'pid-file = ""\n', "service.pid-file", "not the path of a file"),
        (SLEEP + "success-exit-status = [1, 256]\n", "service.success-exit-status", "no exit code 256"),
    ],
)
def test_combinations_that_cannot_be(text: str, key: str, message: str) -> None:
    """Each is an error at the key that is to be changed, with what to do."""
    (problem,) = (each for each in load_texts({"web": text, "x": SLEEP}).problems if each.severity == "error")
    assert problem.key == key
    assert message in problem.message


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (FORKING, "service.type", "a forking unit without pid-file: its main process is guessed"),
        (FORKING + "guess-main-pid = false\n", "service.type", "its main process stays unknown"),
        (
            FORKING + 'pid-file = "x"\nremain-after-exit = true\n',
            "service.remain-after-exit",
            "when its daemon is gone",
        ),
        (SLEEP + 'pid-file = "x"\n', "service.pid-file", "is known without it"),
        (SLEEP + "guess-main-pid = false\n", "service.guess-main-pid", "nothing is guessed"),
        (SLEEP + 'reload-signal = "USR1"\n', "service.reload-signal", "is not reloaded by a signal"),
        (SLEEP + 'type = "oneshot"\nruntime-max-sec = 5\n', "service.runtime-max-sec", "does not run on"),
        (SLEEP + "success-exit-status = 0\n", "service.success-exit-status", "0 is success anyway"),
        (
            SLEEP + 'restart-force-exit-status = [1, 2]\nrestart-prevent-exit-status = "1"\n',
            "service.restart-force-exit-status",
            "restart-prevent-exit-status too, which wins",
        ),
        (service('on-failure = "nope"'), "unit.on-failure", "there is no unit nope"),
    ],
)
def test_keys_that_do_not_do_what_one_might_think(text: str, key: str, message: str) -> None:
    """A warning with a hint; the unit is loaded."""
    result = load_texts({"web": text})
    (problem,) = result.problems
    assert (problem.severity, problem.key) == ("warning", key)
    assert message in problem.message
    assert "web" in result.unit_set.units


def test_a_handler_for_all_does_not_handle_itself() -> None:
    """defaults.toml gives on-failure to the handler too: the hint says how it is taken back there."""
    texts = {"defaults": '[unit]\non-failure = "alert"\n', "alert": SLEEP, "web": SLEEP}
    result = load_texts(texts)
    (problem,) = result.problems
    assert problem.hint == "write on-failure = [] into alert.toml"
    taken_back = load_texts(texts | {"alert": service("on-failure = []")})
    assert not taken_back.problems
    assert taken_back.unit_set.units["web"].on_failure == ("alert",)


def test_requisite_is_part_of_a_cycle() -> None:
    """It orders as requires does, so a circle of it is refused."""
    result = load_texts({"a": service('requisite = "b"'), "b": service('after = "a"')})
    assert list(result.unit_set.bad) == ["a", "b"]


def test_settings_show_what_is_in_force() -> None:
    """A default that follows from another key is shown as it is: the start limit's other half, no quarantine, and that
    a handler is not started with the supervisor."""
    result = load_texts(
        {"web": service('start-limit-burst = 2\non-failure = "alert@x"'), "plain": SLEEP, "alert@": SLEEP}
    )

    def shown(name: str) -> dict[str, object]:
        keys = ("start-limit-interval-sec", "start-limit-burst", "failures", "enabled")
        return {
            setting.key: setting.value for setting in result.settings(name) if setting.key.rpartition(".")[2] in keys
        }

    assert shown("web") == {
        "unit.start-limit-burst": 2,
        "unit.start-limit-interval-sec": "10s",
        "unit.enabled": True,
        "quarantine.failures": 0,
    }
    assert shown("plain") == {"unit.enabled": True, "quarantine.failures": 5}
    assert shown("alert@x")["unit.enabled"] is False


def test_two_units_with_one_pid_file_are_told() -> None:
    """Each would be taken for the other; instances are where that happens."""
    template = '[service]\ntype = "forking"\nexec-start = ["/bin/d"]\npid-file = "d.pid"\n[instances]\ncount = 2\n'
    (problem,) = load_texts({"d@": template}).problems
    assert (problem.severity, problem.message) == ("warning", "/run/d.pid is the pid file of d@1 too")
    assert problem.hint == "write a name with %i into it"
    assert not load_texts({"d@": template.replace("d.pid", "d-%i.pid")}).problems


def test_a_group_of_calls_that_holds_those_of_other_machines_is_no_riddle() -> None:
    """Only a call that was written is told when nobody knows it, and what was probably meant."""
    sandbox = "[sandbox]\nsystem-call-filter = ['@system-service', '~@resources {}']\n"
    assert not problems_of(SLEEP + sandbox.format("kill"))
    (told,) = problems_of(SLEEP + sandbox.format("exekve"))
    assert told.severity == "warning" and "'exekve'" in told.message
    assert told.hint == "did you mean 'execve'?"


def test_a_capability_that_can_never_be_given_is_told_before_the_start_fails() -> None:
    """The kernel only said: operation not permitted."""
    sandbox = "[sandbox]\ncapability-bounding-set = 'CAP_CHOWN'\nambient-capabilities = 'CAP_CHOWN {}'\n"
    assert not problems_of(SLEEP + sandbox.format(""))
    (told,) = problems_of(SLEEP + sandbox.format("CAP_KILL"))
    assert told.severity == "warning" and told.message.startswith("CAP_KILL cannot be given")


def test_values_of_several_words_were_told_only_when_all_else_was_mended() -> None:
    """All problems of a file are told at once, those of the sandbox and of calendars too; what only follows is not."""
    text = SLEEP + (
        "restrat = 'no'\n[sandbox]\nprivate-tmp = 'yes'\nlandlock = ['/usr:q']\nsystem-call-filter = '@nosuch'\n"
        "mount-apivfs = true\n[timer]\non-calendar = 'dayly'\n"
    )
    assert {told.key for told in problems_of(text)} == {
        "service.restrat", "sandbox.private-tmp", "sandbox.landlock", "sandbox.system-call-filter", "timer.on-calendar",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("stdout_logfile = 'x'", "did you mean 'standard-output'?"),
        ("workdir = '/'", "did you mean 'working-directory'?"),
        ("[pool]\nprio = 2", "did you mean 'priority'?"),
    ],
)
def test_a_word_of_another_tool_or_half_a_word_is_enough(line: str, hint: str) -> None:
    """The key of the same table comes before one of another that looks more like it."""
    (told,) = problems_of(f"{SLEEP}{line}\n")
    assert told.hint == hint


def test_text_that_is_not_closed_is_told_as_that() -> None:
    """It was an illegal character."""
    (told,) = problems_of('[service]\nexec-start = "true\n')
    assert "close it" in (told.hint or "")
