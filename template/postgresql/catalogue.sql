-- The objects of a schema, each with its schema, name and definition. Nodes that agree give the same rows.
-- pg_depend ('e') leaves out objects of extensions, `own` internal ones.
WITH own AS (
    SELECT oid, nspname::text AS schema
    FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
), extension AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), relation AS (
    SELECT schema, c.oid, c.oid::regclass AS name, relkind, relpersistence
    FROM pg_class AS c JOIN own ON own.oid = relnamespace
    WHERE (1259, c.oid) NOT IN (SELECT classid, objid FROM extension)
)
SELECT schema, 'table ' || name, relkind::text || relpersistence::text
FROM relation WHERE relkind IN ('r', 'p', 'f')
UNION ALL
SELECT schema, 'column ' || name || '.' || quote_ident(attname),
       format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END
           || coalesce(' default ' || pg_get_expr(adbin, adrelid), '') || attidentity::text || attgenerated::text
FROM relation AS r JOIN pg_attribute ON attrelid = r.oid LEFT JOIN pg_attrdef ON adrelid = r.oid AND adnum = attnum
WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'f')
UNION ALL
SELECT schema, 'constraint ' || quote_ident(conname) || ' on ' || name, pg_get_constraintdef(k.oid)
FROM pg_constraint AS k JOIN relation AS r ON r.oid = conrelid WHERE contype <> 'n'
UNION ALL
SELECT schema, 'index ' || indexrelid::regclass || ' on ' || name,
       pg_get_indexdef(indexrelid) || CASE WHEN indisvalid THEN '' ELSE ' (invalid)' END
FROM pg_index JOIN relation AS r ON r.oid = indrelid WHERE relkind IN ('r', 'p', 'm')
UNION ALL
SELECT schema, 'sequence ' || name,
       format_type(seqtypid, NULL) || ' start ' || seqstart || ' increment ' || seqincrement
FROM pg_sequence JOIN relation AS r ON r.oid = seqrelid
UNION ALL
SELECT schema, 'view ' || name, md5(pg_get_viewdef(oid)) FROM relation WHERE relkind IN ('v', 'm')
UNION ALL
SELECT schema, 'function ' || p.oid::regprocedure, md5(pg_get_functiondef(p.oid))
FROM pg_proc AS p JOIN own ON own.oid = pronamespace
WHERE prokind IN ('f', 'p') AND (1255, p.oid) NOT IN (SELECT classid, objid FROM extension)
UNION ALL
SELECT schema, 'trigger ' || quote_ident(tgname) || ' on ' || tgrelid::regclass, pg_get_triggerdef(g.oid)
FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = tgrelid JOIN own ON own.oid = relnamespace
WHERE NOT tgisinternal
UNION ALL
SELECT schema, 'enum ' || t.oid::regtype,
       (SELECT string_agg(quote_literal(enumlabel), ',' ORDER BY enumsortorder)
        FROM pg_enum WHERE enumtypid = t.oid)
FROM pg_type AS t JOIN own ON own.oid = typnamespace WHERE typtype = 'e'
