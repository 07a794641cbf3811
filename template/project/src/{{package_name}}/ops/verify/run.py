"""Puts the questions in order, holds each to its time limit, and collects the answers."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.engine import URL

from ...db.retry import first_line, sqlstate_of
from ..cluster import Cluster
from .backend_checks import CHAOS, CHECKS, unproven
from .check import Check, Finding, Status, Subject
from .checks import GENERAL, EveryNodeAnswers, NothingIsLeftBehind

ALL: tuple[type[Check], ...] = (EveryNodeAnswers, *CHECKS, *GENERAL)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, *CHAOS)
"""Also those that take nodes away. They need a local cluster."""


@dataclass(frozen=True)
class Answer:
    """A check with its finding and how long it took, in seconds."""

    check: type[Check]
    finding: Finding
    duration: float
    is_blocked: bool = False
    """Whether it was not asked, because another one failed."""


@dataclass(frozen=True)
class Report:
    """All answers of one run."""

    answers: Sequence[Answer]
    seed: int
    started: datetime

    @property
    def holds(self) -> bool:
        """Whether nothing failed."""
        return not any(answer.finding.status is Status.FAIL for answer in self.answers)


def verify(
    urls: Mapping[str, URL],
    admin_urls: Mapping[str, URL],
    *,
    project: Path = Path(),
    seed: int,
    checks: Sequence[type[Check]] = ALL,
    cluster: Cluster | None = None,
    on_start: Callable[[type[Check]], None] = lambda check: None,
) -> Report:
    """Run `checks` in order; one whose requirement failed is skipped."""
    subject = Subject(urls, admin_urls, project, seed, cluster)
    started = datetime.now(UTC)
    answers: list[Answer] = []
    excused = unproven(subject)
    try:
        for check in checks:
            on_start(check)
            if reason := excused.get(check.__name__):
                answers.append(Answer(check, Finding(Status.SKIP, reason), 0.0))
            else:
                answers.append(_answer(check, subject, answers))
    finally:
        # Also when somebody has had enough of waiting.
        if subject.has_scratch:
            answers.append(_answer(NothingIsLeftBehind, subject, ()))
    return Report(answers, seed, started)


def _answer(check: type[Check], subject: Subject, before: Sequence[Answer]) -> Answer:
    unmet = [
        answer.check.__name__
        for answer in before
        if answer.check.__name__ in check.requires and (answer.finding.status is Status.FAIL or answer.is_blocked)
    ]
    if unmet:
        return Answer(check, Finding(Status.SKIP, f"needs {', '.join(unmet)}"), 0.0, is_blocked=True)
    started = time.monotonic()
    findings: list[Finding] = []
    problem = _within(lambda: findings.append(check().run(subject)), check.limit)
    finding = findings[0] if findings and problem is None else Finding(Status.FAIL, problem or "no answer")
    return Answer(check, finding, time.monotonic() - started)


def _within(work: Callable[[], None], limit: float) -> str | None:
    """Do `work` in at most `limit` seconds; what went wrong, or None.

    A server that stopped answering in the middle of a statement holds its client for ever, whatever timeouts the server was
    given. So the work has a thread of its own, which is left behind: a daemon thread does not keep the process alive.
    """
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        return f"no answer within {limit:.0f} s"
    return _in_a_line(errors[0]) if errors else None


def _in_a_line(error: BaseException) -> str:
    line = first_line(error) or type(error).__name__
    if sqlstate_of(error) == "42501":
        line += "; the admin nodes must be given for a role that may look into replication"
    return line
