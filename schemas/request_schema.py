"""What all bodies of requests have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Request(BaseModel):
    """Types are JSON's own: "3" and true are no numbers, but 1.0 is 1. An explicit null equals an absent field."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _as_in_json(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: _number(value) for key, value in data.items() if value is not None}


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
