#!/usr/bin/env bash
# Copies the passwords of .secrets/ to where the servers' user may read them, and makes libpq's password file of them.
set -euo pipefail

# Becomes a file of the servers' user in one step: links read it whenever they connect.
publish() { # NAME, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "/secrets/.$1"
  mv --force "/secrets/.$1" "/secrets/$1"
}

for name in admin_password app_password replication_password; do
  publish "$name" <"/run/secrets/$name"
done

for role in admin replication; do
  # host:port:database:user:password, where ":" and "\" in the password are escaped
  echo "*:*:*:$role:$(sed 's/[\\:]/\\&/g' "/run/secrets/${role}_password")"
done | publish pgpass
