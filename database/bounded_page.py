"""Pages bounded by size: items may have megabytes, and decoding a full page of them would exhaust memory and block the
event loop. A page over the limit is cut short, and the rest follows on the next page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, Text, cast, func

from database.models import Item

MAX_CHARS = 1_000_000  # characters of JSON


@dataclass(frozen=True, slots=True)
class BoundedPage:
    """`size` rows are the page; one more row tells that there is a next page."""

    rows: Sequence[Item]
    size: int


def json_length(data: SQLColumnExpression[Any]) -> ColumnElement[int]:
    return func.length(cast(data, Text))


def num_within_limit(lengths: Sequence[int]) -> int:
    """How many rows fit the limit together; at least one."""
    return max(1, sum(total <= MAX_CHARS for total in accumulate(lengths)))
