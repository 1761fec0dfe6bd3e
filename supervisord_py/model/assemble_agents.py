"""What the SDK's runner runs: ``[agent]``, and the stub of a unit in quarantine where that is a class, too."""

from supervisord_py.model.agents import AgentKeys, AgentRunner, agent_command
from supervisord_py.model.fields import Fields
from supervisord_py.model.problems import Problem
from supervisord_py.model.unit import Command, Quarantine, RestartPolicy


def read_agent(fields: Fields, problems: list[Problem]) -> AgentKeys:
    """Return ``[agent]``; the runner gives ``[service]`` its type and its command."""
    for key in ("type", "exec-start"):
        if fields.decoded("service", key) is not None:
            problems.append(fields.problem("service", key, f"the runner of an [agent] decides {key}", "take it out"))
    is_once = fields.has("timer")
    if fields.decoded("agent", "class") is None:
        problems.append(
            fields.problem("agent", "class", "[agent] without class", 'write class = "package.module:Class"')
        )
    if is_once and fields.decoded("agent", "every") is not None:
        hint = "take it out: with [timer] each process makes one cycle"
        problems.append(fields.problem("agent", "every", "every together with [timer]", hint))
    limit: int | None = fields.get("agent", "cycle-timeout", 0)
    return AgentKeys(
        cls=fields.get("agent", "class", ""),
        every_ns=fields.get("agent", "every", None),
        cycle_timeout_ns=None if fields.decoded("agent", "cycle-timeout") is None else limit or 0,
        config=fields.get("agent", "config", {}),
        python=fields.get("agent", "python", None),
        path=fields.get("agent", "path", ()),
        plugins=fields.get("agent", "plugins", ()),
        is_once=is_once,
    )


def read_quarantine(
    fields: Fields, restart: RestartPolicy, runner: AgentRunner, folder: str, problems: list[Problem]
) -> Quarantine:
    """Return ``[quarantine]`` but for ``failures``; ``on-quarantine`` is a relation, which the unit set resolves."""
    if restart.failures == 0 and restart.limit is None:
        for key in ("stub", "stub-class", "retry-after", "on-quarantine"):
            if fields.decoded("quarantine", key) is not None:
                message = "with failures = 0 the unit is never quarantined"
                problems.append(
                    fields.problem("quarantine", key, message, "take it out, or write failures", warning=True)
                )
    stub: Command | None = fields.get("quarantine", "stub", None)
    if fields.decoded("quarantine", "stub-class") is not None:
        if stub is not None:
            hint = "leave one of them: a unit has one stub, a command or a class"
            problems.append(fields.problem("quarantine", "stub-class", "stub-class together with stub", hint))
        stub = _stub_command(fields, runner, folder)
    elif fields.decoded("quarantine", "stub-path") is not None:
        message = "there is no stub-class that would be looked for"
        problems.append(fields.problem("quarantine", "stub-path", message, "take it out, or write stub-class"))
    return Quarantine(stub, fields.get("quarantine", "retry-after", None))


def _stub_command(fields: Fields, runner: AgentRunner, folder: str) -> Command:
    """Return what runs the class of a stub: in the interpreter of the unit, from the folders of the unit.

    How often it makes a cycle and for how long is its own business, and plugins are the agent's: what brought that
    down must not bring down who stands in for it.
    """
    keys = AgentKeys(
        cls=fields.get("quarantine", "stub-class", ""),
        python=fields.get("agent", "python", None),
        path=(*fields.get("quarantine", "stub-path", ()), *fields.get("agent", "path", ())),
    )
    return agent_command(keys, runner, folder)
