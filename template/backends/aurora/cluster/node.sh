#!/usr/bin/env bash
# Starts this node in the role that the data of all nodes gives it. The writer is the node that was promoted last, the
# one with the newest timeline; every other node is a reader.
#
# The data of the nodes lies side by side, so this is known even while the others are down: a writer that was away while
# another was promoted never starts as a second writer, whichever of them starts first.
#
# With "give-up" it only notes that this node is to be a reader, whatever it was: so it is from its next start on.
set -euo pipefail

all=/var/lib/postgresql
data=$all/$HOSTNAME
# Data is made or changed under this name, and gets its own when it is whole: a start that was cut short leaves none.
draft=$data.draft

say() { echo "node: $*" >&2; }

has_data() { [[ -e $all/$1 ]]; }                 # NODE
is_reader() { [[ -e $all/$1/standby.signal ]]; } # NODE
is_given_up() { [[ -e $all/$1/given-up ]]; }     # NODE

any_data() {
  local node
  for node in $NODES; do
    if has_data "$node"; then return; fi
  done
  return 1
}

# What pg_controldata says of a node's data.
control() { # NODE NAME
  LC_ALL=C pg_controldata -D "$all/$1" | sed -n "s/^$2: *//p"
}

# Grows by one with every promotion. That shows in the second value first, and in the other after a checkpoint.
timeline() { # NODE
  local checkpoint recovery
  checkpoint=$(control "$1" "Latest checkpoint's TimeLineID")
  recovery=$(control "$1" "Min recovery ending loc's timeline")
  echo $((checkpoint > recovery ? checkpoint : recovery))
}

# Sets `writer`; to nothing while no node is one.
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
  echo "host=$1 user=replication dbname=postgres passfile=/setup/pgpass" \
    "target_session_attrs=read-write connect_timeout=2"
}

answers() { psql -Xq -d "$(dsn "$1")" -c '' 2>/dev/null; } # NODE

# Sets `writer` to another node that takes writes now.
await_writer() {
  local awaited=none
  until find_writer && [[ $writer ]] && answers "$writer"; do
    # The data of the others was given up meanwhile.
    if [[ $writer == "$HOSTNAME" ]]; then exec bash "$0"; fi
    if [[ $writer != "$awaited" ]]; then
      awaited=$writer
      say "waiting for ${writer:-a node to be the writer}"
    fi
    sleep 0.2
  done
}

# A server that takes no connections from outside.
start_apart() { pg_ctl --pgdata="$1" --options="-c listen_addresses=''" --silent start; } # DATA
stop_apart() { pg_ctl --pgdata="$1" --mode=fast --silent stop; }                          # DATA

create() {
  say "creating the database"
  # pg_rewind needs the checksums, which are the default from PostgreSQL 18 on.
  initdb --pgdata="$draft" --username=admin --pwfile=/setup/admin_password \
    --encoding=UTF8 --locale=C.UTF-8 --data-checksums --auth=trust >/dev/null
  echo "include '/setup/node.conf'" >>"$draft/postgresql.conf"
  # Passwords for all who come from outside the container; "all" databases do not include replication.
  printf 'host %s all all scram-sha-256\n' all replication >>"$draft/pg_hba.conf"
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

# Whether this reader has what the writer never had, say because it had received more when the writer was promoted.
# A server can miss this itself when it starts after a crash, and follow with rows that exist nowhere else.
strayed() {
  local current history parent left
  current=$(timeline "$writer")
  if (($(timeline "$HOSTNAME") > current)); then return 0; fi
  # Lists each earlier timeline and where it was left; there is none before the first promotion.
  history=$(printf '%s/%s/pg_wal/%08X.history' "$all" "$writer" "$current")
  [[ -e $history ]] || return 1
  while read -r parent left _; do
    if [[ $left ]] && went_past "$parent" "$left"; then return 0; fi
  done <"$history"
  return 1
}

# Whether this node's recovery starts after a position in the log, or has a record to replay there.
went_past() { # TIMELINE POSITION
  local segment
  if [[ $(control "$HOSTNAME" "Latest checkpoint's TimeLineID") == "$1" ]] &&
    (($(bytes "$(control "$HOSTNAME" "Latest checkpoint's REDO location")") > $(bytes "$2"))); then
    return 0
  fi
  # pg_waldump waits for a file that is not there.
  segment=$(printf '%s/pg_wal/%08X%08X%08X' "$data" "$1" "0x${2%/*}" $((0x${2#*/} >> 24)))
  [[ -e $segment ]] &&
    pg_waldump --path="$data/pg_wal" --timeline="$1" --start="$2" --limit=1 --quiet 2>/dev/null
}

bytes() { echo $(((0x${1%/*} << 32) + 0x${1#*/})); } # POSITION

# Makes a reader of a node that has what the writer never had. A former writer undoes that; where this fails, and for
# a reader, everything is copied again.
rejoin() {
  await_writer
  say "rejoining $writer as its reader"
  mv "$data" "$draft"
  rm -f "$draft/given-up"
  if [[ ! -e $draft/standby.signal ]] && pg_rewind --target-pgdata="$draft" --source-server="$(dsn "$writer")"; then
    touch "$draft/standby.signal"
    mv "$draft" "$data"
    # It answers once it has replayed one more record, for which an idle writer can take 15 s.
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

trap 'exit 1' INT TERM       # the first process of a container ends by a signal only if it says so
rm -rf "$draft"
rm -f "$data/postmaster.pid" # a killed container leaves it, and its process numbers mean nothing in this one

find_writer
if ! has_data "$HOSTNAME"; then
  # A first writer is made only where nobody has anything.
  if [[ $HOSTNAME == "${NODES%% *}" ]] && ! any_data; then
    create
  else
    copy
  fi
elif is_given_up "$HOSTNAME"; then
  rejoin
elif ! is_reader "$HOSTNAME"; then
  [[ $writer == "$HOSTNAME" ]] || rejoin
elif [[ $writer ]] && strayed; then
  rejoin
fi

# Nobody waits for readers before this: while the first database is made, there are none.
exec postgres -D "$data" -c cluster_name="$HOSTNAME" -c synchronous_standby_names="$SYNCHRONOUS_STANDBY_NAMES"
