"""Timing of two contenders in turn, so that disturbances of the machine affect both."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """A ratio with its spread over the rounds."""

    value: float
    low: float
    high: float
    """Quartiles: `low` and `high`."""
    count: int

    def __str__(self) -> str:
        return f"middle half {self.low:.3g} to {self.high:.3g}, {self.count} rounds"


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every contender once per round and collect what each returns.

    The order is reversed from round to round, so that no contender always follows the same other. One round
    before the first is not counted, because it fills caches and pools.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            gc.collect()
            value = contenders[name]()
            if number:
                samples[name].append(value)
    return samples


def alternate(ours: Callable[[], object], theirs: Callable[[], object], calls: int) -> tuple[float, float]:
    """Call both in turn, `calls` times each; return the median seconds of a call.

    Use it for calls of less than a millisecond: a disturbance that lasts longer affects both.
    """
    clock = time.perf_counter
    durations: tuple[list[float], list[float]] = ([], [])
    pair = ((ours, durations[0]), (theirs, durations[1]))
    for number in range(calls):
        for call, seconds in pair if number % 2 else reversed(pair):
            start = clock()
            call()
            seconds.append(clock() - start)
    return statistics.median(durations[0]), statistics.median(durations[1])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the median over the rounds of ours divided by theirs in the same round."""
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def spread(values: Sequence[float]) -> Ratio:
    """Return the median and the quartiles."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Ratio(statistics.median(values), low, high, len(values))


def seconds_of(call: Callable[[], object]) -> float:
    """Return the duration of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(len(ordered) * percent / 100))]


def per_second(rate: float) -> str:
    """Format a rate for the table."""
    return f"{rate:,.0f}/s"


def short(seconds: float) -> str:
    """Format a duration for the table."""
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"  # noqa: PLR2004
