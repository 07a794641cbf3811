"""A live view of the nodes and links, which only reads: a table on a terminal, elsewhere a line for each change."""

import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy import URL

from ..base import OperationError, numbered
from ..connections import refuse_writes
from .look import Look, look_at

INTERVAL = 1.0
"""Seconds between two looks."""

LAG_LIMIT = 1.0
"""Seconds from which a link lags."""


def watch(admin_urls: Mapping[str, URL], console: Console) -> None:
    """Show the cluster until Ctrl-C.

    Raises:
        OperationError: no node answers the first look.
    """
    before: dict[str, str] = {}
    with suppress(KeyboardInterrupt), refuse_writes():
        look = look_at(admin_urls)
        if not look.software:
            causes = "; ".join(f"{node}: {cause}" for node, cause in look.silent.items())
            raise OperationError(f"no node answers: {causes}")
        with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
            while True:
                if live is not None:
                    live.update(_tables(look), refresh=True)
                else:
                    now = states(look)
                    for name in (one for one in {**before, **now} if now.get(one) != before.get(one)):
                        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {name}: {now.get(name, 'unknown')}"
                        console.print(line, markup=False, soft_wrap=True)
                    before = now
                time.sleep(INTERVAL)
                look = look_at(admin_urls)


def states(look: Look) -> dict[str, str]:
    """Return the state of each node and of each link in a few words."""
    found = {node: f"no answer: {cause}" for node, cause in look.silent.items()}
    for node in look.software:
        conflicts = f", {numbered(count, 'conflict')}" if (count := look.conflicts.get(node)) else ""
        found[node] = f"{'writes' if node in look.writers else 'reads'}{conflicts}"
    for link in look.links:
        lag = ", lags" if link.lag is not None and link.lag > LAG_LIMIT else ""
        errors = f", {numbered(count, 'failure')} to apply a change" if (count := look.errors.get(link.name)) else ""
        found[link.name] = f"{link.state}{lag}{errors}"
    return found | ({"links": look.problem} if look.problem else {})


def _tables(look: Look) -> Group:
    nodes = Table("node", "state", "role", Column("conflicts", justify="right"), "server", box=None, header_style="dim")
    for node in look.nodes:
        cause = look.silent.get(node)
        state = "[green]✓ answers[/]" if cause is None else "[red]✕ no answer[/]"
        about = look.software[node] if cause is None else cause
        nodes.add_row(escape(node), state, look.role(node), str(look.conflicts.get(node, "")), escape(about))
    links = Table("link", "state", Column("lag", justify="right"), Column("errors", justify="right"), box=None)
    links.header_style = "dim"
    for link in look.links:
        state = f"[green]✓ {escape(link.state)}[/]" if link.is_up else f"[red]✕ {escape(link.state)}[/]"
        lag = "" if link.lag is None else f"{1000 * link.lag:.0f} ms"
        links.add_row(escape(link.name), state, lag, str(look.errors.get(link.name, "")))
    rest = [f"[red]{escape(look.problem)}[/]"] if look.problem else []
    return Group(f"{datetime.now():%H:%M:%S}, Ctrl-C ends", nodes, *([links] if look.links else []), *rest)
