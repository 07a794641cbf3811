-- Creates the roles, once, with the database that psql is connected to.

\set database :DBNAME
{% set passwords = '/run/passwords' %}
{% include 'template/postgresql/roles.sql' %}

ALTER DATABASE :"database" OWNER TO :"owner";
\i /run/passwords/privileges.sql
