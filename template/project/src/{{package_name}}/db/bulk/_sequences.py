"""Raise the sequences of columns for which the rows bring values, so that the server does not give these out again."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..database import Database
from ..errors import NodeUnavailable, RetriesExhausted
from ..retry import sqlstate_of
from ..session import PinnedSession
from ._chunks import Chunk, Shape

_OF_COLUMNS = sa.text("""
    SELECT a.attname, CASE WHEN d.adbin IS NULL THEN pg_get_serial_sequence(:table, a.attname)
        ELSE replace(substring(pg_get_expr(d.adbin, d.adrelid) FROM '(?i)^nextval[(]''(.+)''::regclass[)]$'),
                     '''''', '''') END AS sequence
    FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = CAST(CAST(:table AS text) AS regclass) AND a.attnum > 0 AND NOT a.attisdropped
""")
"""Columns of a table with the sequences that identity columns have and defaults read; a snowflake is no position."""

_STEP = sa.text(
    "SELECT seqincrement, seqmin, seqmax FROM pg_sequence WHERE seqrelid = CAST(CAST(:name AS text) AS regclass)"
)


@dataclass(frozen=True)
class CountedColumn:
    """Column whose values a sequence makes if the rows bring none."""

    number: int  # within a row
    sequence: str  # with its schema, quoted

    def raise_above(self, chunk: Chunk, nodes: list[Database]) -> None:
        """Raise the sequence above the values of a chunk, on each node, in the steps of the node.

        Raises:
            NodeUnavailable: a node that has a position of its own cannot be reached.
        """
        values = [row[self.number] for row in chunk.values if isinstance(row[self.number], int)]
        for node in nodes if values else []:
            try:
                node.run(self._raise, values)
            except (NodeUnavailable, RetriesExhausted) as error:
                advice = "Wait until every node can be reached, or load rows without values for its column"
                message = f"{self.sequence} has to be raised on {error}. {advice}"
                raise NodeUnavailable(message, node=error.node) from error
            except DBAPIError as error:
                # A node without the sequence gives out no numbers.
                if sqlstate_of(error) != "42P01":
                    raise

    def _raise(self, session: PinnedSession, values: list[int]) -> None:
        connection = session.connection()
        step, least, greatest = connection.execute(_STEP, {"name": self.sequence}).one()
        within = [value for value in values if least <= value <= greatest]
        if not within:
            return
        last, behind = (max(within), "<=") if step > 0 else (min(within), ">=")
        # One statement, because other sessions may move the sequence meanwhile.
        upcoming = f"last_value + CASE WHEN is_called THEN {step} ELSE 0 END"
        raised = f"setval(CAST(:name AS text), {last} - mod({last} - ({upcoming}), {step}))"
        source = self.sequence.replace(":", r"\:")  # in the name, it begins no parameter
        query = f"SELECT {raised} FROM {source} WHERE {upcoming} {behind} {last}"  # noqa: S608
        connection.execute(sa.text(query), {"name": self.sequence})


def counted_columns(db: Database, shape: Shape) -> list[CountedColumn]:
    """Return the columns that the rows name and for which the server has a sequence."""
    whole = {
        number: column
        for number, column in enumerate(shape.columns[: len(shape.names)])
        if isinstance(column.type, sa.Integer)
        and (column.primary_key or column.identity or column.default or column.server_default)
    }
    # Most loads are spared the query.
    if not whole:
        return []

    def read(session: PinnedSession) -> list[CountedColumn]:
        connection = session.connection()
        preparer = connection.dialect.identifier_preparer
        rows = connection.execute(_OF_COLUMNS, {"table": preparer.format_table(shape.table)})
        sequences = {row.attname: row.sequence for row in rows}
        for column in whole.values():
            if type(column.default) is sa.Sequence:
                sequences[column.name] = preparer.format_sequence(column.default)
        found = {number: sequences.get(column.name) for number, column in whole.items()}
        return [CountedColumn(number, sequence) for number, sequence in found.items() if sequence]

    return db.run(read)
