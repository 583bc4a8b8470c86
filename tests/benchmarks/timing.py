"""Interleaved timing, so that whatever else the machine does falls on both sides alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One line of the table: both sides, what counts, and the least (for memory: the most) that it may be."""

    name: str
    plain: str
    fast: str
    result: str
    target: str


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def interleaved(fast: Callable[[], object], plain: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Seconds of (fast, plain) in every round, after one of each that does not count."""
    fast()
    plain()
    return [(seconds(fast), seconds(plain)) for _ in range(rounds)]


def medians(times: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Median of the fast side, of the plain side, and of the ratios plain / fast."""
    fast, plain = zip(*times, strict=True)
    return statistics.median(fast), statistics.median(plain), statistics.median(p / f for f, p in times)
