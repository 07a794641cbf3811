"""The check that foreign keys refer to rows."""

from sqlalchemy import text

from ...connections import connect_all
from ...topology import Topology
from ..check import MAX_ROWS, Check, CheckContext, CheckResult, judge, skipped


class EveryReferenceLeadsToARow(Check):
    """Every reference leads to a row.

    Insert the row that is missing, or delete those that refer to it, on the node that the line names.
    """

    requires = ("EveryNodeAnswers", "SchemaIsTheSame")
    timeout = 60.0

    def run(self, context: CheckContext) -> CheckResult:
        """Look for rows whose foreign key refers to no row, twice, because a row can arrive before its parent."""
        problems: list[str] = []
        large: list[str] = []
        count = 0
        urls = {node: url for node, url in context.owner_urls.items() if node not in Topology.nodes_without_models}
        with connect_all(urls, statement_timeout=60) as connections, context.topology() as topology:
            for node in (one for one in topology.writers() if one in connections):
                keys = connections[node].execute(text(_FOREIGN_KEYS)).all()
                large += [f"{node}: {key.name}" for key in keys if key.estimate > MAX_ROWS]
                for key in (one for one in keys if one.estimate <= MAX_ROWS):
                    count += 1
                    if connections[node].exec_driver_sql(key.query).first():
                        topology.wait_for_catchup(timeout=5)
                        if row := connections[node].exec_driver_sql(key.query).first():
                            more = f" and {row.number - 1} more" if row.number > 1 else ""
                            problems.append(f"{node}: {key.name} refers to no row of {key.parent}: {row.example}{more}")
        if not count and not large:
            return skipped(f"no table on {', '.join(urls)} has a foreign key")
        left = f"; left out, for their size: {', '.join(large)}" if large else ""
        return judge(problems, f"{count} foreign keys{left}", {"left": large})


_FOREIGN_KEYS = """
    SELECT quote_ident(conname) || ' on ' || CAST(conrelid AS regclass) AS name,
           CAST(CAST(confrelid AS regclass) AS text) AS parent, greatest(c.reltuples, p.reltuples) AS estimate,
           format('SELECT count(*) AS number, min(CAST(row(%1$s) AS text)) AS example FROM %2$s AS c '
                  'WHERE num_nulls(%1$s) = 0 AND NOT EXISTS (SELECT FROM %3$s AS p WHERE %4$s) '
                  'HAVING count(*) > 0', ours, CAST(conrelid AS regclass), CAST(confrelid AS regclass), pairs) AS query
    FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = conrelid JOIN pg_class AS p ON p.oid = confrelid
    CROSS JOIN LATERAL (
        SELECT string_agg(format('c.%I', a.attname), ', ') AS ours,
               string_agg(format('p.%I = c.%I', b.attname, a.attname), ' AND ') AS pairs
        FROM unnest(conkey, confkey) AS u (a, b)
        JOIN pg_attribute AS a ON a.attrelid = conrelid AND a.attnum = u.a
        JOIN pg_attribute AS b ON b.attrelid = confrelid AND b.attnum = u.b
    ) AS columns
    WHERE contype = 'f' AND conparentid = 0
"""
