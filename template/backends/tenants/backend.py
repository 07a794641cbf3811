"""Independent PostgreSQL servers, as the application and its operations have to treat them.

A unit of work is in one database, which is on one server; no other server knows anything of it.
SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

import re
from typing import Literal, TypeAlias

from sqlalchemy import Connection

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
"""The levels that a unit of work may ask for."""

ISOLATION: IsolationLevel = "READ COMMITTED"
"""Of a unit of work that asks for nothing else."""

HISTORY_IS_SHARED = True
"""What became of a COMMIT that was not answered, the database knows, on whichever server it is by then."""

COPY = True
"""Whether there is COPY FROM STDIN."""

{% include 'template/postgresql/backend.py' %}
