"""Anthropic's requests for messages, as they go over the wire.

`cache_control` is taken everywhere and changes nothing: whatever prompts have in common is computed once anyway.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, ValidationInfo, field_validator

from schemas.chat_schema import Description, FunctionName
from schemas.generation_schema import StopSequence
from schemas.request_schema import Request, fault


class Block(Request):
    cache_control: dict[str, Any] | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: list[Any] = Field([], max_length=0)


class Base64Source(Request):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str = Field(min_length=1)


class UrlSource(Request):
    type: Literal["url"]
    url: str = Field(min_length=1)


def _one_of(*kinds: str) -> Discriminator:
    """One short error for a type that nobody knows, without the input in it."""
    known = ", ".join(f"'{kind}'" for kind in kinds)
    return Discriminator("type", custom_error_type="type", custom_error_message=f"its type must be one of {known}")


class ImageBlock(Block):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, _one_of("base64", "url")]


class ThinkingBlock(Block):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class DirectCaller(Request):
    type: Literal["direct"]


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=128)
    name: FunctionName
    input: dict[str, Any]
    caller: DirectCaller | None = None


def _blocks(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Shown = Annotated[TextBlock | ImageBlock, _one_of("text", "image")]
Texts = Annotated[list[TextBlock], BeforeValidator(_blocks, json_schema_input_type=str | list[TextBlock])]


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[list[Shown], BeforeValidator(_blocks, json_schema_input_type=str | list[Shown])] = Field([])
    is_error: bool = False


Said = Annotated[
    TextBlock | ImageBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock,
    _one_of("text", "image", "thinking", "tool_use", "tool_result"),
]


BLOCKS: dict[str, tuple[type[Block], ...]] = {
    "user": (TextBlock, ImageBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


class Message(Request):
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Said], BeforeValidator(_blocks, json_schema_input_type=str | list[Said])]

    @field_validator("content")
    @classmethod
    def _is_the_roles(cls, value: list[Said], info: ValidationInfo) -> list[Said]:
        role = info.data.get("role")
        if not value and role != "assistant":
            raise ValueError("must not be empty, but for the assistant's")
        for index, block in enumerate(value):
            if role and not isinstance(block, BLOCKS[role]):
                raise fault(f"a block of type '{block.type}' cannot be the {role}'s", index)
        return value


class Tool(Block):
    """One that the client runs; those that run at Anthropic have another type."""

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: Description | None = None
    input_schema: dict[str, Any]
    strict: bool = False
    eager_input_streaming: bool = True


class ToolChoice(Request):
    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = Field(None, description="of the one tool, with type 'tool'")
    disable_parallel_tool_use: bool = False


class Thinking(Request):
    """Without it, or disabled, a model whose template can be told to is told not to think."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] = "summarized"

    @property
    def shows(self) -> bool:
        return self.type != "disabled" and self.display != "omitted"


class OutputFormat(Request):
    model_config = ConfigDict(populate_by_name=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Request):
    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Asker(Request):
    user_id: str | None = None


class CountRequest(Request):
    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    system: Texts = Field([])
    tools: list[Tool] = Field([], max_length=128)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)
    temperature: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    stop_sequences: list[StopSequence] = Field([], max_length=4)
    metadata: Asker | None = None
    stream: bool = False
