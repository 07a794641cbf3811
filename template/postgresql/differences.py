"""Results of a comparison of rows, as commands and checks tell them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, TypeAlias

import typer
from rich.markup import escape

from .base import numbered
from .console import out, talk
from .rows import Comparison

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]
Limit: TypeAlias = Annotated[int, typer.Option(min=1, help="Differences after which a table is left.")]
Rate: TypeAlias = Annotated[float, typer.Option(min=0, help="Rows a second to read on each node; 0: no limit.")]


def report(results: Sequence[Comparison], compared: str, *, as_json: bool) -> typer.Exit:
    """Print results and return the exit status: 0 if all are the same, else 1; `compared` is what was compared."""
    same = all(result.agrees for result in results)
    if as_json:
        print(json.dumps({"same": same, "tables": [asdict(result) for result in results]}, indent=2))
    else:
        verdict = "[green]the same[/]" if same else "[red]not the same[/]"
        numbers = {"table": len(results), "row": sum(result.rows for result in results)}
        counts = ", ".join(numbered(number, word) for word, number in numbers.items())
        talk.print(f"{verdict}: {counts}, {compared}")
    return typer.Exit(0 if same else 1)


def print_lines(result: Comparison) -> None:
    """Print what a comparison has found."""
    for line in (*result.findings, *result.doubts):
        out.print(escape(line))
    if result.earlier:
        talk.print(escape(f"{result.table}: {result.earlier}"))
