"""`python -m benchmarks`: run the rows, print the table, write the report."""

import argparse
import importlib
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground
from benchmarks.rows import Answer, Row, answer

TOPICS = (
    "keys",
    "bulk",
    "routing",
    "retry",
    "failover",
    "replicas",
    "replica_reads",
    "promotion",
    "tenants",
    "several",
    "diff",
    "before",
)
"""Modules with rows, in the order of the table."""

REPORT = Path(__file__).with_name("report.json")

BROKEN, BAD_INPUT = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows that the command line selects; a missed goal is a result, not a failure."""
    options = _options(arguments)
    wanted = (options.only or "").casefold()
    rows = [row for row in all_rows() if wanted in row.name.casefold()]
    if not rows:
        print(f"No row's name holds {options.only!r}. The rows are:", file=sys.stderr)
        for row in all_rows():
            print(f"  {row.name}", file=sys.stderr)
        return BAD_INPUT
    # The rows lose thousands of races and stop nodes on purpose; the table has the outcome.
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    talk = Console(stderr=True, log_path=False)
    answers: list[Answer] = []
    started = time.monotonic()
    with Ground(quick=options.quick, debug=options.debug, console=talk, before=options.before) as ground:
        for row in rows:
            answers.append(answer(row, ground))
            talk.log(f"{_verdict(answers[-1])}  {row.name}")
    # A log or a file has no width to fit.
    show(answers, Console(width=None if sys.stdout.isatty() else 140))
    hurried = ", quick: fewer rounds than the goals are meant for" if options.quick else ""
    print(f"{time.monotonic() - started:.0f} s{hurried}")
    report = [found.as_json() for found in answers]
    options.report.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return BROKEN if any(found.failed for found in answers) else 0


def all_rows() -> list[Row]:
    """Return the rows of every topic."""
    return [row for topic in TOPICS for row in importlib.import_module(f"benchmarks.{topic}").ROWS]


def show(answers: Sequence[Answer], console: Console) -> None:
    """Print the table, and below it the notes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "what"):
        table.add_column(column)
    for column in ("ours", "alternative", "value", "goal"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("met")
    for number, found in enumerate(answers, start=1):
        measured = found.measured
        value = f"{measured.value:.3g} {found.row.unit}" if measured else "—"
        cells = [measured.ours, measured.alternative] if measured else ["", ""]
        table.add_row(str(number), found.row.name, *cells, value, str(found.row.goal), _verdict(found))
    console.print(table)
    for number, found in enumerate(answers, start=1):
        if found.note:
            console.print(
                f"{number:>3}  {found.note}", style=None if found.met is False else "dim", highlight=False
            )


def _verdict(found: Answer) -> str:
    if found.failed:
        return "[red]BROKEN[/]"
    return {True: "[green]yes[/]", False: "[red]NO[/]", None: "[yellow]SKIP[/]"}[found.met]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ours against the alternatives."
    )
    parser.add_argument("--only", metavar="TEXT", help="only rows whose name holds TEXT")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: shows that it runs, not how fast")
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FILE", help="where to write the JSON")
    parser.add_argument(
        "--before", type=Path, metavar="FOLDER", help="checkout of an older build to compare with"
    )
    parser.add_argument("--debug", action="store_true", help="stop with a traceback where a row breaks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
