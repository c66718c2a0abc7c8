"""Anthropic's requests for messages, as they go over the wire."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from schemas.anthropic_block_schema import BLOCKS, Block, ContentBlockParam, TextBlocks, blocks
from schemas.generation_schema import StopSequence
from schemas.request_schema import Hints, Request, Unserved, fault
from schemas.sampling_schema import MODELS, AnyTopP

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class MessageParam(Request):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[ContentBlockParam], BeforeValidator(blocks, json_schema_input_type=str | list[ContentBlockParam])
    ]

    @field_validator("content")
    @classmethod
    def _is_the_roles(cls, value: list[ContentBlockParam], info: ValidationInfo) -> list[ContentBlockParam]:
        role = info.data.get("role")
        if not value and role != "assistant":
            raise ValueError("must not be empty, but for the assistant's")
        for index, block in enumerate(value):
            if role and not isinstance(block, BLOCKS[role]):
                raise fault(f"a block of type '{block.type}' cannot be the {role}'s", index)
        return value


class AnthropicTool(Block):
    """One that the client runs."""

    type: Literal["custom"] = "custom"
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = False
    eager_input_streaming: bool = True


class HostedTool(Unserved):
    """One of Anthropic's own, by its type: offered, but not served here."""

    name: str = ""


def _tool(value: object) -> Request:
    is_own = not isinstance(value, dict) or value.get("type") in (None, "custom")
    return (AnthropicTool if is_own else HostedTool).model_validate(value)


AnyAnthropicTool = Annotated[
    AnthropicTool | HostedTool, PlainValidator(_tool, json_schema_input_type=AnthropicTool | HostedTool)
]


class AnthropicToolChoice(Request):
    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = Field(None, description="of the one tool, with type 'tool'")
    disable_parallel_tool_use: bool = False


class ThinkingConfig(Request):
    """Absent or disabled: thinking is switched off where the model's template has a switch."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted", "updates"] = Field(
        "summarized",
        description="summarized: all of a thought; else it is only sealed, for the client to send back: no model here "
        "tells updates from thoughts",
    )


class JsonOutputFormat(Request):
    model_config = ConfigDict(populate_by_name=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Request):
    format: JsonOutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class RequestMetadata(Request):
    user_id: str | None = None


class CountRequest(Request):
    """What else its contract has is an offer or a hint: it is named, as unknown keys are."""

    HINTS: ClassVar[Hints] = {
        "container": (),
        "context_management": (),
        "mcp_servers": ([],),
        "service_tier": ("auto", "standard_only"),
        "speed": ("standard",),
    }

    model: str | None = None
    messages: list[MessageParam] = Field(min_length=1)
    system: TextBlocks = Field([])
    tools: list[AnyAnthropicTool] = Field([])
    tool_choice: AnthropicToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: JsonOutputFormat | None = Field(None, description="an older place of output_config.format")
    cache_control: dict[str, Any] | None = None


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(None, ge=0, le=1, description=MODELS)
    top_k: int | None = Field(None, ge=0, description=MODELS)
    top_p: AnyTopP | None = Field(None, description=MODELS)
    stop_sequences: list[StopSequence] = Field([], max_length=128)
    metadata: RequestMetadata | None = None
    stream: bool = False
