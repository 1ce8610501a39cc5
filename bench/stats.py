"""What a few noisy rounds say. Pure functions over numbers; no I/O.

Figures are medians. The spread is told by quartiles, which one odd round does
not move; a ratio is formed inside each round, where both sides saw the same
machine, and only then are rounds summed up.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: Beyond this quotient of the upper and the lower quartile a figure is not reported.
NOISE_LIMIT: Final = 1.5


@dataclass(frozen=True, slots=True)
class Summary:
    """Median and quartiles of ``n`` numbers that are not negative."""

    n: int
    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Upper quartile over lower quartile: 1.0 is no spread at all."""
        if self.high == self.low:
            return 1.0
        return self.high / self.low if self.low > 0 else math.inf

    @property
    def noisy(self) -> bool:
        """Too wide to say: the quartiles are further apart than NOISE_LIMIT."""
        return self.spread > NOISE_LIMIT


def summarize(values: Sequence[float]) -> Summary:
    """Median and quartiles (the inclusive method: the extremes are part of the sample).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("nothing to summarize")
    if len(values) == 1:
        return Summary(1, values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(len(values), median, low, high)


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """``ours / theirs`` in each round that has both, in order of rounds."""
    return [
        ours[number] / theirs[number]
        for number in sorted(ours.keys() & theirs.keys())
        if theirs[number] > 0
    ]


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios: 2 and 1/2 give 1. NaN if there are none."""
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


@dataclass(frozen=True, slots=True)
class Change:
    """How a figure moved between two runs.

    Attributes:
        factor: new median over old median; above 1 is slower.
        certain: the quartile ranges do not touch and the medians differ by more than the margin.
    """

    factor: float
    certain: bool

    @property
    def regression(self) -> bool:
        """Slower, beyond noise."""
        return self.certain and self.factor > 1

    @property
    def gain(self) -> bool:
        """Faster, beyond noise."""
        return self.certain and self.factor < 1


def change(old: Summary, new: Summary, margin: float = 0.05) -> Change:
    """Compare two summaries of the same quantity.

    Args:
        margin: medians closer than this share count as equal, however narrow the ranges.
    """
    factor = new.median / old.median if old.median > 0 else math.nan
    apart = new.low > old.high or new.high < old.low
    # A single round has no spread: it looks certain and is not.
    known = min(old.n, new.n) > 1 and not (old.noisy or new.noisy)
    certain = known and apart and abs(factor - 1) > margin
    return Change(factor, certain)
