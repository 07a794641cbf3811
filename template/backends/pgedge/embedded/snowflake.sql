{% include 'template/keys/snowflake/functions.sql' %}
