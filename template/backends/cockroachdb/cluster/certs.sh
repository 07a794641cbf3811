#!/usr/bin/env bash
# Makes an authority of this cluster's own, a certificate for each node, and one for root. What is there already is kept:
# delete the volume `certs` to begin anew.
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
  # Half of a set of certificates is none.
  rm -f "$folder"/*
  # The first to come makes the authority; the others are signed by the same one.
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
    # Under its name for the others, and under loopback for this machine.
    cert create-node "$name" localhost 127.0.0.1
  fi
  touch "$folder/done"
done
