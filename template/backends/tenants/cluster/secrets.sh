#!/usr/bin/env bash
# Copies the passwords of .secrets/ and the roles to where the servers' user may read them: mounted as they lie here, it may not.
set -euo pipefail

# Becomes a file of the servers' user in one step.
publish() { # NAME, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "/setup/.$1"
  mv --force "/setup/.$1" "/setup/$1"
}

for file in /run/secrets/* /cluster/roles.sql; do
  publish "${file##*/}" <"$file"
done

# A volume begins as root's.
chown postgres /data/*
