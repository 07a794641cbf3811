-- Prepares a node before it is linked: roles, extensions, its number, its name in the mesh.
-- Runs on every node at each `up`, and changes only what is missing. Variables of psql: node, number, dsn, monitor.

-- Statements that fail are logged, and two of these contain a password.
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
SET track_activities = off;

\set application_password `cat app_password`
\set monitor_password `cat monitor_password`
\set replication_password `cat replication_password`

-- The role of the application owns its database and nothing else. Links log in as `replication`, and the service
-- `mesh` as the monitor, which reads statistics and no rows.
SELECT format('CREATE ROLE %I LOGIN %s', role, attributes)
FROM (VALUES (:'DBNAME', ''), (:'monitor', ''), ('replication', 'REPLICATION')) AS wanted (role, attributes)
WHERE role NOT IN (SELECT rolname FROM pg_roles)
\gexec
ALTER ROLE :"DBNAME" PASSWORD :'application_password';
ALTER ROLE :"monitor" PASSWORD :'monitor_password';
ALTER ROLE "replication" PASSWORD :'replication_password';
GRANT pg_monitor TO :"monitor";
ALTER DATABASE :"DBNAME" OWNER TO :"DBNAME";

RESET log_min_error_statement;
RESET log_statement;
RESET track_activities;

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
