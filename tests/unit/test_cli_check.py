"""``supervisord-py check``, ``graph``, ``new``, ``schema``, ``version``: output and exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisord_py import __version__
from supervisord_py.cli import main

SLEEP = '[service]\nexec-start = ["/bin/sleep", "infinity"]\n'


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A unit path and settings of nobody else; files as they would be made by default."""
    before = os.umask(0o022)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.chdir(tmp_path)
    yield
    os.umask(before)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def write(path: Path, text: str = SLEEP) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_check_of_good_units(tmp_path: Path) -> None:
    """Exit 0 and a line that says how many; the unit path is read when nothing is named."""
    write(tmp_path / "xdg_config_home" / "supervisord-py" / "units" / "web.toml")
    for result in (run("check"), run("check", "xdg_config_home/supervisord-py/units")):
        assert (result.exit_code, result.stdout) == (0, "1 good unit, 0 bad, 0 errors, 0 warnings\n")


def test_check_reads_what_supctl_wrote(tmp_path: Path) -> None:
    """What enable and mask say counts as it does for run: from the usual state folder, or the one that is named."""
    units = write(tmp_path / "u" / "web.toml")
    for state in ("xdg_state_home/supervisord-py", "other"):
        (tmp_path / state / "control").mkdir(parents=True)
    (tmp_path / "xdg_state_home" / "supervisord-py" / "control" / "web.toml").symlink_to("/dev/null")
    assert run("check", units).stdout == "0 good units, 0 bad, 1 masked, 0 errors, 0 warnings\n"
    assert run("check", units, "--state-dir", "other").stdout == "1 good unit, 0 bad, 0 errors, 0 warnings\n"


def test_the_specifier_of_the_folder_is_absolute_for_a_relative_path(tmp_path: Path) -> None:
    """What run accepts because it makes paths absolute, check accepts too, from a folder or a file, near or far."""
    path = write(tmp_path / "u" / "web.toml", SLEEP + 'working-directory = "%Y"\n')
    for typed in (path, "u", "u/web.toml", "./u"):
        assert run("check", typed).exit_code == 0, typed
        assert run("graph", typed).exit_code == 0, typed
    os.chdir("u")
    assert (run("check", "web.toml").exit_code, run("check", ".").exit_code) == (0, 0)


def test_check_tells_all_problems_of_all_files(tmp_path: Path) -> None:
    """Exit 1; each problem with its line, the caret and the hint; settings are checked too."""
    write(tmp_path / "u" / "a.toml", "[service]\nexec-start = 'x y z'\numask = 1\n")
    write(tmp_path / "u" / "b.toml", "[service]\nExecStart = 'x'\n")
    write(tmp_path / "u" / "c.toml", "[unit]\nwants = 'nobody'\n" + SLEEP)
    write(tmp_path / "xdg_config_home" / "supervisord-py" / "supervisord.toml", "[supervisor]\nnaem = 'x'\n")
    result = run("check", "u")
    assert result.exit_code == 1
    assert result.stdout.split("\n")[:4] == [
        f"{tmp_path}/xdg_config_home/supervisord-py/supervisord.toml:2:1: supervisor.naem: "
        "unknown key 'naem' in [supervisor]",
        "    naem = 'x'",
        "    ^",
        "    hint: did you mean 'name'?",
    ]
    assert "u/a.toml:3:9: service.umask: a mode is written as text" in result.stdout
    assert "u/b.toml:2:1: service.ExecStart: unknown key 'ExecStart' in [service]" in result.stdout
    assert "u/c.toml:2:9: unit.wants: there is no unit nobody (warning)" in result.stdout
    assert result.stdout.endswith("1 good unit, 2 bad, 3 errors, 1 warning\n")


def test_check_json(tmp_path: Path) -> None:
    """The document of the contract and nothing else; exit codes as without it."""
    good = write(tmp_path / "good.toml")
    assert json.loads(run("check", good, "--json").stdout) == {"problems": []}
    bad = write(tmp_path / "bad.toml", SLEEP + "umask = 22\n")
    result = run("check", "--json", bad)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "problems": [
            {
                "file": bad,
                "line": 3,
                "column": 9,
                "key": "service.umask",
                "message": "a mode is written as text",
                "hint": 'write "022", in quotes: an integer would be read as decimal',
                "severity": "error",
            }
        ]
    }


def test_check_warnings_alone_are_good(tmp_path: Path) -> None:
    """A name that nobody defines, in wants, is told and does not fail."""
    result = run("check", write(tmp_path / "web.toml", "[unit]\nafter = 'x'\n" + SLEEP))
    assert result.exit_code == 0
    assert "(warning)" in result.stdout


def test_check_of_what_is_not_there(tmp_path: Path) -> None:
    """A missing path or settings file is an error; a wrong option is wrong usage."""
    assert run("check", "nowhere").exit_code == 1
    assert run("check", "--config", "nowhere", write(tmp_path / "web.toml")).exit_code == 1
    assert run("check", "--nonsense").exit_code == 2
    assert run("nonsense").exit_code == 2
    empty = run("check")
    assert empty.exit_code == 0 and "supervisord-py new" in empty.stderr


def test_graph_formats(tmp_path: Path) -> None:
    """Every format, the waves, and exit 1 with the problems on standard error when a unit is bad."""
    write(tmp_path / "u" / "web.toml", "[unit]\nrequires = 'db'\n" + SLEEP)
    write(tmp_path / "u" / "db.toml")
    assert run("graph", "u").stdout == "db\nweb\n  requires: db\n"
    assert run("graph", "u", "--order").stdout == "1  db\n2  web\n"
    assert run("graph", "u", "--format", "dot").stdout.startswith("digraph units {")
    assert run("graph", "u", "--format", "mermaid", "--order").stdout.startswith("graph LR")
    document = json.loads(run("graph", "u", "--format", "json").stdout)
    assert document["waves"] == [["db"], ["web"]]
    assert document["edges"] == [{"from": "web", "to": "db", "kind": "requires", "until": "ready", "ordered": True}]
    write(tmp_path / "u" / "bad.toml", "x")
    result = run("graph", "u", "--order")
    assert (result.exit_code, result.stdout) == (1, "1  db\n2  web\n")
    assert "bad.toml:1" in result.stderr


def test_new_writes_what_check_takes(tmp_path: Path) -> None:
    """Printed, or written with -o; a file that is there is left alone."""
    for name in ("web", "worker@"):
        write(tmp_path / "u" / f"{name}.toml", run("new", name).stdout)
    assert run("check", "u").stdout == "3 good units, 0 bad, 0 errors, 0 warnings\n"
    result = run("new", "db", "-o", "u")
    assert result.exit_code == 0 and "wrote u/db.toml" in result.stderr
    (tmp_path / "u" / "db.toml").write_text("mine")
    again = run("new", "db", "-o", "u")
    assert again.exit_code == 1 and "there already" in again.stderr
    assert (tmp_path / "u" / "db.toml").read_text() == "mine"
    assert run("new", "a b").exit_code == 2
    assert run("new", "x", "-o", "nowhere").exit_code == 1


def test_schema_and_version() -> None:
    """A JSON schema each for units and settings; the version of the package."""
    assert json.loads(run("schema").stdout)["properties"]["service"]["properties"]["exec-start"]
    assert json.loads(run("schema", "--settings").stdout)["properties"]["journal"]
    assert run("version").stdout == f"{__version__}\n"
    assert __version__ in run("--version").stdout


def test_the_overview_lists_run_without_importing_it() -> None:
    """``supervisord-py --help`` names every command; neither it nor ``version`` loads the daemon."""
    program = (
        "import sys; from supervisord_py.cli import main; "
        "main(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    )
    for argument in ("--help", "version"):
        out = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, check=True)
        modules = out.stdout.split()
        assert "supervisord_py.host.run" not in modules and "asyncio" not in modules and "msgspec" not in modules
        if argument == "--help":
            assert {"run", "check", "graph", "new", "schema", "version"} <= set(modules)


def test_python_m_is_the_program(tmp_path: Path) -> None:
    """``python -m supervisord_py`` gives the exit code of check."""
    bad = write(tmp_path / "bad.toml", "x")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-m", "supervisord_py", "check", bad],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ended.returncode == 1
    assert "bad.toml:1:2" in ended.stdout


def test_security_says_what_to_tighten(tmp_path: Path) -> None:
    """The most exposed first, as text and as JSON; the exit code is that of the problems."""
    write(tmp_path / "units" / "bare.toml")
    write(tmp_path / "units" / "tight.toml", f"{SLEEP}[sandbox]\nno-new-privileges = true\nprotect-system = 'strict'\n")
    told = run("check", "--security", str(tmp_path / "units"))
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert lines[0].startswith("bare: ")
    assert "        write no-new-privileges = true" in lines
    document = json.loads(run("check", "--security", "--json", str(tmp_path / "units")).stdout)
    bare, tight = document["security"]
    assert (bare["unit"], tight["unit"]) == ("bare", "tight")
    assert bare["exposure"] > tight["exposure"]
    assert {"no-new-privileges", "protect-system"} <= {each["key"] for each in bare["open"]}
    assert not {"no-new-privileges", "protect-system"} & {each["key"] for each in tight["open"]}


def test_a_variable_to_be_passed_that_is_none_was_passed_over() -> None:
    """``--pass-env A=1`` passed nothing, and said nothing; several may be named at once."""
    for given, status, told in (("A=1", 2, "'A=1' is not"), ("A,,B", 2, "'' is not"), ("A,B", 1, "nothing/here")):
        ran = CliRunner().invoke(main, ["run", "--pass-env", given, "nothing/here"])
        assert (ran.exit_code, told in ran.output) == (status, True)
