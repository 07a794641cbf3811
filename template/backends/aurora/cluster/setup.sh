#!/usr/bin/env bash
# Copies the files of cluster/, the privileges of the roles and the passwords of .secrets/ to a folder that the
# servers' user may read, and writes libpq's password file.
set -euo pipefail

# Replaces a file of the servers' user atomically, because readers read the password file whenever they connect.
publish() { # NAME, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "/setup/.$1"
  mv --force "/setup/.$1" "/setup/$1"
}

for file in /cluster/* /privileges.sql /run/secrets/*; do
  publish "${file##*/}" <"$file"
done

# host:port:database:user:password, where ":" and "\" in the password are escaped
echo "*:*:*:replication:$(sed 's/[\\:]/\\&/g' /run/secrets/replication_password)" | publish pgpass
