"""What `scaffold` raises, and the exit code that each becomes.

ScaffoldError        1  something failed
├── BadInput         2  the command asks for what cannot be: nothing was written
└── TemplateFault    1  the template is wrong, not the command

A message says what happened, why, and what to do next, in one or two lines. Only `cli.reported` prints it.
"""


class ScaffoldError(Exception):
    """Something failed; the message is for the person at the terminal."""

    exit_code = 1


class BadInput(ScaffoldError):
    """The command asks for what cannot be; `question` is the one whose answer is refused, if there is one."""

    exit_code = 2

    def __init__(self, message: str, *, question: str | None = None) -> None:
        super().__init__(message)
        self.question = question


class TemplateFault(ScaffoldError):
    """The template cannot be rendered, whatever the answers."""
