"""The exception tree. An expected outcome is a value, a refused request is one of these, a bug is an assertion.

Each error carries data; its text is made in ``__str__`` and follows one form: lower case, the fact, then the next step.
"""


class SupervisordError(Exception):
    """Base of all errors that are meant for people; ``exit_status`` is the programs' exit code for it."""

    exit_status = 1


class UsageError(SupervisordError):
    exit_status = 2


class ProtocolError(SupervisordError):
    """The other side of a socket broke the protocol."""
