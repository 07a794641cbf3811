"""Printing, and turning errors into messages, for all commands.

Results go to stdout, everything else to stderr. Exit 0: done, 1: a check failed, 2: it could not be done, and the
message has the reason.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import psycopg
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..db import DistributedSQLError
from ..db.retry import first_line
from ..settings import PREFIX, Settings
from .base import TopologyError
from .cluster import Cluster, ClusterError
from .connections import Unreachable

PROGRAM = __name__.partition(".")[0]
"""Name of the program, which is that of the package."""

EXPECTED = (ClusterError, DistributedSQLError, TopologyError, Unreachable)
"""Errors that are no defects: they are printed in one line, without a traceback."""

out = Console()
talk = Console(stderr=True)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def errors_as_messages(debug: bool, *also: type[Exception]) -> Iterator[None]:
    """Turn an error that commands expect, or one of `also`, into a message and exit status 2; `debug` lets it pass."""
    expected: tuple[type[Exception], ...] = (*EXPECTED, *also)
    try:
        yield
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in problem["loc"]).upper() or "…"
        give_up(f"setting {PREFIX}{name}: {problem['msg'].removeprefix('Value error, ')}")
    except expected as error:
        if debug:
            raise
        give_up(str(error))
    except (DBAPIError, psycopg.Error) as error:
        if debug:
            raise
        give_up(f"the database refused: {first_line(error)}")


def give_up(message: str) -> NoReturn:
    """Print why it could not be done, and exit with status 2."""
    talk.print(f"[red]error[/]: {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(2)


def configured_urls() -> tuple[dict[str, URL], dict[str, URL]]:
    """Return the nodes' URLs for the application's role, and for the role that may do more.

    Raises:
        ClusterError: no node is configured.
    """
    settings = Settings()
    if not settings.nodes:
        raise ClusterError(f"No node is configured. Start a local cluster with `{PROGRAM} up`, or set {PREFIX}NODES.")
    return settings.urls(), settings.admin_urls()


def print_status(cluster: Cluster) -> None:
    """Print the nodes of a local cluster as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("node", "role", "address", "state"):
        table.add_column(heading)
    for node in cluster.status():
        colour = "green" if node.state == "up" else "red"
        table.add_row(node.name, node.role, f"127.0.0.1:{node.port}", f"[{colour}]{node.state}[/]")
    out.print(table)
