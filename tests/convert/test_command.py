"""``supervisord-py convert``: what is printed, written and refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisord_py.cli import main
from supervisord_py.convert.draft import ConvertError
from supervisord_py.convert.formats import FORMATS
from supervisord_py.convert.reading import write_units

SERVICE = "[Service]\nExecStart=/bin/true\nSlice=x.slice\n[Install]\nWantedBy=multi-user.target\n"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.umask(0o022)
    monkeypatch.chdir(tmp_path)
    yield
    os.umask(before)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["convert", *arguments])


def write(path: str, text: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def test_units_are_printed_and_losses_told() -> None:
    """Without -o each unit is printed after its name; what was lost is on standard error, with file and line."""
    result = run("systemd", write("a.service", SERVICE))
    assert result.exit_code == 0
    assert result.stdout.startswith("# a.toml\n# made by supervisord-py convert from a.service\n\n[unit]\n")
    assert result.stderr == (
        "a.service:3: Slice: there are no slices: write the limits into the units, or into defaults.toml of their "
        "folder (not carried over)\n"
    )


def test_units_are_written_and_nothing_is_replaced() -> None:
    """With -o files are made; one that is there stops all of them, and --force replaces it, but follows no link."""
    write("a.service", SERVICE)
    write("b.service", SERVICE)
    write("out/b.toml", "mine")
    result = run("systemd", "a.service", "b.service", "-o", "out")
    assert result.exit_code == 1 and "out/b.toml is there already; --force replaces files" in result.stderr
    assert os.listdir("out") == ["b.toml"] and Path("out/b.toml").read_text() == "mine"
    Path("out/b.toml").unlink()
    write("elsewhere", "mine")
    Path("out/b.toml").symlink_to(Path("elsewhere").absolute())
    result = run("systemd", "a.service", "b.service", "-o", "out", "--force")
    assert result.exit_code == 0 and "wrote 2 unit files into out" in result.stderr
    assert Path("elsewhere").read_text() == "mine" and not Path("out/b.toml").is_symlink()
    assert CliRunner().invoke(main, ["check", "out"]).exit_code == 0


def test_a_folder_was_left_half_written() -> None:
    """What cannot be written whole is not written at all, whatever could be."""
    with pytest.raises(ConvertError, match="cannot write to out"):
        write_units(Path("out"), {"a.toml": "x", "b/c.toml": "y"}, force=False, mode=0o644)
    assert os.listdir("out") == []


def test_strict_writes_nothing() -> None:
    """What is lost is an error then; what is carried over whole is written."""
    write("a.service", SERVICE)
    result = run("systemd", "a.service", "-o", "out", "--strict")
    assert result.exit_code == 1 and not Path("out").exists() and result.stdout == ""
    assert "1 key could not be carried over, so nothing was written (--strict)" in result.stderr
    write("a.service", SERVICE.replace("Slice=x.slice\n", ""))
    assert run("systemd", "a.service", "-o", "out", "--strict").exit_code == 0 and Path("out/a.toml").exists()


def test_one_document() -> None:
    """--json has the units, what was not carried over, and notes; errors too are a document."""
    write("a.service", SERVICE)
    document = json.loads(run("systemd", "a.service", "--json").stdout)
    assert document["units"] == ["a.toml"] and document["texts"]["a.toml"].startswith("# made by")
    assert [(each["file"], each["line"], each["key"]) for each in document["not_carried"]] == [
        ("a.service", 3, "Slice")
    ]
    assert document["notes"] == []
    written = json.loads(run("systemd", "a.service", "--json", "-o", "out").stdout)
    assert written["units"] == ["out/a.toml"] and "texts" not in written
    failed = run("systemd", "gone.service", "--json")
    assert failed.exit_code == 1 and "gone.service" in json.loads(failed.stdout)["error"]["message"]
    strict = run("systemd", "a.service", "--json", "--strict")
    assert strict.exit_code == 1 and json.loads(strict.stdout)["units"] == []


def test_what_belongs_to_a_unit_is_read_too() -> None:
    """Drop-ins, the service of a socket or a timer, and all units of a folder."""
    write("s/a.service", SERVICE)
    write("s/a.service.d/x.conf", "[Service]\nUMask=0077\n")
    write("s/a.timer", "[Timer]\nOnCalendar=daily\n")
    write("s/README", "not a unit")
    Path("s/other-name.service").symlink_to("a.service")
    Path("s/masked.service").symlink_to("/dev/null")
    for typed in ("s/a.timer", "s"):
        result = run("systemd", typed)
        text = result.stdout
        assert "other-name" not in text and ("masked.service" in result.stderr) == (typed == "s")
        assert 'umask = "0077"' in text and 'on-calendar = "daily"' in text


def test_units_that_are_there_already_count() -> None:
    """A unit of the folder can be required by one that is converted into it."""
    write("b.service", SERVICE)
    write("a.service", "[Unit]\nRequires=b.service\n" + SERVICE)
    assert run("systemd", "b.service", "-o", "out").exit_code == 0
    result = run("systemd", "a.service", "-o", "out")
    assert "Requires" not in result.stderr and 'unit = "b"' in Path("out/a.toml").read_text()


@pytest.mark.parametrize(
    ("source", "text", "said"),
    [
        ("systemd", "x", "this is no name of a unit of systemd"),
        ("supervisord", "[program:a\n", "File contains no section headers"),
        ("horust", "=", "no TOML"),
        ("pm2", "module.exports = { apps: load() }", "nothing is executed here"),
        ("process-compose", "a: [", "no YAML"),
        ("procfile", "# nothing\n", "there is nothing to run in f"),
    ],
)
def test_what_cannot_be_read_is_an_error(source: str, text: str, said: str) -> None:
    """Exit code 1, and a message that names the file; wrong usage is 2."""
    result = run(source, write("f", text))
    assert result.exit_code == 1 and said in result.stderr and "f" in result.stderr
    assert run(source).exit_code == 2 and run("other", "f").exit_code == 2


@pytest.mark.parametrize("source", [source for source in FORMATS if source != "systemd"])
def test_what_is_no_utf8_is_an_error(source: str) -> None:
    """Found by the fuzzer: a byte that is no UTF-8 went into a unit, which could not be written."""
    Path("f").write_bytes(b'command = "/tmp/\xa6"\n')
    result = run(source, "f")
    assert result.exit_code == 1 and "f: this is no UTF-8" in result.stderr


@pytest.mark.parametrize(
    ("source", "text", "said"),
    [
        ("supervisord", "[program:gone]\n[program:a]\ncommand=x\n", "f: program:gone: a program without a command"),
        ("supervisord", "[group:g]\nprograms=a,gone\n[program:a]\ncommand=x\n", "f:2: group:g.programs: there is no"),
        ("supervisord", "[include]\nfiles=g\n[program:a]\ncommand=x\n", "g:2: include.files: supervisor reads no"),
        ("circus", "[watcher:gone]\n[watcher:a]\ncmd=x\n", "f: watcher:gone: a watcher without cmd"),
        ("pm2", '[{"name": "gone"}, {"script": "a.js"}]', "f:1: 0: an app without a script"),
        ("process-compose", "processes: {gone: {}, a: {command: x}}", "f:1: processes.gone: a process without"),
        ("systemd", "[Service]\n", "f.service: nothing is set in it"),
    ],
)
def test_what_runs_nothing_was_passed_over_in_silence(source: str, text: str, said: str) -> None:
    """A unit without a key that could be told is told all the same, with what else supervisor would have refused."""
    write("g", "[include]\nfiles=h\n")
    result = run(source, write("f.service" if source == "systemd" else "f", text))
    assert said in result.stderr


def test_who_could_not_read_it_there_cannot_read_it_here() -> None:
    """A unit file is readable by no more people than the files that it was made from, includes among them."""
    write("d/x.conf", "[program:a]\ncommand=x\nenvironment=TOKEN=hunter2\n")
    write("s.conf", "[include]\nfiles=d/*.conf\n")
    Path("d/x.conf").chmod(0o640)
    assert run("supervisord", "s.conf", "-o", "out").exit_code == 0
    assert Path("out/a.toml").stat().st_mode & 0o777 == 0o640


def test_secrets_are_not_printed_with_what_is_lost() -> None:
    """Neither values of variables nor passwords stand in what is told of a configuration."""
    text = (
        "[unix_http_server]\npassword=hunter2\n[inet_http_server]\nport=1\npassword=hunter2\n"
        "[program:a]\ncommand=x\nenvironment=TOKEN=hunter2,BAD\nuser=%(ENV_X)shunter2\n"
    )
    result = run("supervisord", write("s.conf", text))
    assert "program:a.environment" in result.stderr and "hunter2" not in result.output
    unit = SERVICE + "[Service]\nSetCredential=hunter2\nEnvironment=hunter2\nLoadCredential=a/b:hunter2\n"
    result = run("systemd", write("b.service", unit))
    assert "Environment" in result.stderr and "hunter2" not in result.output
