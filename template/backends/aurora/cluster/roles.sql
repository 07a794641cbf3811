-- Creates the roles and the database, once, with the first writer. Variable of psql: database.

{% set passwords = '/passwords' %}
{% include 'template/postgresql/roles.sql' %}

-- The application reads how far its readers are.
GRANT pg_read_all_stats TO :"application";
CREATE DATABASE :"database" OWNER :"owner";

-- Readers log in as `replication`. pg_rewind calls all of these functions but the last.
\set replication_password `cat /passwords/replication_password`
CREATE ROLE "replication" LOGIN REPLICATION PASSWORD :'replication_password';
GRANT EXECUTE ON FUNCTION
  pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
  pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean), pg_log_standby_snapshot()
  TO "replication";
GRANT CONNECT ON DATABASE postgres TO "replication";

\connect :"database"
\i /setup/privileges.sql
