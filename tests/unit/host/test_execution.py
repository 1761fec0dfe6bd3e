"""Spawn requests: what a process is given, by whom it runs, and how a start fails before anything is made."""

import grp
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.core.actions import SpawnProcess
from supervisord_py.core.events import SpawnFailed
from supervisord_py.host.accounts import Account, Accounts, Identity, NoAccount
from supervisord_py.host.cgroups import Finding, Hierarchy, Place, UnitGroups
from supervisord_py.host.execution import DEFAULT_PATH, SpawnRuntime, build_spawn, passed_environment
from supervisord_py.model.states import NotifyAccess, Role, ServiceType
from supervisord_py.model.unit import Command, ExecContext, Limit, Service, Unit, UnitKind

ROOT = Identity(0, 0, frozenset({0}))
MYSELF = Identity.of_this_process()
ROWS = json.loads((Path(__file__).parents[2] / "data/systemd/behaviour/process-environment.json").read_text())
OBSERVED = {name: row["observed"] for name, row in ROWS["settings"].items()}


def unit(context: ExecContext | None = None, **service: Any) -> Unit:
    return Unit("web@1", UnitKind.SERVICE, Service(context=context or ExecContext(), **service))


def action(command: Command | None = None, **fields: Any) -> SpawnProcess:
    fields.setdefault("role", Role.MAIN)
    return SpawnProcess(7, "web@1", command=command or Command(("/bin/true",)), invocation="f" * 32, **fields)


def runtime(own: Identity = ROOT, **fields: Any) -> SpawnRuntime:
    return SpawnRuntime(control_socket="/run/x/control.sock", accounts=Accounts(own), **fields)


def spawn(
    context: ExecContext | None = None, command: Command | None = None, own: Identity = ROOT, **service: Any
) -> dict[str, Any]:
    request = build_spawn(action(command), unit(context, **service), runtime(own))
    assert isinstance(request, dict), request
    return request


def failure(context: ExecContext | None = None, command: Command | None = None, own: Identity = ROOT) -> SpawnFailed:
    failed = build_spawn(action(command), unit(context), runtime(own))
    assert isinstance(failed, SpawnFailed), failed
    assert failed.spawn_id == 7
    return failed


def test_the_whole_request_of_a_plain_unit() -> None:
    """A unit that asks for nothing gets exactly this, and the request is JSON as the keeper reads it."""
    root = pwd.getpwuid(0)
    request = spawn()
    assert json.loads(json.dumps(request)) == {
        "do": "spawn",
        "id": 7,
        "unit": "web@1",
        "role": "main",
        "argv": ["/bin/true"],
        "executable": "/bin/true",
        "env": {
            "PATH": DEFAULT_PATH,
            "LANG": "C.UTF-8",
            "HOME": root.pw_dir,
            "USER": root.pw_name,
            "LOGNAME": root.pw_name,
            "SHELL": root.pw_shell,
            "SUPERVISORD_PY_UNIT": "web@1",
            "SUPERVISORD_PY_SOCKET": "/run/x/control.sock",
            "INVOCATION_ID": "f" * 32,
        },
        "cwd": "/",
        "umask": 0o022,
        "uid": None,
        "gid": None,
        "groups": None,
        "rlimits": {"nofile": [1024, 524288]},
        "strict": [],
        "nice": None,
        "cgroups": [],
        "sigpipe": False,
        "notify": "none",
        "privileged": False,
        "pid_env": [],
    }


def test_every_process_of_a_unit_with_a_pid_file_is_told_where_it_is() -> None:
    """PIDFILE, which the unit's own environment cannot forge; nobody else has it."""
    context = ExecContext(environment=(("PIDFILE", "/tmp/forged"),))
    assert spawn(context, pid_file="/run/web.pid")["env"]["PIDFILE"] == "/run/web.pid"
    assert "PIDFILE" not in spawn()["env"]


def test_path_lang_and_identity_are_those_that_systemd_gave() -> None:
    """What a booted systemd gave to processes of nobody and of daemon is what ours get."""
    plain = OBSERVED["plain"]["env"]
    assert {name: spawn()["env"][name] for name in ("PATH", "LANG")} == {name: plain[name] for name in ("PATH", "LANG")}
    seen = OBSERVED["User=nobody Group=adm SupplementaryGroups=games"]
    request = spawn(ExecContext(user="nobody", group="adm", supplementary_groups=("games",)))
    assert (request["uid"], request["gid"], request["groups"]) == (seen["uid"][0], seen["gid"][0], seen["groups"])
    names = {"HOME", "USER", "LOGNAME", "SHELL"}
    assert {name: value for name, value in request["env"].items() if name in names} == {
        name: value for name, value in seen["env"].items() if name in names
    }
    seen = OBSERVED["WorkingDirectory=~ User=daemon"]
    request = spawn(ExecContext(user="daemon", working_directory="~"))
    assert (request["uid"], request["gid"], request["groups"]) == (seen["uid"][0], seen["gid"][0], seen["groups"])
    assert request["cwd"] == seen["cwd"]
    assert {name: value for name, value in request["env"].items() if name in names} == {
        name: value for name, value in seen["env"].items() if name in names
    }


def test_the_order_of_the_environment() -> None:
    """The unit wins over what is passed and over the base, nothing wins over what the supervisor says."""
    own = {"PATH": "/passed", "A": "passed", "B": "passed", "NOTIFY_SOCKET": "/above"}
    context = ExecContext(environment=(("B", "unit"), ("HOME", "/mine"), ("INVOCATION_ID", "lie"), ("MAINPID", "1")))
    request = build_spawn(
        action(environment=(("SERVICE_RESULT", "success"), ("WATCHDOG_USEC", "5"))),
        unit(context),
        runtime(passed=passed_environment("all", own), bus="ipc:///bus"),
        main_pid=42,
    )
    assert isinstance(request, dict)
    environment = request["env"]
    assert environment["PATH"] == "/passed"
    assert (environment["A"], environment["B"], environment["HOME"]) == ("passed", "unit", "/mine")
    assert (environment["INVOCATION_ID"], environment["MAINPID"]) == ("f" * 32, "42")
    assert environment["SERVICE_RESULT"] == "success"
    assert environment["SUPERVISORD_PY_BUS"] == "ipc:///bus"
    assert "NOTIFY_SOCKET" not in environment
    assert request["pid_env"] == ["WATCHDOG_PID"]


def test_passing_names_one_by_one() -> None:
    """Only what is named and there is passed, and nothing that is no UTF-8."""
    own = {"A": "1", "B": "2", "C": "\udcff"}
    assert passed_environment(["A", "C", "D"], own) == (("A", "1"),)
    assert dict(passed_environment("all", own)) == {"A": "1", "B": "2"}


def test_variables_of_a_command_come_from_the_process_s_own_environment() -> None:
    """``$NAME`` and ``${NAME}`` see the unit's environment and the supervisor's words."""
    command = Command(("/bin/echo", "$WORDS", "${INVOCATION_ID}", "$$"), expand=True)
    request = spawn(ExecContext(environment=(("WORDS", "one two"),)), command)
    assert request["argv"] == ["/bin/echo", "one", "two", "f" * 32, "$"]


def test_the_program_and_its_name(tmp_path: Path) -> None:
    """A path is executed as it is, a bare name is searched in PATH, with another ``argv0`` now."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "folder").mkdir()
    context = ExecContext(environment=(("PATH", f"/nonexistent:{tmp_path}"),))
    assert spawn(context, Command(("program", "x")))["executable"] is None
    request = spawn(context, Command(("program", "x"), argv0="-sh"))
    assert (request["executable"], request["argv"]) == (str(program), ["-sh", "x"])
    for name in ("folder", "missing"):
        failed = failure(context, Command((name,), argv0="x"))
        assert (failed.step, failed.code, failed.detail) == ("exec", 203, f"no program {name} in PATH")


def test_limits_are_strict_where_they_are_written() -> None:
    """Written limits must hold unless best-effort is; the default one is clamped; rttime says the hard limit only."""
    limits = (("core", Limit(0, None)), ("rttime", Limit(5, 9)))
    request = spawn(ExecContext(rlimits=limits))
    assert request["rlimits"] == {"nofile": [1024, 524288], "core": [0, -1], "rttime": [9, 9]}
    assert request["strict"] == ["core", "rttime"]
    request = spawn(ExecContext(rlimits=(("nofile", Limit(5, 6)),), enforce="best-effort"))
    assert (request["rlimits"], request["strict"]) == ({"nofile": [5, 6]}, [])
    failed = failure(ExecContext(rlimits=(("nofiles", Limit(1, 1)),)))
    assert (failed.step, failed.code) == ("limits", 205)


def test_a_privileged_command_runs_as_the_supervisor_without_limits() -> None:
    """The prefix ``+`` leaves user, groups and limits aside, in the environment too."""
    context = ExecContext(user="nobody", rlimits=(("nofile", Limit(1, 1)),), umask=0o077, nice=5)
    request = spawn(context, Command(("/bin/true",), privileged=True))
    assert (request["uid"], request["gid"], request["groups"]) == (None, None, None)
    assert (request["rlimits"], request["strict"]) == ({}, [])
    assert request["env"]["USER"] == pwd.getpwuid(0).pw_name
    assert (request["privileged"], request["umask"], request["nice"]) == (True, 0o077, 5)


@pytest.mark.parametrize(
    ("type_", "written", "effective"),
    [
        (ServiceType.SIMPLE, NotifyAccess.NONE, "none"),
        (ServiceType.NOTIFY, NotifyAccess.NONE, "main"),
        (ServiceType.NOTIFY_RELOAD, NotifyAccess.NONE, "main"),
        (ServiceType.NOTIFY, NotifyAccess.ALL, "all"),
        (ServiceType.SIMPLE, NotifyAccess.EXEC, "exec"),
    ],
)
def test_who_may_notify(type_: ServiceType, written: NotifyAccess, effective: str) -> None:
    """A notify unit always listens to its main process at least."""
    assert spawn(type=type_, notify_access=written)["notify"] == effective


def test_working_directories(tmp_path: Path) -> None:
    """``~`` is the home of the user, ``-`` forgives a missing folder, root starts in / and a user at home."""
    assert spawn(ExecContext(working_directory=str(tmp_path)))["cwd"] == str(tmp_path)
    assert spawn(ExecContext(working_directory="/no/such"))["cwd"] == "/no/such"
    assert spawn(ExecContext(working_directory="-/no/such"))["cwd"] == "/"
    assert spawn(ExecContext(working_directory=f"-{tmp_path}"))["cwd"] == str(tmp_path)
    assert spawn(ExecContext(working_directory="-~", user="nobody"))["cwd"] == "/"
    daemon = pwd.getpwnam("daemon")
    assert spawn(own=Identity(daemon.pw_uid, daemon.pw_gid, frozenset()))["cwd"] == daemon.pw_dir
    failed = failure(ExecContext(working_directory="~", user="nobody"))
    assert (failed.step, failed.code) == ("chdir", 200)
    assert failed.detail == "working-directory is ~, and nobody has no home"
    assert failure(ExecContext(working_directory="relative")).code == 200


@pytest.mark.parametrize(
    ("context", "step", "code", "detail"),
    [
        (ExecContext(user="no-such-user"), "user", 217, "no such user no-such-user"),
        (ExecContext(user="3999999"), "user", 217, "no user has the number 3999999"),
        (ExecContext(group="no-such-group"), "group", 216, "no such group no-such-group"),
        (ExecContext(supplementary_groups=("no-such-group",)), "group", 216, "no such group no-such-group"),
        (ExecContext(group="4294967295"), "group", 216, "no such group 4294967295"),
    ],
)
def test_users_and_groups_that_are_not_there(context: ExecContext, step: str, code: int, detail: str) -> None:
    """The start fails with systemd's exit code and a sentence that names what is missing."""
    failed = failure(context)
    assert (failed.step, failed.code) == (step, code)
    assert detail in failed.detail


def test_users_by_number() -> None:
    """A number is the user that has it; one that nobody has needs a group to run with."""
    daemon = pwd.getpwnam("daemon")
    request = spawn(ExecContext(user=str(daemon.pw_uid)))
    assert (request["uid"], request["gid"], request["env"]["USER"]) == (daemon.pw_uid, daemon.pw_gid, "daemon")
    request = spawn(ExecContext(user="3999999", group="3999998"))
    assert (request["uid"], request["gid"], request["groups"]) == (3999999, 3999998, [3999998])
    assert not {"USER", "LOGNAME", "HOME", "SHELL"} & set(request["env"])


def test_a_user_gets_all_groups_it_is_a_member_of() -> None:
    """Groups are those of initgroups, with the supplementary ones added."""
    adm = grp.getgrnam("adm").gr_gid
    request = spawn(ExecContext(user="daemon", supplementary_groups=("adm",)))
    daemon = pwd.getpwnam("daemon")
    assert request["groups"] == sorted({*os.getgrouplist("daemon", daemon.pw_gid), adm})


def test_a_group_alone_leaves_the_user() -> None:
    """``group`` without ``user`` changes the group of whoever we are."""
    adm = grp.getgrnam("adm").gr_gid
    request = spawn(ExecContext(group="adm"))
    assert (request["uid"], request["gid"], request["groups"]) == (0, adm, [adm])


def test_becoming_oneself_changes_nothing() -> None:
    """``user`` with our own name needs no switch, so the fast way of making processes stays open."""
    request = spawn(ExecContext(user="daemon"), own=Identity(1, pwd.getpwnam("daemon").pw_gid, frozenset({1})))
    assert (request["uid"], request["gid"], request["groups"]) == (None, None, None)


@pytest.mark.parametrize(
    ("context", "code", "detail"),
    [
        (ExecContext(user="nobody"), 216, "a supervisor with uid 1 cannot become nobody"),
        (ExecContext(user="root"), 216, "a supervisor with uid 1 cannot become root"),
        (ExecContext(user="0", group="1"), 217, "a supervisor with uid 1 cannot become root"),
        (ExecContext(group="adm"), 216, "a supervisor with gid 1 cannot take group"),
        (ExecContext(supplementary_groups=("adm",)), 216, "is not in group"),
    ],
)
def test_an_ordinary_user_can_become_nobody_else(context: ExecContext, code: int, detail: str) -> None:
    """Without root another user or group fails the start, and says what to do."""
    failed = failure(context, own=Identity(1, 1, frozenset({1})))
    assert failed.code == code
    assert detail in failed.detail
    assert "root" in failed.detail


def test_accounts_are_asked_once_and_failures_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand units of one user cost one look-up; a user that is created later is found at the next start."""
    asked = []
    real = pwd.getpwnam

    def counting(name: str) -> pwd.struct_passwd:
        asked.append(name)
        return real(name)

    monkeypatch.setattr(pwd, "getpwnam", counting)
    accounts = Accounts(ROOT)
    first = accounts.find("daemon", None)
    assert all(accounts.find("daemon", None) == first for _ in range(1000))
    assert asked == ["daemon"]
    for _ in range(2):
        with pytest.raises(NoAccount):
            accounts.find("no-such-user", None)
    assert asked == ["daemon", "no-such-user", "no-such-user"]
    assert isinstance(first, Account)


def test_a_uid_without_an_account_had_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container ``%h`` was $HOME, and ``~`` and $HOME of the process were nothing."""
    strangers = Identity(3_000_000_001, 7, frozenset({7}))
    for given, home in (("/srv/app", "/srv/app"), ("/", None), ("app", None), ("", None)):
        monkeypatch.setenv("HOME", given)
        assert Accounts(strangers).find(None, None).home == home
    monkeypatch.setenv("HOME", "/srv/app")
    assert Accounts(ROOT).find("3000000001", "7").home is None


def test_a_nul_character_is_refused() -> None:
    """What the kernel would cut off silently fails the start."""
    assert failure(command=Command(("/bin/echo", "a\0b"))).code == 203
    assert failure(ExecContext(environment=(("A", "\0"),))).code == 203


def test_the_process_joins_the_group_of_its_unit(tmp_path: Path) -> None:
    """The group is made before the request, and only for a request that is made."""
    groups = UnitGroups(Finding(Place(Hierarchy.UNIFIED, str(tmp_path)), ()), "main", 1)
    request = build_spawn(action(), unit(), runtime(groups=groups))
    assert isinstance(request, dict)
    assert request["cgroups"] == [str(tmp_path / "supervisord-py.main-00001" / "web@1.unit")]
    assert all(Path(folder).is_dir() for folder in request["cgroups"])
    assert request["home"] == str(tmp_path)
    groups.close(remove=True)
    assert isinstance(build_spawn(action(), unit(ExecContext(user="no-such")), runtime(groups=groups)), SpawnFailed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("role", "discards"), [(Role.PROBE, True), (Role.HOOK, False)])
def test_what_runs_beside_a_unit_runs_as_the_unit(role: Role, discards: bool) -> None:
    """Its user, directory, environment and limits, under an owner of its own, and no mailbox; a check's output goes
    nowhere."""
    context = ExecContext(user="nobody", working_directory="/tmp", environment=(("A", "b"),), nice=5)
    notifying = unit(context, type=ServiceType.NOTIFY, notify_access=NotifyAccess.ALL)
    beside = SpawnProcess(
        9, "web@1!9", role, Command(("/bin/true",)), "e" * 32, environment=(("SUPERVISORD_PY_UNIT", "web@1"),)
    )
    request = build_spawn(beside, notifying, runtime())
    assert isinstance(request, dict)
    assert (request["unit"], request["role"], request["notify"]) == ("web@1!9", role.value, "none")
    assert (request["uid"], request["cwd"], request["nice"]) == (pwd.getpwnam("nobody").pw_uid, "/tmp", 5)
    assert (request["env"]["A"], request["env"]["SUPERVISORD_PY_UNIT"]) == ("b", "web@1")
    assert request.get("discard", False) is discards


def test_a_hook_about_no_unit_runs_as_the_supervisor() -> None:
    request = build_spawn(SpawnProcess(9, "!9", Role.HOOK, Command(("/bin/true",)), "e" * 32), None, runtime())
    assert isinstance(request, dict)
    assert (request["unit"], request["uid"], request["cwd"], request["notify"]) == ("!9", None, "/", "none")
