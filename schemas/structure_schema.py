"""What an answer is to look like, in the three ways in which clients say so."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from schemas import json_size
from schemas.request_schema import Request

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _schema(value: object) -> object:
    """Also as text; one short error, and not one for each alternative."""
    if isinstance(value, str):
        json_size.check(value.encode(errors="replace"))
    try:
        read = from_json(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("is no JSON") from None
    if not isinstance(read, dict):
        raise ValueError("must be a JSON schema, an object")
    return read


Schema = Annotated[dict[str, Any], BeforeValidator(_schema)]
Choices = Annotated[list[str], Field(min_length=1, max_length=4096)]
Source = Annotated[str, StringConstraints(min_length=1)]


class JsonSchema(Request):
    model_config = ConfigDict(populate_by_name=True)

    name: Name
    schema_: Schema = Field(alias="schema", description="always enforced, whether strict or not")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Request):
    REFUSED: ClassVar[Mapping[str, str]] = {"schema": "goes into 'json_schema', with the type of that name"}

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, validate_default=True, description="goes with its type")

    @field_validator("json_schema")
    @classmethod
    def _goes_with_its_type(cls, value: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if (value is None) == (info.data.get("type") == "json_schema"):
            raise ValueError("goes with the type 'json_schema', and that with it")
        return value


class StructuredOutputs(Request):
    """As vLLM's clients write it."""

    REFUSED: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"),
        "is not supported by this server",
    )

    model_config = ConfigDict(populate_by_name=True)

    json_: Schema | None = Field(None, alias="json", description="a schema, also as text")
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Source | None = Field(None, description="Lark or GBNF")
    json_object: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        forms = [self.json_, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(each is not None for each in forms) != 1:
            raise ValueError("must have one of json, regex, choice, grammar and json_object")
        return self
