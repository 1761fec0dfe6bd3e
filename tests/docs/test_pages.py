"""The pages that people begin with: what they show is what is seen, and what they say to type can be typed."""

import json
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import click
import pytest

from supervisord_py.cli import main as supervisord_py
from supervisord_py.ctl.cli import ALIASES, make_cli
from supervisord_py.ctl.elsewhere import OTHERS_WORDS
from supervisord_py.host.unit_files import key_table, specifier_context
from supervisord_py.model.settings import parse_settings
from supervisord_py.model.unitset import UnitFile, UnitFileKind, build_unit_set
from tests.docs.pages import HOME, PAGES, ROOT, Block, Typed, blocks, conversation, is_shown
from tests.docs.stage import Stage, stage

PLAYED = [page for page in PAGES if any(block.language == "console" for block in blocks(page))]
EVERY = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("units/**/*.md")])
SETTINGS_TABLES = re.compile(r"^\[\[?(supervisor|control|journal)\b", re.MULTILINE)
COMMAND = re.compile(r"^(?:\.venv/bin/)?(supctl|supervisord-py) (?=[a-z-])")


def fragments(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "toml" and block.file is None]


def given(page: str, played: Stage) -> None:
    """What is there before a page begins: those outside of docs/ are read in a checkout."""
    if page.endswith("README.md"):
        played.folder = played.home / "supervisord-py"
        shutil.copytree(ROOT / "units", played.folder / "units")
        (played.folder / ".venv").symlink_to(played.home / ".venv")
        web = played.folder / "units" / "web.toml"
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        web.write_text(web.read_text().replace("8099", str(port)))
    if page == "units/fleet/README.md":
        played.socket = played.folder / "run" / "fleet" / "control.sock"
        played.environment["SUPERVISORD_PY_SOCKET"] = str(played.socket)


@pytest.mark.slow
@pytest.mark.parametrize("page", PLAYED)
def test_a_page_shows_what_is_seen(page: str) -> None:
    """Each command of a page, typed in its order, shows what stands below it; its files are written on the way."""
    with stage() as played:
        given(page, played)
        for block in blocks(page):
            if block.file is not None:
                played.write(block.file, block.text)
            if block.language == "console" and "elsewhere" not in block.words:
                for typed in conversation(block):
                    seen = played.play(typed)
                    assert is_shown(typed.shown, seen, str(played.home)), (
                        f"{page}:{typed.line}: {typed.command}\nshown:\n"
                        + "\n".join(typed.shown)
                        + f"\nseen:\n{seen}\n"
                        f"if what is seen is right: python -m tests.docs.rewrite {page}"
                    )


def test_what_differs_is_found() -> None:
    """Times, sizes and pids may differ; words, counts and missing lines may not."""
    row = "● web       active    16336  2.5s    18.0M  50ms          answering on 127.0.0.1:8099"
    seen = "● web  active (running)  7  1min 2s  900K  1.5s  answering on 127.0.0.1:40123\n"
    assert is_shown((row.replace("active", "active (running)"),), seen, "/h")
    assert not is_shown((row,), seen, "/h")
    assert is_shown(("...", "b"), "a\na\nb\n", "/h") and not is_shown(("...", "b"), "b\na\n", "/h")
    assert not is_shown(("a",), "a\nb\n", "/h") and not is_shown((), "a\n", "/h") and is_shown((), "", "/h")
    assert not is_shown(("3 units: 2 active",), "3 units: 3 active\n", "/h")
    assert is_shown((f"pid 12 of you (uid 1000) in {HOME}/u",), "pid 1 of root (uid 0) in /h/u\n", "/h")


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(page, block, id=f"{page}:{block.line}") for page in PAGES for block in fragments(page)],
)
def test_a_fragment_of_a_file_is_valid(page: str, block: Block) -> None:
    """What a page shows of a unit file or of the settings has no error of its own."""
    if SETTINGS_TABLES.search(block.text):
        problems = parse_settings(block.text, page, key_table())[1]
    else:
        text = block.text if "[service]" in block.text else f'{block.text}\n[service]\nexec-start = ["true"]\n'
        file = UnitFile("web", "/u/web.toml", text, UnitFileKind.UNIT, "/u", 0)
        loaded = build_unit_set((file,), specifier_context({}), key_table=key_table())
        problems = tuple(problem for problem in loaded.problems if "there is no unit" not in problem.message)
    assert not problems


def named_commands(path: Path) -> list[list[str]]:
    """The commands of ours that a page says to type: in conversations, and in line where they are whole."""
    page = str(path.relative_to(ROOT))
    typed = [each.command for block in blocks(page) if block.language == "console" for each in conversation(block)]
    prose = re.sub(r"^( *)```.*?^\1```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    typed += re.findall(r"`([^`\n]+)`", prose)
    parts = [part.strip() for command in typed for part in re.split(r"\$\(|\)|&&|\|\||[|>;]| #", command)]
    return [shlex.split(COMMAND.sub(r"\1 ", part)) for part in parts if COMMAND.match(part) and "..." not in part]


def unknown(words: list[str]) -> set[str]:
    """The verb or the options of a command that do not exist."""
    program = make_cli() if words[0] == "supctl" else supervisord_py
    context = click.Context(program)
    verbs = {verb: program.get_command(context, verb) for verb in program.list_commands(context)}
    named = [ALIASES.get(word, word) for word in words[1:]]
    verb = next((word for word in named if word in verbs), None)
    if verb is None:
        return set() if words[1] in OTHERS_WORDS or words[1].startswith("-") else {words[1]}
    command = verbs[verb]
    deeper = command.commands.values() if isinstance(command, click.Group) else ()
    known = {option for each in (program, command, *deeper) if each for parameter in each.params
             for option in (*parameter.opts, "-h", "--help")}  # fmt: skip
    ours = words[: words.index("--")] if "--" in words else words
    return {word.partition("=")[0] for word in ours if re.match(r"--?[a-z]", word)} - known


@pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_can_be_typed(path: Path) -> None:
    """Every verb and option that a page names exists; so do the words of other tools that are told ours."""
    wrong = {shlex.join(words): unknown(words) for words in named_commands(path)}
    assert {command: what for command, what in wrong.items() if what} == {}


def test_a_command_that_is_not_there_is_found() -> None:
    """A verb or an option that somebody invents for a page does not get by."""
    assert unknown(["supctl", "frobnicate", "web"]) == {"frobnicate"}
    assert unknown(["supctl", "--socket", "s", "start", "--hard", "web"]) == {"--hard"}
    assert unknown(["supervisord-py", "exec", "--", "x", "--hard"]) == set() == unknown(["supctl", "update"])


@pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """A link to a file of the project finds it."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.slow
def test_the_commands_of_applying_work() -> None:
    """What the tables of docs/applying.md say to type does what is said, on units of these names."""
    text = (ROOT / "docs" / "applying.md").read_text(encoding="utf-8")
    commands = [
        command for row in text.splitlines() if row.startswith("|") for command in re.findall("`(supctl .*?)`", row)
    ]
    assert len(commands) >= 8
    with stage() as played:
        played.environment["EDITOR"] = "sed -i s/1000/1001/"
        played.write("units/web.toml", '[service]\nexec-start = ["sleep", "1000"]\n')
        played.write("units/worker@.toml", '[service]\nexec-start = ["sleep", "1000"]\n[instances]\ncount = 2\n')
        played.play(
            Typed(
                "supervisord-py run units", ("...", "00:00:00 web job.finished job=1 type=start result=done", "..."), 0
            )
        )
        for command in commands:
            # Nothing has changed, so a probation of five minutes is over at once; there is no terminal to ask.
            typed = command.replace("edit", "edit --yes")
            seen = played.play(Typed(f"{typed} >/dev/null 2>log || cat log", (), 0))
            assert seen == "", f"{command}: {seen}"
        assert "1001" in (played.home / "units" / "web.toml").read_text()
        assert '"load_state": "masked"' in played.play(Typed("supctl show web --json", ("...",), 0))


@pytest.mark.slow
def test_the_dockerfiles_of_containers_work() -> None:
    """Entry point, command and health check of docs/containers.md, each as an engine would execute it."""
    one, several = (
        {name: json.loads(words) for name, words in re.findall(r"^(.*?) (\[.*\])$", block.text, re.MULTILINE)}
        for block in blocks("docs/containers.md")
        if block.language == "dockerfile"
    )
    with stage() as played:
        server = played.write(".venv/bin/my-server", '#!/bin/sh\necho "my-server $*"; exit 7\n')
        server.chmod(0o755)
        command = shlex.join([*one["ENTRYPOINT"], *one["CMD"]])
        assert played.play(Typed(f"{command}; echo $?", (), 0)) == "my-server --port 8080\n7\n"
        played.write("units/web.toml", '[service]\nexec-start = ["sh", "-c", "echo here; exec sleep 1000"]\n')
        run = [word.replace("/etc/supervisord-py", str(played.home)) for word in several["CMD"]]
        assert "web | here" in played.play(Typed(shlex.join(run), ("...", "web | here", "..."), 0))
        assert played.play(Typed(shlex.join(several["HEALTHCHECK CMD"]), ("healthy",), 0)) == "healthy\n"


def test_the_makefile_has_what_the_readme_says() -> None:
    """The commands of the first screen are targets of the Makefile."""
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
