-- Creates the roles and the database, once, with the first writer. Variable of psql: database.

-- Statements that fail are logged, and two of these contain a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set application_password `cat /passwords/app_password`
\set replication_password `cat /passwords/replication_password`

-- The role of the application owns its database and nothing else; it may read the state of replication.
CREATE ROLE :"database" LOGIN PASSWORD :'application_password' IN ROLE pg_monitor;
CREATE DATABASE :"database" OWNER :"database";

-- Readers log in as `replication`. pg_rewind calls all of these functions but the last.
CREATE ROLE "replication" LOGIN REPLICATION PASSWORD :'replication_password';
GRANT EXECUTE ON FUNCTION
  pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
  pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean), pg_log_standby_snapshot()
  TO "replication";
