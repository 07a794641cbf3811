-- The functions and catalogue columns of CockroachDB that the stand-in has, so that the same SQL runs on both.

-- A session that comes through no gateway is on node 0.
CREATE SCHEMA crdb_internal;

CREATE FUNCTION crdb_internal.node_id() RETURNS bigint LANGUAGE sql STABLE
RETURN coalesce(current_setting('stand_in.number', true), '0')::bigint;

-- CockroachDB's rowid: 48 bits that grow with time, 15 bits of the node.
CREATE SEQUENCE crdb_internal.rowid AS bigint INCREMENT 32768 START 36028797018963968 MINVALUE 32768;
GRANT USAGE ON SEQUENCE crdb_internal.rowid TO PUBLIC;

CREATE FUNCTION pg_catalog.unique_rowid() RETURNS bigint LANGUAGE sql VOLATILE
RETURN nextval('crdb_internal.rowid') + crdb_internal.node_id();

GRANT USAGE ON SCHEMA crdb_internal TO PUBLIC;

-- The dialect reads these columns of CockroachDB when it reflects a table.
DO $$
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE VIEW information_schema.columns AS SELECT c.*, ''NO''::text AS is_hidden, '
        'CASE WHEN c.data_type = ''ARRAY'' THEN substr(c.udt_name, 2) || ''[]'' ELSE c.data_type END AS crdb_sql_type, '
        'NULL::text AS column_comment FROM (%s) AS c',
        rtrim(pg_get_viewdef('information_schema.columns'::regclass), ';')
    );
END
$$;
