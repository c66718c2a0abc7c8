"""POST /v1/embeddings on the wire: request, answer, and the four shapes an input may have."""

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, StrictInt, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from schemas.chat_schema import Request

MAX_INPUTS = 2_048

Input = str | list[str] | list[int] | list[list[int]]
SHAPES = "a string, a list of strings, a list of token ids or a list of lists of token ids"


def check_input(value: object) -> Input:
    """Decides the shape first and stops at the first fault: a union would report every branch of every item."""
    match value:
        case str():
            return value
        case list() if value:
            return _check_list(value)
        case _:
            raise _fault(f"must be {SHAPES}, and not empty")


def _check_list(items: list[Any]) -> Input:
    kind = type(items[0])
    if kind is int:
        return _check_tokens(items)
    if kind not in (str, list):
        raise _fault(f"must be {SHAPES}")
    if len(items) > MAX_INPUTS:
        raise _fault(f"has {len(items)} items, at most {MAX_INPUTS} are taken")
    _check_kind(items, kind)
    if kind is list:
        for index, tokens in enumerate(items):
            _check_tokens(tokens, index)
    return items


def _check_tokens(tokens: list[Any], *where: int) -> list[int]:
    if not tokens:
        raise _fault("must not be empty", *where)
    _check_kind(tokens, int, *where)
    if min(tokens) < 0:
        raise _fault("must not hold negative token ids", *where)
    return tokens


def _check_kind(items: list[Any], kind: type, *where: int) -> None:
    if set(map(type, items)) == {kind}:  # in C: half a million token ids cost milliseconds
        return
    index = next(index for index, item in enumerate(items) if type(item) is not kind)
    raise _fault(f"must be of the same type as the items before it, {SHAPES}", *where, index)


def _fault(message: str, *where: int) -> ValidationError:
    """`where` leads to the culprit inside the input, so that the error's location ends in it."""
    # the input itself stays out: the error may be shown or logged
    details = InitErrorDetails(
        type=PydanticCustomError("input_shape", "{text}", {"text": message}), loc=where, input=None
    )
    return ValidationError.from_exception_data("input", [details])


def check_truncation(tokens: int) -> int:
    if tokens < -1 or tokens == 0:
        raise PydanticCustomError("truncation", "must be -1 or at least 1")
    return tokens


class EmbeddingRequest(Request):
    """OpenAI's, and vLLM's `truncate_prompt_tokens`: longer inputs are cut to so many tokens instead of refused.

    Keys outside the contract are kept in `model_extra`, so that they can be named and not just dropped.
    """

    model_config = ConfigDict(extra="allow")

    input: Annotated[Input, PlainValidator(check_input, json_schema_input_type=Input)] = Field([""])
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(None, ge=1)
    user: str | None = None
    truncate_prompt_tokens: Annotated[StrictInt, AfterValidator(check_truncation)] | None = (
        None  # -1: the model's length
    )

    @property
    def is_list(self) -> bool:
        """Of several inputs; a list of numbers is one input."""
        return isinstance(self.input, list) and not isinstance(self.input[0], int)

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        # the validator has seen to the shape, which a type cannot follow
        return cast(list[str] | list[list[int]], self.input if self.is_list else [self.input])

    def name_of(self, index: int) -> str:
        """What an error about one input calls it."""
        return f"input.{index}" if self.is_list else "input"


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str  # str: base64 of little-endian float32


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
