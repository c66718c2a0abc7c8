"""Whether something grows with the requests: a line fitted to the later half of the samples.

The first half is left out, as caches, pools and arenas fill. A slope counts as far as it is above its own uncertainty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tools.faults.resources import Sample, series

PER = 1000  # requests
ERRORS = 2  # standard errors that a slope must be above its limit
# by 1,000 requests: what may stay of each. An audit entry of each deletion is what stays in the database.
LIMITS = {"rss_mib": 2.0, "descriptors": 1.0, "threads": 1.0, "database_mib": 1.0, "files": 1.0}


@dataclass(frozen=True, slots=True)
class Growth:
    name: str
    first: float
    last: float
    most: float
    slope: float  # by 1,000 requests
    error: float  # standard error of the slope
    limit: float

    @property
    def is_too_much(self) -> bool:
        return self.slope - ERRORS * self.error > self.limit


def growths(samples: Sequence[Sample]) -> list[Growth]:
    return [_growth(list(samples), name, limit) for name, limit in LIMITS.items()]


def _growth(samples: list[Sample], name: str, limit: float) -> Growth:
    values = series(samples, name)
    later = samples[len(samples) // 2 :]
    slope, error = fitted([sample.requests / PER for sample in later], series(later, name))
    return Growth(name, values[0], values[-1], max(values), round(slope, 3), round(error, 3), limit)


def fitted(places: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope and its standard error, by least squares."""
    count = len(places)
    mean_place, mean_value = sum(places) / count, sum(values) / count
    spread = sum((place - mean_place) ** 2 for place in places)
    if count < 3 or spread == 0:
        return 0.0, 0.0
    slope = sum((x - mean_place) * (y - mean_value) for x, y in zip(places, values, strict=True)) / spread
    rest = sum((y - mean_value - slope * (x - mean_place)) ** 2 for x, y in zip(places, values, strict=True))
    return slope, math.sqrt(rest / (count - 2) / spread)
