"""Interface descriptions: the grammar, its mistakes, and values checked against types."""

from pathlib import Path
from typing import Any

import pytest

from supervisord_py.wire.interface import (
    SERVICE_TEXT,
    Array,
    Basic,
    Choice,
    Dict,
    InterfaceSyntaxError,
    InvalidParameterError,
    Maybe,
    Named,
    Record,
    parse_interface,
)

PACKAGING = Path(__file__).parent.parent.parent.parent / "packaging"

EXAMPLE = """
# A service for tests.
# Two lines.
interface com.example-tests.v1.Demo

# Far away from the type.

type Mood (good, bad_enough)   # behind it
# A pair.
type Pair (first: string, second: ?[]Mood)
type Tree (children: []Tree, set: [string]())
method Do ( pair:Pair,n:int , deep: ?[string](a: bool, b: (x: float)) ) -> ()
# Says all.
method Say(any: any, o: object) -> (mood: Mood)
error Oops(why: string)
"""


def test_the_whole_grammar() -> None:
    """Every form of type, comment and white space is read."""
    demo = parse_interface(EXAMPLE)
    assert (demo.name, demo.doc) == ("com.example-tests.v1.Demo", "A service for tests.\nTwo lines.")
    assert demo.types == {
        "Mood": Choice(("good", "bad_enough")),
        "Pair": Record((("first", Basic("string")), ("second", Maybe(Array(Named("Mood")))))),
        "Tree": Record((("children", Array(Named("Tree"))), ("set", Dict(Record())))),
    }
    do, say = demo.methods["Do"], demo.methods["Say"]
    assert dict(do.input.fields)["deep"] == Maybe(
        Dict(Record((("a", Basic("bool")), ("b", Record((("x", Basic("float")),))))))
    )
    assert (do.doc, do.output, say.doc) == ("", Record(), "Says all.")
    assert dict(say.input.fields) == {"any": Basic("object"), "o": Basic("object")}
    assert demo.errors == {"Oops": Record((("why", Basic("string")),))}
    assert demo.text == EXAMPLE


@pytest.mark.parametrize("name", ["py.supervisord.Manager", "py.supervisord.Journal"])
def test_our_own_descriptions(name: str) -> None:
    """The descriptions that we ship can be read, and every method of theirs is documented or plain."""
    interface = parse_interface((PACKAGING / f"{name}.varlink").read_text())
    assert interface.name == name
    assert interface.doc


def test_the_service_interface() -> None:
    """The interface that every service must have is there with its errors."""
    service = parse_interface(SERVICE_TEXT)
    assert set(service.methods) == {"GetInfo", "GetInterfaceDescription"}
    assert set(service.errors) == {
        "InterfaceNotFound", "MethodNotFound", "MethodNotImplemented",
        "InvalidParameter", "PermissionDenied", "ExpectedMore",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1:1: expected interface, found the end"),
        ("interface a.b\n", "2:1: expected type, method or error"),
        ("interface ab\ntype A ()", "1:11: expected the interface's name"),
        ("interface a.b type a ()", "expected a name that begins with a capital"),
        ("interface a.b type A (x: int, x: int)", "x is there twice"),
        ("interface a.b type A (x: int) error A ()", "A is defined twice"),
        ("interface a.b type A (x: int, y)", "a type for every field, or for none"),
        ("interface a.b type A (x, y: int)", "a type for every field, or for none"),
        ("interface a.b type A (x__y: int)", "expected a field's name"),
        ("interface a.b type A (x: ??int)", "?? is none"),
        ("interface a.b type A (x: B)", "1:26: no type B"),
        ("interface a.b type A (x: A)", "holds itself"),
        ("interface a.b type A (x: B) type B (y: (z: A))", "holds itself"),
        ("interface a.b type A (x: int", "expected , or ), found the end"),
        ("interface a.b method M () ()", "expected ->"),
        ("interface a.b method M (a, b) -> ()", "expected fields with types"),
        ("interface a.b error E (a, b)", "expected fields with types"),
        ("interface a.b thing X ()", "expected type, method or error"),
        ("interface a.b\ntype A (x: int) ;", "2:17: unexpected ';'"),
        ("interface a.b type A (x: " + "(y: " * 40, "nest at most 32"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, said: str) -> None:
    """A description that cannot be read says where and what was expected."""
    with pytest.raises(InterfaceSyntaxError) as caught:
        parse_interface(text)
    assert said in str(caught.value)


DEMO = parse_interface(EXAMPLE)
PAIR = {"first": "x"}


def check(parameters: dict[str, Any], method: str = "Do") -> dict[str, Any]:
    return DEMO.check_input(DEMO.methods[method], parameters)


def test_nullable_fields_may_be_absent() -> None:
    """What passes the check has every field, absent nullable ones as None, inside structs too."""
    assert check({"pair": PAIR, "n": 1}) == {"pair": {"first": "x", "second": None}, "n": 1, "deep": None}
    assert check({"pair": {"first": "x", "second": ["good"]}, "n": 1, "deep": {"k": {"a": True, "b": {"x": 1}}}})


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"pair": PAIR}, "n"),
        ({"pair": PAIR, "n": 1, "m": 2}, "m"),
        ({"pair": PAIR, "n": True}, "n"),
        ({"pair": PAIR, "n": 1.5}, "n"),
        ({"pair": PAIR, "n": 1 << 63}, "n"),
        ({"pair": PAIR, "n": None}, "n"),
        ({"pair": {"first": 3}, "n": 1}, "pair.first"),
        ({"pair": {"first": "x", "third": 1}, "n": 1}, "pair.third"),
        ({"pair": {"first": "x", "second": ["good", "worse"]}, "n": 1}, "pair.second.1"),
        ({"pair": {"first": "x", "second": [["good"]]}, "n": 1}, "pair.second.0"),
        ({"pair": {"first": "x", "second": "good"}, "n": 1}, "pair.second"),
        ({"pair": [], "n": 1}, "pair"),
        ({"pair": PAIR, "n": 1, "deep": {"k": {"a": 1, "b": {"x": 1}}}}, "deep.k.a"),
        ({"pair": PAIR, "n": 1, "deep": {"k": {"a": True, "b": {"x": "1"}}}}, "deep.k.b.x"),
        ({"pair": PAIR, "n": 1, "deep": []}, "deep"),
    ],
)
def test_a_value_that_does_not_fit_is_named(parameters: dict[str, Any], parameter: str) -> None:
    """The error names the field, with its path, that is unknown, missing or of another type."""
    with pytest.raises(InvalidParameterError) as caught:
        check(parameters)
    assert caught.value.parameter == parameter


def test_objects_are_anything_but_null() -> None:
    """An object field takes any JSON value, and null only where it may be absent."""
    for value in ({"a": 1}, [1], "x", 1, False):
        assert check({"any": value, "o": value}, "Say") == {"any": value, "o": value}
    with pytest.raises(InvalidParameterError):
        check({"any": None, "o": 1}, "Say")


def test_replies_may_say_more() -> None:
    """A field that a newer server added does not fail the check of a reply, but for who asks for strictness."""
    say = DEMO.methods["Say"]
    assert DEMO.check_output(say, {"mood": "good", "new": 1}) == {"mood": "good"}
    with pytest.raises(InvalidParameterError):
        DEMO.check_output(say, {"mood": "good", "new": 1}, allow_unknown=False)
    assert DEMO.check_error("Oops", {"why": "x", "new": 1}) == {"why": "x"}
