"""``supctl``: the command line. A verb's module is imported only when that verb is used.

Theory of operation
-------------------
``COMMANDS`` says where each verb lives and what the overview prints about it, so neither ``supctl --help`` nor a verb
imports another's
module. Whatever goes wrong arrives here as an exception and leaves as an exit code of the contract, a message on
standard error and, with ``--json``,
a document on standard output.
"""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from supervisord_py import __version__
from supervisord_py.ctl.options import Misuse, asks_for_json, common_options
from supervisord_py.ctl.session import Session
from supervisord_py.errors import SupervisordError, UsageError

_TOPICS: tuple[tuple[str, tuple[tuple[str, str, str, str], ...]], ...] = (
    ("What is", (
        ("status", "status", "status", "what runs, and what is wrong; one unit in detail"),
        ("list", "status", "list_units", "all units, a line each"),
        ("show", "describe", "show", "everything about a unit as KEY=VALUE"),
        ("cat", "describe", "cat", "a unit's files, or where each value comes from"),
        ("deps", "describe", "deps", "what a unit depends on, or what depends on it"),
        ("health", "daemon", "health", "exit 0 when nothing is wrong"),
        ("is-active", "status", "is_active", "exit 0 when a unit is active"),
        ("is-failed", "status", "is_failed", "exit 0 when a unit has failed"),
        ("is-enabled", "status", "is_enabled", "exit 0 when units start with the supervisor"),
    )),
    ("What happened", (
        ("why", "describe", "why", "why a unit is as it is, and what to do"),
        ("lives", "describe", "lives", "a line for each life of a unit"),
        ("logs", "output", "logs", "the output of units"),
        ("journal", "journal", "journal", "every decision and fact, in order"),
    )),
    ("Change units", (
        ("start", "verbs", "start", "start units and what they require"),
        ("stop", "verbs", "stop", "stop units and what requires them"),
        ("restart", "verbs", "restart", "stop units and start them again"),
        ("try-restart", "verbs", "try_restart", "restart units that run"),
        ("reload", "verbs", "reload", "make units read their own configuration again"),
        ("reload-or-restart", "verbs", "reload_or_restart", "reload units, or restart those that cannot"),
        ("kill", "verbs", "kill", "send a signal to the processes of units"),
        ("signal", "verbs", "signal_units", "send a signal to the main process of units"),
        ("pause", "verbs", "pause", "let all processes of units stand still"),
        ("resume", "verbs", "resume", "let paused units go on"),
        ("trigger", "verbs", "trigger", "run units that have a timer now"),
        ("release", "verbs", "release", "trust quarantined units again, and start them"),
        ("reset-failed", "verbs", "reset_failed", "forget the failures of units"),
        ("enable", "changes", "enable", "let units start with the supervisor"),
        ("disable", "changes", "disable", "let units no longer start with the supervisor"),
        ("mask", "changes", "mask", "let nothing start units"),
        ("unmask", "changes", "unmask", "let masked units be started again"),
        ("scale", "changes", "scale", "let a template have so many instances"),
        ("set", "changes", "set_keys", "give keys of a running unit other values"),
        ("run", "run", "run_command", "run a command as a unit of its own"),
        ("edit", "edit", "edit", "edit a unit's file, check it, apply it"),
        ("apply", "changes", "apply", "read the unit files again and restart what changed"),
        ("jobs", "verbs", "jobs", "what is being done"),
        ("cancel", "verbs", "cancel", "end a job that has not finished"),
        ("wait", "waiting", "wait", "wait until a unit is ready, inactive, or has ended"),
    )),
    ("The supervisor", (
        ("daemon-reload", "daemon", "daemon_reload", "read settings and unit files again"),
        ("daemon-restart", "daemon", "daemon_restart", "a new manager, the same processes"),
        ("daemon-reexec", "daemon", "daemon_reexec", "a new keeper and manager, the same processes"),
        ("shutdown", "daemon", "shutdown", "stop everything in order, and the supervisor"),
        ("ping", "daemon", "ping", "does it answer"),
        ("version", "daemon", "version", "versions of supctl, manager and keeper"),
        ("top", "top", "top", "what units need now, again and again"),
        ("stats", "daemon", "stats", "what the supervisor and its units need, in numbers"),
        ("commands", "daemon", "commands", "what you may do"),
        ("can", "daemon", "can", "may you do this to that unit"),
        ("idl", "daemon", "idl", "the definition of the control interface"),
        ("completion", "completion", "completion", "completion for bash, zsh or fish"),
    )),
)  # fmt: skip

COMMANDS: dict[str, tuple[str, str]] = {
    name: (module, attribute) for _, verbs in _TOPICS for name, module, attribute, _ in verbs
}
"""Each verb: the module below ``supervisord_py.ctl`` that it lives in, and its name there."""

ALIASES: dict[str, tuple[str, ...]] = {
    "ps": ("list",),
    "ls": ("list",),
    "list-units": ("list",),
    "list-timers": ("list", "--timers"),
    "list-sockets": ("list", "--sockets"),
    "list-jobs": ("jobs",),
    "list-dependencies": ("deps",),
    "describe": ("show",),
    "history": ("journal", "query"),
    "freeze": ("pause",),
    "set-property": ("set",),
    "thaw": ("resume",),
}
"""Words that hands know from elsewhere and that mean the same."""


class Supctl(click.Group):
    """The group of all verbs, imported one at a time."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        found = COMMANDS.get(name)
        if found is None:
            return None
        module, attribute = found
        command: click.Command = getattr(import_module(f"supervisord_py.ctl.{module}"), attribute)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word == "help" and not context.resilient_parsing:
            args = [*args[1:2], "--help"]
            if len(args) == 1:
                click.echo(context.get_help())
                context.exit()
            word = args[0]
        if word in ALIASES:
            args = [*ALIASES[word], *args[1:]]
        elif word not in COMMANDS and not context.resilient_parsing:
            raise Misuse(explain_unknown(word), context)
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for topic, verbs in _TOPICS:
            with formatter.section(topic):
                formatter.write_dl([(name, text) for name, _, _, text in verbs])


def explain_unknown(word: str) -> str:
    """Say what became of a verb that is not here, or what was probably meant."""
    from supervisord_py.ctl.elsewhere import OTHERS_WORDS

    if word in OTHERS_WORDS:
        return f"{word} is another tool's word: {OTHERS_WORDS[word]}"
    from difflib import get_close_matches

    near = get_close_matches(word, [*COMMANDS, *ALIASES], n=2, cutoff=0.75)
    near = near or get_close_matches(word, [*COMMANDS, *ALIASES], n=1)
    return f"no such command: {word}" + (f"; did you mean {' or '.join(near)}?" if near else "; see supctl --help")


_EPILOG = (
    "UNIT is a name, @GROUP, TEMPLATE@ for all its instances, or a glob in quotes. "
    "Exit codes: 0 done, 1 failed, 2 usage, 3 not running, 4 no such unit, 5 not permitted, 6 invalid unit file, "
    "7 no supervisor reachable, 124 timed out."
)


def _version_option() -> click.Option:
    def show(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            click.echo(f"supctl {__version__}")
            context.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Print the version of supctl.",
    )


def make_cli() -> click.Group:
    """Return the command line: its options are those that stand before or behind any verb."""
    return Supctl(
        "supctl",
        help="Talk to a supervisor: see what runs and why, change it, read what happened.",
        epilog=_EPILOG,
        params=[*common_options(), _version_option()],
        options_metavar="[OPTIONS]",
        subcommand_metavar="COMMAND [UNIT]...",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def run(arguments: Sequence[str], session: Session) -> int:
    """Run one command line and return its exit code."""
    cli = make_cli()
    as_json = asks_for_json(arguments)
    try:
        with cli.make_context("supctl", list(arguments), obj=session) as context:
            result = cli.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return UsageError.exit_status
    except click.ClickException as error:
        if as_json:
            session.options.format = "json"
        return session.fail(_usage_error(error))
    except SupervisordError as error:
        return session.fail(error)
    except (KeyboardInterrupt, click.Abort):
        return 130
    finally:
        session.close()


def _usage_error(error: click.ClickException) -> UsageError:
    message = error.format_message()
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    if context is not None and not isinstance(error, Misuse):
        message = f"{message.rstrip('.')}; see {context.command_path} --help"
    return UsageError(message)


def _complete(instruction: str) -> int:
    """Answer the shell's completion script."""
    from click.shell_completion import shell_complete

    from supervisord_py.ctl.completion import VARIABLE

    attributes: dict[str, Any] = {"obj": Session()}
    return shell_complete(make_cli(), attributes, "supctl", VARIABLE, instruction)


def main() -> None:
    """The entry point of ``supctl``."""
    instruction = os.environ.get("_SUPCTL_COMPLETE")
    if instruction:
        sys.exit(_complete(instruction))
    for stream in (sys.stdout, sys.stderr):
        # Units print what they like: a terminal that cannot show it gets an escape, not a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        code = run(sys.argv[1:], Session())
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        # The reader (head, less) has had enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


__all__ = ["ALIASES", "COMMANDS", "main", "make_cli", "run"]

if __name__ == "__main__":
    main()
