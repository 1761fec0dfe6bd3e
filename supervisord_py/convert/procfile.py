"""``convert procfile``: the lines of a Procfile as unit files.

A line is ``NAME: COMMAND``, which a shell runs. foreman and honcho end everything when one process ends and restart
nothing; Heroku restarts what ends. Here it is restarted when it fails.

A file ``.env`` beside it is read by foreman and honcho for every process, and by the units at each start.

Source: honcho 2.0, environ.py (parse_procfile): ``^([A-Za-z0-9_-]+):\\s*(.+)$``, other lines are passed over.
"""

import re
from collections.abc import Sequence

from supervisord_py.convert.draft import Conversion, ConvertError, Place, SourceFile
from supervisord_py.convert.formats import Surroundings
from supervisord_py.convert.names import unit_name
from supervisord_py.convert.text_forms import literal, shell

_LINE = re.compile(r"([A-Za-z0-9_-]+):\s*(.+)")


def convert(files: Sequence[SourceFile], around: Surroundings) -> Conversion:
    """Convert Procfiles.

    Raises:
        ConvertError: A name stands twice in one of them.
    """
    conversion = Conversion()
    for file in files:
        seen: dict[str, int] = {}
        variables = next(iter(around.read(".env", file.base)), None) if file.base else None
        for number, line in enumerate(file.text.split("\n"), 1):
            _convert_line(line.strip("\r"), Place(file.path, number, ""), file, variables, seen, conversion)
        if variables is not None and seen:
            where = Place(file.path, 0, ".env")
            conversion.ledger.note(where, "its variables are read at each start (environment-file)")
    return conversion


def _convert_line(
    line: str,
    where: Place,
    file: SourceFile,
    variables: SourceFile | None,
    seen: dict[str, int],
    conversion: Conversion,
) -> None:
    match = _LINE.fullmatch(line)
    if match is None:
        if line.strip() and not line.lstrip().startswith("#"):
            conversion.ledger.lost(where, "no line of a Procfile (NAME: COMMAND), and passed over there too")
        return
    name, command = match[1], match[2].strip()
    place = Place(file.path, where.line, name)
    if name in seen:
        raise ConvertError(f"{file.path}:{where.line}: {name} stands in line {seen[name]} already")
    if "\0" in command or not command:
        conversion.ledger.lost(place, "no command that a program can be given")
        return
    seen[name] = where.line
    unit = unit_name(name, set(conversion.drafts))
    if unit != name:
        conversion.ledger.note(place, f"the process {name} is called {unit} here")
    draft = conversion.draft(unit, file.path)
    draft.put("service", "exec-start", shell(command), place)
    draft.put("service", "working-directory", literal(file.base))
    if variables is not None:
        draft.put("service", "environment-file", f"-{literal(variables.path)}")
    if name == "release":
        # Heroku runs it once, before the others; here it is to be asked for.
        draft.put("service", "type", "oneshot")
        draft.put("unit", "enabled", False)
        conversion.ledger.note(place, "the release phase of a deployment: supctl start runs it")
    for variable in dict.fromkeys(re.findall(r"\$\{?(PORT|PS)\b", command)):
        if variables is not None and re.search(rf"^{variable}=", variables.text, re.MULTILINE):
            continue
        conversion.ledger.note(place, f"{variable} is set by what runs Procfiles: write it into [service.environment]")
    conversion.ledger.carried(place)
