"""Any text at all: every converter gives units that pass ``check``, or a clear error that names the file."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord_py.convert.draft import ConvertError, SourceFile
from supervisord_py.convert.formats import FORMATS
from supervisord_py.convert.systemd_rules import TABLES_OF_SECTIONS
from tests.convert.bench import KEYS, around, check_passes, converted

PATHS = {"systemd": "/x/a.service", "pm2": "/x/e.config.js", "process-compose": "/x/c.yaml"}
WORDS = st.sampled_from(
    [
        "", "yes", "no", "infinity", "0", "-1", "5s", "1.5", "%i", "%n", "%%", "%", "%Z", "$X", "${X}", "'", '"', "\\",
        "\\x41", "~", "a b", "/bin/true", "-/x", "@x", "b.service", "b.socket", "a.service", "x@%i.service", ";", "|",
        "#", "~CAP_CHOWN", "@system-service", "daily", "*:0/5", "SIGTERM", "0755", "50%", "A=1", "ü", "\t", "[", "=",
        "%(x)s", "%(ENV_X)s", "$(circus.env.X)", "{{ x }}", "journal", "socket", "append:/x", "\x7f", "\ue000",
    ]
)  # fmt: skip
VALUES = st.one_of(WORDS, st.lists(WORDS, max_size=4).map(" ".join), st.text(max_size=20))
DIRECTIVES = sorted(
    {spec.systemd for table in KEYS.of("unit") for spec in table.keys.values() if spec.systemd}
    | {"Slice", "X-Own", "WantedBy", "Alias", "PermissionsStartOnly", "TimeoutSec", "CPUShares", "Service", "Unit"}
)


def never_crashes(source: str, files: list[SourceFile]) -> None:
    try:
        conversion = converted(source, files, around(read=lambda pattern, base: []))
    except ConvertError as error:
        assert str(error).startswith(files[0].path) or any(file.path in str(error) for file in files)
        return
    check_passes(conversion)
    for use in conversion.ledger.uses:
        assert use.reason or use.fate.value == "carried"


@pytest.mark.parametrize("source", FORMATS)
@settings(max_examples=100)
@given(text=st.text(max_size=200))
def test_any_text(source: str, text: str) -> None:
    """What is no configuration is an error, or nothing."""
    never_crashes(source, [SourceFile(PATHS.get(source, "/x/a.toml"), text, "/x")])


ASSIGNMENTS = st.lists(st.tuples(st.sampled_from(DIRECTIVES), VALUES), max_size=8)
SECTIONS = st.lists(st.tuples(st.sampled_from([*TABLES_OF_SECTIONS, "Install", "X-A", "Odd"]), ASSIGNMENTS), max_size=4)


def unit_text(sections: list[tuple[str, list[tuple[str, str]]]]) -> str:
    lines = []
    for section, assignments in sections:
        lines += [f"[{section}]", *(f"{name}={value}" for name, value in assignments)]
    return "\n".join(lines)


@settings(max_examples=400)
@given(service=SECTIONS, other=SECTIONS, suffix=st.sampled_from(["socket", "timer", "target", "path"]))
def test_any_directives(service: Any, other: Any, suffix: str) -> None:
    """Every directive with any value, in any section, of units that belong together."""
    files = [
        SourceFile("/x/a.service", f"[Service]\nExecStart=/bin/true\n{unit_text(service)}"),
        SourceFile(f"/x/a.{suffix}", unit_text(other)),
        SourceFile("/x/b@.service", f"[Service]\nExecStart=/bin/true\n{unit_text(other)}"),
    ]
    never_crashes("systemd", files)


PROGRAM_KEYS = st.sampled_from(
    [
        "command", "environment", "directory", "user", "umask", "autostart", "autorestart", "exitcodes", "startsecs",
        "startretries", "stopsignal", "stopwaitsecs", "numprocs", "numprocs_start", "process_name", "priority",
        "stdout_logfile", "stdout_logfile_maxbytes", "socket", "cmd", "args", "numprocesses", "uid", "rlimit_nofile",
        "stop_signal", "graceful_timeout", "max_age", "working_dir", "shell", "use_sockets", "port", "path", "include",
        "files", "programs", "stdout_stream.class", "executable", "odd",
    ]
)  # fmt: skip
INI_SECTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "program:a", "program:b", "group:g", "supervisord", "include", "fcgi-program:f", "eventlistener:e",
                "watcher:a", "watcher:b", "circus", "env", "env:a", "socket:s", "plugin:p", "program:a b", "odd",
            ]
        ),
        st.lists(st.tuples(PROGRAM_KEYS, VALUES), max_size=8),
    ),
    max_size=4,
)  # fmt: skip


@pytest.mark.parametrize("source", ["supervisord", "circus"])
@settings(max_examples=200)
@given(sections=INI_SECTIONS)
def test_any_keys_of_an_ini(source: str, sections: Any) -> None:
    """Every key with any value."""
    text = "[program:a]\ncommand=x\n[watcher:a]\ncmd=x\n" + unit_text(sections)
    never_crashes(source, [SourceFile("/x/s.conf", text, "/x")])


TREE_KEYS = st.sampled_from(
    [
        "apps", "name", "script", "args", "cwd", "interpreter", "instances", "env", "max_restarts", "min_uptime",
        "kill_timeout", "max_memory_restart", "stop_exit_codes", "processes", "command", "depends_on", "availability",
        "restart", "backoff_seconds", "readiness_probe", "http_get", "exec", "port", "period_seconds", "schedule",
        "cron", "interval", "replicas", "environment", "namespace", "shutdown", "signal", "extends", "shell",
        "start-after", "healthiness", "http-endpoint", "failure", "successful-exit-code", "termination", "wait",
        "resource-limit", "memory", "cpu", "service", "start-delay", "additional", "stdout-rotate-size", "description",
        "is_daemon", "ready_log_line", "condition", "a", "max-failed", "env_file", "working_dir", "timeout_seconds",
    ]
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(allow_nan=False), VALUES)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TREE_KEYS, inner, max_size=5)),
    max_leaves=20,
)


@settings(max_examples=300)
@given(tree=st.dictionaries(TREE_KEYS, TREES, max_size=4), inner=st.dictionaries(TREE_KEYS, TREES, max_size=6))
def test_any_tree(tree: dict[str, Any], inner: dict[str, Any]) -> None:
    """Any values below any keys, of pm2, process-compose and (as far as TOML has them) Horust."""
    command = {"command": "x", "script": "x.js"}
    document = {**tree, "apps": [{**command, **inner}], "processes": {"a": {**command, **inner}, "b": {**command}}}
    text = json.dumps(document)
    never_crashes("pm2", [SourceFile("/x/e.json", text, "/x")])
    never_crashes("process-compose", [SourceFile("/x/c.yaml", text, "/x")])
    toml = "command = 'x'\n" + "".join(
        f"{json.dumps(key)} = {json.dumps(value)}\n"
        for key, value in inner.items()
        if key != "command" and isinstance(value, str | bool | int) and json.dumps(value).isascii()
    )
    never_crashes("horust", [SourceFile("/x/a.toml", toml, "/x")])
