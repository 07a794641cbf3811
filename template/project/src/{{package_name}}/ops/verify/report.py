"""The report as a table, as JSON and as JUnit XML."""

import json
from xml.etree import ElementTree as Xml

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .check import Status
from .run import Report

COLOURS = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.SKIP: "cyan"}


def print_table(report: Report, console: Console) -> None:
    """Print a row for each check, and the hint of each check that failed."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("check")
    table.add_column("status")
    table.add_column("time", justify="right")
    table.add_column("result", overflow="fold")
    for run in report.runs:
        status = f"[{COLOURS[run.result.status]}]{run.result.status}[/]"
        table.add_row(run.check.title(), status, f"{run.duration:.2f} s", escape(run.result.summary))
    console.print(table)
    for run in report.runs:
        if run.result.status is Status.FAIL and run.check.hint():
            console.print(f"[red]{run.check.title()}[/]: {run.check.hint()}", highlight=False)
    statuses = [run.result.status for run in report.runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in Status if status in statuses)
    console.print(f"{counts}; seed {report.seed}", highlight=False)


def as_json(report: Report, backend: str) -> str:
    """Return a JSON object with stable keys; the key of a duration ends in its unit."""
    return json.dumps(
        {
            "schema": 1,
            "backend": backend,
            "seed": report.seed,
            "started": report.started.isoformat(),
            "passed": report.passed,
            "checks": [
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
            ],
        },
        indent=2,
        default=str,
        ensure_ascii=False,
    )


def as_junit(report: Report) -> str:
    """Return a test suite with a case for each check; a WARN counts as passed."""
    statuses = [run.result.status for run in report.runs]
    suite = Xml.Element(
        "testsuite",
        name="verify",
        tests=str(len(statuses)),
        failures=str(statuses.count(Status.FAIL)),
        skipped=str(statuses.count(Status.SKIP)),
        errors="0",
        time=f"{sum(run.duration for run in report.runs):.3f}",
        timestamp=report.started.isoformat(timespec="seconds"),
    )
    for run in report.runs:
        attributes = {"classname": "verify", "name": run.check.__name__, "time": f"{run.duration:.3f}"}
        case = Xml.SubElement(suite, "testcase", attributes)
        if run.result.status is Status.FAIL:
            Xml.SubElement(case, "failure", message=run.result.summary).text = run.check.hint()
        elif run.result.status is Status.SKIP:
            Xml.SubElement(case, "skipped", message=run.result.summary)
        else:
            Xml.SubElement(case, "system-out").text = run.result.summary
    Xml.indent(suite)
    return Xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
