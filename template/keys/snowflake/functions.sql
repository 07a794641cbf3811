{% if profile.creates_snowflake %}
-- Snowflake ids in plain SQL: 41 bits of milliseconds since 2023-01-01 UTC, 10 of node, 12 of counter. The sequence
-- itself counts (milliseconds << 12 | counter), so it must be a bigint with increment 1, and a reader that is promoted
-- continues it. The node is 1, because one node writes; databases whose rows are to be merged need different numbers:
-- ALTER DATABASE … SET snowflake.node = 2.
{% else %}
-- The `snowflake` schema of pgEdge's extension in SQL, for servers without the extension: the same function names,
-- signatures and results, the same layout of an id (41 bits of milliseconds since 2023-01-01 UTC, 10 of node, 12 of
-- counter). Two differences: the sequence itself counts (milliseconds << 12 | counter), so it must be a bigint with
-- increment 1; and any role may SET snowflake.node, which the extension reserves for superusers.
{% endif %}
CREATE SCHEMA IF NOT EXISTS snowflake;
GRANT USAGE ON SCHEMA snowflake TO PUBLIC;
CREATE SEQUENCE IF NOT EXISTS snowflake.id_seq;
{% if not profile.creates_snowflake %}
GRANT USAGE ON SEQUENCE snowflake.id_seq TO PUBLIC;
{% endif %}

-- Called under the lock of _catch_up. Skips two milliseconds, because callers without the lock may have counted on.
CREATE OR REPLACE FUNCTION snowflake._advance(sequence regclass) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  now_ms bigint := floor(date_part('epoch', clock_timestamp()) * 1000)::bigint - 1672531200000;
  value bigint := pg_catalog.nextval(sequence);
BEGIN
  IF value >> 12 < now_ms THEN
    RETURN pg_catalog.setval(sequence, greatest(now_ms, (value >> 12) + 2) << 12, true);
  END IF;
  RETURN value;
END $$;

-- Moves a sequence that is behind the clock, at most once per millisecond. The lock is taken and released within one
-- query, so that a cancelled statement cannot leave it held. SECURITY DEFINER because setval needs UPDATE and callers
-- have USAGE. Any role may call it, so it reads the clock itself and refuses a session that has taken no value from the
-- sequence: taking one needs USAGE. The rights of session_user would be those of the login, which SET ROLE and another
-- SECURITY DEFINER function replace.
CREATE OR REPLACE FUNCTION snowflake._catch_up(sequence regclass) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  result bigint;
BEGIN
  -- Both checks come before the lock, because an error between lock and unlock would leave it held.
  PERFORM currval(sequence);
  IF (SELECT seqmax < 9007199254740991 OR seqincrement <> 1 FROM pg_sequence WHERE seqrelid = sequence) THEN
    RAISE EXCEPTION USING errcode = 'object_not_in_prerequisite_state',
      message = 'sequence ' || sequence || ' must be bigint with increment 1';
  END IF;
  SELECT value INTO result FROM (
    SELECT CASE WHEN locked.done IS NOT NULL THEN snowflake._advance(sequence) END AS value
    FROM (SELECT pg_advisory_lock(1397704518, sequence::oid::int)::text AS done OFFSET 0) AS locked OFFSET 0
  ) AS advanced
  WHERE pg_advisory_unlock(1397704518, sequence::oid::int);
  RETURN result;
END $$;

CREATE OR REPLACE FUNCTION snowflake._compose(value bigint) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
{% if profile.creates_snowflake %}
  node text := coalesce(nullif(current_setting('snowflake.node', true), ''), '1');
BEGIN
{% else %}
  node text := current_setting('snowflake.node', true);
BEGIN
  IF node IS NULL OR node IN ('', '0') THEN
    RAISE EXCEPTION 'value for snowflake.node is not set' USING errcode = 'config_file_error';
  END IF;
{% endif %}
  -- <<, & and | have the same precedence in PostgreSQL.
  RETURN ((value >> 12) << 22) | ((node::bigint & 1023) << 12) | (value & 4095);
END $$;

CREATE OR REPLACE FUNCTION snowflake.nextval(sequence regclass DEFAULT 'snowflake.id_seq') RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  now_ms bigint := floor(date_part('epoch', clock_timestamp()) * 1000)::bigint - 1672531200000;
  value bigint := pg_catalog.nextval(sequence);
BEGIN
  IF value >> 12 < now_ms THEN
    value := snowflake._catch_up(sequence);
  END IF;
  RETURN snowflake._compose(value);
END $$;

CREATE OR REPLACE FUNCTION snowflake.currval(sequence regclass DEFAULT 'snowflake.id_seq') RETURNS bigint
LANGUAGE sql VOLATILE AS $$ SELECT snowflake._compose(pg_catalog.currval(sequence)) $$;

CREATE OR REPLACE FUNCTION snowflake.get_epoch(bigint) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (((($1 >> 22) & 2199023255551) + 1672531200000)::numeric / 1000)::numeric(20, 3);

CREATE OR REPLACE FUNCTION snowflake.get_count(bigint) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ($1 & 4095)::int;

CREATE OR REPLACE FUNCTION snowflake.get_node(bigint) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (($1 >> 12) & 1023)::int;

-- "id" is the number of the node.
CREATE OR REPLACE FUNCTION snowflake.format(bigint) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_build_object(
  'id', snowflake.get_node($1), 'ts', to_timestamp(snowflake.get_epoch($1))::text, 'count', snowflake.get_count($1)
);
