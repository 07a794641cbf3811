-- Prepares a node before it is linked: roles, extensions, its number, its name in the mesh.
-- Runs on every node at each `up`, and changes only what is missing. Variables of psql: node, number, dsn, monitor.

-- Statements that fail are logged, and some of these contain a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set application_password `cat app_password`
\set owner_password `cat owner_password`
\set reader_password `cat reader_password`
\set monitor_password `cat monitor_password`
\set replication_password `cat replication_password`

\set database :DBNAME
\set application :DBNAME
\set owner :DBNAME _owner
\set reader :DBNAME _reader

-- Links log in as `replication`, and the service `mesh` as the monitor, which reads statistics and no rows.
SELECT format('CREATE ROLE %I LOGIN %s', role, attributes)
FROM (VALUES (:'application', ''), (:'owner', ''), (:'reader', ''), (:'monitor', 'IN ROLE pg_monitor'),
             ('replication', 'REPLICATION')) AS wanted (role, attributes)
WHERE role NOT IN (SELECT rolname FROM pg_roles)
\gexec
ALTER ROLE :"application" PASSWORD :'application_password';
ALTER ROLE :"owner" PASSWORD :'owner_password';
ALTER ROLE :"reader" PASSWORD :'reader_password';
ALTER ROLE :"monitor" PASSWORD :'monitor_password';
ALTER ROLE "replication" PASSWORD :'replication_password';

RESET log_min_error_statement;
RESET log_statement;
RESET track_activities;

ALTER DATABASE :"database" OWNER TO :"owner";
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO "replication";
\i privileges.sql

-- Without DDL replication a revision runs on every node, and keeps its entry in Alembic's table there.
GRANT EXECUTE ON FUNCTION
  pg_replication_origin_create(text), pg_replication_origin_oid(text), pg_replication_origin_session_setup(text),
  pg_replication_origin_session_reset()
  TO :"owner";

CREATE EXTENSION IF NOT EXISTS spock;
CREATE EXTENSION IF NOT EXISTS snowflake;

-- Subscribers need these on their provider. Spock 5.0.7 added the functions, which pause other links while one starts.
GRANT USAGE ON SCHEMA spock TO "replication", :"monitor";
SELECT format('GRANT EXECUTE ON FUNCTION %s TO "replication"', oid::regprocedure)
FROM pg_proc
WHERE pronamespace = 'spock'::regnamespace AND proname IN ('pause_apply_workers', 'resume_apply_workers')
\gexec

-- Number of this node in every key that is made here.
ALTER SYSTEM SET snowflake.node = :number;

-- Since PostgreSQL 18.6 (17.11, 16.15) a server decodes only with the libraries in this list; older ones have no list.
SELECT format('ALTER SYSTEM SET output_plugin_libraries = %s, spock_output', current_setting('output_plugin_libraries'))
FROM pg_settings
WHERE name = 'output_plugin_libraries' AND setting NOT LIKE '%spock_output%'
\gexec
SELECT pg_reload_conf();

SELECT spock.node_create(:'node', :'dsn')
WHERE :'node' NOT IN (SELECT node_name FROM spock.node);
