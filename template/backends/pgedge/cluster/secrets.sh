#!/usr/bin/env bash
# Copies the passwords of .secrets/ to where the servers' user may read them, and makes libpq's password file of them.
set -euo pipefail

# Becomes a file of the servers' user in one step: links read it whenever they connect.
publish() { # FILE NAME
  install --owner postgres --mode 0400 "$1" "/secrets/.$2"
  mv --force "/secrets/.$2" "/secrets/$2"
}

pgpass=$(mktemp)
for role in admin replication; do
  # In a password file, ":" and "\" are escaped.
  password=$(sed 's/[\\:]/\\&/g' "/run/secrets/${role}_password")
  echo "*:*:*:$role:$password" >>"$pgpass"
done

publish "$pgpass" pgpass
for name in admin_password app_password replication_password; do
  publish "/run/secrets/$name" "$name"
done
