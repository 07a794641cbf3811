"""Pause the writes of clients on every node of the mesh, and let the links go on.

A row that one node sends while another changes its table meets a schema that it was not written for, and blocks the
link. So a revision that takes something away runs while no such row is on its way. A statement trigger on each table
refuses writes with SQLSTATE 40001, which makes `db.run` repeat the transaction; apply workers do not fire it. Clients
share an advisory lock until the end of their transaction, and a pause takes it alone: the transactions before it end,
those after it are refused. The operations' own sessions write on. A session that is lost ends its pause.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from .base import BaseTopology, MigrationError, Pause

LOCK_TIMEOUT = 5
"""Longest wait in seconds for the transactions of clients. New ones are refused meanwhile, and `db.run` retries longer.
"""


@contextmanager
def pausable_writes(topology: BaseTopology, owners: Mapping[str, Connection]) -> Iterator[Pause]:
    """Create the triggers on every table, yield the function that pauses writes, and drop the triggers.

    Args:
        topology: the nodes.
        owners: connections to them, in autocommit, as the owner of the tables.
    """
    nodes = [owners[node] for node in topology.ddl_nodes()]

    @contextmanager
    def pause() -> Iterator[None]:
        with ExitStack() as held:
            for node, connection in topology.connections.items():
                _set_lock_timeout(connection, LOCK_TIMEOUT)
                try:
                    connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
                except DBAPIError as error:
                    raise MigrationError(
                        f"a transaction that writes on {node} does not end within {LOCK_TIMEOUT} s, so nothing was "
                        "changed. Look for it in pg_stat_activity, by xact_start"
                    ) from error
                finally:
                    _set_lock_timeout(connection, 0)
                held.callback(_release, connection)
            topology.wait_for_catchup()
            yield
            # A row that the operations wrote meanwhile could meet a client's change of it.
            topology.wait_for_catchup()

    try:
        for connection in nodes:
            connection.execute(text(_FUNCTION))
            _set_lock_timeout(connection, LOCK_TIMEOUT)
            for table in connection.scalars(text(_TABLES)).all():
                connection.exec_driver_sql(_TRIGGER.format(table))
        # Links need not be refreshed for a trigger, and cannot be while an interrupted revision has made nodes differ.
        topology.wait_for_catchup()
        yield pause
    except DBAPIError as error:
        if "lock timeout" not in str(error.orig):
            raise
        raise MigrationError(f"a table is in use for longer than {LOCK_TIMEOUT} s, so nothing was changed") from error
    finally:
        for connection in nodes:
            with suppress(DBAPIError):
                _set_lock_timeout(connection, 0)
                for table in connection.scalars(text(_TRIGGERS)).all():
                    connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS paused_by_migration ON {table}")
                connection.exec_driver_sql("DROP FUNCTION IF EXISTS paused_by_migration()")
    topology.wait_for_catchup()


def _set_lock_timeout(connection: Connection, seconds: int) -> None:
    connection.execute(text(f"SET lock_timeout = '{seconds}s'"))


def _release(connection: Connection) -> None:
    # The server has released the lock of a connection that is lost.
    with suppress(DBAPIError):
        connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"))


_LOCK = 20_012
"""Key of the advisory lock that writers share during a migration. Arbitrary."""

_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION paused_by_migration() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    BEGIN
        IF current_setting('application_name') <> 'operations'
           AND NOT pg_try_advisory_xact_lock_shared({_LOCK}) THEN
            RAISE EXCEPTION 'a migration pauses writes for a moment: run the transaction again' USING ERRCODE = '40001';
        END IF;
        RETURN NULL;
    END $$
"""

_TRIGGER = (
    "CREATE OR REPLACE TRIGGER paused_by_migration BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} "
    "FOR EACH STATEMENT EXECUTE FUNCTION paused_by_migration()"
)

_TABLES = """
    SELECT oid::regclass::text FROM pg_class
    WHERE relkind IN ('r', 'p') AND relpersistence <> 't' AND oid >= 16384 AND relname <> 'alembic_version'
      AND pg_has_role(relowner, 'USAGE')
"""

_TRIGGERS = "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'paused_by_migration'"
