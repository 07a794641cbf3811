"""Check that the nodes have the same schema."""

from alembic.script import ScriptDirectory

from ...connections import connect_all
from ...migrate import load_config, version_of
from ...schema import differences, read_schema
from ...topology import Topology
from ..check import Check, CheckContext, CheckResult, failed, passed


class SchemaIsTheSame(Check):
    """The schema is the same everywhere.

    Run `migrate`. An object that was created or dropped by hand on one node has to be mended by hand there.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the catalogues and the revisions of all nodes that have the models' tables."""
        head = ScriptDirectory.from_config(load_config(context.project)).get_current_head()
        urls = {node: url for node, url in context.admin_urls.items() if node not in Topology.nodes_without_models}
        with connect_all(urls) as connections:
            schemas = {node: read_schema(connection) for node, connection in connections.items()}
            versions = {node: version_of(connection) for node, connection in connections.items()}
        found = differences(schemas)
        behind = [
            f"{node} is at {version or 'no revision'}, not {head}"
            for node, version in versions.items()
            if version != head
        ]
        objects = {node: len(schema) for node, schema in schemas.items()}
        evidence = {"head": head, "revisions": versions, "objects": objects}
        if found or behind:
            return failed("; ".join([*behind, *found][:4]), evidence | {"differences": found})
        return passed(f"revision {head}, {next(iter(objects.values()))} objects alike", evidence)
