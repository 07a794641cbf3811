"""The roles of a database, and what each of them may do: the statements of `privileges.sql`.

The owner runs migrations and owns everything. The application reads and writes rows. The reader reads rows, and the
monitor sees the state of the server and no rows. None of the last three can make an object, so nothing that one of them
defines is ever evaluated with the rights of another role.
"""

import re
from pathlib import Path

from sqlalchemy import Connection, text

VERSION_TABLE = "alembic_version"
"""Table of the revisions, which only the owner may write."""


def privilege_statements(**names: str) -> list[str]:
    """Return the statements that give each role what it may do in one database, for a superuser who is in it.

    Args:
        **names: names of the database and of the roles: `database`, `owner`, `application`, `reader`, `monitor`.
            Statements for a role that has no name here are left out.
    """
    lines = Path(__file__).with_name("privileges.sql").read_text(encoding="utf-8").splitlines()
    plain = "\n".join(line for line in lines if not line.startswith("--"))
    statements = [statement.strip() for statement in plain.split(";") if statement.strip()]
    return [
        _VARIABLE.sub(lambda found: quoted(names[found[1]]), statement)
        for statement in statements
        if names.keys() >= set(_VARIABLE.findall(statement))
    ]


def quoted(name: str) -> str:
    """Return a name as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def protect_version_table(connection: Connection) -> None:
    """Take all but SELECT on the table of revisions from every role but its owner, who has the connection."""
    if connection.dialect.driver != "psycopg":
        return
    for grantee, privilege in connection.execute(text(_GRANTED), {"table": VERSION_TABLE}).all():
        role = grantee if grantee == "PUBLIC" else quoted(grantee)
        connection.exec_driver_sql(f"REVOKE {privilege} ON {VERSION_TABLE} FROM {role}")


_VARIABLE = re.compile(r':"(\w+)"')

# Some servers list the rights of those who may do everything as grants; nobody can take them away.
_GRANTED = """
    SELECT grantee, privilege_type FROM information_schema.table_privileges
    WHERE table_schema = current_schema() AND table_name = :table
      AND privilege_type <> 'SELECT' AND grantee NOT IN (current_user, 'admin', 'root')
"""
