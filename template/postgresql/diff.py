"""The command `diff`, which compares the rows of the nodes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.markup import escape
from sqlalchemy import URL

from .base import numbered
from .connections import connect_all
from .console import operations_urls, talk
from .differences import AsJson, Limit, Rate, print_lines, report
from .rows import Comparer
from .topology import Topology


@contextmanager
def open_comparer(owner_urls: Mapping[str, URL], admin_urls: Mapping[str, URL], **options: Any) -> Iterator[Comparer]:
    """Connect to every node twice, to read tables as their owner and to see how far replication is."""
    with (
        connect_all(owner_urls, statement_timeout=60) as readers,
        connect_all(admin_urls, pinned=True) as watchers,
    ):
        topology = Topology(watchers)
        topology.check_peers(len(watchers))
        yield Comparer(readers, wait_for_catchup=topology.wait_for_catchup, **options)


def diff(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables to compare; all by default.")] = None,
    as_json: AsJson = False,
    limit: Limit = 100,
    rate: Rate = 0,
) -> None:
    """Compare the rows of all nodes while writers go on. Exit 0: they are the same, 1: they differ, 2: not compared."""
    urls = operations_urls()
    results = []
    with talk.status("comparing") as status:

        def show(table: str, rows: int) -> None:
            status.update(f"comparing: {escape(table)}, {rows} rows")

        with open_comparer(urls.owner, urls.admin, rate=rate, most=limit, on_rows=show) as comparer:
            for table in comparer.tables(tables or ()):
                results.append(comparer.compare(table))
                if not as_json:
                    print_lines(results[-1])
    raise report(results, numbered(len(urls.owner), "node"), as_json=as_json)
