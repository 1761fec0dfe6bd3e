"""``supervisord-py convert``."""

import json
import os
from pathlib import Path
from typing import Any

import click

from supervisord_py.convert.draft import Conversion, ConvertError, SourceFile, Use
from supervisord_py.convert.formats import FORMATS, Surroundings, convert
from supervisord_py.convert.reading import narrowest_mode, read_file, read_matching, read_systemd, write_units
from supervisord_py.convert.settle import settle
from supervisord_py.convert.toml_text import unit_text
from supervisord_py.convert.yaml_text import load_yaml
from supervisord_py.host.places import default_places
from supervisord_py.host.unit_files import AGENT_RUNNER, key_table, read_sources, specifier_context
from supervisord_py.host.zones import zone_named
from supervisord_py.model.assemble import Machine
from supervisord_py.model.unitset import UnitFile, UnitFileKind

_MADE_BY = "made by supervisord-py convert"


@click.command("convert")
@click.argument("source", metavar="FROM", type=click.Choice(list(FORMATS)))
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", metavar="DIR", help="Write the unit files into this folder in place of printing them.")
@click.option("--force", is_flag=True, help="Replace unit files that are there already.")
@click.option("--strict", is_flag=True, help="Write nothing and fail when something could not be carried over.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def convert_command(
    source: str, files: tuple[str, ...], output: str | None, force: bool, strict: bool, as_json: bool
) -> None:
    """Make unit files of the configuration of another supervisor.

    FROM is systemd, supervisord, procfile, pm2, circus, horust or process-compose. What could not be carried over is
    told key by key, on standard error; nothing is passed over. Every file that is written passes check.
    """
    keys = key_table()
    known = _units_in(output)
    try:
        read = read_systemd(files) if source == "systemd" else [read_file(path) for path in files]
        sources = list(read)

        def read_included(pattern: str, base: str) -> list[SourceFile]:
            found = read_matching(pattern, base)
            sources.extend(found)
            return found

        around = Surroundings(keys, read_included, load_yaml, frozenset(file.name for file in known))
        conversion = convert(source, read, around)
        machine = Machine(zone_named, AGENT_RUNNER)
        settle(conversion, keys, specifier_context(os.environ), machine, known)
        texts = {f"{name}.toml": unit_text(draft, keys, _MADE_BY) for name, draft in conversion.drafts.items()}
        refused = bool(strict and conversion.not_carried)
        if not texts and not refused:
            _tell(conversion, as_json=False)
            raise ConvertError(f"there is nothing to run in {', '.join(files)}")
        if output is None or refused:
            written = [] if refused else list(texts)
        else:
            written = write_units(Path(output), texts, force=force, mode=narrowest_mode(sources))
    except ConvertError as error:
        if as_json:
            click.echo(json.dumps({"error": {"code": "failed", "message": str(error)}}))
        raise click.ClickException(str(error)) from None
    if as_json:
        document = _document(conversion, written)
        click.echo(json.dumps(document | ({} if output or refused else {"texts": texts}), indent=2, ensure_ascii=False))
    elif output is None and not refused:
        click.echo("\n".join(f"# {name}\n{text}" for name, text in texts.items()), nl=False)
    _tell(conversion, as_json=as_json)
    if refused:
        count = len(conversion.not_carried)
        keys_ = f"{count} key{'' if count == 1 else 's'}"
        raise click.ClickException(f"{keys_} could not be carried over, so nothing was written (--strict)")
    if output is not None and not as_json:
        click.echo(f"wrote {len(written)} unit file{'' if len(written) == 1 else 's'} into {output}", err=True)


def _units_in(output: str | None) -> tuple[UnitFile, ...]:
    """The units that are in the folder already: a converted one may need them."""
    if output is None or not os.path.isdir(output):
        return ()
    places = default_places(dict(os.environ), os.getuid(), os.path.expanduser("~"))
    sources = read_sources([output], places)
    return tuple(file for file in sources.files if file.kind is UnitFileKind.UNIT and file.problem is None)


def _document(conversion: Conversion, written: list[str]) -> dict[str, Any]:
    return {
        "units": written,
        "not_carried": [_use(use) for use in conversion.not_carried],
        "notes": [_use(use) for use in conversion.ledger.notes],
    }


def _use(use: Use) -> dict[str, Any]:
    return {"file": use.place.file, "line": use.place.line, "key": use.place.key, "reason": use.reason}


def _tell(conversion: Conversion, *, as_json: bool) -> None:
    """Say what could not be carried over, and what else is to be known."""
    if as_json:
        return
    for use in conversion.not_carried:
        click.echo(f"{_told(use)} (not carried over)", err=True)
    for use in conversion.ledger.notes:
        click.echo(f"{_told(use)} (note)", err=True)


def _told(use: Use) -> str:
    place = f"{use.place.file}:{use.place.line}" if use.place.line else use.place.file
    text = ": ".join(part for part in (place, use.place.key, use.reason) if part)
    return "".join(character if character.isprintable() else "?" for character in text)
