"""What an agent raises, and what is raised into it."""


class AgentError(Exception):
    """The base of all errors of the SDK."""


class Recoverable(AgentError):
    """A cycle could not do its work, for a reason that is understood: told as an error, without a traceback.

    Every other exception of a cycle is recoverable too, unless it is ``Fatal``; it is told with its traceback.
    """


class Fatal(AgentError):
    """There is no point in another cycle: the process tears down and ends with ``code``; the restart policy decides.

    Args:
        message: Why.
        code: The exit code of the process; 1 to 255.
    """

    def __init__(self, message: str = "", code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class ConfigError(AgentError):
    """``[agent] config`` is not what the agent's ``Config`` says; the message names the field."""


class NotSentError(AgentError):
    """A message was not acknowledged: it may or may not have been written, unless it was refused.

    Attributes:
        refusal: The word for the refusal (supervisord-py.unit(5), MESSAGES), as ``no-such-unit``; None without one.
    """

    def __init__(self, message: str = "", refusal: "str | None" = None) -> None:
        super().__init__(message)
        self.refusal = refusal


class CycleTimeout(BaseException):
    """The cycle has taken longer than ``cycle-timeout``. Not an ``Exception``, so that ``except Exception`` in the
    middle of a cycle does not swallow its end."""
