#!/usr/bin/env bash
# Copies the passwords of .secrets/ to a folder that the servers' user may read, and writes libpq's password file.
set -euo pipefail

# Replaces a file of the servers' user atomically, because links read it whenever they connect.
publish() { # NAME, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "/secrets/.$1"
  mv --force "/secrets/.$1" "/secrets/$1"
}

for role in admin app owner reader monitor replication; do
  publish "${role}_password" <"/run/secrets/${role}_password"
done

for role in admin replication; do
  # host:port:database:user:password, where ":" and "\" in the password are escaped
  echo "*:*:*:$role:$(sed 's/[\\:]/\\&/g' "/run/secrets/${role}_password")"
done | publish pgpass
