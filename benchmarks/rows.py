"""Rows of the table: a promise with a number, and the function that measures it."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from benchmarks.ground import Ground

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "≤": operator.le,
    "≥": operator.ge,
    "=": operator.eq,
}


class Skip(Exception):
    """This row cannot run here; the message has the reason."""


@dataclass(frozen=True)
class Goal:
    """A bound that is never adjusted to what was measured."""

    comparison: str
    bound: float

    def is_met_by(self, value: float) -> bool:
        """Return True if `value` meets the goal, unrounded."""
        return COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.comparison} {self.bound:g}"


def at_least(bound: float) -> Goal:
    """Return a goal that larger values meet."""
    return Goal("≥", bound)


def at_most(bound: float) -> Goal:
    """Return a goal that smaller values meet."""
    return Goal("≤", bound)


@dataclass(frozen=True)
class Measured:
    """Result of a measurement."""

    value: float
    ours: str = ""
    alternative: str = ""
    note: str = ""
    """Circumstances that matter for the number, such as its spread."""


Measure: TypeAlias = "Callable[[Ground], Measured]"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One promise. Rows that share an experiment call the same cached function."""

    name: str
    measure: Measure
    goal: Goal
    unit: str = "×"  # noqa: RUF001 - a ratio
    why_missed: str = ""
    """Cause of a miss, if it was studied; printed only if the goal is missed."""


@dataclass(frozen=True)
class Answer:
    """A row with its result, or the reason why it has none."""

    row: Row
    measured: Measured | None
    note: str
    failed: bool = False
    """True if the measurement raised an error, which is neither a miss nor a skip."""

    @property
    def met(self) -> bool | None:
        """True if the goal is met; None if the row was skipped."""
        if self.measured is not None:
            return self.row.goal.is_met_by(self.measured.value)
        return False if self.failed else None

    def as_json(self) -> dict[str, Any]:
        """Return the line of `report.json`."""
        return {
            "name": self.row.name,
            "value": round(self.measured.value, 4) if self.measured else None,
            "goal": str(self.row.goal),
            "unit": self.row.unit,
            "met": self.met,
            "note": self.note,
        }


def answer(row: Row, ground: "Ground") -> Answer:
    """Run one row."""
    try:
        measured = row.measure(ground)
    except Skip as skip:
        return Answer(row, None, f"SKIP: {skip}")
    except Exception as error:
        if ground.debug:
            raise
        reason = str(error).partition("\n")[0]
        return Answer(
            row, None, f"broken: {type(error).__name__}: {reason} (--debug shows where)", failed=True
        )
    notes = [measured.note]
    if not row.goal.is_met_by(measured.value):
        notes.append(row.why_missed)
    return Answer(row, measured, "; ".join(filter(None, notes)))
