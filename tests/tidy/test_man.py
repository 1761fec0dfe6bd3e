"""The manual pages say what is built, all of it and nothing else: they are compared with the code."""

import ast
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import tomli

from supervisord_py.cli import main as supervisord_py
from supervisord_py.core.actions import Effects
from supervisord_py.core.events import Event, Now
from supervisord_py.core.manager import Manager
from supervisord_py.core.state import ACTIVE_STATES
from supervisord_py.ctl.cli import ALIASES, COMMANDS, make_cli, run
from supervisord_py.ctl.client_errors import _EXIT_STATUS
from supervisord_py.ctl.options import Verb, common_options
from supervisord_py.ctl.replies import STATUS_FIELDS
from supervisord_py.ctl.session import Session
from supervisord_py.errors import SupervisordError
from supervisord_py.host.daemon import command_record
from supervisord_py.host.facade import Peer, RemoteKey, remote_peer
from supervisord_py.host.places import default_places
from supervisord_py.host.unit_files import key_table, load
from supervisord_py.keeper import main as keeper
from supervisord_py.keeper.child import EXIT_CODES
from supervisord_py.model.commands import PRESETS
from supervisord_py.model.decode import DECODERS
from supervisord_py.model.keys import FileKind, KeySpec
from supervisord_py.model.names import parse_unit_name
from supervisord_py.model.records import EVENTS
from supervisord_py.model.settings import parse_settings
from supervisord_py.model.specifiers import SpecifierContext, Specifiers
from supervisord_py.model.states import LoadState
from supervisord_py.model.values import format_signal
from supervisord_py.testing.world import World
from tests.tidy.mdoc import PAGES, Item, Page, command_lines, read_page

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "supervisord_py"
SUPCTL = read_page("supctl.1")
DAEMON = read_page("supervisord-py.8")
UNIT = read_page("supervisord-py.unit.5")
SETTINGS = read_page("supervisord.toml.5")
JOURNAL = read_page("supervisord-py.journal.5")
ALL = (SUPCTL, DAEMON, UNIT, SETTINGS, JOURNAL)

CONTRACT_EXIT_CODES = {
    0: "done", 1: "failed", 2: "usage", 3: "neither active nor reloading", 4: "no such unit", 5: "not permitted",
    6: "invalid", 7: "no supervisor reachable", 124: "ran out",
}  # fmt: skip
"""What users rely on: the contract's table of exit codes, with a word that must stand beside each."""


def page_ids(page: Page) -> str:
    return page.name


def test_every_page_is_known() -> None:
    """No manual page is left out of these tests."""
    assert {page.name for page in ALL} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_mandoc_has_no_complaint(name: str) -> None:
    """mandoc finds nothing wrong with a page, and no bad style; which other manuals are installed is not the page's."""
    mandoc = shutil.which("mandoc")
    if mandoc is None:
        pytest.skip("mandoc is not installed: the pages are not checked (apt-get install mandoc)")
    found = subprocess.run([mandoc, "-T", "lint", str(PAGES[name])], capture_output=True, text=True, timeout=30)
    complaints = found.stdout.splitlines()
    assert [each for each in complaints if "mandoc.db" not in each and "manual not found" not in each] == []


def test_pages_refer_to_pages_that_exist() -> None:
    """A reference to a page of ours leads somewhere."""
    ours = {tuple(name.rsplit(".", 1)) for name in PAGES}
    referred = {reference for page in ALL for reference in page.references}
    assert {each for each in referred if each[0].startswith(("sup", "supervisord"))} == ours


# The reference of all keys


def make_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    """docs/units.md and the key lists of the manuals are what docs/keys.toml says now."""
    made: dict[Path, str] = make_reference().references(ROOT)
    stale = [str(path.relative_to(ROOT)) for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run python docs/make_reference.py: {stale}"


def test_a_table_without_its_place_is_told() -> None:
    """A table of keys that a manual does not show, or shows twice, stops the generator."""
    reference = make_reference()
    text = PAGES["supervisord.toml.5"].read_text(encoding="utf-8")
    with pytest.raises(reference.OutOfPlaceError):
        reference.filled("supervisord.toml.5", text.replace('.\\" keys settings journal', ".Pp"), key_table())
    with pytest.raises(reference.OutOfPlaceError):
        reference.filled("supervisord.toml.5", text + '.\\" keys settings journal\n.\\" end keys\n', key_table())


def documented_keys(page: Page) -> dict[str, dict[str, Item]]:
    """The keys that stand under KEYS, by the header of their table."""
    found: dict[str, dict[str, Item]] = defaultdict(dict)
    for item in page.of("KEYS"):
        if " No = " in item.tag:
            found[item.subsection][item.tagged("Ic")[0]] = item
    return dict(found)


@pytest.mark.parametrize(("page", "file"), [(UNIT, "unit"), (SETTINGS, "settings")], ids=["unit", "settings"])
def test_every_built_key_is_in_its_manual(page: Page, file: FileKind) -> None:
    """The manuals have every key that is built, under its table, and none that is not."""
    built = {
        table.header: {key for key, spec in table.keys.items() if spec.built}
        for table in key_table().of(file)
        if any(spec.built for spec in table.keys.values())
    }
    assert {header: set(keys) for header, keys in documented_keys(page).items()} == built


def default_words(spec: KeySpec) -> str:
    if isinstance(spec.default, bool):
        return str(spec.default).lower()
    if isinstance(spec.default, dict):
        return " ".join(f"{name} {value}" for name, value in spec.default.items())
    return str(spec.default)


@pytest.mark.parametrize(("page", "file"), [(UNIT, "unit"), (SETTINGS, "settings")], ids=["unit", "settings"])
def test_every_key_has_its_default_and_meaning(page: Page, file: FileKind) -> None:
    """Each key in a manual has its meaning, the values it takes, and its default where it has one."""
    documented = documented_keys(page)
    for table in key_table().of(file):
        for key, spec in table.keys.items():
            if not spec.built:
                continue
            item = documented[table.header][key]
            meaning, _, default = item.text.partition(" Default: ")
            assert meaning.lower() == spec.doc.lower().rstrip(".") + ".", f"{table.header} {key}"
            if spec.default in (None, "", [], {}):
                assert not default
            else:
                assert re.sub(r'["{}=]', "", default).split() == default_words(spec).split(), f"{table.header} {key}"
            tag = item.tag.replace("\\-", "-")
            assert all(
                f"\\(dq{value}\\(dq" in tag
                for value in spec.values
                if spec.type == "enum" and value not in spec.pending
            )
            assert not any(f"\\(dq{value}\\(dq" in tag for value in spec.pending)


def test_units_md_has_every_key() -> None:
    """docs/units.md has every key, built or not, of both files."""
    text = (ROOT / "docs" / "units.md").read_text(encoding="utf-8")
    files: tuple[FileKind, ...] = ("unit", "settings")
    missing = [
        f"{table.header} {key}"
        for file in files
        for table in key_table().of(file)
        for key in table.keys
        if f"`{key}`" not in text
    ]
    assert not missing


def test_every_specifier_is_explained() -> None:
    """unit(5) has exactly the specifiers that there are."""
    context = SpecifierContext("", "", "", "", "", 0, "", "")
    known = {f"%{letter}" for letter in Specifiers(context, parse_unit_name("a"))._meanings}
    documented = {word for item in UNIT.of("VALUES", "Specifiers") for word in item.tagged("Ql")}
    assert documented == known


def test_every_value_word_is_explained() -> None:
    """unit(5) explains each kind of value that is more than a word."""
    explained = {" ".join(item.tagged("Ar")) for item in UNIT.of("VALUES", "") if item.tagged("Ar")}
    explained |= {
        "commands",
        "command",
        "dependencies",
        "units",
        "strings",
        "names",
        "name",
        "class",
        "classes",
    }  # sections, plain words
    explained.add("time spans")
    for key, item in ((key, item) for keys in documented_keys(UNIT).values() for key, item in keys.items()):
        words = " ".join(item.tagged("Ar"))
        if words:
            kind = re.sub(r"( from| to) -?\d.*$| in (bytes|seconds)$", "", words)
            singular = kind.replace("names or numbers", "name or number")
            assert singular in explained | {"integer", "table", "number from 0 to 1", "number"}, f"{key}: {words}"


# supctl and supervisord-py


def verbs() -> dict[str, click.Command]:
    """Every verb of supctl that is built, subcommands with both words."""
    cli = make_cli()
    context = click.Context(cli, info_name="supctl")
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": each for sub, each in command.commands.items() if not each.hidden}
        else:
            found[name] = command
    return found


def own_options(command: click.Command) -> set[str]:
    """The options of a command that people are shown, without those of every verb."""
    common = {name for option in common_options() for name in option.opts}
    is_verb = isinstance(command, Verb)
    return {
        name
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
        for name in (*option.opts, *option.secondary_opts)
        if not (is_verb and name in common)
    }


def options_of(item: Item) -> set[str]:
    return {f"-{word}" for inner in item.items for word in inner.tagged("Fl")}


def verb_items() -> dict[str, Item]:
    return {" ".join(item.tagged("Ic")): item for item in SUPCTL.of("COMMANDS") if item.subsection != "Other words"}


def test_every_verb_is_in_its_manual() -> None:
    """supctl(1) has every verb that is built and no other."""
    assert set(verb_items()) == set(verbs())


@pytest.mark.parametrize("name", verbs())
def test_every_option_of_a_verb_is_in_its_manual(name: str) -> None:
    """supctl(1) has every option of a verb and no other, and marks its arguments as the verb takes them."""
    command, item = verbs()[name], verb_items()[name]
    assert options_of(item) == own_options(command)
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    assert len([word for word in item.tagged("Ar") if word != "..."]) == len(arguments)
    optional = [parameter for parameter in arguments if not parameter.required]
    assert (" Op Ar" in item.tag) == bool(optional)
    assert ("..." in item.tag) == any(parameter.nargs == -1 for parameter in arguments)


def test_common_options_are_in_the_manual() -> None:
    """supctl(1) has the options of every verb, and says for which verbs those that are not for all are."""
    items = SUPCTL.of("COMMON OPTIONS")
    shown = {f"-{word}" for item in items for word in item.tagged("Fl")}
    built = {name for option in common_options() if not option.hidden for name in option.opts}
    assert shown == built | {"--version", "-h", "--help"}
    for option, accepted in (("--no-wait", "no_wait"), ("--reason", "reason"), ("--plan", "plan")):
        item = next(item for item in items if option[1:] in item.tagged("Fl"))
        accepting = {
            name for name, command in verbs().items() if isinstance(command, Verb) and accepted in command.accepts
        }
        assert item.named("Ic") == accepting, option


def test_aliases_are_in_the_manual() -> None:
    """supctl(1) has every other word that is understood, with ours."""
    shown: dict[str, tuple[str, ...]] = {}
    for item in SUPCTL.of("COMMANDS", "Other words"):
        words = item.tag.split(" Ta ")
        ours = tuple(words[1].removeprefix("is Ic ").replace("Fl \\-", "--").split())
        shown |= {word.replace("\\-", "-"): ours for word in words[0].removeprefix(".It Ic ").split(" , ")}
    assert shown == ALIASES


def test_status_fields_are_in_the_manual() -> None:
    """supctl(1) lists the fields of status --json in their order."""
    lines = SUPCTL.sections["OUTPUT"]
    words = [word for line in lines if line.startswith(".Va") for word in line.split()[1:] if word not in (",", ".")]
    assert tuple(words[: len(STATUS_FIELDS)]) == STATUS_FIELDS


def daemon_commands() -> dict[str, click.Command]:
    group = supervisord_py
    context = click.Context(group, info_name="supervisord-py")
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def test_every_command_of_the_daemon_is_in_its_manual() -> None:
    """supervisord-py(8) has every command with every option and no other, in the text and in the synopsis."""
    items = {item.tagged("Cm")[0]: item for item in DAEMON.of("COMMANDS")}
    assert set(items) == set(daemon_commands())
    synopsis: dict[str, set[str]] = defaultdict(set)
    command = ""
    for line in DAEMON.sections["SYNOPSIS"]:
        command = "" if line == ".Nm" else line[4:] if line.startswith(".Cm") else command
        synopsis[command] |= {f"-{word}" for word in re.findall(r"Fl (\S+)", line.replace("\\-", "-"))}
    for name, item in items.items():
        options = own_options(daemon_commands()[name])
        assert options_of(item) == options, name
        shortest = {
            min(option.opts, key=len) for option in daemon_commands()[name].params if isinstance(option, click.Option)
        }
        assert synopsis[name] == shortest, name


def test_signals_are_in_the_manual() -> None:
    """supervisord-py(8) has every signal that the keeper acts on."""
    names = {format_signal(int(number)) for number in (*keeper.STOPS, *keeper.ORDERS)}
    tags = " ".join(item.tag for item in DAEMON.of("SIGNALS"))
    assert set(re.findall(r"SIG[A-Z0-9+]+", tags)) == names


def exit_codes(page: Page) -> dict[int, str]:
    return {int(item.tag.split()[1]): item.text.lower() for item in page.of("EXIT STATUS")}


def subclasses(kind: type[SupervisordError]) -> set[type[SupervisordError]]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def test_exit_codes_are_the_contract() -> None:
    """supctl(1) has the contract's exit codes, and the code has no others."""
    shown = exit_codes(SUPCTL)
    assert set(shown) == set(CONTRACT_EXIT_CODES)
    assert all(word in shown[code] for code, word in CONTRACT_EXIT_CODES.items())
    used = {error.exit_status for error in subclasses(SupervisordError)} | set(_EXIT_STATUS.values())
    assert used <= set(CONTRACT_EXIT_CODES)
    assert {code: shown[code] for code in (0, 1, 2)}.keys() <= exit_codes(DAEMON).keys()
    assert set(exit_codes(DAEMON)) <= {*CONTRACT_EXIT_CODES, keeper.EXIT_SOFTWARE}


def test_exit_codes_of_processes_that_were_not_made() -> None:
    """unit(5) names only exit codes that the keeper gives to a step that failed."""
    assert set(exit_codes(UNIT)) <= set(EXIT_CODES.values())


def test_states_are_in_the_manual() -> None:
    """unit(5) has every state that a unit can be in."""
    items = {item.tag.removeprefix(".It "): item for item in UNIT.of("STATES")}
    assert items["load state"].named("Ql") == {load.value for load in LoadState}
    assert items["sub-state"].named("Ql") == {sub.value for sub in ACTIVE_STATES}
    assert items["active state"].named("Ql") == {active.value for active in ACTIVE_STATES.values()} | {"queued"}


def test_presets_are_in_the_manual() -> None:
    """supervisord.toml(5) lists what each preset adds to the one before it."""
    items = {item.tagged("Cm")[0]: item.named("Ic") for item in SETTINGS.of("WHO MAY DO WHAT") if item.tagged("Cm")}
    below: frozenset[str] = frozenset()
    for name, commands in PRESETS.items():
        assert items[name] == commands - below, name
        below = commands


# The journal


def written_events() -> set[str]:
    """The events that the code writes: first arguments of ``Record(...)`` and ``.record(...)``."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                first = node.args[0] if node.args else None
                if name in ("Record", "record") and isinstance(first, ast.Constant) and first.value in EVENTS:
                    found.add(str(first.value))
    return found


def event_items() -> dict[str, Item]:
    return {item.tagged("Ic")[0]: item for item in JOURNAL.of("EVENTS")}


def test_every_event_is_in_the_manual() -> None:
    """journal(5) explains every event there is, and each is written by something."""
    assert set(event_items()) == written_events() == set(EVENTS)


def test_every_field_of_the_core_is_in_the_manual() -> None:
    """journal(5) has every field of every record that the core writes in thirty simulated worlds."""
    seen: dict[str, set[str]] = defaultdict(set)

    class Listening(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            for record in effects.records:
                seen[record.event] |= set(record.fields)
            return effects

    for seed in range(30):
        World(seed, manager_type=Listening).run()
    assert len(seen) >= 20
    missing = {event: fields - event_items()[event].named("Va") for event, fields in seen.items()}
    assert not {event: fields for event, fields in missing.items() if fields}


def keys_of(value: ast.expr) -> set[str]:
    """The names in a dictionary that is written out, parts that are joined with ``|`` too."""
    if isinstance(value, ast.BinOp):
        return keys_of(value.left) | keys_of(value.right)
    if not isinstance(value, ast.Dict):
        return set()
    return {str(key.value) for key in value.keys if isinstance(key, ast.Constant)}


def fields_written_in(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[set[str], set[str]]:
    """The events whose records a function of the host makes, and the fields that it gives them."""
    events: set[str] = set()
    fields: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Name(id="Record"), args=[ast.Constant(value=str(event)), *_]):
                events.add(event)
                fields |= {key for word in node.keywords if word.arg == "fields" for key in keys_of(word.value)}
            case ast.Assign(targets=[ast.Name(id="fields")]) | ast.AnnAssign(target=ast.Name(id="fields")):
                fields |= keys_of(node.value) if node.value is not None else set()
            case ast.AugAssign(target=ast.Name(id="fields")):
                fields |= keys_of(node.value)
            case ast.Subscript(value=ast.Name(id="fields"), slice=ast.Constant(value=str(key)), ctx=ast.Store()):
                fields.add(key)
    return events, fields


def test_every_field_of_the_host_is_in_the_manual() -> None:
    """journal(5) has every field of the records that the manager itself writes."""
    seen: set[str] = set()
    for path in (PACKAGE / "host").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            events, fields = fields_written_in(node)
            documented = {field for event in events for field in event_items()[event].named("Va")}
            assert not events or not fields - documented, f"{path.name}: {node.name}"
            seen |= events if fields else set()
    assert seen >= {"daemon.started", "manager.restarted", "journal.gap", "journal.rotated", "unit.limit", "command"}
    who = {"uid", "gid", "pid", "login_uid", "peer_command", "peer_unit"}
    assert event_items()["command.invalid"].named("Va") >= who
    assert event_items()["command"].named("Va") >= who


def test_fields_of_commands_are_in_the_manual() -> None:
    """journal(5) has every field of a command's record."""
    remote = remote_peer(RemoteKey("alice", "192.0.2.7:40102", "control"))
    fields = {
        field
        for peer in (Peer(uid=0, gid=0, pid=1), remote)
        for field in command_record("start", ("web",), peer, "").fields
    }
    # `message` is added by refusals of what is not there, `argv` by `run`.
    assert event_items()["command"].named("Va") == fields | {"message", "argv"}


def test_fields_of_the_manual_exist() -> None:
    """journal(5) names no field that the code does not know."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    known = set(re.findall(r"\b[a-z_]+(?==)", sources)) | set(re.findall(r'"([a-z_]+)"', sources))
    assert not {field for item in event_items().values() for field in item.named("Va")} - known


def test_the_records_own_fields_are_in_the_manual() -> None:
    """journal(5) explains the fields that every record has."""
    from supervisord_py.store.record import RESERVED

    assert {item.tagged("Va")[0] for item in JOURNAL.of("JOURNAL RECORDS")} == set(RESERVED)


# Examples


@pytest.mark.parametrize("words", [words for page in ALL for words in command_lines(page)], ids=" ".join)
def test_commands_of_examples_are_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command line in a manual is right usage: it gets as far as looking for a supervisor."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "units").mkdir()
    if words[0] == "supctl":
        socket = [] if "--socket" in words else ["--socket", str(tmp_path / "none.sock")]
        assert run([*socket, *words[1:]], Session()) == 7, capsys.readouterr().err
        return
    command = daemon_commands()[words[1]]
    command.make_context(words[1], words[2:])


def test_unit_files_of_examples_are_good(tmp_path: Path) -> None:
    """The unit files in unit(5), put into one folder, load without a problem."""
    (tmp_path / "db.toml").write_text('[service]\nexec-start = ["/usr/bin/sleep", "infinity"]\n')
    count = 0
    for example in UNIT.examples:
        for name, text in re.findall(r"^# (\S+\.toml)\n(.*?)(?=^# \S+\.toml$|\Z)", example, re.DOTALL | re.MULTILINE):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            count += 1
    loaded = load([str(tmp_path)], default_places({}, 1000, str(tmp_path)))
    assert count >= 5
    assert not [problem.text() for problem in loaded.problems]
    assert {"shop", "migrate", "web", "worker@4"} <= set(loaded.unit_set.units)


def test_single_keys_of_examples_are_good() -> None:
    """The commands, dependencies and conditions that unit(5) shows alone are read as what they are shown for."""
    count = 0
    table = key_table().find("unit", "unit")
    assert table is not None
    for example in UNIT.examples:
        if example.startswith(("#", "[", "{")):
            continue
        for text in re.split(r"^(?=[a-z-]+ = )", example, flags=re.MULTILINE):
            for key, value in tomli.loads(text).items():
                spec = KeySpec("commands", True, "") if key.startswith("exec") else table.keys[key]
                found: Any = DECODERS[spec.type](value, spec, str)
                assert found
                count += 1
    assert count >= 12


def test_settings_of_examples_are_good() -> None:
    """The settings in supervisord.toml(5) are read without an error."""
    rules, hooks = 0, 0
    for example in SETTINGS.examples:
        settings, problems = parse_settings(example, "example", key_table())
        assert not [problem.text() for problem in problems]
        rules += len(settings.control.allow)
        hooks += len(settings.hooks)
    assert (rules, hooks) == (3, 1)


def test_the_checker_of_the_journal_works(tmp_path: Path) -> None:
    """The few lines with which journal(5) checks a segment find it whole, and find a changed record."""
    from supervisord_py.model.records import Record
    from supervisord_py.store.record import Chain, Stamp, pack
    from supervisord_py.store.segment import Header, pack_header

    script = next(example for example in JOURNAL.examples if "hashlib" in example)
    program = re.search(r"-c '\n(.*?)^' <", script, re.DOTALL | re.MULTILINE)
    assert program is not None
    segment, chain = io.BytesIO(), Chain()
    segment.write(pack_header(Header(1)))
    for event in ("daemon.started", "unit.loaded", "daemon.stopped"):
        line, chain = pack(Record(event), Stamp(1, 1, "b"), chain, payload_max=100)
        segment.write(line)

    def check(data: bytes) -> int:
        return subprocess.run(
            [sys.executable, "-c", program[1]], input=data, stderr=subprocess.DEVNULL, timeout=30
        ).returncode

    assert check(segment.getvalue()) == 0
    assert check(segment.getvalue().replace(b"unit.loaded", b"unit.leaded")) != 0
