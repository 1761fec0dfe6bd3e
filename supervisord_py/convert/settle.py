"""The last word has the reader of unit files: what it refuses is taken out of a draft again, and said.

So whatever is written passes ``check``. A key that is not built yet is taken out the same way, and counted apart.
"""

from msgspec.structs import replace

from supervisord_py.convert.draft import SECRET_KEYS, Conversion, Draft, TableId
from supervisord_py.convert.toml_text import unit_text
from supervisord_py.model.assemble import Machine
from supervisord_py.model.keys import KeyTable
from supervisord_py.model.names import is_unit_name
from supervisord_py.model.problems import Problem
from supervisord_py.model.specifiers import SpecifierContext
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind, build_unit_set

_ROUNDS = 200
_FOLDER = "/u"
_REQUIRING = ("requires", "requisite", "binds-to")


def settle(
    conversion: Conversion,
    keys: KeyTable,
    context: SpecifierContext,
    machine: Machine,
    known: tuple[UnitFile, ...] = (),
) -> LoadResult:
    """Take out of the drafts what would not pass ``check``.

    Args:
        conversion: Its drafts and its ledger are changed.
        keys: The table of keys.
        context: What specifiers stand for.
        machine: What there is here that units refer to.
        known: Units that are there besides.

    Returns:
        What the drafts that are left are as units.
    """
    for draft in conversion.drafts.values():
        _take_out_unbuilt(draft, conversion, keys)
    for _ in range(_ROUNDS):
        _take_out_missing(conversion, {file.name for file in known})
        loaded = _load(conversion, keys, context, machine, known)
        errors = [problem for problem in loaded.problems if problem.severity == "error" and _draft_of(problem)]
        if not errors:
            return loaded
        seen: set[str] = set()
        for problem in errors:
            # One at a time of each unit: another may follow from it.
            name = _draft_of(problem)
            if name not in seen and name in conversion.drafts:
                seen.add(name)
                _take_out(conversion, conversion.drafts[name], problem)
        if not seen:
            return loaded
    raise AssertionError("internal error: a converted unit is never good")


def _load(
    conversion: Conversion, keys: KeyTable, context: SpecifierContext, machine: Machine, known: tuple[UnitFile, ...]
) -> LoadResult:
    files = [
        UnitFile(name, f"{_FOLDER}/{name}.toml", unit_text(draft, keys, "made"), UnitFileKind.UNIT, _FOLDER, 0)
        for name, draft in conversion.drafts.items()
    ]
    besides = [replace(file, priority=1) for file in known if file.name not in conversion.drafts]
    return build_unit_set((*files, *besides), context, key_table=keys, machine=machine)


def _draft_of(problem: Problem) -> str:
    folder, _, file = problem.file.rpartition("/")
    return file.removesuffix(".toml") if folder == _FOLDER else ""


def _take_out_unbuilt(draft: Draft, conversion: Conversion, keys: KeyTable) -> None:
    for table in list(draft.tables):
        spec = keys.find("unit", str(table[0])) or keys.find("unit", f"{table[0]}.NAME")
        assert spec is not None, f"internal error: there is no table {table}"
        for key in list(draft.tables[table]):
            assert key in spec.keys, f"internal error: there is no key {key} in {spec.header}"
            if not spec.keys[key].built:
                conversion.ledger.lose(draft.drop(table, key), f"{key} is not supported yet", awaited=True)
        if not spec.built:
            del draft.tables[table]


def _take_out_missing(conversion: Conversion, known: set[str]) -> None:
    """Take units that are not made out of what others require; the rest of what they require stays. The reader would
    have the whole key taken out, and does not look into templates.
    """
    there = known | conversion.drafts.keys()
    for draft in conversion.drafts.values():
        for key in _REQUIRING:
            said = draft.get("unit", key, [])
            members = said if isinstance(said, list) else [said]
            names = [member["unit"] if isinstance(member, dict) else member for member in members]
            gone = [name for name in names if is_unit_name(name) and not _is_there(name, there)]
            if not gone:
                continue
            reason = f"there is no unit {', '.join(gone)}"
            left = [member for member, name in zip(members, names, strict=True) if name not in gone]
            if left:
                draft.tables[("unit",)][key] = left
                all_places = draft.places.get((("unit",), key), [])
                places = [place for name in gone for place in draft.members.get((key, name), all_places)]
                conversion.ledger.lose(places, reason)
            else:
                conversion.ledger.lose(draft.drop(("unit",), key), reason)


def _is_there(name: str, there: set[str]) -> bool:
    return name in there or ("@" in name and f"{name.partition('@')[0]}@" in there)


def _take_out(conversion: Conversion, draft: Draft, problem: Problem) -> None:
    """Take out the key that a problem is about; a problem with the unit as a whole takes the unit out."""
    steps = problem.key.split(".")
    table, key = _find(draft, steps)
    if key:
        reason = "its value is refused here" if key in SECRET_KEYS else problem.message
        conversion.ledger.lose(draft.drop(table, key), reason)
        return
    if table and table != ("service",):
        for each in list(draft.tables[table]):
            conversion.ledger.lose(draft.drop(table, each), problem.message)
        del draft.tables[table]
        return
    del conversion.drafts[draft.name]
    places = [place for places in draft.places.values() for place in places]
    conversion.ledger.lose(places, f"there is no unit {draft.name}: {problem.message}")


def _find(draft: Draft, steps: list[str]) -> tuple[TableId, str]:
    """The table and the key that a dotted name leads to; an empty key for the table, nothing for the unit."""
    for table in draft.tables:
        names = [str(step) for step in table if isinstance(step, str)]
        if names != steps[: len(names)]:
            continue
        if len(steps) == len(names):
            return table, ""
        if steps[len(names)] in draft.tables[table] and steps[len(names)] != "exec-start":
            return table, steps[len(names)]
    return (), ""
