-- Creates the roles and the database, once, with the first writer. Variable of psql: database.

-- Statements that fail are logged, and some of these contain a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set application_password `cat /passwords/app_password`
\set owner_password `cat /passwords/owner_password`
\set reader_password `cat /passwords/reader_password`
\set monitor_password `cat /passwords/monitor_password`
\set replication_password `cat /passwords/replication_password`

-- The application reads how far its readers are.
\set owner :database _owner
\set reader :database _reader
\set monitor :database _monitor

CREATE ROLE :"database" LOGIN PASSWORD :'application_password' IN ROLE pg_read_all_stats;
CREATE ROLE :"owner" LOGIN PASSWORD :'owner_password';
CREATE ROLE :"reader" LOGIN PASSWORD :'reader_password';
CREATE ROLE :"monitor" LOGIN PASSWORD :'monitor_password' IN ROLE pg_monitor;
CREATE DATABASE :"database" OWNER :"owner";
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;

-- Readers log in as `replication`. pg_rewind calls all of these functions but the last.
CREATE ROLE "replication" LOGIN REPLICATION PASSWORD :'replication_password';
GRANT EXECUTE ON FUNCTION
  pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
  pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean), pg_log_standby_snapshot()
  TO "replication";
GRANT CONNECT ON DATABASE postgres TO "replication";

\connect :"database"
\set application :database
\i /setup/privileges.sql
