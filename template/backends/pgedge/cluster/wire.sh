#!/usr/bin/env bash
# Links the nodes to a mesh: prepares each, links every pair in both directions, and ends when every link replicates.
set -euo pipefail
cd "$(dirname "$0")"

# Every node is prepared by itself, so the preparation of one must not be replicated to the others.
export PGOPTIONS='-c spock.enable_ddl_replication=off -c client_min_messages=warning'
timeout=60

on() { psql -XqtA -v ON_ERROR_STOP=1 -U admin -h "$@"; } # NODE [options of psql]
# Links read the password from a file of the nodes, so that the catalog contains none.
dsn() { echo "host=$1 dbname=$PGDATABASE user=replication passfile=/node/pgpass require_auth=scram-sha-256"; }

# Only a new session shows that the reloaded settings are in force.
is_prepared() { # NODE NUMBER
  [[ $(on "$1" -c "SELECT current_setting('snowflake.node') = '$2'
    AND coalesce(current_setting('output_plugin_libraries', true), 'spock_output') LIKE '%spock_output%'") == t ]]
}

number=0
for node in $NODES; do
  number=$((number + 1))
  on "$node" -v node="$node" -v monitor="$MONITOR" -v number="$number" -v dsn="$(dsn "$node")" -f node.sql >/dev/null
  until is_prepared "$node" "$number"; do
    if ((SECONDS >= timeout)); then
      echo >&2 "wire: $node does not apply its settings; its log has the reason (docker compose logs $node)"
      exit 1
    fi
    sleep 0.1
  done
done

# In this order no node gets two links in a row, because Spock starts one per second and node.
for peer in $NODES; do
  for node in $NODES; do
    [[ $node == "$peer" ]] || on "$node" -v link="sub_${node}_$peer" -v dsn="$(dsn "$peer")" >/dev/null <<'SQL'
      -- By default neither structure nor rows are copied, and changes that came from a third node are not forwarded.
      SELECT spock.sub_create(:'link', :'dsn')
      WHERE :'link' NOT IN (SELECT sub_name FROM spock.subscription);
SQL
  done
done

until broken=$(bash links.sh); do
  # A disabled link does not start again by itself.
  if ((SECONDS >= timeout)) || [[ $broken == *disabled* ]]; then
    echo >&2 "wire: not every link replicates; the log of the receiving node has the reason (docker compose logs NODE):"
    echo >&2 "$broken"
    exit 1
  fi
  sleep 0.3
done
echo "wire: every link replicates"
