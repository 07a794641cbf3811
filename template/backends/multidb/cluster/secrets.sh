#!/usr/bin/env bash
# Copies what the nodes need to where the servers' user may read it: the passwords of .secrets/, and what makes the role.
set -euo pipefail

# Becomes a file of the servers' user in one step.
publish() { # FILE FOLDER
  install --owner postgres --mode 0400 "$1" "$2/.${1##*/}"
  mv --force "$2/.${1##*/}" "$2/${1##*/}"
}

for file in /run/secrets/*; do
  publish "$file" /run/passwords
done
publish /cluster/roles.sql /init
