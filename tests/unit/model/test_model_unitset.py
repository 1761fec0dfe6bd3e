"""From files to units: merging, templates, groups, relations, origins."""

import pytest
from unitset_rig import CONTEXT, KEY_TABLE, SLEEP, headlines, load_texts, service, unit_files

from supervisord_py.model.effective_settings import Setting
from supervisord_py.model.problems import Problem
from supervisord_py.model.states import NotifyAccess, Restart, ServiceType, Until
from supervisord_py.model.unit import Command, Dependency, Limit, Service, Unit, UnitKind
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind, build_unit_set, compare


def unit(text: str, name: str = "web") -> Unit:
    result = load_texts({name: text})
    assert not result.problems, headlines(result)
    return result.unit_set.units[name]


def made_service(more: str) -> Service:
    made = unit(SLEEP + more).service
    assert made is not None
    return made


def error_of(text: str, name: str = "web") -> Problem:
    """The one error of a unit that is bad for it."""
    result = load_texts({name: text})
    (problem,) = result.problems
    assert result.unit_set.bad[name].reason == problem.public()
    assert not result.unit_set.units
    return problem


def test_every_built_key_reaches_the_unit() -> None:
    """Each key of the table lands in its field, specifiers expanded."""
    made = unit(
        """\
[unit]
description = "%n of %p"
documentation = "man:web(1)"
enabled = false
groups = ["g%i", "h"]
tags = "blue"
on-dependency-failure = "fail"
[service]
type = "notify"
exec-start = ["/bin/%p", "%%"]
exec-start-pre = "/bin/a $X"
exec-stop = [["/bin/b"], ["/bin/c"]]
exec-stop-post = "/bin/d"
exec-reload = "/bin/e"
restart = "always"
restart-sec = 2
restart-steps = 3
restart-max-delay-sec = "1h"
restart-jitter = 0
restart-reset-sec = "infinity"
timeout-start-sec = "1min"
timeout-stop-sec = 0
timeout-abort-sec = 7
kill-mode = "mixed"
kill-signal = "SIGINT"
final-kill-signal = 9
watchdog-signal = "QUIT"
send-sigkill = false
remain-after-exit = true
notify-access = "all"
user = 1000
group = "web"
supplementary-groups = ["a", 5, "a"]
working-directory = "-~"
umask = "077"
ignore-sigpipe = false
environment = { A = "%h", B = 1, C = true }
[limits]
nofile = "1024:4096"
cpu = "1min"
rttime = "2s"
memlock = "infinity"
nice = -5
enforce = "best-effort"
[log]
max-bytes = "1M"
backups = 0
[quarantine]
failures = 0
"""
    )
    made_service = made.service
    assert made_service is not None
    assert (made.description, made.documentation, made.enabled) == ("web of web", ("man:web(1)",), False)
    assert (made.groups, made.tags, made.on_dependency_failure.value) == (("g", "h"), ("blue",), "fail")
    assert made_service.type is ServiceType.NOTIFY
    assert made_service.exec_start == (Command(("/bin/web", "%")),)
    assert made_service.exec_start_pre == (Command(("/bin/a", "$X"), expand=True),)
    assert [command.words for command in made_service.exec_stop] == [("/bin/b",), ("/bin/c",)]
    assert made_service.exec_stop_post[0].words == ("/bin/d",)
    assert made_service.exec_reload[0].words == ("/bin/e",)
    policy = made_service.restart
    assert (policy.restart, policy.delay_ns, policy.steps, policy.max_delay_ns) == (
        Restart.ALWAYS,
        2_000_000_000,
        3,
        3_600_000_000_000,
    )
    assert (policy.jitter, policy.reset_ns, policy.failures) == (0.0, None, 0)
    assert made_service.timeout_start_ns == 60_000_000_000
    assert (made_service.timeout_stop_ns, made_service.timeout_abort_ns) == (None, 7_000_000_000)
    kill = made_service.kill
    assert (kill.mode.value, kill.signal, kill.final_signal, kill.watchdog_signal, kill.send_sigkill) == (
        "mixed",
        2,
        9,
        3,
        False,
    )
    assert made_service.remain_after_exit and made_service.notify_access is NotifyAccess.ALL
    context = made_service.context
    assert (context.user, context.group, context.supplementary_groups) == ("1000", "web", ("a", "5"))
    assert (context.working_directory, context.umask, context.ignore_sigpipe) == ("-~", 0o077, False)
    assert context.environment == (("A", "/home/me"), ("B", "1"), ("C", "true"))
    assert context.rlimits == (
        ("nofile", Limit(1024, 4096)),
        ("cpu", Limit(60, 60)),
        ("memlock", Limit(None, None)),
        ("rttime", Limit(None, 2_000_000)),
    )
    assert (context.nice, context.enforce) == (-5, "best-effort")
    assert (made_service.log.max_bytes, made_service.log.backups) == (1 << 20, 0)


def test_defaults_that_follow_from_the_type() -> None:
    """A oneshot does not restart and may take for ever; a notify unit listens to its main process; stop bounds
    abort."""
    oneshot = made_service('type = "oneshot"\n')
    assert (oneshot.restart.restart, oneshot.timeout_start_ns) == (Restart.NO, None)
    assert made_service('type = "notify"\n').notify_access is NotifyAccess.MAIN
    assert made_service('type = "notify"\nnotify-access = "none"\n').notify_access is NotifyAccess.MAIN
    assert made_service("timeout-stop-sec = 5\n").timeout_abort_ns == 5_000_000_000
    without_start = unit('[service]\nexec-stop = "/a"\nremain-after-exit = true\n').service
    assert without_start is not None and without_start.type is ServiceType.ONESHOT
    assert unit("[target]\n").kind is UnitKind.TARGET


def test_the_longest_pause_is_never_shorter_than_the_first() -> None:
    """restart-sec above the default cap raises the cap; a written cap below it is an error; without a cap there are no
    steps."""
    assert made_service('restart-sec = "5min"\n').restart.max_delay_ns == 300_000_000_000
    assert made_service('restart-max-delay-sec = "infinity"\n').restart.steps == 0
    problem = error_of(SLEEP + 'restart-sec = 9\nrestart-max-delay-sec = "2s"\n')
    assert (problem.key, problem.line) == ("service.restart-max-delay-sec", 4)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("", "", None),
        ("[unit]\n", "", "neither [service], [agent] nor [target]"),
        (SLEEP + "[target]\n", "target", "not both"),
        (SLEEP + "[instances]\ncount = 2\n", "instances.count", "only a template"),
        ("[target]\n[limits]\nnice = 1\n", "limits", "no process"),
        ("[service]\n", "service", "without exec-start"),
        ('[service]\nexec-stop = "/a"\n', "service", "without exec-start"),
        ('[service]\ntype = "exec"\n', "service.type", "needs exec-start"),
        ('[service]\nexec-start = "/a\\n/b"\n', "service.exec-start", "only a oneshot"),
        (SLEEP + 'type = "oneshot"\nrestart = "always"\n', "service.restart", "not possible for a oneshot"),
        (SLEEP + 'restart-sec = "infinity"\n', "service.restart-sec", "without end"),
        (service('requires = "web"'), "unit.requires", "names itself"),
        ('[agent]\nclass = "a:B"\nconfig = { n = [inf] }\n', "agent.config", "no such number"),
        (service('requires = "db"\nconflicts = ["x", "db"]'), None, None),
    ],
)
def test_combinations_that_cannot_be(text: str, key: str | None, message: str | None) -> None:
    """Each is an error at the key that is to be changed."""
    if key is None:
        problems = [p for p in load_texts({"web": text, "db": SLEEP, "x": SLEEP}).problems if p.severity == "error"]
        assert [problem.message for problem in problems] == ["db is in conflicts too"]
    elif message is None:
        assert load_texts({"web": text}).unit_set.masked == ("web",)
    else:
        problem = error_of(text)
        assert problem.key == key
        assert message in problem.message


def test_one_bad_file_leaves_the_others() -> None:
    """The bad unit is listed with its first problem; its neighbours load."""
    result = load_texts({"a": SLEEP, "b": "[service]\nexec-start = \n", "c": service('requires = "b"')})
    assert list(result.unit_set.units) == ["a", "c"]
    assert result.unit_set.bad["b"].reason.startswith("u/b.toml:2:")
    assert result.has_errors and len(result.problems) == 1


# Merging


def test_layers_merge_and_later_ones_win() -> None:
    """defaults.toml below, then the file, then drop-ins by name; tables merge, values replace."""
    made = load_texts(
        {
            "defaults": '[unit]\ndescription = "d"\n[service]\nrestart-sec = 1\nenvironment = { A = "d", B = "d" }\n',
            "web": '[service]\nexec-start = "/a"\nrestart-sec = 2\n[service.environment]\nA = "m"\nC = "m"\n',
            "web.d/20": '[service]\nexec-start = "/b"\nenvironment.C = "2"\n',
            "web.d/10": '[service]\nexec-start = "/c"\nenvironment.C = "1"\nenvironment.D = "1"\n',
        }
    ).unit_set.units["web"]
    assert made.service is not None
    assert made.description == "d"
    assert made.service.exec_start[0].words == ("/b",)
    assert made.service.restart.delay_ns == 2_000_000_000
    assert dict(made.service.context.environment) == {"A": "m", "B": "d", "C": "2", "D": "1"}
    assert made.source.path == "u/web.toml"
    assert made.source.drop_ins == ("u/web.toml.d/10.toml", "u/web.toml.d/20.toml")


def test_an_empty_list_takes_back_what_is_below() -> None:
    """KEY = [] is the default again: of a list, of a single value, of a whole table value, of one name in it."""
    made = load_texts(
        {
            "defaults": '[unit]\ngroups = "g"\n[service]\numask = "077"\nuser = "x"\n'
            'environment = { A = "1", B = "1" }\n',
            "web": SLEEP + "umask = []\nenvironment.A = []\n",
            "web.d/1": "[unit]\ngroups = []\n[service]\nuser = []\n",
            "db": SLEEP + "environment = []\n",
        }
    ).unit_set.units
    web, db = made["web"].service, made["db"].service
    assert web is not None and db is not None
    assert made["web"].groups == ()
    assert (web.context.umask, web.context.user) == (0o022, None)
    assert dict(web.context.environment) == {"B": "1"}
    assert db.context.environment == () and db.context.umask == 0o077


def test_defaults_do_not_make_a_target_a_service() -> None:
    """What defaults.toml says about processes is for units that have one."""
    result = load_texts(
        {"defaults": "[service]\numask = '077'\n[limits]\nnice = 1\n", "all": "[target]\n", "web": SLEEP}
    )
    assert not result.problems
    assert result.unit_set.units["all"].service is None
    web = result.unit_set.units["web"].service
    assert web is not None and web.context.nice == 1


def test_defaults_belong_to_their_folder() -> None:
    """A unit of another folder does not get them; a problem in them is told once and makes their units bad."""
    files = unit_files({"defaults": "[limits]\nnice = 99\n", "a": SLEEP, "b": SLEEP}, "etc", 0)
    files += unit_files({"c": SLEEP}, "usr", 1)
    result = build_unit_set(files, CONTEXT, key_table=KEY_TABLE)
    assert headlines(result) == ["etc/defaults.toml:2:8: limits.nice: 99 is too large"]
    assert list(result.unit_set.units) == ["c"] and list(result.unit_set.bad) == ["a", "b"]
    kinds = load_texts({"defaults": "[target]\n", "a": SLEEP})
    assert headlines(kinds) == ["u/defaults.toml:1:2: target: [target] does not belong into defaults.toml"]


def test_a_wrong_value_that_a_drop_in_replaces_is_told() -> None:
    """Every file is right by itself."""
    result = load_texts({"web": SLEEP + "umask = 'x'\n", "web.d/1": "[service]\numask = '077'\n"})
    assert headlines(result) == ["u/web.toml:3:9: service.umask: 'x' is not a mode"]


def test_the_higher_folder_shadows_and_drop_ins_of_all_count() -> None:
    """The main file comes from the first folder; of drop-ins with one file name too; the order is by file name over
    all."""
    high = unit_files({"web": '[service]\nexec-start = "/high"\n', "web.d/50": "[limits]\nnice = 1\n"}, "etc", 0)
    low = unit_files(
        {
            "web": "broken",
            "web.d/50": "[limits]\nnice = 2\n",
            "web.d/10": "[limits]\nnice = 3\ncore = 0\n",
        },
        "usr",
        1,
    )
    for files in (high + low, low + high):
        result = build_unit_set(files, CONTEXT, key_table=KEY_TABLE)
        assert not result.problems
        made = result.unit_set.units["web"].service
        assert made is not None
        assert (made.exec_start[0].words, made.context.nice) == (("/high",), 1)
        assert made.context.rlimits == (("core", Limit(0, 0)),)


def test_a_masked_unit_is_neither_good_nor_bad() -> None:
    """An empty file in a higher folder hides the unit; a masked template hides its instances."""
    files = unit_files({"web": "", "w@": ""}, "etc", 0)
    files += unit_files(
        {"web": SLEEP, "w@": SLEEP + "[instances]\ncount = 2\n", "x": service('wants = "w@1"')}, "usr", 1
    )
    result = build_unit_set(files, CONTEXT, key_table=KEY_TABLE)
    assert not result.problems
    assert list(result.unit_set.units) == ["x"] and not result.unit_set.bad
    assert result.unit_set.masked == ("w@", "w@1", "web")


def test_a_file_that_could_not_be_read_is_a_bad_unit() -> None:
    """It does not fall through to the folder below."""
    refused = UnitFile(
        "web", "etc/web.toml", "", UnitFileKind.UNIT, "etc", 0, Problem("etc/web.toml", 0, 0, "", "refused")
    )
    result = build_unit_set([refused, *unit_files({"web": SLEEP}, "usr", 1)], CONTEXT, key_table=KEY_TABLE)
    assert result.unit_set.bad["web"].reason == "etc/web.toml: refused"
    assert not result.unit_set.units


def test_a_drop_in_without_a_unit_is_a_warning() -> None:
    """Nobody notices a misspelled folder otherwise."""
    result = load_texts({"web": SLEEP, "wbe.d/1": "[limits]\nnice = 1\n"})
    assert headlines(result) == ["u/wbe.toml.d/1.toml: a drop-in for wbe, which no file defines"]
    assert not result.has_errors
    assert result.unit_set.warnings == tuple(headlines(result))


# Templates


def test_instances_are_numbered_and_know_their_number() -> None:
    """count makes them from 1; specifiers are of the instance."""
    result = load_texts({"w@": '[service]\nexec-start = "/bin/w %i %n"\n[instances]\ncount = 3\n'})
    assert list(result.unit_set.units) == ["w@1", "w@2", "w@3"]
    made = result.unit_set.units["w@2"].service
    assert made is not None and made.exec_start[0].words == ("/bin/w", "2", "w@2")


def test_an_instance_is_made_when_it_is_needed() -> None:
    """By requires, wants and binds-to, through other instances too; an order alone makes none."""
    result = load_texts(
        {
            "web": service('requires = "w@a"\nafter = "w@z"'),
            "w@": service('wants = "v@%i"'),
            "v@": SLEEP,
        }
    )
    assert list(result.unit_set.units) == ["v@a", "w@a", "web"]
    assert headlines(result) == ["u/web.toml:3:9: unit.after: there is no unit w@z"]


def test_a_file_of_its_own_stands_for_an_instance() -> None:
    """NAME@INSTANCE.toml replaces the template's file; drop-ins of the template stay, those of the instance win."""
    result = load_texts(
        {
            "w@": '[service]\nexec-start = "/bin/w"\n[instances]\ncount = 2\n',
            "w@2": '[service]\nexec-start = "/bin/other %i"\n',
            "w@.d/10": "[limits]\nnice = 1\ncore = 0\n",
            "w@2.d/10": "[limits]\nnice = 2\n",
        }
    )
    assert not result.problems
    first, second = (result.unit_set.units[name].service for name in ("w@1", "w@2"))
    assert first is not None and second is not None
    assert (first.exec_start[0].words, first.context.nice) == (("/bin/w",), 1)
    assert (second.exec_start[0].words, second.context.nice) == (("/bin/other", "2"), 2)
    assert second.context.rlimits == ()


def test_a_problem_of_a_template_is_told_once() -> None:
    """Though all its instances are bad for it; without instances the template is."""
    result = load_texts({"w@": SLEEP + "umask = 1\n[instances]\ncount = 3\n", "v@": "[service]\nexec-start = '%z'\n"})
    assert len(result.problems) == 2
    assert list(result.unit_set.bad) == ["v@", "w@1", "w@2", "w@3"]


def test_a_template_without_instances_is_checked_and_shown() -> None:
    """It is no unit, yet its files can be seen."""
    result = load_texts({"w@": SLEEP})
    assert not result.problems and not result.unit_set.units
    assert result.files("w@") == [("u/w@.toml", SLEEP)]


# Relations


def test_relations_resolve_groups_and_templates() -> None:
    """Members in order, without the unit itself; an entry for a unit alone wins over its group."""
    result = load_texts(
        {
            "web": service(
                'groups = "g"\nrequires = ["@g", { unit = "b", until = "exited" }]\n'
                'after = { unit = "w@", until = "started" }\n'
                'conflicts = ["x", "@h"]\nbefore = "z"\nwants = { unit = "w@10", ordered = false }\nbinds-to = "w@2"'
            ),
            "a": service('groups = "g"'),
            "b": service('groups = ["g"]'),
            "x": service('groups = "h"'),
            "z": SLEEP,
            "w@": SLEEP + "[instances]\ncount = 10\n",
        }
    )
    assert not result.problems, headlines(result)
    web = result.unit_set.units["web"]
    assert web.requires == (Dependency("b", Until.EXITED), Dependency("a"))
    assert [dependency.unit for dependency in web.after] == [f"w@{number}" for number in range(1, 11)]
    assert web.after[0].until is Until.STARTED
    assert (web.conflicts, web.before) == (("x",), ("z",))
    assert web.wants == (Dependency("w@10", ordered=False),)
    assert web.binds_to == (Dependency("w@2"),)


def test_what_does_not_exist() -> None:
    """An error where it is required, a warning else; the unit is loaded, and the name stays."""
    result = load_texts(
        {
            "web": service('requires = ["dbx"]\nwants = ["@nobody", "v@", "w"]\nbinds-to = "v@"'),
            "db": SLEEP,
            "w@": SLEEP,
        }
    )
    assert [(problem.severity, problem.message, problem.hint) for problem in result.problems] == [
        ("error", "there is no unit dbx", "did you mean db?"),
        ("warning", "the group @nobody has no members", 'write groups = ["nobody"] into its members'),
        ("warning", "there is no template v@", ""),
        ("warning", "there is no unit w", "did you mean w@, all its instances?"),
        ("error", "there is no template v@", ""),
    ]
    assert result.unit_set.units["web"].requires == (Dependency("dbx"),)


def test_a_masked_unit_cannot_be_required() -> None:
    """An error that names it; wanting it is no problem."""
    result = load_texts({"web": service('requires = "db"\nwants = "cache"'), "db": "", "cache": ""})
    assert headlines(result) == ["u/web.toml:2:12: unit.requires: db is masked"]


def test_a_bad_unit_stays_in_its_group() -> None:
    """What requires the group does not start without it, as long as its groups can be read."""
    result = load_texts({"web": service('requires = "@g"'), "db": service('groups = "g"', "umask = 1\n")})
    assert result.unit_set.units["web"].requires == (Dependency("db"),)


def test_a_bad_unit_exists() -> None:
    """Requiring one is no problem of its own: its start will say why."""
    result = load_texts({"web": service('requires = "db"'), "db": "x"})
    assert [problem.file for problem in result.problems] == ["u/db.toml"]
    assert list(result.unit_set.units) == ["web"]


# Origins


def test_settings_have_file_and_line() -> None:
    """Written ones first, each with its place after the merge, then the defaults that hold."""
    result = load_texts(
        {
            "defaults": "[limits]\nnice = 1\n",
            "web": '[unit]\ndescription = "%n"\n[service]\ntype = "oneshot"\nexec-start = [\n  ["/a", "%n"],\n]\n',
            "web.d/1": '[service.environment]\nA = "%h"\n',
        }
    )
    settings = result.settings("web")
    written = [setting for setting in settings if setting.file is not None]
    assert written == [
        Setting("unit.description", "web", "u/web.toml", 2),
        Setting("service.type", "oneshot", "u/web.toml", 4),
        Setting("service.exec-start", [["/a", "web"]], "u/web.toml", 5),
        Setting("service.environment.A", "/home/me", "u/web.toml.d/1.toml", 2),
        Setting("limits.nice", 1, "u/defaults.toml", 2),
    ]
    defaults = {setting.key: setting.value for setting in settings if setting.file is None}
    assert defaults["service.restart"] == "no"
    assert defaults["service.timeout-start-sec"] == "infinity"
    assert defaults["service.timeout-abort-sec"] == "1min 30s"
    assert defaults["limits.nofile"] == "1024:524288"
    assert not any(key.startswith("timer.") for key in defaults)
    assert result.files("web") == [
        ("u/defaults.toml", "[limits]\nnice = 1\n"),
        ("u/web.toml", result.files("web")[1][1]),
        ("u/web.toml.d/1.toml", '[service.environment]\nA = "%h"\n'),
    ]
    assert result.settings("nobody") == [] and result.files("nobody") == []


def test_a_bad_unit_shows_its_files() -> None:
    """What is wrong is best seen in the text."""
    assert load_texts({"web": "x"}).files("web") == [("u/web.toml", "x")]


# Comparing


def digest(result: LoadResult) -> str:
    return result.unit_set.units["web"].source.digest


def test_compare_looks_at_the_meaning() -> None:
    """Remarks, layout and the folder change nothing but the digest; a value does."""
    old = load_texts({"web": SLEEP, "gone": SLEEP, "same": SLEEP})
    remark = load_texts({"web": "# hello\n" + SLEEP, "new": SLEEP, "same": SLEEP})
    difference = compare(old.unit_set, remark.unit_set)
    assert (difference.added, difference.changed, difference.removed) == (("new",), (), ("gone",))
    assert digest(old) != digest(remark)
    changed = load_texts({"web": SLEEP + "umask = '077'\n", "gone": SLEEP, "same": SLEEP})
    assert compare(old.unit_set, changed.unit_set).changed == ("web",)
    assert compare(old.unit_set, old.unit_set).changed == ()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('[service]\nexec-start = ["mysql -phunter2"]\n', "service.exec-start: the program's name '...' holds a space"),
        (f'{SLEEP}[service.environment]\n"hunter2 = x" = "v"\n', "service.environment: '...' is not"),
        (f"{SLEEP}[service.environment]\nhunter2 = {{}}\n", "service.environment: "),
        (f'{SLEEP}restart = "--token hunter2"\n', "service.restart: '...' is not possible"),
        (f'{SLEEP}"my hunter2" = 1\n', "...: unknown key '...' in [service]"),
        (f'{SLEEP}restart-sec = "it\'s \\"hunter2"\n', "service.restart-sec: '..."),
    ],
)
def test_secret_in_a_mistyped_value_is_not_told_with_the_problem(text: str, kept: str) -> None:
    """What is told of a bad unit to everybody names place and key, and quotes nothing that may be a command line or a
    secret; ``check`` shows all of it."""
    result = load_texts({"web": text})
    reason = result.unit_set.bad["web"].reason
    assert reason.startswith("u/web.toml:")
    assert kept in reason
    assert "hunter2" not in reason
    assert any("hunter2" in problem.headline() for problem in result.problems)


def test_problem_of_a_plain_word_is_told_whole() -> None:
    """A mistyped key is named wherever the problem is shown."""
    assert (
        "unknown key 'exec-stat' in [service]"
        in load_texts({"web": SLEEP + 'exec-stat = "x"\n'}).unit_set.bad["web"].reason
    )


def test_003_a_template_does_not_depend_on_the_file_of_its_first_instance() -> None:
    """The first instance is masked, or has a file of its own: the others are there, as many as the template says."""
    template = SLEEP + "[instances]\ncount = 2\n"
    masked = load_texts({"w@": template, "w@1": ""})
    assert (sorted(masked.unit_set.units), masked.unit_set.masked, masked.problems) == (["w@2"], ("w@1",), ())
    other = load_texts({"w@": template, "w@1": SLEEP, "w@1.d/5": "[limits]\nnice = 1\n"})
    assert sorted(other.unit_set.units) == ["w@1", "w@2"]
