"""Checks of the mesh: its servers, its links, and the tables that the links carry."""

from collections.abc import Sequence

from sqlalchemy import text

from ...rows import Comparer, Difference
from ...topology import count_conflicts, has_spock, uncarried_tables
from ..check import Check, CheckContext, CheckResult, judge
from . import rows
from .links import LinksCheck
from .replication import NodeLossCheck
from .servers import compare_clocks, read_settings


class ServersAreSetUp(Check):
    """The servers are set up for a mesh.

    Correct the setting in the configuration of that node and restart it. Clocks matter because the later of two
    conflicting writes wins, by the clocks of the nodes that took them.
    """

    REQUIRED = {"wal_level": "logical", "track_commit_timestamp": "on", "server_encoding": "UTF8"}
    ROOM = {
        "max_wal_senders": 1,
        "max_replication_slots": 1,
        "max_logical_replication_workers": 1,
        "max_worker_processes": 1,
    }
    """Settings with the least that each other node needs."""
    required_by = ("RowsReachEveryNode",)

    def run(self, context: CheckContext) -> CheckResult:
        """Read the settings, the version and the clock of every node and compare them."""
        doubts: list[str] = []
        with context.topology() as topology:
            settings = read_settings(topology.connections)
            skews, problems = compare_clocks(topology.connections)
            numbers = {node: topology.node_number(node) for node in topology.connections}
            extensions = {node: connection.scalar(text(_SOFTWARE)) for node, connection in topology.connections.items()}
        for node, found in settings.items():
            for name, value in self.REQUIRED.items():
                if found[name] != value:
                    set_it = f"ALTER SYSTEM SET {name} = '{value}'; then restart the server"
                    problems.append(f"{node}: {name} is {found[name]}, not {value}: {set_it}")
            for name, room in self.ROOM.items():
                if int(found[name]) < room * (len(settings) - 1):
                    problems.append(f"{node}: {name} is {found[name]}, too few for {len(settings) - 1} other nodes")
            if found.get("spock.readonly", "off") != "off":
                problems.append(
                    f"{node}: spock.readonly is {found['spock.readonly']}, so it refuses writes: {_WRITABLE}"
                )
            if found.get("spock.save_resolutions", "on") == "off":
                doubts.append(f"{node}: spock.save_resolutions is off, so conflicts are resolved unrecorded: {_RECORD}")
            if found.get("spock.exception_behaviour") == "transdiscard":
                doubts.append(f"{node}: spock.exception_behaviour = transdiscard drops failing transactions")
            plugin = "spock_output" if "spock" in extensions[node] else "pgoutput"
            if plugin not in (plugins := found.get("output_plugin_libraries", plugin)):
                libraries = ", ".join(filter(None, (plugins, plugin)))
                add = f"ALTER SYSTEM SET output_plugin_libraries = {libraries}; SELECT pg_reload_conf()"
                problems.append(f"{node}: output_plugin_libraries lacks {plugin}, so no change leaves it: {add}")
        free = iter(sorted({*range(1, 1024)} - set(numbers.values())))
        for number in set(numbers.values()):
            first, *others = (node for node in numbers if numbers[node] == number)
            if number == 0:
                for node in (first, *others):
                    problems.append(f"{node}: snowflake.node is not set: {_number(next(free))}")
            elif others:
                nodes = " and ".join((first, *others))
                line = f"{nodes} have the same snowflake.node, {number}: their keys collide"
                problems += [f"{line}; on {node}: {_number(next(free))}" for node in others]
        versions = {node: found["server_version"].partition(" ")[0] for node, found in settings.items()}
        if len({version.partition(".")[0] for version in versions.values()}) > 1:
            problems.append(f"different major versions: {versions}")
        if len(set(extensions.values())) > 1:
            doubts.append(f"different extensions: {extensions}")
        evidence = {"versions": versions, "extensions": extensions, "node_numbers": numbers, "clock_skew_s": skews}
        software = next(iter(extensions.values())) or "native logical replication, a stand-in for Spock"
        return judge(problems, f"PostgreSQL {next(iter(versions.values()))}, {software}", evidence, doubts)


class EveryLinkReplicates(LinksCheck):
    """Every link replicates.

    The receiver's log has the reason. With Spock, `spock.sub_enable()` starts a disabled link again.
    """


class EveryTableIsReplicated(Check):
    """Every table is replicated.

    Give the table a primary key, or run `migrate`. If changes were not applied, compare the rows of the nodes, mend
    them, and empty spock.exception_log.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Look for tables that are not replicated, and for changes that could not be applied."""
        problems: list[str] = []
        doubts: list[str] = []
        conflicts: dict[str, int] = {}
        with context.topology() as topology:
            for node, connection in topology.connections.items():
                problems += [f"{node}: {table}: {reason}" for table, reason in topology.unreplicable_tables(connection)]
                for table, add in uncarried_tables(connection):
                    problems.append(f"{node}: {table} is carried by no link: {add}")
                carried = connection.execute(text(_SPOCK_CARRIED if has_spock(connection) else _NATIVE_CARRIED))
                problems += [f"{node}: {cause}: {mend}" for cause, mend in carried]
                conflicts[node], failures, since, forget = count_conflicts(connection)
                if failures:
                    problems.append(f"{node} could not apply {failures} changes, see spock.exception_log there")
                if conflicts[node]:
                    met = f"{node}: it met {conflicts[node]} conflicting changes since {since}"
                    doubts.append(f"{met}; if the rows are the same: {forget}")
        return judge(problems, "no table left out, no conflict so far", {"conflicts": conflicts}, doubts)


class RowsAreTheSame(rows.RowsAreTheSame):
    """The rows are the same on every node.

    `diff` names all that differ. Decide which node is right; `repair --from NODE` makes the others the same.
    """

    def causes(self, comparer: Comparer, differences: Sequence[Difference]) -> list[str]:
        """Find nodes that lack all of a time before they were started: links skip what a node had confirmed before."""
        lines: list[str] = []
        for node, connection in comparer.connections.items():
            missed: dict[str, str] = {}
            for difference in differences:
                if node in difference.odd_nodes:
                    written = {
                        other: one.written for other, one in difference.versions.items() if one and other != node
                    }
                    missed |= {str(at): other for other, at in written.items() if at}
            # A node that another cause took rows from has applied the transactions that wrote them.
            values = {"first": min(missed, default=None), "last": max(missed, default=None)}
            past = connection.execute(text(_PAST), values).one() if missed else None
            if past and past.is_restored:
                right = missed[max(missed)]
                lines.append(
                    f"{node} has nothing of what the others wrote between {past.before} and its start at "
                    f"{past.started}, so it was restored from an old backup, and no link sends that again: "
                    f"`repair --from {right} --to {node}`"
                )
        return lines


class TheOthersGoOn(NodeLossCheck):
    """The others go on when the preferred node is lost, and it catches up.

    If rows are missing on a node, look at its links, and for signs that it lost its disk with its power.
    """


# A replicated transaction has the time of its origin. The last 100 000 are looked at, which takes a tenth of a second.
_PAST = """
    SELECT date_trunc('second', before) AS before, date_trunc('second', started) AS started,
           number = 0 AND before IS NOT NULL AND started > CAST(:last AS timestamptz) AS is_restored
    FROM (SELECT max(at) FILTER (WHERE at < CAST(:first AS timestamptz)) AS before,
                 count(*) FILTER (WHERE at >= CAST(:first AS timestamptz) AND at <= CAST(:last AS timestamptz))
                     AS number,
                 pg_postmaster_start_time() AS started
          FROM pg_snapshot_xmax(pg_current_snapshot()) AS s (upcoming)
          CROSS JOIN generate_series(1, 100000) AS g (back)
          CROSS JOIN LATERAL (SELECT CAST(CAST(upcoming AS text) AS bigint) - back AS xid) AS x
          CROSS JOIN LATERAL pg_xact_commit_timestamp(CAST(CAST(xid & 4294967295 AS text) AS xid)) AS t (at)
          WHERE xid > 2 AND xid & 4294967295 > 2 AND current_setting('track_commit_timestamp')::boolean) AS past
"""

_SOFTWARE = """
    SELECT coalesce(string_agg(extname || ' ' || extversion, ', ' ORDER BY extname), '')
    FROM pg_extension WHERE extname IN ('spock', 'snowflake')
"""

_WRITABLE = "ALTER SYSTEM SET spock.readonly = 'off'; SELECT pg_reload_conf()"
_RECORD = "ALTER SYSTEM SET spock.save_resolutions = on; SELECT pg_reload_conf()"


def _number(number: int) -> str:
    return f"ALTER SYSTEM SET snowflake.node = {number}; SELECT pg_reload_conf()"


# Everything that a replication set or a subscription of Spock leaves out, carries too often, or delays.
_SPOCK_CARRIED = """
    SELECT format('replication set %s leaves out%s%s%s%s', set_name,
                  CASE WHEN replicate_insert THEN '' ELSE ' INSERT' END,
                  CASE WHEN replicate_update THEN '' ELSE ' UPDATE' END,
                  CASE WHEN replicate_delete THEN '' ELSE ' DELETE' END,
                  CASE WHEN replicate_truncate THEN '' ELSE ' TRUNCATE' END),
           format('SELECT spock.repset_alter(%L, true, true, true, true)', set_name)
    FROM spock.replication_set
    WHERE set_name = 'default'
      AND NOT (replicate_insert AND replicate_update AND replicate_delete AND replicate_truncate)
    UNION ALL
    SELECT format('replication set %s leaves out %s of %s', set_name, CASE WHEN set_row_filter IS NULL THEN 'columns'
                  ELSE 'rows' END, set_reloid),
           format('SELECT spock.repset_remove_table(%1$L, %2$L); SELECT spock.repset_add_table(%1$L, %2$L)', set_name,
                  set_reloid)
    FROM spock.replication_set_table JOIN spock.replication_set USING (set_id)
    WHERE set_name = 'default' AND (set_att_list IS NOT NULL OR set_row_filter IS NOT NULL)
    UNION ALL
    SELECT format('link %s does not carry the replication set default', sub_name),
           format('SELECT spock.sub_add_repset(%L, ''default'')', sub_name)
    FROM spock.subscription WHERE NOT 'default' = ANY(sub_replication_sets)
    UNION ALL
    SELECT format('link %s applies changes %s late', sub_name, sub_apply_delay), 'drop it and create it without a delay'
    FROM spock.subscription WHERE sub_apply_delay > interval '0'
    UNION ALL
    SELECT format('link %s takes rows that other nodes send too', sub_name),
           'drop it and create it without forward_origins'
    FROM spock.subscription WHERE sub_forward_origins <> '{}'
    ORDER BY 1
"""

# Everything that a publication or a subscription of native logical replication leaves out, or carries too often.
_NATIVE_CARRIED = """
    WITH published AS (
        SELECT p.* FROM pg_publication AS p
        WHERE EXISTS (SELECT FROM pg_subscription AS s WHERE p.pubname = ANY(subpublications))
    )
    SELECT format('publication %I is missing, so nothing leaves the node', name),
           format('CREATE PUBLICATION %I FOR ALL TABLES', name)
    FROM (SELECT DISTINCT unnest(subpublications) FROM pg_subscription) AS s (name)
    WHERE name NOT IN (SELECT pubname FROM pg_publication)
    UNION ALL
    SELECT format('publication %I leaves out%s%s%s%s', pubname, CASE WHEN pubinsert THEN '' ELSE ' INSERT' END,
                  CASE WHEN pubupdate THEN '' ELSE ' UPDATE' END, CASE WHEN pubdelete THEN '' ELSE ' DELETE' END,
                  CASE WHEN pubtruncate THEN '' ELSE ' TRUNCATE' END),
           format('ALTER PUBLICATION %I SET (publish = ''insert, update, delete, truncate'')', pubname)
    FROM published WHERE NOT (pubinsert AND pubupdate AND pubdelete AND pubtruncate)
    UNION ALL
    SELECT format('publication %I leaves out %s of %s', pubname, CASE WHEN prqual IS NULL THEN 'columns'
                  ELSE 'rows' END, prrelid::regclass),
           format('ALTER PUBLICATION %1$I DROP TABLE %2$s; ALTER PUBLICATION %1$I ADD TABLE %2$s', pubname,
                  prrelid::regclass)
    FROM pg_publication_rel JOIN published AS p ON p.oid = prpubid WHERE prqual IS NOT NULL OR prattrs IS NOT NULL
    UNION ALL
    SELECT format('publication %I leaves out %s', pubname, c.oid::regclass),
           format('ALTER PUBLICATION %I ADD TABLE %s', pubname, c.oid::regclass)
    FROM pg_class AS c CROSS JOIN published AS p
    WHERE relkind = 'r' AND relpersistence = 'p' AND c.oid >= 16384
      AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'snowflake')
      AND NOT EXISTS (SELECT FROM pg_publication_tables AS t WHERE t.pubname = p.pubname AND tablename = relname
                      AND schemaname = relnamespace::regnamespace::text)
    UNION ALL
    SELECT format('subscription %I takes rows that other nodes send too', subname),
           format('ALTER SUBSCRIPTION %I SET (origin = none)', subname)
    FROM pg_subscription WHERE suborigin <> 'none'
    UNION ALL
    SELECT format('subscription %I stops for good at the first error, a restart of its origin too', subname),
           format('ALTER SUBSCRIPTION %I SET (disable_on_error = false)', subname)
    FROM pg_subscription WHERE subdisableonerr
    ORDER BY 1
"""
