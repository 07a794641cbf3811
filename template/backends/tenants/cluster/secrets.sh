#!/usr/bin/env bash
# Copies the passwords of .secrets/ and the script that creates the role to where the servers' user may read them.
set -euo pipefail

# Creates a file of the servers' user in one step.
publish() { # NAME, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "/setup/.$1"
  mv --force "/setup/.$1" "/setup/$1"
}

for file in /run/secrets/* /cluster/roles.sql; do
  publish "${file##*/}" <"$file"
done

# Under a name that the image does not run by itself.
publish privileges </privileges.sql

# A new volume belongs to root.
chown postgres /data/*
