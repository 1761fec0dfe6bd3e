"""``completion``: the script with which a shell completes verbs, options, units and events.

The script asks ``supctl`` itself each time, so it never goes out of date; ``packaging/completions`` holds the same
texts for packages.
"""

import click
from click.shell_completion import get_completion_class

from supervisord_py.ctl.options import Verb
from supervisord_py.ctl.session import Session

VARIABLE = "_SUPCTL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str) -> str:
    """Return what the shell is to source."""
    kind = get_completion_class(shell)
    assert kind is not None, f"internal error: no completion for {shell}"
    completer = kind(click.Group("supctl"), {}, "supctl", VARIABLE)
    # Not source(): that runs bash to see its version, and a script may be made for another machine.
    return (completer.source_template % completer.source_vars()).strip() + "\n"


@click.command("completion", cls=Verb)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_obj
def completion(session: Session, shell: str) -> int:
    """Print the completion script for SHELL: source <(supctl completion bash)."""
    script = completion_script(shell)
    if session.wants_json:
        session.emit({"shell": shell, "script": script})
    else:
        session.echo(script.rstrip("\n"))
    return 0
