"""The report for people, as JSON and as JUnit XML."""

import json
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from .check import Report, Status

COLOURS = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.SKIP: "cyan"}


def print_report(report: Report, console: Console) -> None:
    """Print each check, as a row on a terminal and as a line elsewhere, and the hint of each that failed."""
    if console.is_terminal:
        console.print(_table(report))
    else:
        for run in report.runs:
            line = f"{run.result.status} {run.check.title()}: {run.result.summary} ({run.duration:.2f} s)"
            console.print(line, markup=False)
    for run in report.runs:
        if run.result.status is Status.FAIL and run.check.hint():
            console.print(f"[red]{run.check.title()}[/]: {run.check.hint()}", highlight=False)
    statuses = [run.result.status for run in report.runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in Status if status in statuses)
    console.print(f"{counts}; seed {report.seed}", highlight=False)


def _table(report: Report) -> Table:
    columns = ("check", "status", Column("time", justify="right"), Column("result", overflow="fold"))
    table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for run in report.runs:
        status = f"[{COLOURS[run.result.status]}]{run.result.status}[/]"
        table.add_row(run.check.title(), status, f"{run.duration:.2f} s", escape(run.result.summary))
    return table


def as_json(report: Report, backend: str) -> str:
    """Return a JSON object with stable keys; the key of a duration ends in its unit."""
    checks = [
        {
            "id": run.check.__name__,
            "title": run.check.title(),
            "status": run.result.status,
            "summary": run.result.summary,
            "duration_ms": round(1000 * run.duration, 1),
            "timeout_ms": round(1000 * run.check.timeout),
            "evidence": dict(run.result.evidence),
            "hint": run.check.hint(),
        }
        for run in report.runs
    ]
    head = {"schema": 1, "backend": backend, "seed": report.seed, "started": report.started.isoformat()}
    return json.dumps(head | {"passed": report.passed, "checks": checks}, indent=2, default=str, ensure_ascii=False)


def as_junit(report: Report) -> str:
    """Return a test suite with a case for each check; a WARN counts as passed."""
    statuses = [run.result.status for run in report.runs]
    counts = {"tests": len(statuses), "failures": statuses.count(Status.FAIL), "skipped": statuses.count(Status.SKIP)}
    suite = Element("testsuite", {name: str(count) for name, count in counts.items()}, name="verify", errors="0")
    suite.set("time", f"{sum(run.duration for run in report.runs):.3f}")
    suite.set("timestamp", report.started.isoformat(timespec="seconds"))
    for run in report.runs:
        case = SubElement(suite, "testcase", classname="verify", name=run.check.__name__, time=f"{run.duration:.3f}")
        if run.result.status is Status.FAIL:
            SubElement(case, "failure", message=run.result.summary).text = run.check.hint()
        elif run.result.status is Status.SKIP:
            SubElement(case, "skipped", message=run.result.summary)
        else:
            SubElement(case, "system-out").text = run.result.summary
    indent(suite)
    return tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
