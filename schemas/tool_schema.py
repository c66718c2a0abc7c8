"""Tools of a chat, which of them is to be called, and calls in its messages, as they go over the wire."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from schemas.request_schema import Request, Unserved

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Description = str  # of any length: agents describe their tools on pages
MAX_GRAMMAR = 100_000  # characters


class Function(Request):
    name: FunctionName
    description: Description | None = None
    parameters: dict[str, Any] = Field({}, description="a JSON schema; none: no arguments")
    strict: bool = False


class Tool(Request):
    type: Literal["function"]
    function: Function


class Grammar(Request):
    syntax: Literal["lark", "regex"]
    definition: str = Field(max_length=MAX_GRAMMAR)


class TextInputFormat(Request):
    type: Literal["text"]


class GrammarInputFormat(Request):
    type: Literal["grammar"]
    grammar: Grammar


def _input(value: object) -> TextInputFormat | GrammarInputFormat:
    if isinstance(value, TextInputFormat | GrammarInputFormat):
        return value
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "grammar"):
        raise ValueError("its type must be 'text' or 'grammar'")
    return (TextInputFormat if kind == "text" else GrammarInputFormat).model_validate(value)


class Custom(Request):
    """Its input is a text and no JSON: any text, or one of a grammar."""

    name: FunctionName
    description: Description | None = None
    format: Annotated[TextInputFormat | GrammarInputFormat, BeforeValidator(_input)] | None = None

    @property
    def grammar(self) -> Grammar | None:
        return self.format.grammar if isinstance(self.format, GrammarInputFormat) else None


class CustomTool(Request):
    type: Literal["custom"]
    custom: Custom


TOOLS: dict[object, type[Tool] | type[CustomTool]] = {None: Tool, "function": Tool, "custom": CustomTool}


def _kind(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str | None) else ""


def _tool(value: object) -> Tool | CustomTool | Unserved:
    if isinstance(value, Tool | CustomTool | Unserved):
        return value
    return TOOLS.get(_kind(value), Unserved).model_validate(value)


AnyTool = Annotated[Tool | CustomTool | Unserved, BeforeValidator(_tool, json_schema_input_type=Tool | CustomTool)]


# --- which of them is to be called ---


class ToolName(Request):
    name: FunctionName


class NamedToolChoice(Request):
    type: Literal["function"]
    function: ToolName

    @property
    def name(self) -> str:
        return self.function.name


class NamedCustomToolChoice(Request):
    type: Literal["custom"]
    custom: ToolName

    @property
    def name(self) -> str:
        return self.custom.name


SingleToolChoice = NamedToolChoice | NamedCustomToolChoice
NAMED_CHOICES: dict[object, type[NamedToolChoice] | type[NamedCustomToolChoice]] = {
    None: NamedToolChoice,
    "function": NamedToolChoice,
    "custom": NamedCustomToolChoice,
}


def _chosen(value: object) -> SingleToolChoice | Unserved:
    if isinstance(value, SingleToolChoice | Unserved):
        return value
    return NAMED_CHOICES.get(_kind(value), Unserved).model_validate(value)


AnyNamedToolChoice = Annotated[
    SingleToolChoice | Unserved, BeforeValidator(_chosen, json_schema_input_type=SingleToolChoice)
]


class ToolSet(Request):
    mode: Literal["auto", "required"]
    tools: list[AnyNamedToolChoice] = Field(min_length=1, max_length=128)


class AllowedTools(Request):
    type: Literal["allowed_tools"]
    allowed_tools: ToolSet


def _tool_choice(value: object) -> object:
    """Decides on the shape first: one short error, not one for each alternative."""
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise ValueError("must be 'none', 'auto', 'required' or an object")
        return value
    kinds: dict[object, type[NamedToolChoice] | type[NamedCustomToolChoice] | type[AllowedTools]] = {
        "function": NamedToolChoice,
        "custom": NamedCustomToolChoice,
        "allowed_tools": AllowedTools,
    }
    kind = _kind(value)
    if kind not in kinds:
        raise ValueError("its type must be 'function', 'custom' or 'allowed_tools'")
    return kinds[kind].model_validate(value)


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | SingleToolChoice | AllowedTools, BeforeValidator(_tool_choice)
]


# --- calls in messages ---


class CalledFunction(Request):
    name: FunctionName
    arguments: str = Field(description="JSON, as text")


class MessageToolCall(Request):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: CalledFunction


class CalledCustom(Request):
    name: FunctionName
    input: str


class CustomToolCall(Request):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["custom"] = "custom"
    custom: CalledCustom


def _call(value: object) -> MessageToolCall | CustomToolCall:
    if isinstance(value, MessageToolCall | CustomToolCall):
        return value
    return (CustomToolCall if _kind(value) == "custom" else MessageToolCall).model_validate(value)


AnyToolCall = Annotated[MessageToolCall | CustomToolCall, BeforeValidator(_call)]
