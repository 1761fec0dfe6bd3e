"""``docs/keys.toml`` and what is driven by it agree: decoders, defaults of the model, schema."""

import pytest
from unitset_rig import KEY_TABLE, SLEEP, load_texts

from supervisord_py.model.assemble_context import RLIMITS
from supervisord_py.model.decode import DECODERS
from supervisord_py.model.keys import FileKind, KeySpec, TableSpec
from supervisord_py.model.settings import RemoteSettings, Settings, parse_settings
from supervisord_py.model.states import KillMode, NotifyAccess, OnDependencyFailure, Restart, ServiceType
from supervisord_py.model.unit import Unit, UnitKind

FILES: tuple[FileKind, ...] = ("unit", "settings")
KEYS = [(table, key, spec) for file in FILES for table in KEY_TABLE.of(file) for key, spec in table.keys.items()]
BUILT = [(table, key, spec) for table, key, spec in KEYS if spec.built]


def toml(value: object) -> str:
    """A default as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {toml(item)}' for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_every_type_of_a_built_key_has_a_decoder_that_takes_the_default() -> None:
    """What the table says holds by default could be written."""
    for table, key, spec in BUILT:
        assert spec.type in DECODERS, f"{table.header} {key}"
        if spec.default is not None:
            DECODERS[spec.type](spec.default, spec, str)


def test_every_decoder_is_used() -> None:
    """No type is decoded that no built key has."""
    assert {spec.type for _, _, spec in BUILT} == DECODERS.keys()


@pytest.mark.parametrize(
    ("table", "key", "spec"), KEYS, ids=lambda part: part.name if isinstance(part, TableSpec) else ""
)
def test_entries_are_whole(table: TableSpec, key: str, spec: KeySpec) -> None:
    """Names are kebab-case, every key has a sentence, enums have values and a possible default."""
    assert key == key.lower().replace("_", "-") and spec.doc and not spec.doc.endswith(".")
    assert bool(spec.values) == (spec.type in ("enum", "switch", "environment", "conditions"))
    assert set(spec.pending) <= set(spec.values)
    if spec.type == "enum" and spec.default is not None:
        assert spec.default in spec.values and spec.default not in spec.pending


def test_directives_of_systemd_are_named_once() -> None:
    """A CamelCase name leads to one key."""
    for file in FILES:
        names = [spec.systemd for table in KEY_TABLE.of(file) for spec in table.keys.values() if spec.systemd]
        assert len(names) == len(set(names))


def test_enums_are_those_of_the_model() -> None:
    """A value in the table is a value of the model and the other way round."""
    table = {(t.name, key): set(spec.values) for t, key, spec in KEYS if spec.type == "enum"}
    assert table["service", "type"] == {item.value for item in ServiceType}
    assert table["service", "restart"] == {item.value for item in Restart}
    assert table["service", "kill-mode"] == {item.value for item in KillMode}
    assert table["service", "notify-access"] == {item.value for item in NotifyAccess}
    assert table["unit", "on-dependency-failure"] == {item.value for item in OnDependencyFailure}


def test_limits_of_the_table_are_the_rlimits() -> None:
    """What is set as a resource limit is what the table calls one."""
    limits = KEY_TABLE.find("unit", "limits")
    assert limits is not None
    assert set(RLIMITS) == {key for key, spec in limits.keys.items() if spec.type.startswith("limit-")}


def written_defaults(tables: tuple[str, ...], left_out: tuple[str, ...] = ()) -> str:
    lines: list[str] = []
    for table in KEY_TABLE.of("unit"):
        if table.name in tables:
            lines.append(f"[{table.name}]")
            for key, spec in table.keys.items():
                if spec.built and spec.default not in (None, []) and key not in left_out:
                    lines.append(f"{key} = {toml(spec.default)}")
                if (table.name, key) == ("service", "exec-start"):
                    lines.append('exec-start = ["/bin/sleep", "infinity"]')
    return "\n".join(lines)


def test_the_defaults_of_the_table_are_those_of_the_model() -> None:
    """A unit that writes every default out is the unit that writes none."""
    # nofile's default belongs to the host: written out it becomes an explicit limit; error-threshold written out asks
    # for a notify socket. The others are for types that are not the default one.
    left_out = ("nofile", "reload-signal", "guess-main-pid", "error-threshold")
    text = written_defaults(("unit", "service", "limits", "log", "quarantine", "pool"), left_out=left_out)
    result = load_texts({"plain": SLEEP, "written": text})
    assert not result.problems
    plain, written = (result.unit_set.units[name] for name in ("plain", "written"))
    as_plain = {field: getattr(plain, field) for field in Unit.__struct_fields__ if field not in ("name", "source")}
    assert {field: getattr(written, field) for field in as_plain} == as_plain
    assert plain.kind is UnitKind.SERVICE


def test_the_defaults_of_the_settings_are_those_of_the_model() -> None:
    """The same for supervisord.toml."""
    lines: list[str] = []
    for table in KEY_TABLE.of("settings"):
        # Those of remote listeners have keys that must be written.
        if table.form == "table" and table.built and not table.name.endswith(".remote"):
            lines.append(f"[{table.name}]")
            lines += [f"{k} = {toml(s.default)}" for k, s in table.keys.items() if s.built and s.default is not None]
    settings, problems = parse_settings("\n".join(lines), "", KEY_TABLE)
    assert not problems
    assert settings == Settings()
    for name in ("control.remote", "bus.remote"):
        remote = KEY_TABLE.find("settings", name)
        assert remote is not None
        assert RemoteSettings("", "").commands == {"*": remote.keys["commands"].default}


def test_every_key_of_the_issue_is_built() -> None:
    """The list of what is built is a promise: losing a key is noticed."""
    assert sum(spec.built for _, _, spec in KEYS) >= 169


THOUSANDS = "9" * 5000
DIGITS = [
    ("service", "user"), ("service", "supplementary-groups"), ("limits", "cpu-affinity"), ("limits", "tasks-max"),
    ("sandbox", "system-call-error-number"), ("sandbox", "landlock"), ("socket", "listen-stream"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "key"), DIGITS)
def test_a_number_of_thousands_of_digits_brought_the_loader_down(table: str, key: str) -> None:
    """Python raises for these what no loader expected; now each is a problem at its place, and short."""
    value = f"tcp:{THOUSANDS}:bind" if key == "landlock" else THOUSANDS
    header = "" if table == "service" else "[[socket]]\n" if table == "socket" else f"[{table}]\n"
    loaded = load_texts({"web": f'{SLEEP}{header}{key} = "{value}"\n'})
    assert [(each.key, each.line, len(each.message) < 200) for each in loaded.problems] == [
        (f"{table}.{key}", 3 + (table != "service"), True)
    ]


@pytest.mark.parametrize("value", ["5-3", "\u0663", "0-", "8192", "-1"])
def test_cpus_that_are_none_were_no_affinity_at_all(value: str) -> None:
    """A range that begins behind its end held no CPU, so the key was accepted and did nothing."""
    loaded = load_texts({"web": f'{SLEEP}[limits]\ncpu-affinity = "{value}"\n'})
    assert [each.key for each in loaded.problems] == ["limits.cpu-affinity"]
