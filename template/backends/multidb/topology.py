"""The servers as the operations see them: unrelated to each other, and one of them holds the tables of models.py."""

from collections.abc import Callable, Mapping

from sqlalchemy.engine import URL
from typer import Typer

from .base import BaseTopology, Step


class Topology(BaseTopology):
    """Unrelated databases."""

    nodes_without_models = frozenset({"n2", "n3"})
    migrate_help = "Migrate the ledger to one revision, and every other database to its newest."
    unlogged_tables = "a crash of its server empties it, while the other databases keep their rows"
    refused = (
        (r"ALTER SYSTEM\b", "settings belong to one server"),
        (r"CREATE UNLOGGED |ALTER TABLE .*SET UNLOGGED\b", f"an UNLOGGED table: {unlogged_tables}"),
        (r"(CREATE|ALTER|DROP) (DATABASE|ROLE|USER|TABLESPACE)\b", "roles and databases belong to one server"),
    )

    @staticmethod
    def migrate_other_databases(
        owner_urls: Mapping[str, URL], *, on_step: Callable[[Step], None], wait: float
    ) -> dict[str, str]:
        """Migrate the databases with a folder of their own in `migrations` to their newest revision."""
        from .histories import migrate

        return migrate(owner_urls, on_step=on_step, wait=wait)

    @staticmethod
    def register_commands(app: Typer) -> None:
        """Add the commands for what happens between the databases."""
        from .commands import fdw, messages, reports, twophase

        app.add_typer(fdw, name="fdw")
        app.add_typer(messages, name="messages")
        app.add_typer(reports, name="reports")
        app.add_typer(twophase, name="twophase")
