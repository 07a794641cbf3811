#!/usr/bin/env bash
# Forms one cluster of the nodes, once, and creates the database, the users and their privileges. Runs at each `up`, and
# changes only what is missing or different.
set -euo pipefail

# Always the same node: `init` on two nodes would form two clusters.
first=${NODES%% *}

sql() { # OPTION…
  /cockroach/cockroach sql ${ACCESS} --host="$first:26257" --set=errexit=true "$@"
}

# The node listens before it belongs to a cluster, but not at once.
for _ in $(seq 120); do
  if said=$(/cockroach/cockroach init ${ACCESS} --host="$first:26257" 2>&1); then
    break
  fi
  case $said in
    *"already been initialized"*) said= && break ;;
  esac
  sleep 0.5
done
for _ in $(seq 120); do
  if answer=$(sql --execute='SELECT 1' 2>&1); then
    break
  fi
  sleep 0.5
done
if ! sql --execute='SELECT 1' >/dev/null 2>&1; then
  printf 'the nodes do not form a cluster.\n%s\n%s\n' "$said" "$answer" >&2
  exit 1
fi

# Prints a value as an SQL literal.
literal() { # VALUE
  printf "'%s'" "$(printf %s "$1" | sed "s/'/''/g")"
}

{
  printf 'CREATE DATABASE IF NOT EXISTS "%s";\n' "$DATABASE"
  if [ -e /run/secrets/app_password ]; then
    for pair in "admin operations" "app $DATABASE" "owner ${DATABASE}_owner" "reader ${DATABASE}_reader" \
      "monitor ${DATABASE}_monitor"; do
      printf 'CREATE USER IF NOT EXISTS "%s";\n' "${pair#* }"
      password=$(literal "$(cat "/run/secrets/${pair%% *}_password")")
      printf 'ALTER USER "%s" WITH PASSWORD %s;\n' "${pair#* }" "$password"
    done
    printf 'GRANT admin TO operations;\n'
    printf 'GRANT SYSTEM VIEWACTIVITYREDACTED, VIEWCLUSTERMETADATA TO "%s_monitor";\n' "$DATABASE"
    printf 'ALTER DATABASE "%s" OWNER TO "%s_owner";\nUSE "%s";\n' "$DATABASE" "$DATABASE" "$DATABASE"
    sed -e "s/:\"\(database\|application\)\"/\"$DATABASE\"/g" \
      -e "s/:\"\([a-z]*\)\"/\"${DATABASE}_\1\"/g" /privileges.sql
  fi
  if [ -n "${COCKROACH_LICENSE:-}" ]; then
    printf 'SET CLUSTER SETTING cluster.organization = %s;\n' "$(literal "${COCKROACH_ORGANIZATION:-}")"
    printf 'SET CLUSTER SETTING enterprise.license = %s;\n' "$(literal "$COCKROACH_LICENSE")"
  fi
} | sql >/dev/null
echo "the cluster is formed"
