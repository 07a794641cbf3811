#!/usr/bin/env bash
# Starts this node in the role that follows from the data of all nodes. The writer is the node that was promoted last,
# the one with the newest timeline; every other node is a reader.
#
# Each node can read the volumes of all nodes, so the role is known even while the others are down: a writer that was
# down while another node was promoted never starts as a second writer, in whatever order they start.
#
# The argument "give-up" only records that this node is to be a reader from its next start on.
set -euo pipefail

all=/nodes
data=$all/$HOSTNAME/data
# Data is created or changed under this name and renamed when it is complete, so an interrupted start leaves no data.
draft=$all/$HOSTNAME/draft

say() { echo "node: $*" >&2; }

has_data() { [[ -e $all/$1/data ]]; }                 # NODE
is_reader() { [[ -e $all/$1/data/standby.signal ]]; } # NODE
is_given_up() { [[ -e $all/$1/data/given-up ]]; }     # NODE

any_data() {
  local node
  for node in $NODES; do
    if has_data "$node"; then return; fi
  done
  return 1
}

# Prints a value that pg_controldata reports for a node's data.
control() { # NODE NAME
  LC_ALL=C pg_controldata -D "$all/$1/data" | sed -n "s/^$2: *//p"
}

# Prints the timeline; each promotion begins the next one. The second value changes at once, the first at a checkpoint.
timeline() { # NODE
  local checkpoint recovery
  checkpoint=$(control "$1" "Latest checkpoint's TimeLineID")
  recovery=$(control "$1" "Min recovery ending loc's timeline")
  echo $((checkpoint > recovery ? checkpoint : recovery))
}

# Sets `writer`, to nothing while no node is the writer.
find_writer() {
  local node current newest=0 rival=
  writer=
  for node in $NODES; do
    if has_data "$node" && ! is_reader "$node" && ! is_given_up "$node"; then
      current=$(timeline "$node")
      if ((current > newest)); then
        newest=$current writer=$node rival=
      elif [[ $writer ]] && ((current == newest)); then
        rival=$node
      fi
    fi
  done
  if [[ $rival ]]; then
    say "$writer and $rival were both promoted from one writer, so neither is the newer. Give up one of them:" \
      "docker compose run --rm --no-deps NODE bash /setup/node.sh give-up"
    exit 1
  fi
}

dsn() { # NODE
  echo "host=$1 user=replication dbname=postgres passfile=/setup/pgpass require_auth=scram-sha-256" \
    "target_session_attrs=read-write connect_timeout=2"
}

answers() { psql -Xq -d "$(dsn "$1")" -c '' 2>/dev/null; } # NODE

# Sets `writer` to another node that takes writes now.
await_writer() {
  local awaited=none
  until find_writer && [[ $writer ]] && answers "$writer"; do
    # The other nodes were given up meanwhile.
    if [[ $writer == "$HOSTNAME" ]]; then exec bash "$0"; fi
    if [[ $writer != "$awaited" ]]; then
      awaited=$writer
      say "waiting for ${writer:-a node to be the writer}"
    fi
    sleep 0.2
  done
}

# Starts and stops a server that takes no connections from outside.
start_apart() { pg_ctl --pgdata="$1" --options="-c listen_addresses=''" --silent start; } # DATA
stop_apart() { pg_ctl --pgdata="$1" --mode=fast --silent stop; }                          # DATA

create() {
  say "creating the database"
  # pg_rewind needs the checksums, which are the default from PostgreSQL 18 on.
  initdb --pgdata="$draft" --username=admin --pwfile=/passwords/admin_password \
    --encoding=UTF8 --locale=C.UTF-8 --data-checksums --auth-local=peer --auth-host=scram-sha-256 >/dev/null
  echo "include '/setup/node.conf'" >>"$draft/postgresql.conf"
  # Over the socket only the servers' user is let in, which could read the data anyway; over the network, passwords.
  # "all" databases do not include replication.
  printf '%s\n' 'local all admin peer map=node' 'host all all all scram-sha-256' \
    'host replication replication all scram-sha-256' >"$draft/pg_hba.conf"
  echo 'node postgres admin' >"$draft/pg_ident.conf"
  start_apart "$draft"
  psql -Xq -v ON_ERROR_STOP=1 -U admin -d postgres -v database="$DATABASE" -f /setup/roles.sql
  stop_apart "$draft"
  mv "$draft" "$data"
}

copy() {
  await_writer
  say "copying $writer"
  pg_basebackup --pgdata="$draft" --dbname="$(dsn "$writer")" --checkpoint=fast
  touch "$draft/standby.signal"
  mv "$draft" "$data"
}

# Succeeds if the timeline of this reader has diverged, because it had received more WAL when the writer was promoted.
# A server that starts after a crash can miss this and follow the writer with rows that no other node has.
has_diverged() {
  local current history parent left
  current=$(timeline "$writer")
  if (($(timeline "$HOSTNAME") > current)); then return 0; fi
  # Lists each earlier timeline and its last position; there is no such file before the first promotion.
  history=$(printf '%s/%s/data/pg_wal/%08X.history' "$all" "$writer" "$current")
  [[ -e $history ]] || return 1
  while read -r parent left _; do
    if [[ $left ]] && went_past "$parent" "$left"; then return 0; fi
  done <"$history"
  return 1
}

# Succeeds if this node's recovery starts after a WAL position, or replays a record there.
went_past() { # TIMELINE POSITION
  local segment
  if [[ $(control "$HOSTNAME" "Latest checkpoint's TimeLineID") == "$1" ]] &&
    (($(bytes "$(control "$HOSTNAME" "Latest checkpoint's REDO location")") > $(bytes "$2"))); then
    return 0
  fi
  # pg_waldump waits for a missing file.
  segment=$(printf '%s/pg_wal/%08X%08X%08X' "$data" "$1" "0x${2%/*}" $((0x${2#*/} >> 24)))
  [[ -e $segment ]] &&
    pg_waldump --path="$data/pg_wal" --timeline="$1" --start="$2" --limit=1 --quiet 2>/dev/null
}

bytes() { echo $(((0x${1%/*} << 32) + 0x${1#*/})); } # POSITION

# Turns a node whose timeline has diverged into a reader. A former writer is rewound; if that fails, and for a reader,
# everything is copied again.
rejoin() {
  await_writer
  say "rejoining $writer as its reader"
  mv "$data" "$draft"
  rm -f "$draft/given-up"
  if [[ ! -e $draft/standby.signal ]] && pg_rewind --target-pgdata="$draft" --source-server="$(dsn "$writer")"; then
    touch "$draft/standby.signal"
    mv "$draft" "$data"
    # The reader answers after one more record, and an idle writer may write none for 15 s.
    psql -Xq -d "$(dsn "$writer")" -c 'SELECT pg_log_standby_snapshot()' >/dev/null
  else
    rm -r "$draft"
    copy
  fi
}

if [[ ${1-} == give-up ]]; then
  if has_data "$HOSTNAME"; then touch "$data/given-up"; fi
  exit
fi

trap 'exit 1' INT TERM       # the first process of a container ignores signals that it does not handle
rm -rf "$draft"
rm -f "$data/postmaster.pid" # left by a killed container; its process number means nothing in this one

find_writer
if ! has_data "$HOSTNAME"; then
  # The first writer is created only if no node has data.
  if [[ $HOSTNAME == "${NODES%% *}" ]] && ! any_data; then
    create
  else
    copy
  fi
elif is_given_up "$HOSTNAME"; then
  rejoin
elif ! is_reader "$HOSTNAME"; then
  [[ $writer == "$HOSTNAME" ]] || rejoin
elif [[ $writer ]] && has_diverged; then
  rejoin
fi

# synchronous_standby_names is set only here, because commits then wait for readers, and there are none while the first
# database is created. A reader reads its password from PGPASSFILE, and only a server that knows it gets an answer.
export PGPASSFILE=/setup/pgpass PGREQUIREAUTH=scram-sha-256
exec postgres -D "$data" -c cluster_name="$HOSTNAME" -c synchronous_standby_names="$SYNCHRONOUS_STANDBY_NAMES"
