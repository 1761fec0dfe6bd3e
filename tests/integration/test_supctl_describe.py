"""``supctl`` show, cat, deps, why, lives, wait and the daemon verbs against a fake supervisor."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import supervisord_py
from supervisord_py.ctl import daemon
from tests.integration.supctl_fake import FakeSupervisor, HangUp, Raise, not_there, unit
from tests.integration.supctl_run import Supctl


@pytest.fixture
def supctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Supctl]:
    fake = FakeSupervisor(tmp_path / "control.sock")
    yield Supctl(fake, capsys)
    fake.close()


SETTINGS = [
    {"key": "service.exec-start", "value": ["/srv/web", "--port", "80"], "file": "/units/web.toml", "line": 4},
    {"key": "service.restart", "value": "on-failure", "file": None, "line": None},
]


def test_show(supctl: Supctl) -> None:
    """State and settings as KEY=VALUE; ``-p KEY --value`` prints one value alone; ``describe`` is the same command."""
    supctl.fake.on("Show", {"status": unit("web", "activating", "start_pre", exec="/srv/web"), "settings": SETTINGS})
    out = supctl("describe", "web").out
    assert "sub_state=start-pre\n" in out
    assert 'service.exec-start=["/srv/web", "--port", "80"]\n' in out
    assert supctl("show", "web", "-p", "service.restart", "--value").out == "on-failure\n"
    assert supctl("show", "web", "-p", "pid", "-p", "service.restart").lines == ["pid=", "service.restart=on-failure"]
    assert supctl("show", "web", "--json").document["status"]["exec"] == "/srv/web"
    ran = supctl("show", "web", "-p", "service.restrat")
    assert (ran.code, "did you mean service.restart?" in ran.err) == (2, True)


def test_cat(supctl: Supctl) -> None:
    """The files in merge order under their paths; ``--origin`` says where each value comes from."""
    files = [
        {"path": "/units/web.toml", "text": "[service]\n"},
        {"path": "/units/web.toml.d/a.toml", "text": "[unit]\n"},
    ]
    supctl.fake.on("Cat", {"files": files})
    supctl.fake.on("Show", {"status": unit("web"), "settings": SETTINGS})
    assert supctl("cat", "web").lines == ["# /units/web.toml", "[service]", "", "# /units/web.toml.d/a.toml", "[unit]"]
    # What the process has now was shown as a default.
    live = {"key": "live.nice", "value": 0, "file": None, "line": None}
    supctl.fake.on("Show", {"status": unit("web"), "settings": [*SETTINGS, live]})
    origins = supctl("cat", "web", "--origin").lines
    assert not any("live." in line for line in origins)
    assert origins[1].endswith("/units/web.toml:4")
    assert origins[2].split() == ["service.restart", "on-failure", "default"]


def edge(name: str, depth: int, kind: str = "requires", state: str = "active") -> dict[str, Any]:
    return {"unit": name, "kind": kind, "until": "ready", "active_state": state, "depth": depth}


def test_deps_is_a_tree(supctl: Supctl) -> None:
    """Edges with depths become branches, the last sibling of each closed; kinds in the contract's words."""
    edges = [edge("a", 1), edge("b", 2), edge("c", 3), edge("d", 2), edge("e", 1, "binds_to", "failed")]
    supctl.fake.on("Deps", {"edges": edges})
    ran = supctl("list-dependencies", "web", "--reverse")
    assert ran.lines == [
        "web",
        "├─ a active (requires until ready)",
        "│  ├─ b active (requires until ready)",
        "│  │  └─ c active (requires until ready)",
        "│  └─ d active (requires until ready)",
        "└─ e failed (binds-to until ready)",
    ]
    assert supctl.fake.called("Deps") == [{"unit": "web", "reverse": True}]


def test_why_prints_the_chain_and_the_next_command(supctl: Supctl) -> None:
    """Causes nearest first, each a step further in, with the record that tells more; advice once."""
    causes = [
        {"kind": "dependency", "message": "it waits for db", "unit": "db", "seq": None, "advice": None, "about": "web"},
        {
            "kind": "bad_setting",
            "message": "its file is wrong",
            "unit": None,
            "seq": 9,
            "advice": "supctl cat db",
            "about": "db",
        },
        {
            "kind": "bad_setting",
            "message": "line 3",
            "unit": None,
            "seq": None,
            "advice": "supctl cat db",
            "about": "db",
        },
    ]
    supctl.fake.on("Why", {"unit": unit("web", "inactive", "dependency"), "causes": causes})
    assert supctl("why", "web").lines == [
        "web is inactive (dependency)",
        "└▸ it waits for db",
        "   └▸ db: its file is wrong (record 9)",
        "      └▸ db: line 3",
        "next: supctl cat db",
    ]
    assert supctl("why", "web", "--json").document["causes"][1]["kind"] == "bad-setting"


def test_why_tells_what_befell_a_unit_before(supctl: Supctl) -> None:
    """``--all`` as far as the journal goes back, ``--since`` from then on; only what changed its state."""
    supctl.fake.on("Why", {"unit": unit("web", "active", "running"), "causes": []})
    failed = {"seq": 7, "ts": "2026-11-20T12:00:00Z", "event": "unit.failed", "unit": "web", "message": "it was killed"}
    supctl.fake.on("Journal.Query", {"records": [failed]})
    lines = supctl("why", "web", "--all").lines
    assert lines[1:3] == ["", "before:"]
    assert "unit.failed" in lines[3] and "it was killed" in lines[3]
    assert supctl("why", "web", "--since", "2026-11-20 11:00", "--json").document["before"] == [failed]
    all_, since = (call["filter"] for call in supctl.fake.called("Journal.Query"))
    assert (all_["units"], "since" in all_, "unit.heartbeat" in all_["events"]) == (["web"], False, False)
    assert since["since"].startswith("2026-11-20")
    supctl.fake.on("Journal.Query", {"records": []})
    assert supctl("why", "web", "--since", "10m").lines[-1] == "before: nothing that the journal tells"


def test_lives(supctl: Supctl) -> None:
    """A line a life: when, how long, how it ended, its last words."""
    ended = {
        "invocation": "a", "start": "2026-11-20T12:00:00Z", "end": "2026-11-20T12:00:05Z", "result": "exit_code",
        "exit": {"code": 1, "signal": None}, "runtime_ms": 5000, "last_words": "boom",
    }  # fmt: skip
    running = {"invocation": "b", "start": "2026-11-20T12:00:06Z", "end": None, "result": None, "exit": None}
    supctl.fake.on("Lives", {"lives": [ended, running]})
    ran = supctl("lives", "web")
    assert "5.0s" in ran.lines[1]
    assert ran.lines[1].endswith("exit-code  exit 1  boom")
    assert ran.lines[2].rstrip().endswith("running")
    assert supctl("lives", "web", "--json").document["lives"][0]["exit"] == {"code": 1}


def test_the_life_of_a_stub_that_has_ended_is_not_running(supctl: Supctl) -> None:
    """It has an end, and no result of its own."""
    life = {
        "invocation": "a", "start": "2026-11-20T12:00:00Z", "end": "2026-11-20T12:00:05Z", "result": None,
        "exit": {"code": None, "signal": "SIGTERM"}, "runtime_ms": 5000,
    }  # fmt: skip
    supctl.fake.on("Lives", {"lives": [life]})
    assert supctl("lives", "web").lines[1].split()[-2:] == ["stub", "SIGTERM"]


@pytest.mark.parametrize(
    ("ended", "result", "code"),
    [
        ({"code": 0, "signal": None}, "success", 0),
        ({"code": 42, "signal": None}, "exit_code", 42),
        ({"code": None, "signal": "SIGKILL"}, "signal", 137),
        ({"code": None, "signal": "SIGRTMIN+3"}, "signal", 128 + 37),
        (None, "success", 125),
        (None, "unknown", 1),
    ],
)
def test_wait_for_exit_passes_the_code_on(
    supctl: Supctl, ended: dict[str, object] | None, result: str, code: int
) -> None:
    """The unit's own code; 128 + n for a signal; 125 when it never started; 1 when nobody knows."""
    supctl.fake.on("List", {"units": [unit("web")]})
    supctl.fake.on("Wait", {"unit": unit("web", "inactive", "dead", exit=ended, result=result)})
    assert supctl("wait", "web", "--for", "exit").code == code


@pytest.mark.parametrize("code", [203, 71, 1])
def test_wait_for_exit_took_the_code_of_a_failed_start_for_the_unit_s_own(supctl: Supctl, code: int) -> None:
    """The program never ran: 203 is systemd's word for why, 71 the same of another step, 1 that of an older life."""
    never = unit("web", "failed", "failed", exit={"code": code, "signal": None}, result="exit_code", has_run=False)
    supctl.fake.on("List", {"units": [unit("web")]})
    supctl.fake.on("Wait", {"unit": never})
    ran = supctl("wait", "web", "--for", "exit")
    assert (ran.code, ran.out) == (125, "")
    assert "web never started" in ran.err


def test_wait_for_exit_is_about_the_life_it_began_with(supctl: Supctl) -> None:
    """The life ends while no manager answers and the next one runs: the code is that of the life that was meant."""
    supctl.fake.on("List", {"units": [unit("web", invocation="first")]})
    supctl.fake.on("Wait", HangUp(), {"unit": unit("web", invocation="second", exit={"code": 9, "signal": None})})
    life = {
        "invocation": "first", "start": "2026-11-20T12:00:00Z", "end": "2026-11-20T12:00:05Z", "result": "exit_code",
        "exit": {"code": 7, "signal": None},
    }  # fmt: skip
    supctl.fake.on("Lives", {"lives": [life]})
    assert supctl("wait", "web", "--for", "exit").code == 7


def test_wait_for_ready_and_its_time_limit(supctl: Supctl) -> None:
    """``wait`` says what the unit has become; a time limit that runs out is 124; an unknown unit 4."""
    supctl.fake.on("Wait", {"unit": unit("web")}, Raise("TimedOut", {"message": "web is not ready"}), not_there("web"))
    ran = supctl("wait", "web")
    assert (ran.code, ran.out) == (0, "web is active, pid 123\n")
    assert supctl("wait", "web", "--for", "active", "--timeout", "5s").code == 124
    assert supctl.fake.called("Wait")[1]["until"] == "active"
    assert 0 < supctl.fake.called("Wait")[1]["timeout_ms"] <= 5000
    assert supctl("wait", "web").code == 4


VERSION = {
    "manager": "0.1", "keeper": "0.1", "protocol": 1, "name": "main", "pid": 10, "keeper_pid": 9, "instance": "abc",
    "keepers": [9],
}  # fmt: skip


def test_ping_version_idl(supctl: Supctl) -> None:
    """The three that a monitor may always ask."""
    supctl.fake.on("Version", VERSION)
    supctl.fake.on("GetInterfaceDescription", {"description": "interface a.b\n"})
    supctl.fake.on("GetInfo", {"interfaces": ["a.b", "c.d"]})
    assert supctl("ping").out == "pong\n"
    assert supctl("--version").out == f"supctl {supervisord_py.__version__}\n"
    assert "manager   0.1 (pid 10)" in supctl("version").out
    assert list(supctl("version", "--json").document) == ["ctl", *VERSION]
    assert supctl("idl", "a.b").out == "interface a.b\n"
    assert list(supctl("idl", "--json").document["interfaces"]) == ["a.b", "c.d"]


def test_health_and_can(supctl: Supctl) -> None:
    """``health`` exits 0 or 1 and names each problem; ``can`` exits 0 or 5 and says by which rule."""
    supctl.fake.on("Health", {"healthy": True, "problems": []}, {"healthy": False, "problems": ["db failed", "x"]})
    supctl.fake.on("Can", {"allowed": True, "why": "uid 0"}, {"allowed": False, "why": "no rule"})
    supctl.fake.on("Commands", {"commands": ["list", "start"], "allowed": ["list"]})
    assert (supctl("health").code, supctl("health").code) == (0, 1)
    assert supctl("health").lines == ["db failed", "x"]
    supctl.fake.on("Health", {"healthy": True, "problems": [], "warnings": ["changes are not noticed"]})
    ran = supctl("health")
    assert (ran.code, ran.lines) == (0, ["healthy", "warning: changes are not noticed"])
    assert supctl("can", "start", "web", "--as", "eve").code == 0
    assert supctl.fake.called("Can") == [{"verb": "start", "unit": "web", "user": "eve"}]
    ran = supctl("can", "start")
    assert (ran.code, ran.out) == (5, "no: no rule\n")
    assert supctl("commands").lines == ["yes  list", "no   start"]


def test_daemon_reload(supctl: Supctl) -> None:
    """Each unit and key with its old and new value and what follows, what to restart, and the problems of the files:
    with those it exits 1, and says that the rest is loaded.
    """

    def change(name: str, what: str, effect: str, message: str = "", **keys: tuple[str | None, str | None, str]) -> Any:
        told = [
            {"key": f"service.{key.replace('_', '-')}", "old": old, "new": new, "effect": how}
            for key, (old, new, how) in keys.items()
        ]
        return {
            "unit": name,
            "change": what,
            "effect": effect,
            "keys": told,
            "path": f"{name}.toml",
            "message": message,
        }

    changes = [
        change("a", "added", "start"),
        change("b", "changed", "restart", exec_start=("one\ntwo", "three", "restart"), nice=(None, "1", "none")),
        change("c", "changed", "none"),
        change("d", "removed", "keep"),
        change("e", "broken", "none", "e.toml:1: bad"),
    ]
    sections = {"added": ["a"], "changed": ["b"], "removed": ["d"]}
    limit = {"key": "journal.max-bytes", "old": "256M", "new": "1G", "effect": "live"}
    reply = {"job": None, "durable": True, **sections, "problems": [], "changes": changes, "settings": [limit]}
    supctl.fake.on("DaemonReload", reply)
    ran = supctl("daemon-reload", "-m", "new unit")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == [
        "added: a (it is started)",
        "changed: b (needs a restart)",
        "  service.exec-start: one; two -> three  (restart)",
        "  service.nice: not set -> 1",
        "changed: c (means the same as before)",
        "removed: d (it runs on without a file until it stops)",
        "broken: e (e.toml:1: bad)",
        "changed: supervisord.toml",
        "  journal.max-bytes: 256M -> 1G",
        "next: supctl restart b",
    ]
    supctl.fake.on("DaemonReload", reply | {"problems": ["e.toml:1: bad"]})
    planned = supctl("daemon-reload", "--plan")
    assert planned.code == 1
    assert planned.lines[0] == "would be added: a (it would be started)"
    assert "next:" not in planned.out
    assert planned.err.splitlines() == [
        "supctl: 1 problem in the files; everything else would be loaded:", "  e.toml:1: bad",
    ]  # fmt: skip
    ran = supctl("daemon-reload", "--json")
    assert (ran.code, ran.document["error"]["code"], ran.document["changes"][0]["unit"]) == (1, "failed", "a")
    supctl.fake.on("DaemonReload", reply | {"changes": [], "settings": []})
    assert supctl("daemon-reload").lines == ["nothing has changed"]


@pytest.mark.parametrize("answer", [{"job": None, "durable": True, "manager_pid": 10}, HangUp()])
def test_daemon_restart_returns_when_another_manager_answers(supctl: Supctl, answer: Any) -> None:
    """Whether the reply came or the old manager took it along: done is when the pid is another."""
    supctl.fake.on("Version", VERSION, VERSION | {"pid": 11})
    supctl.fake.on("DaemonRestart", answer)
    ran = supctl("daemon-restart")
    assert (ran.code, ran.out, ran.err) == (0, "a new manager has taken over (pid 11, was 10)\n", "")
    assert len(supctl.fake.called("DaemonRestart")) == 1


def test_daemon_restart_that_was_refused_by_the_pre_flight(supctl: Supctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same manager still answers when the time for the take-over is over: exit 1."""
    monkeypatch.setattr(daemon, "TAKEOVER_S", 0.0)
    supctl.fake.on("Version", VERSION)
    supctl.fake.on("DaemonRestart", {"job": None, "durable": True, "manager_pid": 10})
    ran = supctl("daemon-restart")
    assert ran.code == 1
    assert "has not been replaced" in ran.err


def test_daemon_reexec_says_the_versions_or_why_not(supctl: Supctl) -> None:
    """Done when another manager answers, with the keeper's new version; a refusal is told with its reason."""
    reply = {"job": None, "durable": True, "manager_pid": 10, "keeper": VERSION["keeper"], "refused": None}
    supctl.fake.on("DaemonReexec", reply)
    supctl.fake.on("Version", VERSION, VERSION | {"pid": 11, "keeper": "9.9"})
    ran = supctl("daemon-reexec", "-m", "upgrade")
    assert (ran.code, ran.err) == (0, "")
    assert "is version 9.9 now, was " + VERSION["keeper"] in ran.out
    supctl.fake.on("DaemonReexec", reply | {"refused": "no such module"})
    ran = supctl("daemon-reexec")
    assert ran.code == 1
    assert "no such module" in ran.err


def test_daemon_reexec_without_waiting_printed_no_json(supctl: Supctl) -> None:
    """``--no-wait --json`` printed the sentence for people."""
    reply = {"job": None, "durable": True, "manager_pid": 10, "keeper": "0.1", "refused": None}
    supctl.fake.on("DaemonReexec", reply)
    supctl.fake.on("Version", VERSION)
    assert supctl("daemon-reexec", "--no-wait", "--json").document == reply


def test_shutdown_waits_until_it_is_gone(supctl: Supctl) -> None:
    """``shutdown`` returns when nobody listens any more; ``--no-wait`` at once."""
    supctl.fake.on("Shutdown", {"job": None, "durable": True})
    assert supctl("shutdown", "--no-wait", "-m", "bye").out == "the supervisor is stopping\n"
    gone = threading.Event()

    def last(_: dict[str, Any]) -> list[Any]:
        supctl.fake.stop_listening()
        gone.set()
        return [HangUp()]

    supctl.fake.on("Ping", last)
    ran = supctl("shutdown", "--timeout", "20s")
    assert (ran.code, ran.out) == (0, "the supervisor has stopped\n")
    assert gone.is_set()
    assert supctl.fake.called("Shutdown")[0]["reason"] == "bye"


def test_completion_offers_units_and_groups(supctl: Supctl) -> None:
    """The completion script's question is answered with verbs, and with the units and groups that there are."""
    supctl.fake.on("List", {"units": [unit("web", groups=["front"]), unit("db")]})

    def complete(words: str, number: int) -> list[str]:
        asked = {"_SUPCTL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        process = supctl.spawn(environment=asked)
        out, err = process.communicate(timeout=30)
        assert err == ""
        return [row.partition(",")[2] for row in out.splitlines()]

    assert complete("supctl sta", 1) == ["status", "start", "stats"]
    assert complete("supctl restart w", 2) == ["web"]
    assert complete("supctl restart @", 2) == ["@front"]


def test_cat_of_a_unit_without_a_file_exited_with_0(supctl: Supctl) -> None:
    """A unit that runs on without a file has none to show: 4, as for one that does not exist."""
    supctl.fake.on("Cat", {"files": []})
    supctl.fake.on("List", {"units": [unit("web", load_state="not_found")]})
    assert (supctl("cat", "web").code, supctl("cat", "web", "--json").document["error"]["code"]) == (4, "no-such-unit")
