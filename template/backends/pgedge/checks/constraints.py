"""The check that keys and constraints hold where every node takes writes."""

from collections import defaultdict

from sqlalchemy import text

from ...connections import connect_all
from ..check import Check, CheckContext, CheckResult, judge
from .privileges import uneven


class KeysAndConstraintsHoldOnManyNodes(Check):
    """Keys and constraints hold where every node takes writes.

    Run the statement of each line on the node that it names. If the application makes sure that a constraint holds, say
    so with a COMMENT on it.
    """

    STRIDE = 64
    """Step of a sequence whose numbers differ from node to node; each node begins at its own number."""

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the positions of the sequences that fill keys, and look for constraints of more than one row."""
        problems: list[str] = []
        doubts: dict[str, list[str]] = {}
        positions: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        with context.topology() as topology, connect_all(context.owner_urls) as owners:
            numbers = {node: topology.node_number(node) or place for place, node in enumerate(topology.connections, 1)}
            for node, connection in topology.connections.items():
                lines = connection.execute(text(_UNIQUE))
                doubts[node] = [f"{node}: {cause}: {mend}" for schema, cause, mend in lines if schema != "snowflake"]
                for name, increment in connection.execute(text(_SEQUENCES), {"owner": context.owner}).all():
                    # Not from pg_sequences, which shows no position before the first key is taken.
                    query = f"SELECT last_value, is_called FROM {name}"  # noqa: S608
                    last, is_called = owners[node].exec_driver_sql(query).one()
                    positions[name][node] = (increment, last + increment if is_called else last)
        for name, found in positions.items():
            for node, (increment, upcoming) in found.items():
                others = [
                    other
                    for other, (step, start) in found.items()
                    if other != node and (step != increment or (start - upcoming) % step == 0)
                ]
                if others:
                    start = upcoming + (numbers[node] - upcoming) % self.STRIDE
                    step = f"ALTER SEQUENCE {name} INCREMENT BY {self.STRIDE} RESTART WITH {start}"
                    problems.append(
                        f"{node}: {name} hands out keys that {' and '.join(others)} can hand out too: {step}"
                    )
        some, every = uneven(doubts)
        return judge(problems + some, f"{len(positions)} sequences of keys, no constraint in doubt", {}, every)


_SEQUENCES = """
    SELECT CAST(s.seqrelid AS regclass)::text, seqincrement FROM pg_sequence AS s
    WHERE NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = seqrelid AND deptype = 'e'
    ) AND has_sequence_privilege(CAST(:owner AS name), seqrelid, 'SELECT') AND (EXISTS (
        SELECT FROM pg_depend AS d JOIN pg_attrdef AS a ON a.oid = d.objid
        JOIN pg_index AS i ON indrelid = adrelid AND indisprimary AND adnum = ANY(indkey)
        WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.seqrelid
          AND pg_get_expr(adbin, adrelid) ~ '^(pg_catalog\\.)?nextval'
    ) OR EXISTS (
        SELECT FROM pg_depend AS d JOIN pg_index AS i ON indrelid = refobjid AND indisprimary
        WHERE d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid AND d.deptype = 'i'
          AND refobjsubid = ANY(indkey)
    ))
"""

_UNIQUE = """
    SELECT relnamespace::regnamespace::text,
           format('%s of %s can be broken by two nodes at once, and then a link stops or the rows differ',
                  indexrelid::regclass, indrelid::regclass),
           CASE WHEN k.oid IS NULL THEN format('DROP INDEX %s', indexrelid::regclass)
                ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', indrelid::regclass, conname) END
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = indrelid
    LEFT JOIN pg_constraint AS k ON conindid = indexrelid AND conrelid = indrelid AND contype IN ('u', 'x')
    WHERE (indisunique OR indisexclusion) AND NOT indisprimary AND c.oid >= 16384 AND relkind IN ('r', 'p')
      AND left(relnamespace::regnamespace::text, 8) <> '_verify_'
      AND obj_description(indexrelid, 'pg_class') IS NULL
      AND (k.oid IS NULL OR obj_description(k.oid, 'pg_constraint') IS NULL)
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
    ORDER BY 2
"""
