"""What all bodies of requests have in common."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

from annotated_types import MaxLen
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic.fields import FieldInfo
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
        for key, value in data.items():
            if isinstance(value, list | dict) and len(value) > MANY:
                cls._check_size(key, value)
        return {key: _number(value) for key, value in data.items() if value is not None}

    def left_aside(self) -> Iterator[str]:
        """The keys of this object alone that nothing here acts upon."""
        for name, value in (self.model_extra or {}).items():
            if value not in self.HINTS.get(name, ()):
                yield name
        known = self.HINTS.keys() & type(self).model_fields.keys() & self.model_fields_set
        yield from (name for name in known if getattr(self, name) not in self.HINTS[name])

    @classmethod
    def _check_size(cls, key: str, value: list[Any] | dict[str, Any]) -> None:
        """Before pydantic looks at each of its items, and says of each what is wrong."""
        most = _limits(cls).get(key, MAX_ITEMS if isinstance(value, list) else None)
        if most is not None and len(value) > most:
            raise fault(f"has {len(value)} items, at most {most} are taken", key)


def fault(message: str, *where: int | str) -> ValidationError:
    """`where` leads to the culprit inside what is validated, so that the error's location ends in it."""
    # the input itself stays out: the error may be shown or logged
    details = InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": message}), loc=where, input=None)
    return ValidationError.from_exception_data("input", [details])


MAX_ITEMS = 5_000  # of a list that has no limit of its own
MANY = 100  # for less pydantic's own limits are good enough


@cache
def _limits(model: type[BaseModel]) -> dict[str, int | None]:
    """By the keys of a body. None: its own validator looks at the whole of it first."""
    found: dict[str, int | None] = {}
    for name, field in model.model_fields.items():
        most = [each.max_length for each in field.metadata if isinstance(each, MaxLen)]
        if most or any(isinstance(each, PlainValidator) for each in field.metadata):
            found |= dict.fromkeys((name, *_aliases(field)), min(most, default=None))
    return found


def _aliases(field: FieldInfo) -> list[str]:
    choices = field.validation_alias
    return [str(each) for each in choices.choices] if isinstance(choices, AliasChoices) else []


EXACT = 2**53  # beyond it a float stands for its neighbours too: JSON's integers of more than 64 bits come as such


def _number(value: Any) -> Any:
    is_exact = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    return int(value) if is_exact else value


class Unserved(Request):
    """An object of a kind that is not served here: it is left aside as a whole, and named by its kind."""

    type: str = Field(min_length=1, max_length=64)

    def left_aside(self) -> Iterator[str]:
        yield self.type
