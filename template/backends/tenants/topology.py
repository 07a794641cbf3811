{% include 'template/postgresql/apart.py' %}


_LOST = "its rows stay behind when its database moves to another server"

_REFUSED = (
    (r"ALTER SYSTEM\b", "settings are a matter of one server"),
    (r"CREATE UNLOGGED ", f"an UNLOGGED table: {_LOST}"),
    (r"ALTER TABLE .*SET UNLOGGED\b", f"an UNLOGGED table: {_LOST}"),
    (r"(CREATE|ALTER|DROP) (DATABASE|ROLE|USER|TABLESPACE)\b", "roles and databases are a matter of one server"),
)
