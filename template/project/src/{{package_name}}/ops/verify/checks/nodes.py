"""Checks that every node answers, and that all have the same schema."""

import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ...connections import Unreachable, connect, connect_all
from ...migrate import differences, load_config, load_scripts, node_to_compare, read_schema, resolve, version_of
from ...topology import Topology
from ...versions import compare_models
from ..check import Check, CheckContext, CheckResult, judge


class EveryNodeAnswers(Check):
    """Every node answers.

    Start the node that does not, or correct its URL: `status` shows a local cluster.
    """

    requires = ()
    timeout = 8.0

    def run(self, context: CheckContext) -> CheckResult:
        """Connect to each node as each role, all nodes at once, and run a query."""
        times: dict[str, float] = {}
        problems: list[str] = []

        def ask(node: str) -> None:
            try:
                pooler, pinned = {"transaction_pooler": context.transaction_pooler}, {"pinned": True}
                for urls, options in ((context.urls, pooler), (context.owner_urls, {}), (context.admin_urls, pinned)):
                    started = time.monotonic()
                    with connect(urls[node], node=node, statement_timeout=3, **options) as connection:
                        connection.execute(text("SELECT 1"))
                    times[node] = max(times.get(node, 0.0), round(1000 * (time.monotonic() - started), 1))
            except (Unreachable, DBAPIError) as error:
                problems.append(str(error).partition("\n")[0])

        with ThreadPoolExecutor(len(context.urls)) as threads:
            list(threads.map(ask, context.urls))
        slowest = max(times.values(), default=0.0)
        return judge(sorted(problems), f"{len(times)} nodes, slowest {slowest:.0f} ms", {"connect_ms": times})


class SchemaIsTheSame(Check):
    """The schema is the same everywhere.

    Run `migrate`. An object that was created or dropped by hand on one node has to be mended by hand there.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the catalogues and the revisions of all nodes that have the models' tables."""
        head = resolve(load_scripts(load_config(context.project)), "heads")
        urls = {node: url for node, url in context.owner_urls.items() if node not in Topology.nodes_without_models}
        with connect_all(urls) as connections:
            schemas = {node: read_schema(connection) for node, connection in connections.items()}
            versions = {node: version_of(connection) or "no revision" for node, connection in connections.items()}
        problems = [f"{node} is at {version}, not {head}" for node, version in versions.items() if version != head]
        objects = {node: len(schema) for node, schema in schemas.items()}
        evidence = {"head": head, "revisions": versions, "objects": objects}
        problems += differences(schemas)
        return judge(problems, f"revision {head}, {min(objects.values())} objects alike", evidence)


class ModelsAreMigrated(Check):
    """The models are what the migrations made.

    Write the missing revision with `revision`, or deploy the version of the application that belongs to the schema.
    """

    requires = ("EveryNodeAnswers", "SchemaIsTheSame")
    timeout = 30.0

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the models with a node, which is at the newest revision."""
        node = node_to_compare(context.admin_urls)
        problems = compare_models(context.owner_urls[node], project=context.project)
        return judge(problems, "no difference", {"node": node})
