    -- Objects of extensions are left out by pg_depend ("e"), internal ones by their schema.
    WITH own AS (
        SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    ), extension AS (
        SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
    )
    SELECT own.nspname::text,
           'table ' || c.oid::regclass,
           c.relkind::text || c.relpersistence::text
    FROM pg_class AS c JOIN own ON own.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND (1259, c.oid) NOT IN (SELECT classid, objid FROM extension)
  UNION ALL
    SELECT own.nspname::text,
           'column ' || c.oid::regclass || '.' || quote_ident(a.attname),
           format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
               || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '') || a.attidentity::text || a.attgenerated::text
    FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid JOIN own ON own.oid = c.relnamespace
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f')
      AND (1259, c.oid) NOT IN (SELECT classid, objid FROM extension)
  UNION ALL
    SELECT own.nspname::text,
           'constraint ' || quote_ident(k.conname) || ' on ' || k.conrelid::regclass,
           pg_get_constraintdef(k.oid)
    FROM pg_constraint AS k JOIN own ON own.oid = k.connamespace
    WHERE k.conrelid <> 0 AND k.contype <> 'n'
      AND (1259, k.conrelid) NOT IN (SELECT classid, objid FROM extension)
  UNION ALL
    SELECT own.nspname::text, 'index ' || i.indexrelid::regclass || ' on ' || i.indrelid::regclass,
           pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid THEN '' ELSE ' (invalid)' END
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid JOIN own ON own.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm') AND (1259, c.oid) NOT IN (SELECT classid, objid FROM extension)
  UNION ALL
    SELECT own.nspname::text, 'sequence ' || s.seqrelid::regclass,
           format_type(s.seqtypid, NULL) || ' start ' || s.seqstart || ' increment ' || s.seqincrement
    FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid JOIN own ON own.oid = c.relnamespace
    WHERE (1259, s.seqrelid) NOT IN (SELECT classid, objid FROM extension)
  UNION ALL
    SELECT own.nspname::text, 'view ' || c.oid::regclass, md5(pg_get_viewdef(c.oid))
    FROM pg_class AS c JOIN own ON own.oid = c.relnamespace
    WHERE c.relkind IN ('v', 'm') AND (1259, c.oid) NOT IN (SELECT classid, objid FROM extension)
  UNION ALL
    SELECT own.nspname::text, 'function ' || p.oid::regprocedure, md5(pg_get_functiondef(p.oid))
    FROM pg_proc AS p JOIN own ON own.oid = p.pronamespace
    WHERE p.prokind IN ('f', 'p') AND (1255, p.oid) NOT IN (SELECT classid, objid FROM extension)
  UNION ALL
    SELECT own.nspname::text, 'trigger ' || quote_ident(g.tgname) || ' on ' || g.tgrelid::regclass, pg_get_triggerdef(g.oid)
    FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = g.tgrelid JOIN own ON own.oid = c.relnamespace
    WHERE NOT g.tgisinternal
  UNION ALL
    SELECT own.nspname::text, 'enum ' || t.oid::regtype,
           (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = t.oid)
    FROM pg_type AS t JOIN own ON own.oid = t.typnamespace
    WHERE t.typtype = 'e'
