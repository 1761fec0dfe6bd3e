"""The JSON schema says of a file what ``check`` says, as far as a schema can."""

import re
from typing import Any

import pytest
import tomli
from unitset_rig import KEY_TABLE, SLEEP, problems_of

from supervisord_py.model.names import parse_unit_name
from supervisord_py.model.scaffold import unit_file_text
from supervisord_py.model.schema import DIALECT, json_schema

UNIT = json_schema(KEY_TABLE, "unit")
SETTINGS = json_schema(KEY_TABLE, "settings")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_KNOWN = {
    "$ref",
    "$schema",
    "$defs",
    "title",
    "description",
    "default",
    "type",
    "properties",
    "additionalProperties",
    "required",
    "items",
    "anyOf",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "propertyNames",
    "not",
}


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any] = UNIT) -> bool:
    """As much of a validator as these schemas need."""
    assert schema.keys() <= _KNOWN, f"this validator does not know {schema.keys() - _KNOWN}"
    if "$ref" in schema and not accepts(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root):
        return False
    if "type" in schema:
        fits = isinstance(value, _TYPES[schema["type"]])
        if not fits or (isinstance(value, bool) and schema["type"] != "boolean"):
            return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(accepts(option, value, root) for option in schema["anyOf"]):
        return False
    if "not" in schema and accepts(schema["not"], value, root):
        return False
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        return all(accepts(schema.get("items", {}), item, root) for item in value)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", {})
        if not value.keys() >= set(schema.get("required", ())):
            return False
        if not all(accepts(schema.get("propertyNames", {}), name, root) for name in value):
            return False
        for name, item in value.items():
            if name not in properties and others is False:
                return False
            if not accepts(properties.get(name, others), item, root):
                return False
    return True


def test_the_schema_names_its_dialect_and_holds_what_is_built() -> None:
    """Every built key is there, with its sentence; no other."""
    assert UNIT["$schema"] == SETTINGS["$schema"] == DIALECT
    for table in KEY_TABLE.of("unit"):
        if table.built:
            place = UNIT["properties"][table.name.removesuffix(".NAME")]
            inner = {"named": "additionalProperties", "list": "items"}.get(table.form)
            properties = (place if inner is None else place[inner])["properties"]
            assert properties.keys() == {key for key, spec in table.keys.items() if spec.built}
            assert all(entry["description"] for entry in properties.values())
    assert "allow" in SETTINGS["properties"]["control"]["properties"]
    assert "socket-mode" in SETTINGS["properties"]["control"]["properties"]
    for name in ("control", "bus"):
        remote = SETTINGS["properties"][name]["properties"]["remote"]["properties"]
        assert remote.keys() == {"address", "keys", "commands"}


GOOD = [
    SLEEP,
    SLEEP + '[[socket]]\nlisten-stream = [80, "/run/web"]\n[[socket]]\nlisten-fifo = "/run/f"\naccept = false\n',
    "[target]\n",
    '[unit]\nwants = { unit = "a", until = "started" }\nafter = ["a", { unit = "b" }]\ngroups = []\n' + SLEEP,
    SLEEP + 'umask = "022"\nenvironment = { A = 1, B = true, C = "c", D = [] }\nuser = 5\nkill-signal = 9\n',
    SLEEP + 'type = []\nrestart-jitter = 0.5\ntimeout-stop-sec = "5s"\n[limits]\nnofile = "1:2"\nnice = -3\n',
    SLEEP + '[health.x]\nkind = "liveness"\nexec = "/a b"\ninterval = 5\n[health.y]\nkind = "startup"\nunix = "@a"\n',
    SLEEP
    + '[timer]\nevery = "1h"\non-calendar = "daily"\non-boot-sec = [5, "1min"]\n[pool]\nname = "a"\npriority = -1\n',
    '[unit]\nwants = { unit = "a", until = "healthy" }\n'
    + SLEEP
    + '[quarantine]\nstub = ["/a"]\non-quarantine = "b"\n',
    '[service]\ntype = "oneshot"\nexec-start = [["/a", "b"], { command = "/c", privileged = true }]\n',
]
BAD = [
    SLEEP + "umask = 22\n",
    SLEEP + "[[socket]]\nlisten-stream = 70000\n",
    SLEEP + "[socket]\nlisten-stream = 80\n",
    SLEEP + '[health.x]\nkind = "alive"\nhttp = "http://a"\n',
    SLEEP + '[health.x]\nkind = "liveness"\nhttp = "a:80"\n',
    SLEEP + '[health.x]\nkind = "liveness"\nfile = "a"\nfailure-threshold = 0\n',
    SLEEP + '[health.x]\nkind = "liveness"\nfiles = "/a"\n',
    SLEEP + '[quarantine]\nstub = [["/a"]]\n',
    SLEEP + "success-exit-status = 256\n",
    SLEEP + "environment = { user = 'x' }\n",
    SLEEP + "environment = { A = 1.5 }\n",
    SLEEP + "[limits]\nnice = 20\n",
    SLEEP + "restart-jitter = 2\n",
    SLEEP + 'working-directory = "here"\n',
    '[unit]\nafter = { unit = "a", ordered = true }\n' + SLEEP,
    '[unit]\nrequires = { unit = "a", until = "well" }\n' + SLEEP,
    "[service]\nexec-start = [['/a'], '/b']\n",
    "[servise]\n",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_check_takes_the_schema_takes(text: str) -> None:
    """An editor shows no error where there is none."""
    assert not [problem for problem in problems_of(text) if problem.severity == "error"]
    assert accepts(UNIT, tomli.loads(text))


@pytest.mark.parametrize("text", BAD)
def test_what_check_refuses_the_schema_refuses(text: str) -> None:
    """Of what a schema can say."""
    assert [problem for problem in problems_of(text) if problem.severity == "error"]
    assert not accepts(UNIT, tomli.loads(text))


def test_settings_schema() -> None:
    """Rules, presets and commands; an empty list is no reset there."""
    good = '[supervisor]\nallowed-commands = []\n[[control.allow]]\nuid = 1\ncommands = ["restart", "monitoring"]\n'
    good += '[pools.a]\nmax-workers = 3\n[[hooks]]\nevent = "unit.*"\ncommand = "/bin/page %n"\ntimeout = 5\n'
    assert accepts(SETTINGS, tomli.loads(good), SETTINGS)
    for bad in ('[supervisor]\nallowed-commands = "al"\n', "[journal]\nsync = []\n", "[pools.a]\nmax-workers = -1\n"):
        assert not accepts(SETTINGS, tomli.loads(bad), SETTINGS)


@pytest.mark.parametrize("name", ["web", "worker@", "worker@3"])
def test_a_new_unit_file_is_good(name: str) -> None:
    """As it is written, under its name; the schema takes it too."""
    text = unit_file_text(parse_unit_name(name))
    assert problems_of(text, name) == []
    assert accepts(UNIT, tomli.loads(text))


def test_every_line_that_is_commented_out_is_good() -> None:
    """Each setting of the new file can be switched on alone (tables with theirs), and names nothing that does not exist
    here."""
    lines = unit_file_text(parse_unit_name("web")).split("\n")
    offered = [n for n, line in enumerate(lines) if re.match(r"# (\[[a-z.]+\]|[A-Za-z_-]+ = )", line)]
    assert len(offered) > 20
    for number in offered:
        changed = list(lines)
        changed[number] = lines[number].removeprefix("# ")
        header = next(
            (n for n in range(number, 0, -1) if lines[n].startswith("# [") or lines[n].startswith("[")), number
        )
        changed[header] = lines[header].removeprefix("# ")
        errors = [
            problem.text()
            for problem in problems_of("\n".join(changed))
            if problem.message != "there is no unit db" and problem.severity == "error"
        ]
        assert not errors, errors
