"""The command `diff`, which compares the rows of the nodes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from sqlalchemy import URL

from .base import numbered
from .connections import connect_all
from .console import operations_urls, talk
from .differences import AsJson, Limit, Rate, print_lines, report
from .resuming import Progress
from .rows import Comparer, Comparison, Key
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
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep progress in this file; it goes on there if it exists.")
    ] = None,
) -> None:
    """Compare the rows of all nodes while writers go on. Exit 0: they are the same, 1: they differ, 2: not compared."""
    urls = operations_urls()
    progress = Progress(resume, list(urls.owner))
    results = []
    with talk.status("comparing") as status:

        def show(result: Comparison, until: Key | None) -> None:
            status.update(f"comparing: {escape(result.table)}, {result.rows} rows")
            progress.note(result, until)

        with (
            open_comparer(urls.owner, urls.admin, rate=rate, most=limit, on_range=show) as comparer,
            progress.kept(),
        ):
            for table in comparer.tables(tables or ()):
                results.append(progress.compare(table, comparer.compare))
                if not as_json:
                    print_lines(results[-1])
    raise report(results, numbered(len(urls.owner), "node"), as_json=as_json)
