"""Independent PostgreSQL databases, as the application and its operations have to treat each of them.

A unit of work is in one database; no other knows anything of it. SQLSTATEs:
https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

import re
from typing import Literal, TypeAlias

from sqlalchemy import Connection

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
"""The levels that a unit of work may ask for."""

ISOLATION: IsolationLevel = "READ COMMITTED"
"""Of a unit of work that asks for nothing else."""

HISTORY_IS_SHARED = True
"""What became of a COMMIT that was not answered, its database knows, and no work ever goes to another one instead."""

COPY = True
"""Whether there is COPY FROM STDIN."""

{% include 'template/postgresql/backend.py' %}
