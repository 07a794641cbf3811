-- The objects of a schema, each with its schema, name and definition. Nodes that agree give the same rows.
SELECT table_schema::text, 'column ' || table_name || '.' || column_name,
       data_type || coalesce('(' || character_maximum_length || ')', '')
           || coalesce('(' || numeric_precision || ',' || numeric_scale || ')', '')
           || CASE is_nullable WHEN 'NO' THEN ' not null' ELSE '' END || coalesce(' default ' || column_default, '')
FROM information_schema.columns
WHERE table_schema NOT IN ('information_schema', 'pg_catalog', 'pg_extension')
  AND right(table_schema::text, 9) <> '_internal'
UNION ALL
SELECT schemaname::text, 'index ' || tablename || '.' || indexname, indexdef
FROM pg_indexes
WHERE schemaname NOT IN ('information_schema', 'pg_catalog', 'pg_extension')
  AND right(schemaname::text, 9) <> '_internal'
UNION ALL
SELECT n.nspname::text, 'constraint ' || k.conname || ' on ' || t.relname, pg_get_constraintdef(k.oid)
FROM pg_constraint AS k
JOIN pg_class AS t ON t.oid = k.conrelid
JOIN pg_namespace AS n ON n.oid = t.relnamespace
WHERE k.contype <> 'n' AND n.nspname NOT IN ('information_schema', 'pg_catalog', 'pg_extension')
  AND right(n.nspname::text, 9) <> '_internal'
