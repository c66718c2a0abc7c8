"""What all bodies of requests have in common."""

from typing import Any

from pydantic import BaseModel, model_validator


class Request(BaseModel):
    """An explicit null equals an absent field."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data
