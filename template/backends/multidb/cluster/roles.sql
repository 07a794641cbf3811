-- Creates the roles, once, with the database that psql is connected to.

-- A statement that fails is logged, and some of these have a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set application_password `cat /run/passwords/app_password`
\set owner_password `cat /run/passwords/owner_password`
\set reader_password `cat /run/passwords/reader_password`
\set monitor_password `cat /run/passwords/monitor_password`

\set database :DBNAME
\set application :DBNAME
\set owner :database _owner
\set reader :database _reader
\set monitor :database _monitor

CREATE ROLE :"database" LOGIN PASSWORD :'application_password';
CREATE ROLE :"owner" LOGIN PASSWORD :'owner_password';
CREATE ROLE :"reader" LOGIN PASSWORD :'reader_password';
CREATE ROLE :"monitor" LOGIN PASSWORD :'monitor_password' IN ROLE pg_monitor;
ALTER DATABASE :"database" OWNER TO :"owner";
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
\i /run/passwords/privileges.sql
