#!/usr/bin/env bash
# Copies the passwords of .secrets/ and the script that creates the role to where the servers' user may read them, and
# writes the rules of access.
set -euo pipefail

# Creates a file of the servers' user in one step.
publish() { # NAME, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "/setup/.$1"
  mv --force "/setup/.$1" "/setup/$1"
}

for file in /run/secrets/* /cluster/roles.sql; do
  publish "${file##*/}" <"$file"
done

# Over the socket only the servers' user is let in, which could read the data anyway; over the network, passwords.
printf '%s\n' 'local all admin peer map=node' 'host all all all scram-sha-256' | publish pg_hba.conf
echo 'node postgres admin' | publish pg_ident.conf
# Under a name that the image does not run by itself.
publish privileges </privileges.sql

# A new volume belongs to root.
chown postgres /data/*
