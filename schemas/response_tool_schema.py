"""Tools of a response, and which of them is to be called, as they go over the wire."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from schemas.ignored_keys import Kept, kept
from schemas.request_schema import Request, Unserved
from schemas.tool_schema import MAX_GRAMMAR, Description, FunctionName, TextInputFormat


def validate_by_type(value: object, models: Mapping[object, type[Request]]) -> Kept:
    """Decides on the type first: errors of that one alone. One that is not served is kept as it is, like keys that are
    not known: what is stored comes back as it was given."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    kind = value.get("type")
    model = models.get(kind, Unserved) if isinstance(kind, str) else Unserved
    return kept(model.model_validate(value), exclude_none=True)


class Deferrable(Request):
    defer_loading: bool | None = Field(None, description="not shown to the model before a search has found it")


class ResponseFunctionTool(Deferrable):
    type: Literal["function"]
    name: FunctionName
    description: Description | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema; none: no arguments")
    strict: bool = False


class ResponseGrammarInputFormat(Request):
    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str = Field(max_length=MAX_GRAMMAR)


def _input(value: object) -> Kept:
    if not isinstance(value, dict) or value.get("type") not in ("text", "grammar"):
        raise ValueError("its type must be 'text' or 'grammar'")
    return validate_by_type(value, {"text": TextInputFormat, "grammar": ResponseGrammarInputFormat})


class ResponseCustomTool(Deferrable):
    type: Literal["custom"]
    name: FunctionName
    description: Description | None = None
    format: Annotated[Kept, PlainValidator(_input, json_schema_input_type=dict[str, Any])] | None = None


CALLABLE: dict[object, type[Request]] = {"function": ResponseFunctionTool, "custom": ResponseCustomTool}


def _member(value: object) -> Kept:
    return validate_by_type(value, CALLABLE)


class ResponseToolNamespace(Deferrable):
    """Functions and custom tools of one origin."""

    type: Literal["namespace"]
    name: FunctionName
    description: Description | None = None
    tools: list[Annotated[Kept, PlainValidator(_member, json_schema_input_type=dict[str, Any])]]


class ResponseToolSearch(Request):
    """A search that the client runs: what it finds can then be called."""

    type: Literal["tool_search"]
    execution: Literal["client"]
    description: Description | None = None
    parameters: dict[str, Any] | None = None


def _tool(value: object) -> Kept:
    searches = isinstance(value, dict) and value.get("execution") == "client"
    more: dict[object, type[Request]] = {"tool_search": ResponseToolSearch} if searches else {}
    return validate_by_type(value, {**CALLABLE, "namespace": ResponseToolNamespace, **more})


ResponseTool = Annotated[Kept, PlainValidator(_tool, json_schema_input_type=dict[str, Any])]


# --- which of them is to be called ---


class ToolReference(Request):
    name: FunctionName
    namespace: FunctionName | None = None


class FunctionChoice(ToolReference):
    type: Literal["function"]


class CustomChoice(ToolReference):
    type: Literal["custom"]


class NamespaceChoice(Request):
    type: Literal["namespace"]
    name: FunctionName


class ToolSearchChoice(Request):
    type: Literal["tool_search"]


SINGLE_CHOICES: dict[object, type[Request]] = {"function": FunctionChoice, "custom": CustomChoice}
ALLOWED_CHOICES: dict[object, type[Request]] = {
    **SINGLE_CHOICES,
    "namespace": NamespaceChoice,
    "tool_search": ToolSearchChoice,
}


def _chosen(value: object) -> Kept:
    return validate_by_type(value, ALLOWED_CHOICES)


AllowedTool = Annotated[Kept, PlainValidator(_chosen, json_schema_input_type=dict[str, Any])]


class AllowedResponseTools(Request):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[AllowedTool] = Field(min_length=1, max_length=128)


def _tool_choice(value: object) -> str | Kept:
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise ValueError("must be 'none', 'auto', 'required' or an object")
        return value
    return validate_by_type(value, {**SINGLE_CHOICES, "allowed_tools": AllowedResponseTools})


ResponseToolChoice = Annotated[str | Kept, PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any])]
