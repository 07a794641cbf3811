-- Statements that fail are logged, and some of these contain a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set application_password `cat {{ passwords }}/app_password`
\set owner_password `cat {{ passwords }}/owner_password`
\set reader_password `cat {{ passwords }}/reader_password`
\set monitor_password `cat {{ passwords }}/monitor_password`

\set application :database
\set owner :database _owner
\set reader :database _reader
\set monitor :database _monitor

CREATE ROLE :"application" LOGIN PASSWORD :'application_password';
CREATE ROLE :"owner" LOGIN PASSWORD :'owner_password';
CREATE ROLE :"reader" LOGIN PASSWORD :'reader_password';
CREATE ROLE :"monitor" LOGIN PASSWORD :'monitor_password' IN ROLE pg_monitor;

-- Otherwise every role of a server may connect to every database.
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
