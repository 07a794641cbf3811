"""Statements of a migration, as far as one has to understand them: what they are, not what they say."""

import re


class MigrationError(Exception):
    """A migration could not be run, or the nodes do not agree; the message says where and why."""


def without_literals(statement: str) -> str:
    """The statement in upper case with single spaces, without comments, strings and quoted names."""
    plain = _LITERAL.sub(lambda match: " " if match["comment"] else " ? ", statement)
    return " ".join(plain.upper().split())


_LITERAL = re.compile(
    r"""(?P<comment> --[^\n]* | /\*.*?\*/ ) | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | '(?:[^']|'')*' | "(?:[^"]|"")*" """,
    re.DOTALL | re.VERBOSE,
)


def short(statement: str) -> str:
    """A statement as an error quotes it."""
    line = " ".join(statement.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
