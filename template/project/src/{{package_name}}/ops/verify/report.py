"""A report for people, and the same for machines as JSON and as JUnit XML."""

import json
from xml.etree import ElementTree as Xml

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .check import Status
from .run import Report

COLOURS = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.SKIP: "cyan"}


def print_table(report: Report, console: Console) -> None:
    """A row for each check, and what to do about each that failed."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("check")
    table.add_column("status")
    table.add_column("time", justify="right")
    table.add_column("finding", overflow="fold")
    for answer in report.answers:
        status = answer.finding.status
        table.add_row(
            answer.check.title(),
            f"[{COLOURS[status]}]{status}[/]",
            f"{answer.duration:.2f} s",
            escape(answer.finding.summary),
        )
    console.print(table)
    for answer in report.answers:
        if answer.finding.status is Status.FAIL and answer.check.hint():
            console.print(f"[red]{answer.check.title()}[/]: {answer.check.hint()}", highlight=False)
    counts = {status: sum(answer.finding.status is status for answer in report.answers) for status in Status}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(f"{words}; seed {report.seed}", highlight=False)


def as_json(report: Report, backend: str) -> str:
    """One object with stable keys; a key that holds a measure carries its unit."""
    return json.dumps(
        {
            "schema": 1,
            "backend": backend,
            "seed": report.seed,
            "started": report.started.isoformat(),
            "holds": report.holds,
            "checks": [
                {
                    "id": answer.check.__name__,
                    "title": answer.check.title(),
                    "status": answer.finding.status,
                    "summary": answer.finding.summary,
                    "duration_ms": round(1000 * answer.duration, 1),
                    "limit_ms": round(1000 * answer.check.limit),
                    "evidence": dict(answer.finding.evidence),
                    "hint": answer.check.hint(),
                }
                for answer in report.answers
            ],
        },
        indent=2,
        default=str,
        ensure_ascii=False,
    )


def as_junit(report: Report) -> str:
    """A test suite with a case for each check; a warning is a pass with words."""
    statuses = [answer.finding.status for answer in report.answers]
    suite = Xml.Element(
        "testsuite",
        name="verify",
        tests=str(len(statuses)),
        failures=str(statuses.count(Status.FAIL)),
        skipped=str(statuses.count(Status.SKIP)),
        errors="0",
        time=f"{sum(answer.duration for answer in report.answers):.3f}",
        timestamp=report.started.isoformat(timespec="seconds"),
    )
    for answer in report.answers:
        case = Xml.SubElement(
            suite, "testcase", classname="verify", name=answer.check.__name__, time=f"{answer.duration:.3f}"
        )
        if answer.finding.status is Status.FAIL:
            Xml.SubElement(case, "failure", message=answer.finding.summary).text = answer.check.hint()
        elif answer.finding.status is Status.SKIP:
            Xml.SubElement(case, "skipped", message=answer.finding.summary)
        else:
            Xml.SubElement(case, "system-out").text = answer.finding.summary
    Xml.indent(suite)
    return Xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
