#!/usr/bin/env bash
# Creates a certificate authority, a certificate for each node, and one for root, each in a volume of its own, and gives
# the nodes their folders. Existing certificates are kept: to replace them, delete the volumes.
set -euo pipefail

cert() { # SUBCOMMAND ARGUMENT…
  /cockroach/cockroach cert "$@" --certs-dir="$folder" --ca-key=/authority/ca.key
}

create() { # NAME
  # An incomplete set is created again.
  rm -f "$folder"/*
  # The first run creates the authority, which signs all certificates.
  if [ -e /authority/ca.crt ]; then
    cp /authority/ca.crt "$folder/"
  else
    cert create-ca --allow-ca-key-reuse
    cp "$folder/ca.crt" /authority/.ca.crt
    mv /authority/.ca.crt /authority/ca.crt
  fi
  if [ "$1" = root ]; then
    cert create-client root
  else
    # Its name is for the other nodes, the loopback address for this machine.
    cert create-node "$1" localhost 127.0.0.1
  fi
  touch "$folder/done"
}

if [ "$ACCESS" != --insecure ]; then
  for name in root ${NODES}; do
    folder=/certs/$name
    [ -e "$folder/done" ] || create "$name"
  done
fi

# The nodes run as this user. A new volume belongs to root.
for name in ${NODES}; do
  for folder in /data /certs; do
    [ ! -e "$folder/$name" ] || chown -R 1000:1000 "$folder/$name"
  done
done
