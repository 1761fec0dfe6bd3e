"""``supervisord-py``: the daemon, and everything that needs no daemon.

Commands are imported when they are called: ``check`` does not pay for ``run``.
"""

import json
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisord_py import __version__

if TYPE_CHECKING:
    from supervisord_py.host.places import Places
    from supervisord_py.model.problems import Problem

_ELSEWHERE = {
    "calendar": ("supervisord_py.host.times:calendar_command", "what calendar expressions mean, and when they elapse"),
    "timespan": ("supervisord_py.host.times:timespan_command", "what time spans mean"),
    "convert": (
        "supervisord_py.convert.command:convert_command",
        "unit files of another supervisor's configuration",
    ),
    "doctor": (
        "supervisord_py.doctor.command:doctor_command",
        "what this machine offers, or a supervisor's invariants",
    ),
    "exec": ("supervisord_py.host.exec:exec_command", "supervise one command, and exit with its code"),
    "keygen": ("supervisord_py.host.signing_commands:keygen_command", "make keys to sign with, or for remote access"),
    "run": ("supervisord_py.host.run:run_command", "supervise units in the foreground"),
    "sign": ("supervisord_py.host.signing_commands:sign_command", "sign agent wheels and unit files"),
    "install": ("supervisord_py.install.command:install_command", "make it a service of the operating system"),
    "uninstall": ("supervisord_py.install.command:uninstall_command", "stop and remove that service"),
}
"""Commands that live in other modules: where, and what the overview says about them."""


class _LazyGroup(click.Group):
    """A group that knows its commands' names and one-line help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = _ELSEWHERE[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), f"{attribute} of {module} is not a command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: list[tuple[str, str]] = []
        for name in self.list_commands(ctx):
            own = self.commands.get(name)
            rows.append((name, _ELSEWHERE[name][1] if own is None else own.short_help or ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="supervisord-py")
def main() -> None:
    """Supervise long-running agents and services. `supctl` talks to a supervisor that runs."""


@main.command("version", short_help="print the version")
def version_command() -> None:
    """Print the version."""
    click.echo(__version__)


@main.command("check", short_help="validate unit files and settings")
@click.argument("paths", metavar="[PATH...]", nargs=-1, type=click.Path())
@click.option("--config", metavar="FILE", help="Settings file (default: the one of root or of the user).")
@click.option("--state-dir", metavar="DIR", help="State folder: what supctl enable and mask wrote there counts too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--security", is_flag=True, help="Score how much each unit is exposed, and say what to tighten.")
def check_command(
    paths: tuple[str, ...], config: str | None, state_dir: str | None, as_json: bool, security: bool
) -> None:
    """Validate these files and folders (default: the unit path), and the settings, exactly as run does.

    All problems of all files are told at once. Exits 1 when there is an error; warnings and infos alone are good.
    """
    from supervisord_py.host.hot_check import load_all
    from supervisord_py.host.places import moved
    from supervisord_py.host.security import security_document, security_lines
    from supervisord_py.host.unit_files import load_settings

    places = moved(_places(), state=state_dir)
    settings_path = Path(config) if config is not None else places.settings
    settings, settings_problems = load_settings(settings_path, required=config is not None)
    loaded = load_all(paths or None, places, settings, os.environ)
    problems = [*settings_problems, *loaded.problems]
    assessed = []
    if security:
        from supervisord_py.model.security import assess

        found = (assess(unit, is_user=os.geteuid() != 0) for unit in loaded.unit_set.units.values())
        assessed = sorted((one for one in found if one is not None), key=lambda one: -one.exposure)
    if as_json:
        document: dict[str, Any] = {"problems": [_problem_document(problem) for problem in problems]}
        if security:
            document["security"] = [security_document(one) for one in assessed]
        click.echo(json.dumps(document, indent=2))
    else:
        for one in assessed:
            click.echo("\n".join(security_lines(one)))
        for problem in problems:
            click.echo(problem.text())
        unit_set = loaded.unit_set
        click.echo(
            _counted(len(unit_set.units), "good unit")
            + f", {len(unit_set.bad)} bad"
            + (f", {len(unit_set.masked)} masked" if unit_set.masked else "")
            + f", {_counted(sum(problem.severity == 'error' for problem in problems), 'error')}"
            + f", {_counted(sum(problem.severity == 'warning' for problem in problems), 'warning')}"
            + (f", {infos} info" if (infos := sum(problem.severity == "info" for problem in problems)) else "")
        )
        if not unit_set.units and not unit_set.bad and not paths:
            searched = ", ".join(map(str, places.unit_path))
            click.echo(f"no unit files in {searched}; `supervisord-py new NAME` writes one to start from", err=True)
    if any(problem.severity == "error" for problem in problems):
        raise SystemExit(1)


def _problem_document(problem: "Problem") -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "key": problem.key,
        "message": problem.message,
        "hint": problem.hint,
        "severity": problem.severity,
    }


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@main.command("graph", short_help="draw the dependency graph")
@click.argument("paths", metavar="[PATH...]", nargs=-1, type=click.Path())
@click.option(
    "--format", "form", type=click.Choice(["text", "dot", "mermaid", "json"]), default="text", help="How it is drawn."
)
@click.option("--order", is_flag=True, help="Show the start waves: each starts when the ones before it have.")
def graph_command(paths: tuple[str, ...], form: str, order: bool) -> None:
    """Draw the units in these files and folders (default: the unit path) and what they need of each other.

    The JSON document holds units, edges and waves always. Problems go to standard error; exits 1 when a unit is bad.
    """
    from supervisord_py.host.unit_files import load
    from supervisord_py.model import drawing

    loaded = load(paths or None, _places())
    match form:
        case "text":
            drawn = drawing.draw_waves(loaded.unit_set) if order else drawing.draw_text(loaded.unit_set)
        case "dot":
            drawn = drawing.draw_dot(loaded.unit_set, order=order)
        case "mermaid":
            drawn = drawing.draw_mermaid(loaded.unit_set, order=order)
        case _:
            drawn = json.dumps(drawing.graph_document(loaded.unit_set), indent=2)
    if drawn:
        click.echo(drawn)
    for problem in loaded.problems:
        click.echo(problem.text(), err=True)
    if loaded.has_errors:
        raise SystemExit(1)


@main.command("new", short_help="write a unit file to start from")
@click.argument("name", metavar="NAME")
@click.option("-o", "--output", metavar="FOLDER", help="Write FOLDER/NAME.toml in place of printing it.")
@click.option("--agent", is_flag=True, help="A Python agent: its unit file, its module and a test of that.")
def new_command(name: str, output: str | None, agent: bool) -> None:
    """Print a commented unit file that passes check; NAME@ makes a template with two instances.

    With -o it is written to FOLDER/NAME.toml; a file that is there already is left alone. The files of an agent are
    written into the current folder where -o names none.
    """
    from supervisord_py.model.names import parse_unit_name
    from supervisord_py.model.scaffold import agent_texts, unit_file_text

    try:
        unit_name = parse_unit_name(name.removesuffix(".toml"))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    texts = agent_texts(unit_name) if agent else {f"{unit_name}.toml": unit_file_text(unit_name)}
    if output is None and not agent:
        click.echo("".join(texts.values()), nl=False)
        return
    paths = {Path(output or ".") / file: text for file, text in texts.items()}
    there = next((path for path in paths if os.path.lexists(path)), None)
    if there is not None:
        raise click.ClickException(f"{there} is there already; remove it, or choose another name")
    for path, text in paths.items():
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise click.ClickException(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    unit, *others = paths
    beside = f" and {' and '.join(map(str, others))}" if others else ""
    click.echo(f"wrote {unit}{beside}; edit it, then: supervisord-py check {unit}", err=True)


@main.command("schema", short_help="print the JSON schema of a unit file")
@click.option("--settings", is_flag=True, help="The schema of supervisord.toml in place of a unit file's.")
def schema_command(settings: bool) -> None:
    """Print the JSON schema (draft 2020-12) of a unit file, for editors."""
    from supervisord_py.host.unit_files import key_table
    from supervisord_py.model.schema import json_schema

    click.echo(json.dumps(json_schema(key_table(), "settings" if settings else "unit"), indent=2, ensure_ascii=False))


def _places() -> "Places":
    from supervisord_py.host.places import default_places

    return default_places(dict(os.environ), os.getuid(), os.path.expanduser("~"))
