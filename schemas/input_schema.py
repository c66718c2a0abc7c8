"""The four shapes that texts or token ids are sent in, and how much of them is read."""

from typing import Annotated, Any, cast

from pydantic import AfterValidator, PlainValidator, StrictInt
from pydantic_core import PydanticCustomError

from schemas.request_schema import fault

MAX_INPUTS = 2_048

Shape = str | list[str] | list[int] | list[list[int]]
SHAPES = "a string, a list of strings, a list of token ids or a list of lists of token ids"


def check_input(value: object, max_inputs: int = MAX_INPUTS) -> Shape:
    """Decides the shape first and stops at the first fault: a union would report every branch of every item."""
    match value:
        case str():
            return value
        case list() if value:
            return _check_list(value, max_inputs)
        case _:
            raise fault(f"must be {SHAPES}, and not empty")


def _check_list(items: list[Any], max_inputs: int) -> Shape:
    kind = type(items[0])
    if kind is int:
        return _check_tokens(items)
    if kind not in (str, list):
        raise fault(f"must be {SHAPES}")
    if len(items) > max_inputs:
        raise fault(f"has {len(items)} items, at most {max_inputs} are taken")
    _check_kind(items, kind)
    if kind is list:
        for index, tokens in enumerate(items):
            _check_tokens(tokens, index)
    return items


def _check_tokens(tokens: list[Any], *where: int) -> list[int]:
    if not tokens:
        raise fault("must not be empty", *where)
    _check_kind(tokens, int, *where)
    if min(tokens) < 0:
        raise fault("must not hold negative token ids", *where)
    return tokens


def _check_kind(items: list[Any], kind: type, *where: int) -> None:
    if set(map(type, items)) == {kind}:  # in C: half a million token ids cost milliseconds
        return
    index = next(index for index, item in enumerate(items) if type(item) is not kind)
    raise fault(f"must be of the same type as the items before it, {SHAPES}", *where, index)


def _check_truncation(tokens: int) -> int:
    if tokens < -1 or tokens == 0:
        raise PydanticCustomError("truncation", "must be -1 or at least 1")
    return tokens


Truncation = Annotated[StrictInt, AfterValidator(_check_truncation)]  # -1: to what the model takes


Input = Annotated[Shape, PlainValidator(check_input, json_schema_input_type=Shape)]


def is_list(value: Shape) -> bool:
    """Of several inputs; a list of numbers is one input."""
    return isinstance(value, list) and not isinstance(value[0], int)


def inputs_of(value: Shape) -> list[str] | list[list[int]]:
    # the validator has seen to the shape, which a type cannot follow
    return cast(list[str] | list[list[int]], value if is_list(value) else [value])
