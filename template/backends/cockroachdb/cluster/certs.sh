#!/usr/bin/env bash
# Creates a certificate authority, a certificate for each node, and one for root. Existing ones are kept: to replace
# them, delete the volume `certs`.
set -euo pipefail

cert() { # SUBCOMMAND ARGUMENT…
  /cockroach/cockroach cert "$@" --certs-dir="$folder" --ca-key=/certs/ca.key
}

for name in root ${NODES}; do
  folder=/certs/$name
  mkdir -p "$folder"
  if [ -e "$folder/done" ]; then
    continue
  fi
  # An incomplete set is created again.
  rm -f "$folder"/*
  # The first run creates the authority, which signs all certificates.
  if [ -e /certs/ca.crt ]; then
    cp /certs/ca.crt "$folder/"
  else
    cert create-ca --allow-ca-key-reuse
    cp "$folder/ca.crt" /certs/.ca.crt
    mv /certs/.ca.crt /certs/ca.crt
  fi
  if [ "$name" = root ]; then
    cert create-client root
  else
    # Its name is for the other nodes, the loopback address for this machine.
    cert create-node "$name" localhost 127.0.0.1
  fi
  touch "$folder/done"
done
