-- Creates the application's role, once, with the database that psql is connected to.

-- A statement that fails is logged, and the first of these has a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set application_password `cat /run/passwords/app_password`

-- The role owns its database and nothing else.
CREATE ROLE :"DBNAME" LOGIN PASSWORD :'application_password';
ALTER DATABASE :"DBNAME" OWNER TO :"DBNAME";
