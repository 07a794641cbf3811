-- The roles and the database, made once, with the first writer. psql is given database.

-- A statement that fails is logged, and two of these hold a password.
SET log_min_error_statement = 'panic';

\set application_password `cat /setup/app_password`
\set replication_password `cat /setup/replication_password`

-- The application owns its database and nothing else; it may see how the readers follow.
CREATE ROLE :"database" LOGIN PASSWORD :'application_password' IN ROLE pg_monitor;
CREATE DATABASE :"database" OWNER :"database";

-- Readers log in as `replication`. Of the functions all but the last are what pg_rewind asks the writer for.
CREATE ROLE "replication" LOGIN REPLICATION PASSWORD :'replication_password';
GRANT EXECUTE ON FUNCTION
  pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
  pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean), pg_log_standby_snapshot()
  TO "replication";
