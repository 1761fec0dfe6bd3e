"""Unit names, references and specifiers."""

import pytest

from supervisord_py.model.names import (
    Reference,
    ReferenceKind,
    UnitName,
    is_unit_name,
    parse_group_name,
    parse_reference,
    parse_unit_name,
)
from supervisord_py.model.problems import BadValue
from supervisord_py.model.specifiers import SpecifierContext, Specifiers

CONTEXT = SpecifierContext(
    "/home/me", "/run/user/1", "/state", "/logs", "me", 1, "host.lan", "b00f", "/", "/run/user/1/sp/credentials", "us",
    2, "/bin/bash", "6.1", "arm64", "abc",
)  # fmt: skip


def test_plain_names_templates_and_instances() -> None:
    """A name says by its @ what it is, and is written as it was read."""
    assert parse_unit_name("web") == UnitName("web")
    assert parse_unit_name("worker@").is_template
    instance = parse_unit_name("worker@3")
    assert instance.is_instance and instance.template == "worker@" and instance.instance == "3"
    assert [str(parse_unit_name(name)) for name in ("a.b:c_d-e", "w@", "w@x-y")] == ["a.b:c_d-e", "w@", "w@x-y"]


@pytest.mark.parametrize(
    "name", ["", "@", ".web", "-web", "a b", "a/b", "wörk", "a@b@c", "a@b/c", "a\n", "x" * 201, "%i"]
)
def test_what_is_no_name(name: str) -> None:
    """Anything that could leave a folder, or that people would have to quote, is refused."""
    assert not is_unit_name(name)
    with pytest.raises(ValueError, match="unit name"):
        parse_unit_name(name)


def test_a_template_is_no_unit() -> None:
    """Only a plain name or an instance can run."""
    assert is_unit_name("x" * 200)
    assert is_unit_name("w@1")
    assert not is_unit_name("w@")


def test_references() -> None:
    """Names, templates and groups; a group's name follows the same rules."""
    assert parse_reference("web") == Reference(ReferenceKind.UNIT, "web")
    assert parse_reference("w@1") == Reference(ReferenceKind.UNIT, "w@1")
    assert parse_reference("w@") == Reference(ReferenceKind.TEMPLATE, "w@")
    assert parse_reference("@g.1") == Reference(ReferenceKind.GROUP, "g.1")
    for wrong in ("@", "@a@", "a b"):
        with pytest.raises(ValueError, match="is not a"):
            parse_reference(wrong)
    with pytest.raises(ValueError, match="group name"):
        parse_group_name("@x")


def test_all_specifiers() -> None:
    """Each of the contract's specifiers and of those beside them, with systemd's meaning."""
    specifiers = Specifiers(CONTEXT, parse_unit_name("worker@a-b"))
    assert (
        specifiers.expand("%i %I %n %p %h %t %S %L %u %U %H %b %%i")
        == "a-b a/b worker@a-b worker /home/me /run/user/1 /state /logs me 1 host.lan b00f %i"
    )
    assert (
        specifiers.expand("%d %g %G %s %l %v %a %m")
        == "/run/user/1/sp/credentials/worker@a-b us 2 /bin/bash host 6.1 arm64 abc"
    )
    assert Specifiers(CONTEXT, parse_unit_name("web")).expand("<%i%I>%n") == "<>web"
    assert specifiers.expand_all({"a": ["%i", 1], "b": True}) == {"a": ["a-b", 1], "b": True}


@pytest.mark.parametrize("text", ["50% of", "%", "100%", "%z", "%\n"])
def test_an_unknown_specifier_is_an_error(text: str) -> None:
    """It is told, and the way to write a percent sign."""
    with pytest.raises(BadValue) as caught:
        Specifiers(CONTEXT, parse_unit_name("web")).expand(text)
    assert "%%" in caught.value.hint


def test_a_unit_finds_what_lies_beside_its_file() -> None:
    """``%y`` is the unit's file and ``%Y`` its folder, as in systemd: a folder of units can be moved as it is."""
    specifiers = Specifiers(CONTEXT, parse_unit_name("web"), "/srv/units/web.toml")
    assert specifiers.expand("%y %Y/bin/web.py") == "/srv/units/web.toml /srv/units/bin/web.py"
