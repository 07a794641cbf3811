-- Give each role of a database its privileges. A superuser runs this in the database; it may run again.
-- Variables of psql: database, and the roles owner, application, reader and monitor.

-- By default every role of a server may connect to every database, and make temporary objects in it.
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT ALL ON SCHEMA public TO :"owner";
GRANT CONNECT ON DATABASE :"database" TO :"application";
GRANT CONNECT ON DATABASE :"database" TO :"reader";
GRANT CONNECT ON DATABASE :"database" TO :"monitor";

-- Privileges on the objects that exist.
GRANT USAGE ON SCHEMA public TO :"application";
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO :"application";
GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA public TO :"application";
GRANT USAGE ON SCHEMA public TO :"reader";
GRANT SELECT ON ALL TABLES IN SCHEMA public TO :"reader";

-- Privileges on the objects that the owner is going to make. A bulk load raises a sequence above the keys that its rows
-- bring, and needs UPDATE.
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT USAGE ON SCHEMAS TO :"application";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"application";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT SELECT, USAGE, UPDATE ON SEQUENCES TO :"application";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT USAGE ON SCHEMAS TO :"reader";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT SELECT ON TABLES TO :"reader";
