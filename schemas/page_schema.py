"""Lists as they are paged through: from `last_id` on, as long as there is more."""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

T = TypeVar("T")
Order = Literal["asc", "desc"]


class Page(BaseModel, Generic[T]):
    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page(found: Sequence[T], ids: Sequence[str], limit: int) -> Page[T]:
    """Of what was looked for with one more than `limit`."""
    ids = ids[:limit]
    return Page(
        data=list(found[:limit]),
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=len(found) > limit,
    )
