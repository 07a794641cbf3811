"""Classify the statements of a migration by their text, without their literals."""

import re


class MigrationError(Exception):
    """A migration could not be run, or the nodes do not agree; the message names the place and the cause."""


def without_literals(statement: str) -> str:
    """Return the statement in upper case with single spaces, without comments, strings and quoted names."""
    plain = _LITERAL.sub(lambda match: " " if match["comment"] else " ? ", statement)
    return " ".join(plain.upper().split())


_LITERAL = re.compile(
    r"""(?P<comment> --[^\n]* | /\*.*?\*/ ) | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | '(?:[^']|'')*' | "(?:[^"]|"")*" """,
    re.DOTALL | re.VERBOSE,
)


def short(statement: str) -> str:
    """Return a statement shortened to quote it in an error."""
    line = " ".join(statement.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
