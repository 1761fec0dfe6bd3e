"""What ``supervisord-py new`` writes: a unit file that passes ``check`` as it is, and so does each line that is
commented out; of an agent its module and a test of that, too."""

import re

from supervisord_py.model.names import UnitName

_TEXT = """\
# {name}: a unit of supervisord-py. What a line says holds when its "#" is taken away; `supervisord-py check` tells
# whether all is well, `supervisord-py schema` is for editors.

[unit]
description = "{name}"
# enabled = false                      # do not start it with the supervisor
# groups = ["backend"]                 # `supctl restart @backend` means all members
# requires = ["db"]                    # start db first; without it this unit is not started
# wants = [{{ unit = "cache", until = "started" }}]
# after = ["migrate"]                  # an order alone: nothing is started by it

[service]
# What is run: the exact words, no shell. A string is split as systemd does: "/usr/bin/sleep infinity".
exec-start = ["/usr/bin/sleep", "infinity"]
# exec-start-pre = [["/usr/bin/test", "-d", "/srv"], ["/usr/bin/true"]]
# exec-reload = "/usr/bin/kill -HUP $MAINPID"
# type = "notify"                      # running means READY=1 was sent to $NOTIFY_SOCKET, not just started

# restart = "always"                   # default: on-failure, in growing steps from restart-sec to restart-max-delay-sec
# restart-sec = "1s"
# restart-max-delay-sec = "5min"
# timeout-stop-sec = "30s"             # then SIGKILL, for every process of the unit

# user = "nobody"
# working-directory = "/srv"
# umask = "0077"

# Anything below this line is a variable, up to the next table.
# [service.environment]
# LOG_LEVEL = "info"

# [limits]
# nofile = 65536
# core = 0
# nice = 5

# [log]
# max-bytes = "10M"
# backups = 3

# [quarantine]
# failures = 5                         # so many failures in a short time end the restarts, loudly
# stub = ["/usr/bin/sleep", "infinity"]  # runs in its place then
# retry-after = "1h"                   # one more try after that long

# Checks of its health are tables [health.NAME], times at which it is run a table [timer], and how many run at once is a
# table [pool]: supervisord-py.unit(5).
"""

_INSTANCES = """
[instances]
count = 2                              # {name}1 and {name}2; %i is the instance in every string
"""


def unit_file_text(name: UnitName) -> str:
    """A commented unit file for a plain unit, a template or an instance."""
    text = _TEXT.format(name=name)
    return text + _INSTANCES.format(name=name) if name.is_template else text


_AGENT_TEXT = """\
# {name}: a Python agent of supervisord-py. What a line says holds when its "#" is taken away; `supervisord-py check`
# tells whether all is well.

[unit]
description = "{name}"

[agent]
class = "{module}:{cls}"
path = ["."]                           # where {module}.py lies, seen from this file
every = "5s"                           # the time between two cycles
# cycle-timeout = "30s"                # a cycle that takes longer is ended, as an error
# python = "venv/bin/python"           # an interpreter of its own

# What stands here is handed to the agent, and checked by its Config.
[agent.config]
greeting = "hello"

[service]
# error-threshold = 3                  # so many errors in a row, and it is restarted
# watchdog-sec = "1min"                # so long without a sign of life, and it is restarted
"""

_MODULE_TEXT = """\
\"\"\"{name}: an agent of supervisord-py.\"\"\"

from dataclasses import dataclass

from supervisord_py.agent import Agent


@dataclass
class Config:
    greeting: str = "hello"


class {cls}(Agent):
    Config = Config

    def setup(self) -> None:
        self.cycles = 0

    def run_cycle(self) -> None:
        self.cycles += 1
        self.status(f"said {{self.config.greeting}} {{self.cycles}} times")
"""

_TEST_TEXT = """\
\"\"\"Run it with pytest, in the folder of {module}.py.\"\"\"

from supervisord_py.testing import AgentRig

from {module} import {cls}


def test_it_says_hello() -> None:
    with AgentRig({cls}, {{"greeting": "hi"}}) as rig:
        rig.cycle(2)
        assert rig.status == "said hi 2 times"
        assert rig.errors == []
"""


def agent_texts(name: UnitName) -> dict[str, str]:
    """The files of a new agent, by their names: unit file, module and test."""
    module = re.sub(r"\W", "_", str(name).replace("@", ""), flags=re.ASCII).lower()
    if not module.isidentifier():
        module = f"agent_{module}"
    words = {"name": name, "module": module, "cls": "".join(part.title() for part in module.split("_"))}
    texts = {f"{name}.toml": _AGENT_TEXT, f"{module}.py": _MODULE_TEXT, f"test_{module}.py": _TEST_TEXT}
    return {file: text.format(**words) for file, text in texts.items()}
