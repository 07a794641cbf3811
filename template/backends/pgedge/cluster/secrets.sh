#!/usr/bin/env bash
# Copies the passwords of .secrets/ and the files of cluster/ to the folders of those who use them, where the servers'
# user may read them, and writes libpq's password files and the rules of access.
set -euo pipefail

# Replaces a file of the servers' user atomically, because links read it whenever they connect.
publish() { # PATH, with the content on standard input
  install --owner postgres --mode 0400 /dev/stdin "/for/$1.new"
  mv --force "/for/$1.new" "/for/$1"
}

# host:port:database:user:password, where ":" and "\" in the password are escaped
login() { # ROLE PASSWORD
  echo "*:*:*:$1:$(sed 's/[\\:]/\\&/g' "/run/secrets/$2")"
}

publish nodes/admin_password </run/secrets/admin_password
login replication replication_password | publish nodes/pgpass
# Over the socket only the servers' user is let in, which could read the data anyway; over the network, passwords.
printf '%s\n' 'local all admin peer map=node' 'host all all all scram-sha-256' | publish nodes/pg_hba.conf
echo 'node postgres admin' | publish nodes/pg_ident.conf

for name in {app,owner,reader,monitor,replication}_password; do
  publish "wire/$name" <"/run/secrets/$name"
done
for file in /cluster/{links.sh,node.sql,wire.sh} /privileges.sql; do
  publish "wire/${file##*/}" <"$file"
done
{ login admin admin_password && login "$MONITOR" monitor_password; } | publish wire/pgpass

publish mesh/links.sh </cluster/links.sh
login "$MONITOR" monitor_password | publish mesh/pgpass
