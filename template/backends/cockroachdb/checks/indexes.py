"""Check of indexes against their tables, by what the server has for it."""

import re
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError

from ....db.retry import sqlstate_of
from ...base import numbered
from ...privileges import quoted
from ...topology import software
from ..check import MAX_ROWS, CheckContext, CheckResult, judge
from .stand_in import CockroachDBCheck


class IndexesAreTrue(CockroachDBCheck):
    """Every index has what its table has.

    Make the index anew: CREATE INDEX under another name, then DROP INDEX. Before that, keep what `SHOW INSPECT ERRORS`
    shows, and ask the vendor for the cause.
    """

    timeout = 120.0
    SHOWN = 5  # findings of a table that are named

    def ask(self, connection: Connection, context: CheckContext) -> CheckResult:
        """Let the server compare the indexes of the tables that are not too large."""
        inspect = inspects(software(connection))
        if inspect and connection.scalar(text(_IS_EXPERIMENTAL)):
            connection.execute(text("SET enable_inspect_command = true"))
        problems: list[str] = []
        tables = connection.execute(text("SHOW TABLES")).mappings().all()
        large = [str(one["table_name"]) for one in tables if (one.get("estimated_row_count") or 0) > MAX_ROWS]
        checked = 0
        for one in tables:
            name = str(one["table_name"])
            if one.get("type", "table") == "table" and name not in large:
                checked += 1
                full = f"{quoted(str(one.get('schema_name', 'public')))}.{quoted(name)}"
                found = _inspect(connection, full) if inspect else _scrub(connection, full)
                problems += [f"{name}: {_describe(row)}" for row in found[: self.SHOWN]]
                if len(found) > self.SHOWN:
                    problems.append(f"{name}: {len(found) - self.SHOWN} more")
        left = f"; left out, for their size: {', '.join(large)}" if large else ""
        way = "INSPECT" if inspect else "EXPERIMENTAL SCRUB"
        return judge(problems, f"{way} of {numbered(checked, 'table')}{left}", {"tables": checked, "left": large})


def inspects(reported: str) -> bool:
    """Return True if a server has INSPECT, which replaces EXPERIMENTAL SCRUB from v25.4 on."""
    version = re.search(r"v(\d+)\.(\d+)", reported)
    return version is not None and (int(version[1]), int(version[2])) >= (25, 4)


def job_of(hint: str) -> str | None:
    """Return the number of the job whose findings the hint of an error names."""
    found = re.search(r"SHOW INSPECT ERRORS FOR JOB (\d+)", hint)
    return found[1] if found else None


def _inspect(connection: Connection, table: str) -> list[Row[Any]]:
    """Return what INSPECT finds: https://www.cockroachlabs.com/docs/stable/inspect."""
    try:
        connection.exec_driver_sql(f"INSPECT TABLE {table} WITH OPTIONS INDEX ALL")
    except DBAPIError as error:
        diagnosis: Any = getattr(error.orig, "diag", None)
        job = job_of(str(getattr(diagnosis, "message_hint", None) or ""))
        if sqlstate_of(error) != "22000" or job is None:
            raise
        return list(connection.exec_driver_sql(f"SHOW INSPECT ERRORS FOR JOB {job}"))
    return []


def _scrub(connection: Connection, table: str) -> list[Row[Any]]:
    return list(connection.exec_driver_sql(f"EXPERIMENTAL SCRUB TABLE {table} WITH OPTIONS INDEX ALL"))


def _describe(row: Row[Any]) -> str:
    """Return the kind of a finding and the key of its row."""
    found = row._mapping
    return f"{found.get('error_type', 'differs')} at {found.get('primary_key', 'an unknown key')}"


# CockroachDB 25.4 has INSPECT behind a setting, which later versions ignore.
_IS_EXPERIMENTAL = "SELECT count(*) FROM pg_settings WHERE name = 'enable_inspect_command'"
