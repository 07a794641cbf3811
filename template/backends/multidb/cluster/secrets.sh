#!/usr/bin/env bash
# Copies the passwords of .secrets/ and the script that creates the role to where the servers' user may read them.
set -euo pipefail

# Creates a file of the servers' user in one step.
publish() { # FILE FOLDER
  install --owner postgres --mode 0400 "$1" "$2/.${1##*/}"
  mv --force "$2/.${1##*/}" "$2/${1##*/}"
}

for file in /run/secrets/* /privileges.sql; do
  publish "$file" /run/passwords
done
publish /cluster/roles.sql /init
