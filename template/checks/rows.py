"""The check that the nodes have the same rows."""

from collections import Counter
from collections.abc import Sequence

from ...base import numbered
from ...diff import open_comparer
from ...rows import Comparer, Difference
from ..check import MAX_ROWS, Check, CheckContext, CheckResult, judge, skipped


class RowsAreTheSame(Check):
    """The rows are the same on every node.

    `diff` names all of them. Decide which node is right, and write its rows on the others so that nothing replicates
    them.
    """

    requires = ("EveryNodeAnswers", "SchemaIsTheSame")
    timeout = 60.0

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the rows of the tables that are not too large."""
        problems: list[str] = []
        doubts: list[str] = []
        rows: dict[str, int] = {}
        differs: dict[str, dict[str, int]] = {}
        differences: list[Difference] = []
        with open_comparer(context.owner_urls, context.admin_urls, most=5) as comparer:
            every = comparer.tables()
            large = [str(table) for table in every if table.estimate > MAX_ROWS]
            for table in every:
                if str(table) not in large:
                    result = comparer.compare(table)
                    rows[str(table)] = result.rows
                    odd = Counter(node for difference in result.differences for node in difference.odd_nodes)
                    differs[str(table)] = {node: odd[node] for node in comparer.connections}
                    problems += result.findings
                    doubts += result.doubts
                    differences += result.differences
            problems = self.causes(comparer, differences) + problems
        left = f"; left to `diff`, for their size: {', '.join(large)}" if large else ""
        if not rows:
            return skipped(f"no table was compared{left}")
        evidence = {"rows": rows, "differs": differs, "left": large}
        compared = f"{numbered(sum(rows.values()), 'row')} of {numbered(len(rows), 'table')}"
        return judge(problems, f"{compared}{left}", evidence, doubts)

    def causes(self, comparer: Comparer, differences: Sequence[Difference]) -> list[str]:
        """Return the causes of differences, as far as the servers show one."""
        return []
