#!/usr/bin/env bash
# Prints every link that does not replicate, and then fails; prints nothing if all replicate.
set -euo pipefail

broken=0
for node in $NODES; do
  # An apply worker that fails and restarts looks healthy in between, so its stream must be active too.
  found=$(psql -XqtA -v ON_ERROR_STOP=1 -U "$MONITOR" -h "$node" -v nodes="$NODES" 2>&1 <<'SQL'
    SELECT format('%s from %s: %s', node_name, peer, coalesce(status, 'missing'))
    FROM spock.node_info() CROSS JOIN string_to_table(:'nodes', ' ') AS peer
    LEFT JOIN spock.sub_show_status() ON provider_node = peer
    WHERE peer <> node_name AND status IS DISTINCT FROM 'replicating'
    UNION ALL
    SELECT format('%s from %s: no stream', peer, node_name)
    FROM spock.node_info() CROSS JOIN string_to_table(:'nodes', ' ') AS peer
    LEFT JOIN pg_replication_slots
      ON slot_name = spock.spock_gen_slot_name(current_database(), node_name, 'sub_' || peer || '_' || node_name)
    WHERE peer <> node_name AND active IS NOT TRUE
SQL
  ) || found="$node does not answer: $found"
  if [[ -n $found ]]; then
    echo "$found"
    broken=1
  fi
done
exit "$broken"
