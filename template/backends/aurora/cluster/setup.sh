#!/usr/bin/env bash
# Copies the files of cluster/, the privileges of the roles and the passwords of .secrets/ to folders that the servers'
# user may read, and writes libpq's password file. The passwords have a folder of their own, because one node creates
# the roles.
set -euo pipefail

# Replaces a file of the servers' user atomically, because readers read the password file whenever they connect.
publish() { # PATH, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "$1.new"
  mv --force "$1.new" "$1"
}

for file in /cluster/* /privileges.sql; do
  publish "/setup/${file##*/}" <"$file"
done
for file in /run/secrets/*; do
  publish "/passwords/${file##*/}" <"$file"
done

# host:port:database:user:password, where ":" and "\" in the password are escaped
echo "*:*:*:replication:$(sed 's/[\\:]/\\&/g' /run/secrets/replication_password)" | publish /setup/pgpass

# A new volume belongs to root.
chmod 0700 /passwords /nodes/*
chown postgres /passwords /nodes/*
