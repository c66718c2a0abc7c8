"""How much of a page is read at once: items may be of megabytes, and a page of them all would fill the memory and hold
up everybody while it is decoded. A page that would be too heavy is a shorter one, with more to come after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, Text, cast, func

from database.models import Item

HEAVY = 1_000_000  # characters of JSON


@dataclass(frozen=True, slots=True)
class Portion:
    """`size` of the rows are the page; one more stands for those to come."""

    rows: Sequence[Item]
    size: int


def weight(data: SQLColumnExpression[Any]) -> ColumnElement[int]:
    return func.length(cast(data, Text))


def fitting(weights: Sequence[int]) -> int:
    """How many of them are light enough together; the first is taken whatever it weighs."""
    return max(1, sum(total <= HEAVY for total in accumulate(weights)))
