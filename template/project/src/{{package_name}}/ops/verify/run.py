"""Run checks in order, each within its time limit, and collect the results."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ...db.retry import first_line, sqlstate_of
from .check import Check, CheckContext, CheckResult, Status, failed, passed, skipped
from .checks import ALL


@dataclass(frozen=True)
class CheckRun:
    """A check that was run or skipped, with its result and its duration in seconds."""

    check: type[Check]
    result: CheckResult
    duration: float = 0.0


@dataclass(frozen=True)
class Report:
    """Results of all checks of one run."""

    runs: Sequence[CheckRun]
    seed: int
    started: datetime

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return all(run.result.status is not Status.FAIL for run in self.runs)


class NothingIsLeftBehind(Check):
    """Nothing is left behind.

    Drop the schemas whose names start with `_verify_`; a later run does so when they are an hour old.
    """

    timeout = 25.0

    def run(self, context: CheckContext) -> CheckResult:
        """Drop the scratch schema."""
        context.scratch.database.dispose()
        with context.topology() as topology:
            topology.drop_schema(context.scratch.schema)
        return passed("the scratch schema is dropped")


def verify(
    context: CheckContext,
    checks: Sequence[type[Check]] = ALL,
    *,
    on_start: Callable[[type[Check]], None] = lambda check: None,
) -> Report:
    """Run `checks` in order, each after a call of `on_start`; skip those that require a failed one."""
    started = datetime.now(UTC)
    runs: list[CheckRun] = []
    # Checks that failed, or were skipped because another one did.
    unmet: list[type[Check]] = []
    try:
        for check in checks:
            on_start(check)
            needed = [one.__name__ for one in unmet if one.is_needed_by(check)]
            runs.append(CheckRun(check, skipped(f"needs {', '.join(needed)}")) if needed else _run(check, context))
            if needed or runs[-1].result.status is Status.FAIL:
                unmet.append(check)
    finally:
        # After an interrupt, too; unless no check has asked for the scratch schema.
        if "scratch" in vars(context):
            runs.append(_run(NothingIsLeftBehind, context))
    return Report(runs, context.seed, started)


def _run(check: type[Check], context: CheckContext) -> CheckRun:
    """Run a check in a thread, and let it fail if it raises an error or takes longer than its timeout."""
    results: list[CheckResult] = []

    def run() -> None:
        try:
            reason = check().skip_reason(context)
            results.append(skipped(reason) if reason else check().run(context))
        except Exception as error:
            line = first_line(error) or type(error).__name__
            if sqlstate_of(error) == "42501":
                line += "; the admin nodes must be given for a role that may read the state of replication"
            results.append(failed(line))

    started = time.monotonic()
    # A server that hangs in the middle of a statement can block its client for ever, whatever timeouts the server has.
    # So the thread may be abandoned; as a daemon it does not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(check.timeout)
    result = results[0] if results else failed(f"no result within {check.timeout:.0f} s")
    return CheckRun(check, result, time.monotonic() - started)
