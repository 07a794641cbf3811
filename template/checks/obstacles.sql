-- Everything that takes rows or rights from the application although the tables have their shape: a row for each, with
-- its place (server: this server; database: the database, and so its replicas), `problem` or `doubt`, the cause, and
-- the statements that end it. A doubt can be meant: a COMMENT on the object says so, and the doubt is gone.
-- Parameters: application, owner, others (names of the other roles), connections (of the pools of all processes).
WITH own AS (
    SELECT oid, nspname FROM pg_namespace AS n
    WHERE nspname !~ '^(pg_|_verify_)' AND nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 2615 AND objid = n.oid AND deptype = 'e')
), relation AS (
    SELECT c.*, format('%I.%I', nspname, relname) AS name, obj_description(c.oid, 'pg_class') IS NOT NULL AS is_meant
    FROM pg_class AS c JOIN own ON own.oid = relnamespace
    WHERE NOT EXISTS (SELECT FROM pg_depend WHERE classid = 1259 AND objid = c.oid AND deptype = 'e')
), role AS (
    SELECT * FROM pg_roles WHERE rolname IN (:application, :owner) OR rolname = ANY(CAST(:others AS text[]))
), setting AS (
    SELECT 'server' AS place, name, setting AS value, 'the server' AS who,
           CASE name WHEN 'synchronous_standby_names' THEN '' ELSE boot_val END AS good, NULL AS reset
    FROM pg_settings WHERE source NOT IN ('client', 'session', 'user', 'database', 'database user')
    UNION ALL
    SELECT 'database', split_part(one, '=', 1), substr(one, strpos(one, '=') + 1),
           CASE WHEN setrole = 0 THEN format('database %I', current_database()) ELSE format('role %I', rolname) END,
           NULL,
           CASE WHEN one LIKE 'default_transaction_read_only=%' THEN 'SET default_transaction_read_only = off; '
                ELSE '' END
           || CASE WHEN setrole = 0 THEN format('ALTER DATABASE %I', current_database())
                WHEN setdatabase = 0 THEN format('ALTER ROLE %I', rolname)
                ELSE format('ALTER ROLE %I IN DATABASE %I', rolname, current_database()) END
           || format(' RESET %I', split_part(one, '=', 1))
    FROM pg_db_role_setting LEFT JOIN role ON role.oid = setrole CROSS JOIN unnest(setconfig) AS one
    WHERE (setdatabase = 0 OR setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()))
      AND (setrole = 0 OR rolname IS NOT NULL)
), harm AS (
    SELECT * FROM (VALUES
        ('session_replication_role', 'replica|local', 'no trigger and no foreign key is enforced'),
        ('default_transaction_read_only', 'on', 'every write is refused'),
        ('row_security', 'off', 'queries of tables with row level security fail'),
        ('synchronous_commit', 'off', 'a crash loses transactions that were acknowledged'),
        ('fsync', 'off', 'a power cut destroys the data'),
        ('recovery_min_apply_delay', '[1-9].*', 'it returns old rows'),
        ('zero_damaged_pages', 'on', 'a damaged page is emptied silently'),
        ('ignore_checksum_failure', 'on', 'damaged rows are returned'),
        ('ignore_invalid_pages', 'on', 'a recovery skips pages silently'),
        ('ignore_system_indexes', 'on', 'every query is slow, and duplicates can arise in the catalogue'),
        ('allow_system_table_mods', 'on', 'a statement can destroy the catalogue'),
        ('transform_null_equals', 'on', '`= NULL` finds other rows than the application expects'),
        ('exit_on_error', 'on', 'each error ends its session'),
        ('autovacuum', 'off', 'tables grow without end, until the server refuses writes'),
        ('track_counts', 'off', 'autovacuum never runs'),
        ('event_triggers', 'off', 'event triggers do not fire'),
        ('standard_conforming_strings', 'off', 'a backslash in a string is an escape'),
        ('extra_float_digits', '0|-\d+', 'floating point numbers are rounded when they are read'),
        ('lo_compat_privileges', 'on', 'every role may read and write every large object'),
        ('role', '(?!none).*', 'the session has the rights of another role'),
        ('(statement|lock|transaction|idle_in_transaction_session|idle_session)_timeout', '[1-9]\d{0,2}(ms)?',
         'it is less than a second')
    ) AS h (name, value, effect)
), dangerous AS (
    SELECT table_oid, pattern FROM (SELECT c.oid AS table_oid, format('delete\s+from\s+(only\s+)?(%I\.)?%I\M',
        relnamespace::regnamespace::text, relname) AS pattern FROM relation AS c) AS t
), trigger AS (
    SELECT g.*, r.name, quote_ident(tgname) AS trigger,
           obj_description(g.oid, 'pg_trigger') IS NOT NULL
           OR obj_description(p.oid, 'pg_proc') IS NOT NULL AS is_meant,
           tgtype & 1 = 1 AND tgtype & 66 > 0 AND prosrc ~* '\mreturn\s+null\M' AS returns_null,
           prosrc ~* '\mreturn\s+(new|old)\M' AS returns_row,
           tgtype & 66 = 0 AND prosrc ~* pattern AS deletes
    FROM pg_trigger AS g JOIN relation AS r ON r.oid = tgrelid JOIN pg_proc AS p ON p.oid = tgfoid
    JOIN dangerous AS d ON d.table_oid = r.oid
), policy AS (
    SELECT p.*, r.name, quote_ident(polname) AS policy, obj_description(p.oid, 'pg_policy') IS NOT NULL AS is_meant,
           0 = ANY(polroles) OR EXISTS (
               SELECT FROM unnest(polroles) AS o WHERE o <> 0 AND pg_has_role(:application, o, 'MEMBER')) AS is_ours,
           coalesce(pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid), 'true') AS expression
    FROM pg_policy AS p JOIN relation AS r ON r.oid = polrelid
), command AS (
    SELECT * FROM (VALUES ('r', 'SELECT'), ('a', 'INSERT'), ('w', 'UPDATE'), ('d', 'DELETE')) AS c (letter, command)
), closed AS (
    SELECT r.name, r.is_meant, bool_or(letter = 'r') AS hides_all,
           string_agg(command, ', ' ORDER BY command) AS commands
    FROM relation AS r CROSS JOIN command
    -- Policies of a partition hold for queries that name it; those of the application name its parent.
    WHERE relrowsecurity AND NOT relispartition
      AND NOT EXISTS (SELECT FROM role WHERE rolname = :application AND (rolsuper OR rolbypassrls))
      AND NOT EXISTS (SELECT FROM policy WHERE polrelid = r.oid AND is_ours AND polpermissive
                      AND polcmd IN (letter::"char", '*') AND expression <> 'false')
    GROUP BY 1, 2
), numbers AS (
    SELECT r.name, r.is_meant, seqcycle, seqmax,
           CASE WHEN has_sequence_privilege(seqrelid, 'SELECT') THEN pg_sequence_last_value(seqrelid) END AS last
    FROM pg_sequence JOIN relation AS r ON r.oid = seqrelid
)
SELECT place, 'problem' AS level, format('%s of %s is %s, so %s', s.name, who, s.value, effect) AS cause,
       coalesce(reset, format('ALTER SYSTEM SET %I = %L; SELECT pg_reload_conf()', s.name, good)) AS mend
FROM setting AS s JOIN harm AS h ON s.name ~ ('^' || h.name || '$') AND s.value ~ ('^(' || h.value || ')$')
WHERE s.name <> 'fsync' OR current_setting('local.throwaway', true) IS DISTINCT FROM 'on'
UNION ALL
SELECT place, 'problem', format('search_path of %s is %s, without %s, where the tables are', who, value, nspname), reset
FROM setting AS s CROSS JOIN relation JOIN own ON own.oid = relnamespace
WHERE s.name = 'search_path' AND reset IS NOT NULL AND relname = 'alembic_version'
  AND NOT value ~ ('\m' || nspname || '\M')
UNION ALL
SELECT 'server', 'problem', format('no standby confirms commits, and %s of them has to, so they hang', value),
       format('ALTER SYSTEM SET synchronous_standby_names = %L; SELECT pg_reload_conf()',
              (SELECT 'ANY 1 (' || string_agg(quote_ident(application_name), ', ') || ')' FROM pg_stat_replication))
FROM setting WHERE name = 'synchronous_standby_names' AND value <> '' AND NOT pg_is_in_recovery()
  AND NOT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum'))
  AND current_setting('synchronous_commit') NOT IN ('off', 'local')
UNION ALL
SELECT 'server', 'problem', format('the server takes %s connections, and the pools need %s, so lower POOL_SIZE', room,
       CAST(:connections AS integer)), format('ALTER SYSTEM SET max_connections = %s; then restart it',
       setting::integer + CAST(:connections AS integer) - room)
FROM pg_settings CROSS JOIN LATERAL (
    SELECT setting::integer - current_setting('superuser_reserved_connections')::integer
           - coalesce(current_setting('reserved_connections', true)::integer, 0) AS room) AS r
WHERE name = 'max_connections' AND room < CAST(:connections AS integer)
UNION ALL
SELECT 'database', 'problem', format('database %I takes %s connections, and the pools need %s', datname, datconnlimit,
       CAST(:connections AS integer)), format('ALTER DATABASE %I CONNECTION LIMIT -1', datname)
FROM pg_database WHERE datname = current_database() AND datconnlimit BETWEEN 0 AND CAST(:connections AS integer) - 1
UNION ALL
SELECT 'database', 'problem', format('role %I may open %s connections, and needs %s', rolname, rolconnlimit,
       CASE rolname WHEN :application THEN CAST(:connections AS integer) ELSE 1 END),
       format('ALTER ROLE %I CONNECTION LIMIT -1', rolname)
FROM role
WHERE rolconnlimit >= 0
  AND rolconnlimit < CASE rolname WHEN :application THEN CAST(:connections AS integer) ELSE 1 END
UNION ALL
SELECT 'database', 'problem', format('role %I may not log in', rolname), format('ALTER ROLE %I LOGIN', rolname)
FROM role WHERE NOT rolcanlogin
UNION ALL
SELECT 'database', CASE WHEN rolvaliduntil < now() THEN 'problem' ELSE 'doubt' END,
       format('the password of role %I is valid until %s', rolname, rolvaliduntil),
       format('ALTER ROLE %I VALID UNTIL ''infinity''', rolname)
FROM role WHERE rolvaliduntil < now() + interval '7 days'
UNION ALL
SELECT 'database', CASE WHEN hides_all THEN 'problem' ELSE 'doubt' END,
       format('row level security of %s leaves %s no row for %s', name, :application, commands),
       format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', name)
FROM closed WHERE hides_all OR NOT is_meant
UNION ALL
SELECT 'database', CASE WHEN expression = 'false' AND NOT polpermissive THEN 'problem' ELSE 'doubt' END,
       format('policy %s hides rows of %s from %s: %s', policy, p.name, :application, expression),
       format('DROP POLICY %s ON %s', policy, p.name)
FROM policy AS p JOIN relation AS r ON r.oid = polrelid
WHERE relrowsecurity AND is_ours AND NOT p.is_meant AND expression <> 'true'
UNION ALL
SELECT 'database', 'doubt', format('row level security of %s holds for its owner, so not all of its rows are compared',
       name), format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', name)
FROM relation JOIN pg_roles AS o ON o.oid = relowner
WHERE relrowsecurity AND relforcerowsecurity AND NOT rolsuper AND NOT rolbypassrls AND NOT is_meant
UNION ALL
SELECT 'database', 'problem', format('foreign keys of %s are not enforced, their triggers are disabled', name),
       string_agg(format('ALTER TABLE %s ENABLE TRIGGER %s', name, trigger), '; ')
FROM trigger WHERE tgisinternal AND tgenabled <> 'O' GROUP BY name
UNION ALL
SELECT 'database', 'problem', format('trigger %s on %s is disabled', trigger, name),
       format('ALTER TABLE %s ENABLE TRIGGER %s', name, trigger)
FROM trigger WHERE NOT tgisinternal AND tgenabled = 'D' AND NOT is_meant
UNION ALL
SELECT 'database', CASE WHEN returns_row OR deletes THEN 'doubt' ELSE 'problem' END,
       format('trigger %s on %s %s', trigger, name, CASE WHEN deletes THEN 'deletes rows of it'
              WHEN returns_row THEN 'returns NULL at times, and then the write does not happen'
              ELSE 'returns NULL, so the write does not happen' END),
       format('DROP TRIGGER %s ON %s', trigger, name)
FROM trigger WHERE NOT tgisinternal AND tgenabled <> 'D' AND (returns_null OR deletes) AND NOT is_meant
UNION ALL
SELECT 'database', CASE WHEN definition ~ ' ON (INSERT|UPDATE|DELETE)\s+TO \S+ DO INSTEAD NOTHING' THEN 'problem'
       ELSE 'doubt' END, format('rule %I on %s does something else instead of the write', rulename, name),
       format('DROP RULE %I ON %s', rulename, name)
FROM pg_rewrite AS w JOIN relation AS r ON r.oid = ev_class
CROSS JOIN regexp_replace(pg_get_ruledef(w.oid), '\s+', ' ', 'g') AS definition
WHERE is_instead AND relkind IN ('r', 'p') AND ev_enabled <> 'D' AND obj_description(w.oid, 'pg_rewrite') IS NULL
UNION ALL
SELECT 'database', 'doubt', format('event trigger %I runs at each %s', evtname, evtevent),
       format('DROP EVENT TRIGGER %I', evtname)
FROM pg_event_trigger AS e
WHERE obj_description(oid, 'pg_event_trigger') IS NULL
  AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 3466 AND objid = e.oid AND deptype = 'e')
UNION ALL
SELECT 'database', 'problem', format('%s is UNLOGGED: a crash empties it', name),
       format('ALTER TABLE %s SET LOGGED', name)
FROM relation WHERE relkind = 'r' AND relpersistence = 'u' AND NOT is_meant
UNION ALL
SELECT 'database', 'problem', format('index %s is invalid', name), format('REINDEX INDEX %s', name)
FROM pg_index AS i JOIN relation AS r ON r.oid = indexrelid
WHERE relkind = 'i' AND NOT (indisvalid AND indisready AND indislive)
  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS p WHERE p.relid = i.indrelid)
UNION ALL
SELECT 'database', 'doubt', format('constraint %I on %s is not checked for every row', conname, name),
       format(CASE WHEN to_jsonb(k) ->> 'conenforced' = 'false' THEN 'ALTER TABLE %s ALTER CONSTRAINT %I ENFORCED'
              ELSE 'ALTER TABLE %s VALIDATE CONSTRAINT %I' END, name, conname)
FROM pg_constraint AS k JOIN relation AS r ON r.oid = conrelid
WHERE NOT convalidated AND obj_description(k.oid, 'pg_constraint') IS NULL
UNION ALL
SELECT 'database', 'problem', format('%s hides public.%I from role %I, in whose search path it is first', name, relname,
       nspname), format('ALTER TABLE %s RENAME TO %I', name, relname || '_hidden')
FROM relation JOIN own ON own.oid = relnamespace
WHERE nspname IN (:application, :owner) AND relkind IN ('r', 'p', 'v', 'm', 'f')
  AND EXISTS (SELECT FROM pg_class AS c WHERE c.relname = relation.relname AND c.relnamespace = 'public'::regnamespace)
UNION ALL
SELECT 'database', 'problem', format('sequence %s has handed out %s of %s numbers', name, last, seqmax),
       format('ALTER SEQUENCE %s AS bigint NO MAXVALUE', name)
FROM numbers WHERE last > 0.9 * seqmax AND NOT seqcycle
UNION ALL
SELECT 'database', 'doubt', format('sequence %s begins again at its end, with numbers that are in use', name),
       format('ALTER SEQUENCE %s NO CYCLE', name)
FROM numbers WHERE seqcycle AND NOT is_meant
UNION ALL
SELECT 'database', 'doubt', format('materialized view %s has no rows yet', name),
       format('REFRESH MATERIALIZED VIEW %s', name)
FROM relation WHERE relkind = 'm' AND NOT relispopulated AND NOT is_meant
UNION ALL
SELECT 'database', 'problem', format('%s sorts by version %s of collation %s, and the system has %s', string_agg(
       DISTINCT r.name, ', '), collversion, k.oid::regcollation, pg_collation_actual_version(k.oid)),
       string_agg(DISTINCT format('REINDEX TABLE %s; ', r.name), '')
       || format('ALTER COLLATION %s REFRESH VERSION', k.oid::regcollation)
FROM pg_collation AS k JOIN pg_attribute ON attcollation = k.oid JOIN relation AS r ON r.oid = attrelid
WHERE relkind IN ('r', 'p', 'm') AND collversion <> pg_collation_actual_version(k.oid)
GROUP BY k.oid, collversion
UNION ALL
SELECT 'database', 'problem', format('database %I sorts by version %s of its collation, and the system has %s', datname,
       datcollversion, pg_database_collation_actual_version(oid)),
       format('REINDEX DATABASE %1$I; ALTER DATABASE %1$I REFRESH COLLATION VERSION', datname)
FROM pg_database
WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)
UNION ALL
SELECT 'server', 'problem', format('replication slot %s has lost its WAL', slot_name),
       format('SELECT pg_drop_replication_slot(%L)', slot_name)
FROM pg_replication_slots WHERE wal_status = 'lost' OR to_jsonb(pg_replication_slots) ->> 'invalidation_reason' <> ''
UNION ALL
SELECT 'database', 'problem', format('prepared transaction %L, since %s, keeps its locks', gid,
       date_trunc('second', prepared)), format('COMMIT or ROLLBACK PREPARED %L, as its coordinator decided', gid)
FROM pg_prepared_xacts WHERE database = current_database() AND prepared < now() - interval '1 minute'
ORDER BY 1, 2, 3
