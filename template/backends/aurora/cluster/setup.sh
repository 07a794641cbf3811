#!/usr/bin/env bash
# Copies what the nodes need to where the servers' user may read it: the files of cluster/, the passwords of .secrets/,
# and libpq's password file made of one of them.
set -euo pipefail

# Becomes a file of the servers' user in one step: readers read the password file whenever they connect.
publish() { # NAME, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "/setup/.$1"
  mv --force "/setup/.$1" "/setup/$1"
}

for file in /cluster/* /run/secrets/*; do
  publish "${file##*/}" <"$file"
done

# host:port:database:user:password, where ":" and "\" in the password are escaped
echo "*:*:*:replication:$(sed 's/[\\:]/\\&/g' /run/secrets/replication_password)" | publish pgpass
