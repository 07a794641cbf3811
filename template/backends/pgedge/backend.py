"""pgEdge (PostgreSQL with Spock), as the application and its operations have to treat it.

Each node is a PostgreSQL server of its own that takes writes. Locks, uniqueness and foreign keys hold on one node; what one
node committed reaches the others a moment later. SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

import re
from typing import Literal, TypeAlias

from sqlalchemy import Connection

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
"""The levels that a unit of work may ask for."""

ISOLATION: IsolationLevel = "READ COMMITTED"
"""Of a unit of work that asks for nothing else: SERIALIZABLE would hold on one node only."""

HISTORY_IS_SHARED = False
"""What became of a COMMIT that was not answered, only the node knows that was asked."""

COPY = True
"""Whether there is COPY FROM STDIN; its rows reach the other nodes as those of an INSERT do."""

{% include 'template/postgresql/backend.py' %}
