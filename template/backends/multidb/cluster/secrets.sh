#!/usr/bin/env bash
# Copies the passwords of .secrets/ and the script that creates the role to where the servers' user may read them, and
# writes the rules of access.
set -euo pipefail

# Creates a file of the servers' user in one step.
publish() { # PATH, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "$1.new"
  mv --force "$1.new" "$1"
}

for file in /run/secrets/* /privileges.sql; do
  publish "/run/passwords/${file##*/}" <"$file"
done
publish /init/roles.sql </cluster/roles.sql

# Over the socket only the servers' user is let in, which could read the data anyway; over the network, passwords.
printf '%s\n' 'local all admin peer map=node' 'host all all all scram-sha-256' | publish /run/passwords/pg_hba.conf
echo 'node postgres admin' | publish /run/passwords/pg_ident.conf
