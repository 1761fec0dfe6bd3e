"""Unit texts that a booted systemd 252 was given: our unit says the same, or what it does not say is told."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tomli

from supervisord_py.convert.draft import Conversion, ConvertError, SourceFile
from supervisord_py.convert.formats import convert
from supervisord_py.convert.settle import settle
from tests.convert.bench import CONTEXT, KEYS, MACHINE, around, fixture, loaded
from tests.convert.properties import PROPERTIES, Seen, normal, raw_tables

LISTED = tomli.loads((Path(__file__).parent / "differences.toml").read_text(encoding="utf-8"))


def test_what_systemd_made_of_each_text(record_property: Callable[[str, object], None]) -> None:
    """Line syntax, sections, directives and specifiers: nothing differs in silence."""
    cases = json.loads((fixture("systemd-vectors") / "unit-oracle.json").read_text())["cases"]
    counts: Counter[str] = Counter()
    silent: list[str] = []
    for case in cases:
        if "content" not in case:
            continue
        number = str(case["id"])
        found = _differences(case, counts)
        if found and number in LISTED["oracle"]:
            counts["listed"] += 1
        elif found:
            silent.append(f"{number} {case['content']!r}: {found}")
    record_property("summary", f"convert systemd, unit texts of the oracle: {dict(counts)}")
    assert not silent, "\n".join(silent)
    assert counts["the same"] > 200


def _differences(case: dict[str, object], counts: Counter[str]) -> list[str]:
    """What differs and is not told."""
    unit, content = str(case["unit"]), str(case["content"])
    base = unit.rpartition(".")[0]
    files = [SourceFile(unit, content)]
    if not unit.endswith(".service"):
        files.append(SourceFile(f"{base}.service", "[Service]\nExecStart=/bin/true\n"))
    try:
        conversion = convert("systemd", files, around())
    except ConvertError as error:
        return [str(error)] if case["load_state"] == "loaded" else []
    raw = {name: raw_tables(draft) for name, draft in conversion.drafts.items()}
    settle(conversion, KEYS, CONTEXT, MACHINE)
    if case["load_state"] != "loaded":
        counts["refused there"] += 1
        return [] if conversion.not_carried else ["systemd refuses it, and nothing is told"]
    return _compared(case, conversion, raw, counts)


def _compared(case: dict[str, object], conversion: Conversion, raw: object, counts: Counter[str]) -> list[str]:
    units = loaded(conversion).unit_set.units
    unit = next(iter(units.values()), None)
    if unit is None or unit.service is None:
        return [] if conversion.not_carried or unit is not None else ["there is no unit, and nothing is told"]
    assert isinstance(raw, dict) and isinstance(case["changed_properties"], dict)
    seen = Seen(unit, raw.get(unit.name, {}))
    found: list[str] = []
    for section, properties in case["changed_properties"].items():
        for key, value in properties.items():
            name = f"{section}.{key}"
            is_other = section == "Unit" and not str(case["unit"]).endswith(".service")
            if name in LISTED["every"] or name not in PROPERTIES or is_other:
                continue
            ours, theirs = PROPERTIES[name](seen), normal(name, value)
            if ours == theirs:
                counts["the same"] += 1
            elif conversion.not_carried:
                counts["told"] += 1
            else:
                found.append(f"{name}: {theirs!r}, not {ours!r}")
    return found
