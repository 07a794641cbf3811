"""The commands that only a writer with readers needs."""

from typing import Annotated

import typer

from .cluster.kinds import open_cluster
from .console import Debug, explained, print_status, talk
from .failover import bring_back, fail_over


def failover(
    node: Annotated[
        str | None, typer.Argument(help="The reader to promote; if absent the one that is furthest ahead.")
    ] = None,
    kill: Annotated[bool, typer.Option("--kill", help="Stop the writer as a power cut would.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also if a silent node may have what others lack.")] = False,
    debug: Debug = False,
) -> None:
    """Stop the writer of the local cluster and promote a reader."""
    with explained(debug):
        cluster = open_cluster()
        done = fail_over(cluster, node, kill=kill, force=force)
        print_status(cluster)
        before = f", {done.former} is stopped: `rejoin {done.former}` brings it back" if done.former else ""
        talk.print(f"[green]{done.writer} writes[/] after {done.seconds:.2f} s{before}", highlight=False)


def rejoin(node: str, debug: Debug = False) -> None:
    """Let a node follow the present writer: what only it has written is lost."""
    with explained(debug):
        cluster = open_cluster()
        writer = bring_back(cluster, node)
        print_status(cluster)
        talk.print(f"[green]{node} follows {writer}[/]", highlight=False)
