"""Printing, and turning errors into messages. Results go to stdout, everything else to stderr."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import psycopg
import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from typer.core import TyperGroup

from ..db import DistributedSQLError
from ..db.retry import first_line
from ..settings import PREFIX, Settings
from . import PROGRAM
from .base import OperationError
from .cluster import ClusterError
from .cluster.drivers import open_cluster

Down: TypeAlias = Annotated[bool, typer.Option("--down", help="Undo revisions; you are shown what is lost.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", help="Undo without the question; needed without a terminal.")]
Contract: TypeAlias = Annotated[
    bool, typer.Option("--contract", help="Also run revisions that take away what earlier code uses.")
]
Wait: TypeAlias = Annotated[float, typer.Option(min=0, help="Seconds to wait for another migration to end.")]
ShowPlan: TypeAlias = Annotated[bool, typer.Option("--plan", help="Only show the statements, with their locks.")]
ShowSql: TypeAlias = Annotated[bool, typer.Option("--sql", help="Only print the SQL.")]
PlanAsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")]


def _console(*, stderr: bool = False) -> Console:
    """Return a console for a stream; only a terminal's lines have a width."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=None if stream.isatty() else 10_000)


out, talk = _console(), _console(stderr=True)


class Commands(TyperGroup):
    """Commands that end with a message and exit status 2 if they cannot be done; `--debug` shows the traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--debug` to the front, because it is accepted after the command as well."""
        return super().parse_args(ctx, sorted(args, key=lambda argument: argument != "--debug"))

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            name = "_".join(str(part) for part in problem["loc"]).upper() or "…"
            message = f"setting {PREFIX}{name}: {problem['msg'].removeprefix('Value error, ')}"
        except (OperationError, SettingsError, DistributedSQLError, DBAPIError, psycopg.Error) as error:
            if ctx.params["debug"]:
                raise
            is_refused = isinstance(error, DBAPIError | psycopg.Error)
            message = f"the database refused: {first_line(error)}" if is_refused else str(error)
        except BrokenPipeError:
            # The reader has seen enough: `… | head`.
            raise
        except OSError as error:
            if ctx.params["debug"]:
                raise
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except KeyboardInterrupt:
            talk.print("[red]interrupted[/]: what was finished stays; run it again to go on")
            sys.exit(130)
        talk.print(f"[red]error[/]: {escape(message)}")
        sys.exit(2)


def configured_urls() -> dict[str, URL]:
    """Return the nodes' URLs for the application's role, or raise ClusterError."""
    settings = Settings()
    if not settings.nodes:
        raise ClusterError(f"No node is configured. Start a local cluster with `{PROGRAM} up`, or set {PREFIX}NODES.")
    return settings.urls()


@dataclass(frozen=True)
class NodeUrls:
    """URLs of the nodes for each role that an operation needs."""

    application: dict[str, URL]
    owner: dict[str, URL]
    admin: dict[str, URL]


def operations_urls(*, read_only: bool = False) -> NodeUrls:
    """Return the nodes' URLs for all roles of the operations; raise ClusterError if the settings lack one.

    Args:
        read_only: nothing is written, so the role of the application's URLs may stand in for the owner.
    """
    urls, settings = configured_urls(), Settings()
    if read_only and not settings.owner_nodes:
        return NodeUrls(urls, urls, settings.admin_urls())
    if not settings.owner_nodes:
        raise ClusterError(
            f"{PREFIX}OWNER_NODES is not set, and migrations and checks need it: the same nodes for the role that owns "
            "the tables."
        )
    return NodeUrls(urls, settings.owner_urls(), settings.admin_urls())


def confirm_loss(loss: str, target: str, *, yes: bool) -> None:
    """Show what going down to `target` loses and let the user type the target; raise OperationError to prevent it."""
    talk.print(escape(loss))
    if yes:
        return
    if not sys.stdin.isatty():
        raise OperationError("Nothing is undone, because there is no terminal to confirm it: repeat it with --yes")
    try:
        typed = typer.prompt(f"Type {target} to lose that", default="", show_default=False, err=True)
    except typer.Abort:
        typed = ""
    if typed != target:
        raise OperationError(f"Nothing is undone: {target} was not typed")


def print_status() -> None:
    """Print the nodes of the local cluster as a table."""
    table = Table("node", "role", "address", "state", box=None, pad_edge=False, header_style="dim")
    for node in open_cluster().status():
        colour = "green" if node.state == "up" else "red"
        table.add_row(node.name, node.role, f"127.0.0.1:{node.port}", f"[{colour}]{node.state}[/]")
    out.print(table)
