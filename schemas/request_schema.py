"""What all bodies of requests have in common."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

MAX_KEYS = 1_000  # of an object that has names for them: each takes its time to be looked at

Hints = Mapping[str, tuple[object, ...]]


class Request(BaseModel):
    """Types are JSON's own: "3" and true are no numbers, but 1.0 is 1. An explicit null equals an absent field.

    Unknown keys are kept in `model_extra`, at every depth, so that they can be named and not just dropped.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    # Keys that are taken and change nothing, each with the values that ask for nothing and need no mention.
    HINTS: ClassVar[Hints] = {}

    # Keys that would change the answer and are not served, each with what to say of it.
    REFUSED: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _as_in_json(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_KEYS:
            raise fault(f"has more than {MAX_KEYS} keys")
        for name, why in cls.REFUSED.items():
            if data.get(name) is not None:
                raise fault(why, name)
        return {key: _number(value) for key, value in data.items() if value is not None}

    def left_aside(self) -> Iterator[str]:
        """The keys of this object alone that nothing here acts upon."""
        for name, value in (self.model_extra or {}).items():
            if value not in self.HINTS.get(name, ()):
                yield name
        known = self.HINTS.keys() & type(self).model_fields.keys() & self.model_fields_set
        yield from (name for name in known if getattr(self, name) not in self.HINTS[name])


def fault(message: str, *where: int | str) -> ValidationError:
    """`where` leads to the culprit inside what is validated, so that the error's location ends in it."""
    # the input itself stays out: the error may be shown or logged
    details = InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": message}), loc=where, input=None)
    return ValidationError.from_exception_data("input", [details])


EXACT = 2**53  # beyond it a float stands for its neighbours too: JSON's integers of more than 64 bits come as such


def _number(value: Any) -> Any:
    is_exact = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    return int(value) if is_exact else value


class Unserved(Request):
    """An object of a kind that is not served here: it is left aside as a whole, and named by its kind."""

    type: str = Field(min_length=1, max_length=64)

    def left_aside(self) -> Iterator[str]:
        yield self.type
