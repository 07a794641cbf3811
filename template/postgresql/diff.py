"""The command `diff`, which compares the rows of the nodes."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from sqlalchemy import URL

from .base import numbered
from .connections import connect_all
from .console import operations_urls, out, talk
from .rows import Comparer, Comparison
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Differences after which a table is left.")] = 100,
    rate: Annotated[float, typer.Option(min=0, help="Rows a second to read on each node; 0: no limit.")] = 0,
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
                    for line in (*describe(results[-1]), *undecided(results[-1])):
                        out.print(escape(line))
    same = all(result.agrees for result in results)
    if as_json:
        print(json.dumps({"same": same, "tables": [asdict(result) for result in results]}, indent=2))
    else:
        numbers = {"table": len(results), "row": sum(result.rows for result in results), "node": len(urls.owner)}
        verdict = "[green]the same[/]" if same else "[red]not the same[/]"
        counts = ", ".join(numbered(number, word) for word, number in numbers.items())
        talk.print(f"{verdict}: {counts}")
    raise typer.Exit(0 if same else 1)


def describe(result: Comparison) -> list[str]:
    """Return a line for each difference of a table."""
    lines = [str(difference) for difference in result.differences]
    if result.problem:
        lines.append(f"{result.table}: {result.problem}")
    if not result.is_complete:
        lines.append(f"{result.table}: the rest was not compared, after {len(result.differences)} differences")
    return lines


def undecided(result: Comparison) -> list[str]:
    """Return a line if nothing can be said of some rows of a table."""
    rows = numbered(result.busy, "row")
    return [f"{result.table}: {rows} left out, written between all looks"] if result.busy else []
