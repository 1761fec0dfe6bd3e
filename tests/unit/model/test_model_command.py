"""Commands are read as systemd reads them; words are expanded as it expands them."""

import json
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.model.command import expand_words, extract_word, parse_command, parse_commands
from supervisord_py.model.problems import BadValue
from supervisord_py.model.unit import Command

QUOTING = json.loads((Path(__file__).parents[2] / "data" / "systemd" / "quoting.json").read_text())
WORDS = [
    (vector["input"], vector["steps"])
    for vector in QUOTING["extract_word"]
    if all(
        step["separators"] is None
        and set(step["flags"]) - {"UNQUOTE"} in (set(), {"CUNESCAPE"}, {"RELAX"})
        # Without UNQUOTE a text must have no quotes to come out the same.
        and ("UNQUOTE" in step["flags"] or not set("'\"") & set(vector["input"]))
        for step in vector["steps"]
    )
]


def plain(text: str) -> str:
    return text


def commands(value: object) -> tuple[Command, ...]:
    return parse_commands(value, plain)


@pytest.mark.parametrize("vector", QUOTING["exec_lines"], ids=lambda vector: vector["value"])
def test_command_lines_are_systemds(vector: dict[str, Any]) -> None:
    """Every ExecStart= line gives the same commands, or is refused too."""
    if vector["rejected"]:
        with pytest.raises(BadValue):
            commands(vector["value"])
        return
    read = [
        {
            "path": command.words[0],
            "argv": expand_words(command, {}),
            "ignore_failure": command.ignore_failure,
        }
        for command in commands(vector["value"])
    ]
    assert read == vector["commands"]


@pytest.mark.parametrize(("text", "steps"), WORDS, ids=[text for text, _ in WORDS])
def test_words_are_systemds(text: str, steps: list[dict[str, Any]]) -> None:
    """extract_first_word() with UNQUOTE, with CUNESCAPE or RELAX beside it."""
    position = 0
    for step in steps:
        unescape, relaxed = "CUNESCAPE" in step["flags"], "RELAX" in step["flags"]
        if step["expect"] == "word":
            extracted = extract_word(text, position, unescape=unescape, relaxed=relaxed)
            assert extracted is not None
            word, position = extracted
            assert word == step["word"]
        elif step["expect"] == "end":
            assert extract_word(text, position, unescape=unescape, relaxed=relaxed) is None
        else:
            with pytest.raises(BadValue):
                extract_word(text, position, unescape=unescape, relaxed=relaxed)


def test_there_are_word_vectors() -> None:
    """The selection above is not empty: a renamed flag would be noticed."""
    assert len(WORDS) >= 9


@pytest.mark.parametrize("vector", QUOTING["env_expand_argv"]["per_word"], ids=lambda vector: vector["arg"])
def test_variables_are_expanded_as_systemd_does(vector: dict[str, Any]) -> None:
    """replace_env_argv(): $NAME splits, ${NAME} does not, $$ is a dollar."""
    environment = dict(pair.split("=", 1) for pair in vector["env"])
    command = Command(("/bin/x", vector["arg"]), expand=True)
    assert expand_words(command, environment)[1:] == vector["result"]


def test_an_array_is_the_exact_argv() -> None:
    """No quoting, no variables, no separators; prefixes come off the first word alone."""
    (command,) = commands(["-/bin/x", "$HOME", "'q'", ";", "-y", "a  b"])
    assert command == Command(("/bin/x", "$HOME", "'q'", ";", "-y", "a  b"), ignore_failure=True)
    assert expand_words(command, {"HOME": "/root"}) == ["/bin/x", "$HOME", "'q'", ";", "-y", "a  b"]


def test_several_commands() -> None:
    """Arrays of arrays, of tables, mixed, and a string with a command a line."""
    assert commands([["/a", "1"], {"command": "/b $X", "ignore-failure": True, "argv0": "bee"}]) == (
        Command(("/a", "1")),
        Command(("/b", "$X"), expand=True, ignore_failure=True, argv0="bee"),
    )
    assert commands("/a 1\n\n  # a remark\n+/b \\\n  2\r\n:/c $X ; /d\n") == (
        Command(("/a", "1"), expand=True),
        Command(("/b", "2"), expand=True, privileged=True),
        Command(("/c", "$X")),
        Command(("/d",), expand=True),
    )
    assert commands([]) == commands("") == ()


def test_an_escaped_backslash_continues_no_line() -> None:
    """A line that ends in two backslashes ends."""
    assert [command.words for command in commands("/a \\\\\n/b")] == [("/a", "\\"), ("/b",)]


def test_argv0_of_a_prefix_and_of_a_table() -> None:
    """What @ says is kept; the table's word wins."""
    assert expand_words(commands(["@/bin/sh", "-sh", "-c", ":"])[0], {}) == ["-sh", "-c", ":"]
    assert expand_words(commands({"command": ["@/bin/sh", "-sh"], "argv0": "other"})[0], {}) == ["other"]
    kept = commands("!/bin/sh")[0]
    assert kept.keeps_user and not kept.privileged


@pytest.mark.parametrize(
    ("value", "at", "message"),
    [
        (["/bin/sleep 5", "x"], (0,), "holds a space"),
        ([["/bin/a"], ["/bin/sleep 5"]], (1, 0), "holds a space"),
        ([["/bin/a"], "/bin/b"], (1,), "a string among"),
        (["/bin/a", 5], (1,), "not a string"),
        ([[]], (0,), "empty"),
        ({"command": "/a", "ignore_failure": True}, ("ignore_failure",), "unknown key"),
        ({"argv0": "x"}, (), "without the key 'command'"),
        ({"command": ["/bin/a b"]}, ("command", 0), "holds a space"),
        ({"command": "/a ; /b"}, ("command",), "one command"),
        ({"command": "/a", "privileged": "yes"}, ("privileged",), "not a boolean"),
        ("/bin/a 'open", (), "not closed"),
        ("/bin/a \\q", (), "unknown escape"),
        ("/bin/a \\xff", (), "no UTF-8"),
        ("bin/a", (), "relative path"),
        ("/bin/", (), "is a folder"),
        ("!!/bin/a", (), "not supported"),
        ("/bin/a \0", (), "NUL"),
        (["/bin/a", "\0"], (1,), "NUL"),
        (5, (), "not a command"),
        ([[5], ["x y"]], (0, 0), "not a string"),
    ],
)
def test_wrong_commands(value: object, at: tuple[object, ...], message: str) -> None:
    """Each is refused with what is wrong and where in the value it is."""
    with pytest.raises(BadValue) as caught:
        commands(value)
    assert message in caught.value.message
    assert caught.value.at == at


def test_all_wrong_commands_of_a_list_are_told() -> None:
    """One complaint does not hide the next."""
    with pytest.raises(BadValue) as caught:
        commands([["x y"], ["/a"], [7]])
    assert [one.at for one in caught.value.all()] == [(0, 0), (2, 0)]


def test_one_command_is_not_several() -> None:
    """Where one is wanted, an empty text and two commands are refused."""
    assert parse_command("/a", plain) == Command(("/a",), expand=True)
    for wrong in ("", "/a\n/b"):
        with pytest.raises(BadValue):
            parse_command(wrong, plain)


def test_specifiers_are_expanded_in_each_word_and_never_split() -> None:
    """A specifier with blanks in it stays one word; the program's name is expanded too."""

    def expand(text: str) -> str:
        return text.replace("%i", "a b")

    assert parse_commands("/bin/x %i '%i'", expand)[0].words == ("/bin/x", "a b", "a b")
    assert parse_commands(["/bin/%i"], expand)[0].words == ("/bin/a b",)
