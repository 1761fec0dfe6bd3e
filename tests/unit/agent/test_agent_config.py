"""From ``[agent]`` to a class, its configuration and its command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisord_py.agent import Agent, ConfigError, Plugin
from supervisord_py.agent.config import convert_config
from supervisord_py.agent.runner import find_class, parse_arguments
from supervisord_py.model.agents import AgentKeys, AgentRunner, agent_command, agent_environment


@dataclass
class Limits:
    low: int
    high: int = 9


@dataclass
class Settings:
    greeting: str
    limits: Limits
    names: list[str] = field(default_factory=list)


class Struct(msgspec.Struct):
    port: int


class Typed(Agent):
    Config = Settings


class TypedByStruct(Agent):
    Config = Struct


def test_a_typed_configuration() -> None:
    config = convert_config(Typed, {"greeting": "hi", "limits": {"low": 1}, "names": ["a"]})
    assert config == Settings("hi", Limits(1, 9), ["a"])
    assert convert_config(TypedByStruct, {"port": 80}) == Struct(80)
    assert convert_config(Agent, {"anything": [1]}) == {"anything": [1]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"limits": {"low": 1}}, "agent.config.greeting: missing field greeting"),
        ({"greeting": 3, "limits": {"low": 1}}, "agent.config.greeting: expected str, got int"),
        ({"greeting": "hi", "limits": {"low": "x"}}, "agent.config.limits.low: expected int, got str"),
        ({"greeting": "hi", "limits": {"low": 1}, "names": ["a", 2]}, "agent.config.names[1]: expected str, got int"),
        ({"greeting": "hi", "limits": {"low": 1}, "gretting": ""}, "agent.config.gretting: unknown field"),
    ],
)
def test_an_error_names_the_field(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_config(Typed, raw)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "'nothing' is not package.module:Class"),
        ("no_such_module:Agent", "no module no_such_module (agent.path adds folders to"),
        ("json:NoSuch", "json has no NoSuch"),
        ("json:JSONDecoder", "json:JSONDecoder is no subclass of supervisord_py.agent.agent.Agent"),
        ("needs_another:Some", "needs_another needs not_installed_here, which is not installed here"),
    ],
)
def test_a_class_that_cannot_be_found(spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_another.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_class(spec, Agent, "agent.class")
    assert str(caught.value).startswith(f"agent.class: {message}")


def test_a_class_is_found() -> None:
    assert find_class("supervisord_py.agent:Plugin", Plugin, "agent.plugins") is Plugin


def test_the_runner_reads_what_the_unit_file_says() -> None:
    """What model.agents writes is what agent.runner reads."""
    keys = AgentKeys(
        cls="shop.agents:Buyer",
        every_ns=1_500_000_000,
        cycle_timeout_ns=30_000_000_000,
        config={"limit": 3},
        python="venv/bin/python",
        path=("lib", "/srv/shop"),
        plugins=("shop.plugins:Meter",),
        is_once=True,
    )
    words = agent_command(keys, AgentRunner("/usr/bin/python3", "/sdk/runner.py"), "/etc/units").words
    assert words[:3] == ("/etc/units/venv/bin/python", "-u", "/sdk/runner.py")
    plan = parse_arguments(words[3:])
    assert (plan.cls, plan.every_s, plan.cycle_timeout_s, plan.is_once) == ("shop.agents:Buyer", 1.5, 30.0, True)
    assert (plan.path, plan.plugins) == (["/etc/units/lib", "/srv/shop"], ["shop.plugins:Meter"])
    assert agent_environment(keys) == (("SUPERVISORD_PY_AGENT_CONFIG", '{"limit":3}'),)


def test_what_the_unit_file_does_not_say_is_the_classs() -> None:
    class Slow(Agent):
        every = 60
        cycle_timeout = 5

    words = agent_command(AgentKeys(cls="a:B"), AgentRunner("python", "runner.py"), "/").words
    plan = parse_arguments(words[3:])
    plan.complete(Slow, {"WATCHDOG_USEC": "3000000"})
    assert (plan.every_s, plan.cycle_timeout_s, plan.beat_s) == (60, 5, 1.5)
    unlimited = agent_command(AgentKeys(cls="a:B", cycle_timeout_ns=0), AgentRunner("python", "runner.py"), "/").words
    plan = parse_arguments(unlimited[3:])
    plan.complete(Slow, {})
    assert (plan.cycle_timeout_s, plan.beat_s) == (None, None)


@pytest.mark.parametrize("arguments", [[], ["a:B", "--what=1"], ["--every=1"]])
def test_a_wrong_command_line(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="the runner"):
        parse_arguments(arguments)


def test_units_of_a_wheel_find_their_code_beside_their_folder() -> None:
    """After what the unit itself says, so that nothing hides it."""
    keys = AgentKeys(cls="a:B", path=("own",))
    words = agent_command(keys, AgentRunner("python", "runner.py"), "/sites/a-1.0/supervisord_py_units").words
    assert words[-2:] == ("--path=/sites/a-1.0/supervisord_py_units/own", "--path=/sites/a-1.0")
