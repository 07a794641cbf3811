"""The servers as the operations see them: independent of each other, each with the databases of some tenants."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL
from typer import Typer

from ..db import Database
from ..db.tenants import Tenants
from ..settings import Settings
from . import PROGRAM
from .base import BaseTopology, OperationError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory


class Topology(BaseTopology):
    """Independent servers."""

    unlogged_tables = "its rows stay behind when its database moves to another server"
    refused = (
        (r"ALTER SYSTEM\b", "settings belong to one server"),
        (r"CREATE UNLOGGED |ALTER TABLE .*SET UNLOGGED\b", f"an UNLOGGED table: {unlogged_tables}"),
        (r"(CREATE|ALTER|DROP) (DATABASE|ROLE|USER|TABLESPACE)\b", "roles and databases belong to one server"),
    )

    databases = "tenant"

    @staticmethod
    @contextmanager
    def open_other_database(name: str) -> Iterator[Database]:
        """Open the database of a tenant."""
        with Tenants.from_settings(Settings()) as tenants:
            if name not in tenants.names():
                raise OperationError(f"there is no tenant {name!r} that is served; `{PROGRAM} tenants list` shows all")
            yield tenants.of(name)

    @staticmethod
    def versions_of_other_databases(
        owner_urls: Mapping[str, URL], *, project: Path
    ) -> dict[str, tuple["ScriptDirectory", str, str | None]]:
        """Return the version of each tenant's database, which is asked itself."""
        from .tenant_migrations import versions

        return versions(project)

    @staticmethod
    def register_commands(app: Typer) -> None:
        """Add the commands that administer tenants."""
        from .commands import tenants

        app.add_typer(tenants, name="tenants")
