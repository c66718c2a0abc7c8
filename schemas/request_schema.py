"""What all bodies of requests have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class Request(BaseModel):
    """Types are JSON's own: "3" and true are no numbers, but 1.0 is 1. An explicit null equals an absent field."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _as_in_json(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: _number(value) for key, value in data.items() if value is not None}


def fault(message: str, *where: int | str) -> ValidationError:
    """`where` leads to the culprit inside what is validated, so that the error's location ends in it."""
    # the input itself stays out: the error may be shown or logged
    details = InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": message}), loc=where, input=None)
    return ValidationError.from_exception_data("input", [details])


EXACT = 2**53  # beyond it a float stands for its neighbours too: JSON's integers of more than 64 bits come as such


def _number(value: Any) -> Any:
    is_exact = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    return int(value) if is_exact else value
