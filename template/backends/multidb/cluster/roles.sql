-- The application's role, made once, with the database. psql is connected to it.

-- A statement that fails is logged, and the first of these holds a password.
SET log_min_error_statement = 'panic';

\set application_password `cat /run/passwords/app_password`

-- It owns its database and nothing else.
CREATE ROLE :"DBNAME" LOGIN PASSWORD :'application_password';
ALTER DATABASE :"DBNAME" OWNER TO :"DBNAME";
