-- Creates the application's role and database, once on each server, before it takes connections.

-- A statement that fails is logged, and one of these holds a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set database `echo "$DATABASE"`
\set application_password `cat /setup/app_password`

-- The application owns its database and nothing else. Tenants get roles of their own.
CREATE ROLE :"database" LOGIN PASSWORD :'application_password';
CREATE DATABASE :"database" OWNER :"database";

-- Otherwise every role of the server may connect to every database.
REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1, :"database" FROM PUBLIC;
