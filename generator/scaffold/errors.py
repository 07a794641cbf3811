"""Errors that `scaffold` raises, each with its exit code.

ScaffoldError        1  something failed
├── BadInput         2  the arguments are invalid; nothing was written
├── Cancelled        1  the user said no; nothing was written
├── CannotUpdate     2  an update could not run; the project is as it was
└── TemplateFault    1  the template is invalid, whatever the arguments

A message states the event, its cause and the remedy, in one or two lines. Only `cli.reported` prints it.
"""


class ScaffoldError(Exception):
    """Something failed; the message addresses the user at the terminal."""

    exit_code = 1


class BadInput(ScaffoldError):
    """The arguments are invalid.

    Attributes:
        question: name of the question whose answer is refused; None if no single answer is at fault.
    """

    exit_code = 2

    def __init__(self, message: str, *, question: str | None = None) -> None:
        super().__init__(message)
        self.question = question


class Cancelled(ScaffoldError):
    """The user said no to a plan, so nothing was written."""


class CannotUpdate(ScaffoldError):
    """An update could not run, so the project is as it was."""

    exit_code = 2


class TemplateFault(ScaffoldError):
    """The template cannot be rendered, whatever the answers."""
