#!/usr/bin/env bash
# Makes one mesh of the nodes: prepares each, links every pair in both directions, and ends when every link replicates.
set -euo pipefail
cd "$(dirname "$0")"

# Every node is prepared by itself; what is done on one must not travel to the others.
export PGOPTIONS='-c spock.enable_ddl_replication=off -c client_min_messages=warning'
patience=60

on() { psql -XqtA -v ON_ERROR_STOP=1 -h "$@"; } # NODE [options of psql]
# The links find the password in the file, so that the catalog holds none.
dsn() { echo "host=$1 dbname=$PGDATABASE user=replication passfile=$PGPASSFILE"; }

# A new session sees whether the reloaded settings are in force.
is_prepared() { # NODE NUMBER
  [[ $(on "$1" -c "SELECT current_setting('snowflake.node') = '$2'
    AND coalesce(current_setting('output_plugin_libraries', true), 'spock_output') LIKE '%spock_output%'") == t ]]
}

number=0
for node in $NODES; do
  number=$((number + 1))
  on "$node" -v node="$node" -v number="$number" -v dsn="$(dsn "$node")" -f node.sql >/dev/null
  until is_prepared "$node" "$number"; do
    if ((SECONDS >= patience)); then
      echo >&2 "wire: $node does not take up its settings; its log says why (docker compose logs $node)"
      exit 1
    fi
    sleep 0.1
  done
done

# In this order no node gets two links in a row: Spock starts one per second and node.
for peer in $NODES; do
  for node in $NODES; do
    [[ $node == "$peer" ]] || on "$node" -v link="sub_${node}_$peer" -v dsn="$(dsn "$peer")" >/dev/null <<'SQL'
      -- By default neither structure nor rows are copied, and nothing is passed on that came from a third node.
      SELECT spock.sub_create(:'link', :'dsn')
      WHERE :'link' NOT IN (SELECT sub_name FROM spock.subscription);
SQL
  done
done

until broken=$(bash links.sh); do
  # A disabled link waits for a person.
  if ((SECONDS >= patience)) || [[ $broken == *disabled* ]]; then
    echo >&2 "wire: not every link replicates; the log of the node that receives says why (docker compose logs NODE):"
    echo >&2 "$broken"
    exit 1
  fi
  sleep 0.3
done
echo "wire: every link replicates"
