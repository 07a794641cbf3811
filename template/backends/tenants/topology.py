"""The servers as the operations see them: independent of each other, each with the databases of some tenants."""

from typer import Typer

from .base import BaseTopology


class Topology(BaseTopology):
    """Independent servers."""

    unlogged_tables = "its rows stay behind when its database moves to another server"
    refused = (
        (r"ALTER SYSTEM\b", "settings belong to one server"),
        (r"CREATE UNLOGGED |ALTER TABLE .*SET UNLOGGED\b", f"an UNLOGGED table: {unlogged_tables}"),
        (r"(CREATE|ALTER|DROP) (DATABASE|ROLE|USER|TABLESPACE)\b", "roles and databases belong to one server"),
    )

    @staticmethod
    def register_commands(app: Typer) -> None:
        """Add the commands that administer tenants."""
        from .commands import tenants

        app.add_typer(tenants, name="tenants")
