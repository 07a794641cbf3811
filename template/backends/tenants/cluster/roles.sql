-- Creates the application's role and database, once on each server, before it takes connections.

-- A statement that fails is logged, and some of these hold a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set database `echo "$DATABASE"`
\set application_password `cat /setup/app_password`
\set owner_password `cat /setup/owner_password`
\set reader_password `cat /setup/reader_password`
\set monitor_password `cat /setup/monitor_password`

-- Tenants get roles of their own, and databases of the same owner.
\set owner :database _owner
\set reader :database _reader
\set monitor :database _monitor

CREATE ROLE :"database" LOGIN PASSWORD :'application_password';
CREATE ROLE :"owner" LOGIN PASSWORD :'owner_password';
CREATE ROLE :"reader" LOGIN PASSWORD :'reader_password';
CREATE ROLE :"monitor" LOGIN PASSWORD :'monitor_password' IN ROLE pg_monitor;
CREATE DATABASE :"database" OWNER :"owner";

-- Otherwise every role of the server may connect to every database.
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;

\connect :"database"
\set application :database
\i /setup/privileges
