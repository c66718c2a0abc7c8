"""What bodies of answers have in common."""

from typing import Annotated, TypeVar

from pydantic import Field

T = TypeVar("T")


def _is_none(value: object) -> bool:
    return value is None


Omitted = Annotated[T | None, Field(exclude_if=_is_none)]  # where it is None it is not sent
