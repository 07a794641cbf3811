"""The report as one HTML page for people: it holds no script and loads nothing, and all that it shows is escaped."""

import math
import platform
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy

from .. import BACKEND, PROGRAM
from ..base import Link, numbered
from .check import Report, Run, Status
from .look import Look

SYMBOLS = {Status.PASS: "✓", Status.WARN: "!", Status.FAIL: "✕", Status.SKIP: "-"}
"""Symbol of each status, for those who do not see its colour."""

WORDS = {Status.PASS: "passed", Status.WARN: "in doubt", Status.FAIL: "failed", Status.SKIP: "skipped"}

SOFTWARE = (
    f"Python {platform.python_version()}",
    f"SQLAlchemy {sqlalchemy.__version__}",
    f"psycopg {psycopg.__version__}",
)
"""Versions of the software on this side."""

LAGS = (5, 20, 100, 1000)
"""Limits between the colours of the heat map, in milliseconds."""

_CODE = re.compile("`([^`]+)`")

MOST_TABLES = 40
"""Tables that are shown although nothing differs."""


def as_page(report: Report, look: Look) -> str:
    """Return the page of a report, with a look at the cluster."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    # The policy names the one style by its hash, so that nothing injected could add another.
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    statuses = [run.result.status for run in report.runs]
    counts = {status: statuses.count(status) for status in Status if status in statuses}
    worst = next((one for one in (Status.FAIL, Status.WARN) if one in counts), Status.PASS)
    tally = (f"<li>{_status(status, f'{number} {WORDS[status]}')}</li>" for status, number in counts.items())
    checks = numbered(len(statuses), "check")
    verdict = f"{counts.get(worst, 0)} of {checks} {WORDS[worst]}"
    seconds = sum(run.duration for run in report.runs)
    parts = [
        *(_findings(report.runs), _topology(look), _lags(report.runs, look), _rows(report.runs)),
        *(_timelines(report.runs), _checks(report.runs)),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(f"{PROGRAM}: {verdict}")}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="muted">{_text(f"{PROGRAM} verify on {BACKEND}, {report.started:%d %B %Y, %H:%M:%S %Z}")}</p>
<h1><span class="{worst}" aria-hidden="true">{SYMBOLS[worst]}</span> {_text(verdict)}</h1>
<ul class="counts">{"".join(tally)}</ul>
<p class="muted">Took {seconds:.1f} s. Repeat it with <code>--seed {report.seed}</code>.</p>
</header>
<main>
{"".join(parts)}
</main>
<footer>{_text(", ".join([*sorted(set(look.software.values())), *SOFTWARE]))}</footer>
</body>
</html>
"""


def _text(value: object) -> str:
    return escape(str(value))


def _status(status: Status, words: object) -> str:
    symbol = f'<span aria-hidden="true">{SYMBOLS[status]}</span>'
    return f'<span class="status {status}">{symbol} <span class="word">{_text(words)}</span></span>'


def _section(title: str, *parts: str) -> str:
    """Return a landmark with its heading; nothing if there is nothing in it."""
    content = "\n".join(filter(None, parts))
    id = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{id}"><h2 id="{id}">{title}</h2>\n{content}\n</section>\n' if content else ""


def _table(caption: str, head: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    cells = "".join(f'<th scope="col">{_text(one)}</th>' for one in head)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<table class="{kind}"><caption>{_text(caption)}</caption><thead><tr>{cells}</tr></thead>\n{body}</table>'
    return f'<div class="wide" tabindex="0" role="region" aria-label="{_text(caption)}">{table}</div>'


def _evidence(runs: Iterable[Run], key: str) -> Iterator[Any]:
    """Yield what the checks have measured under a name."""
    return (run.result.evidence[key] for run in runs if run.result.evidence.get(key))


def _findings(runs: Sequence[Run]) -> str:
    order = (Status.FAIL, Status.WARN)
    found = sorted((run for run in runs if run.result.status in order), key=lambda run: order.index(run.result.status))
    return _section("Findings", *map(_finding, found))


def _finding(run: Run) -> str:
    result = run.result
    lines = [*_lines(result.evidence.get("problems")), *_lines(result.evidence.get("doubts"))] or [result.summary]
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    hint = _CODE.sub(r"<code>\1</code>", _text(run.check.hint()))
    head = f"{_status(result.status, WORDS[result.status])} {_text(run.check.title())}"
    return f'<article class="{result.status}"><h3>{head}</h3><ul>{items}</ul><p class="muted">{hint}</p></article>'


def _lines(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _topology(look: Look) -> str:
    rows = []
    for node in look.nodes:
        fine = node in look.software
        state = _status(Status.PASS, "answers") if fine else _status(Status.FAIL, "no answer")
        about = look.software[node] if fine else look.silent[node]
        cells = f'<td>{state}</td><td class="short">{look.role(node)}</td><td class="about">{_text(about)}</td>'
        rows.append(f'<th scope="row">{_text(node)}</th>{cells}')
    nodes = _table("Nodes", ("node", "state", "role", "server"), rows)
    broken = [link for link in look.links if not link.is_up]
    items = "".join(f"<li>{_status(Status.FAIL, 'down')} {_text(link.explanation)}</li>" for link in broken)
    states = f"<ul>{items}</ul>" if items else ""
    if look.problem:
        states += f"<p>{_status(Status.FAIL, 'The links are unknown')}: {_text(look.problem)}</p>"
    return _section(
        "Nodes and links", f'<div class="sides"><div>{_drawing(look)}</div><div>{nodes}{states}</div></div>'
    )


def _drawing(look: Look) -> str:
    """Return the nodes, on a circle if there are links, and the links between them."""
    nodes = look.nodes
    width, height, columns = 104, 64, min(3, len(nodes))
    radius = max(100, 20 * len(nodes)) if look.links else 0
    places: dict[str, tuple[float, float]] = {}
    for number, node in enumerate(nodes):
        angle = 2 * math.pi * number / len(nodes) - math.pi / 2
        row, column = divmod(number, columns)
        # From the corner of the drawing, once the first of them is moved there.
        places[node] = (
            (radius * math.cos(angle), radius * math.sin(angle)) if radius else (column * width, row * height)
        )
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    places = {node: (x - left + width / 2, y - top + height / 2) for node, (x, y) in places.items()}
    across, down = (max(place[axis] for place in places.values()) for axis in (0, 1))
    shapes = [_arrow(link, *places[link.origin], *places[link.receiver]) for link in look.links]
    for node, (x, y) in places.items():
        fine = node in look.software
        role = look.role(node) or "✕ no answer"
        name = node if len(node) <= 12 else f"{node[:11]}…"
        box = f'<rect class="node{"" if fine else " FAIL"}" x="{x - 48:.0f}" y="{y - 22:.0f}"'
        shapes.append(f'<g>{box} width="96" height="44" rx="8"/><title>{_text(node)}</title>')
        shapes.append(f'<text x="{x:.0f}" y="{y - 3:.0f}">{_text(name)}</text>')
        shapes.append(f'<text class="soft" x="{x:.0f}" y="{y + 13:.0f}">{role}</text></g>')
    up = sum(link.is_up for link in look.links)
    label = f"{numbered(len(nodes), 'node')}, {len(look.silent)} without an answer, {up} of {len(look.links)} links up"
    drawn = "".join(shapes)
    box = f"0 0 {across + width / 2:.0f} {down + height / 2:.0f}"
    return f'<svg viewBox="{box}" role="img" aria-label="{label}">{drawn}</svg>'


def _arrow(link: Link, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a curve from one node to the other, beside the one for the way back."""
    length = math.hypot(x2 - x1, y2 - y1) or 1
    dx, dy = (x2 - x1) / length, (y2 - y1) / length
    # The middle of the curve lies at half the distance of its control point.
    mx, my = (x1 + x2) / 2 - 14 * dy, (y1 + y2) / 2 + 14 * dx
    curve = f"M{x1:.1f} {y1:.1f}Q{mx - 14 * dy:.1f} {my + 14 * dx:.1f} {x2:.1f} {y2:.1f}"
    kind = "" if link.is_up else " FAIL"
    ends = ((mx + a * dx - b * dy, my + a * dy + b * dx) for a, b in ((7, 0), (-5, 5), (-5, -5)))
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
    cross = "" if link.is_up else f'<text class="FAIL" x="{mx - 14 * dy:.1f}" y="{my + 14 * dx + 5:.1f}">✕</text>'
    title = f"<title>{_text(link)}</title>"
    return f'<g>{title}<path class="link{kind}" d="{curve}"/><polygon class="head{kind}" points="{head}"/>{cross}</g>'


def _lags(runs: Sequence[Run], look: Look) -> str:
    """Return the lag from each node to each as the checks measured it, or else as the servers report it."""
    measured: Mapping[str, Mapping[str, float]] = next(_evidence(runs, "lag_ms"), {})
    reported = {link.name: 1000 * link.lag for link in look.links if link.lag is not None}
    lags = measured or {name: {"max": lag} for name, lag in reported.items()}
    down = {link.name: link.state for link in look.links if not link.is_up}
    counts: Mapping[str, Sequence[int]] = next(_evidence(runs, "lag_counts"), {})
    scale: Sequence[int] = next(_evidence(runs, "lag_limits_ms"), [])
    bars = {link: _histogram(found, scale) for link, found in counts.items()}
    ends = [name.partition("→") for name in [*lags, *down]]
    if not ends:
        return ""
    receivers = sorted({receiver for _, _, receiver in ends})
    rows = []
    for origin in sorted({origin for origin, _, _ in ends}):
        cells = (_lag(f"{origin}→{receiver}", lags, down, bars) for receiver in receivers)
        rows.append(f'<th scope="row">from {_text(origin)}</th>{"".join(cells)}')
    how = "until a row was read on the other node, p50 and max" if measured else "as the servers report it"
    table = _table(f"Milliseconds {how}", ("", *(f"to {node}" for node in receivers)), rows, "matrix")
    limits = [*(f"< {limit} ms" for limit in LAGS), f"≥ {LAGS[-1]} ms"]
    legend = "".join(f'<li class="lag{level}">{_text(limit)}</li>' for level, limit in enumerate(limits))
    steps = ", ".join(map(str, scale))
    note = f'<p class="note muted">Bars: rows that took less than {steps} ms, and more; each in its own scale.</p>'
    return _section(
        "Lag", table, f'<ul class="legend" aria-label="Colours of the lags">{legend}</ul>', note if bars else ""
    )


def _lag(link: str, lags: Mapping[str, Mapping[str, float]], down: Mapping[str, str], bars: Mapping[str, str]) -> str:
    if link in down:
        return f'<td class="lag4">{_status(Status.FAIL, "link down")}</td>'
    if link not in lags:
        return '<td class="muted">·</td>'
    most = lags[link]["max"]
    level = sum(most >= limit for limit in LAGS)
    middle = f"{lags[link]['p50']:.1f} <small>max {most:.1f}</small>" if "p50" in lags[link] else f"{most:.1f}"
    return f'<td class="lag{level}">{middle}{bars.get(link, "")}</td>'


def _histogram(counts: Sequence[int], limits: Sequence[int]) -> str:
    """Return a bar for the number of samples in each range of lags, as high as the samples are many."""
    names = [f"&lt; {limits[0]}", *(f"{low} to {high}" for low, high in pairwise(limits)), f"≥ {limits[-1]}"]
    bars, spoken, most = [], [], max([*counts, 1])
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        if count:
            height = 20 * count / most
            box = f'x="{6 * number}" y="{20 - height:.1f}" width="5" height="{height:.1f}"'
            bars.append(f'<rect class="bar" {box}><title>{numbered(count, "row")}: {name} ms</title></rect>')
            spoken.append(f"{count}: {name} ms")
    axis = f'<line class="axis" x1="0" x2="{6 * len(names)}" y1="20.5" y2="20.5"/>'
    label = f"{numbered(sum(counts), 'row')}; {', '.join(spoken)}"
    drawn = f"{axis}{''.join(bars)}"
    return f'<svg class="histogram" viewBox="0 0 {6 * len(names)} 21" role="img" aria-label="{label}">{drawn}</svg>'


def _rows(runs: Sequence[Run]) -> str:
    """Return in which tables the rows of a node are not those of the others."""
    every: Iterator[Mapping[str, Any]] = (run.result.evidence for run in runs)
    evidence = next((one for one in every if one.get("differs")), None)
    if evidence is None:
        return ""
    differs: Mapping[str, Mapping[str, int]] = evidence["differs"]
    counts: Mapping[str, int] = evidence["rows"]
    tables = sorted(differs, key=lambda table: (not any(differs[table].values()), table))
    shown = [table for number, table in enumerate(tables) if number < MOST_TABLES or any(differs[table].values())]
    rows = []
    for table in shown:
        cells = (
            f'<td class="differs">{_status(Status.FAIL, numbered(odd, "row"))}</td>'
            if odd
            else f"<td>{_status(Status.PASS, 'same')}</td>"
            for odd in differs[table].values()
        )
        rows.append(f'<th scope="row">{_text(table)}</th><td>{counts[table]:,}</td>{"".join(cells)}')
    nodes = next(iter(differs.values()))
    more = f"; {len(tables) - len(shown)} more tables are the same" if len(tables) > len(shown) else ""
    caption = f"Rows that are missing or not as on most nodes{more}"
    return _section("Rows", _table(caption, ("table", "rows", *nodes), rows, "matrix"))


def _timelines(runs: Sequence[Run]) -> str:
    return _section(
        "Timeline", *(_timeline(name, one) for found in _evidence(runs, "timelines") for name, one in found.items())
    )


def _timeline(name: str, timeline: Mapping[str, Any]) -> str:
    """Return bars for the writes of each step, with a line for each event."""
    step, done, failed = timeline["step_s"], timeline["acknowledged"], timeline["failed"]
    most = max([*map(sum, zip(done, failed, strict=True)), 1])
    total = len(done) * step
    bars = []
    for number, pair in enumerate(zip(done, failed, strict=True)):
        top = 100.0
        for count, kind in zip(pair, ("bar", "lost"), strict=True):
            height = 80 * count / most
            top -= height
            if count:
                x, width = 100 * number / len(done), 80 / len(done)
                bars.append(
                    f'<rect class="{kind}" x="{x:.2f}%" width="{width:.2f}%" y="{top:.1f}" height="{height:.1f}"/>'
                )
    items = []
    for number, event in enumerate(timeline["events"], 1):
        x = 100 * event["s"] / total
        bars.append(f'<line class="event" x1="{x:.2f}%" x2="{x:.2f}%" y1="4" y2="100"/>')
        bars.append(f'<text x="{x:.2f}%" dx="4" y="14">{number}</text>')
        items.append(f"<li>{event['s']:.1f} s: {_text(event['event'])}</li>")
    counts = f"{sum(done)} writes acknowledged (■), {sum(failed)} failed (□)"
    label = f"Writes of {name} in steps of {1000 * step:.0f} ms: {counts}"
    axis = '<line class="axis" x1="0" x2="100%" y1="100.5" y2="100.5"/>'
    return (
        f"<h3>{_text(name)}</h3><p class='muted'>{counts}, at most {most} in {1000 * step:.0f} ms</p>"
        f'<svg class="bars" role="img" aria-label="{_text(label)}">{axis}{"".join(bars)}</svg>'
        f'<p class="ends muted"><span>0 s</span><span>{total:.1f} s</span></p><ol class="events">{"".join(items)}</ol>'
    )


def _checks(runs: Sequence[Run]) -> str:
    rows = (
        f"<td>{_status(run.result.status, run.result.status)}</td>"
        f'<th scope="row">{_text(run.check.title())}<span class="muted">{_text(run.result.summary)}</span></th>'
        f'<td class="number">{run.duration:.2f} s</td>'
        for run in runs
    )
    return _section("Checks", _table("In the order in which they ran", ("status", "check", "time"), rows, "checks"))
