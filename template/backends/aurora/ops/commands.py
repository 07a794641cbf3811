"""Commands that change which node is the writer."""

from typing import Annotated

import typer

from .cluster.drivers import open_cluster
from .console import print_status, talk
from .failover import bring_back, fail_over


def failover(
    node: Annotated[
        str | None, typer.Argument(help="The reader to promote; by default the one that is furthest ahead.")
    ] = None,
    kill: Annotated[bool, typer.Option("--kill", help="Stop the writer as a power cut would.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if a silent node may have commits that others lack.")
    ] = False,
) -> None:
    """Stop the writer of the local cluster and promote a reader."""
    done = fail_over(open_cluster(), node, kill=kill, force=force)
    print_status()
    before = f", {done.former} is stopped: `rejoin {done.former}` brings it back" if done.former else ""
    talk.print(f"[green]{done.writer} writes[/] after {done.seconds:.2f} s{before}")


def rejoin(node: str) -> None:
    """Make a node follow the present writer; commits that only this node has are lost."""
    writer = bring_back(open_cluster(), node)
    print_status()
    talk.print(f"[green]{node} follows {writer}[/]")
