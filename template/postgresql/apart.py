"""The servers, as operations see them: each by itself, so there is nothing to link and nothing to wait for."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.schema import DropSchema

SYSTEM_SCHEMAS: frozenset[str] = frozenset()
"""Schemas that belong to the cluster's software: there is none."""

PATIENCE = 30.0
"""Seconds that a schema change may take to arrive: nobody waits for one here."""


class TopologyError(Exception):
    """The servers are not what they should be; the message names them and the cause."""


@dataclass(frozen=True)
class Link:
    """One direction of replication, of which there is none here."""

    origin: str
    receiver: str
    state: str


def writers(connections: Mapping[str, Connection]) -> list[str]:
    """The nodes that take writes: all of them, each for its own databases."""
    return list(connections)


def schema_nodes(connections: Mapping[str, Connection]) -> list[str]:
    """Where a change of the schema has to be run: on every node that it is meant for."""
    return list(connections)


def settle(connections: Mapping[str, Connection]) -> None:
    """Nothing to wait for: what changed on a node is known there, and concerns no other."""


def drop_schema(connections: Mapping[str, Connection], schema: str) -> None:
    """Remove a schema, with all that is in it, from every node."""
    for connection in connections.values():
        connection.execute(DropSchema(schema, cascade=True, if_exists=True))


{% include 'template/postgresql/alone.py' %}


def node_number(connection: Connection) -> int:
    """The number of a node, for keys that carry one: none here does."""
    return 1


def links(connections: Mapping[str, Connection]) -> list[Link]:
    """There is no link."""
    return []


def fence(connections: Mapping[str, Connection], *, timeout: float = 10.0) -> None:
    """Nothing to wait for, as for `settle`."""


def unreplicable_tables(connection: Connection) -> list[tuple[str, str]]:
    """The tables that are UNLOGGED, each with what that would lose here."""
    return [(name, f"it is UNLOGGED: {_LOST}") for name in connection.scalars(text(_UNLOGGED))]


def refusal(statement: str) -> str | None:
    """Why a migration must not contain `statement`: what concerns one server alone, or an UNLOGGED table; None if it may.

    Args:
        statement: SQL without comments and literals, in upper case, with single spaces.
    """
    for pattern, reason in _REFUSED:
        if re.match(pattern, statement):
            return reason
    return None


_UNLOGGED = """
    SELECT n.nspname || '.' || c.relname
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    ORDER BY 1
"""
