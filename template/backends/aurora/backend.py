"""A PostgreSQL writer and its readers, as the application and its operations have to treat them.

One node takes writes; the others repeat its log, a moment later, and refuse to write. Which one is the writer changes at a
failover. SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

import re
from typing import Literal, TypeAlias

from sqlalchemy import Connection

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
"""The levels that a unit of work may ask for."""

ISOLATION: IsolationLevel = "READ COMMITTED"
"""Of a unit of work that asks for nothing else."""

HISTORY_IS_SHARED = True
"""What became of a COMMIT that was not answered, the present writer knows, whoever was asked."""

COPY = True
"""Whether there is COPY FROM STDIN."""

{% include 'template/postgresql/backend.py' %}
