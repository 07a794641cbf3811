-- Creates the roles and the application's database, once on each server, before it takes connections. Tenants get roles
-- of their own, and databases of the same owner.

\set database `echo "$DATABASE"`
{% set passwords = '/setup' %}
{% include 'template/postgresql/roles.sql' %}

CREATE DATABASE :"database" OWNER :"owner";

\connect :"database"
\i /setup/privileges
