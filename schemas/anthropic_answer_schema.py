"""Anthropic's message, and the events of a streamed one, as they go over the wire."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class TextOutput(BaseModel):
    type: Literal["text"] = "text"
    text: str = ""
    citations: None = None


class ThinkingOutput(BaseModel):
    type: Literal["thinking"] = "thinking"
    thinking: str = ""
    signature: str = Field("", description="The whole thought, sealed: of a block without text it is opened again")


class ToolUseOutput(BaseModel):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any] = {}


OutputBlock = TextOutput | ThinkingOutput | ToolUseOutput


class ThinkingTokens(BaseModel):
    thinking_tokens: int


class AnthropicUsage(BaseModel):
    """`input_tokens` are those that were not found in the cache, which only the end of an answer tells."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    output_tokens_details: ThinkingTokens | None = None


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class AnthropicMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[OutputBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: AnthropicUsage


class TokenCount(BaseModel):
    input_tokens: int


# --- events of a stream ---


class MessageStart(BaseModel):
    type: Literal["message_start"] = "message_start"
    message: AnthropicMessage


class BlockStart(BaseModel):
    type: Literal["content_block_start"] = "content_block_start"
    index: int
    content_block: OutputBlock


class TextDelta(BaseModel):
    type: Literal["text_delta"] = "text_delta"
    text: str


class ThinkingDelta(BaseModel):
    type: Literal["thinking_delta"] = "thinking_delta"
    thinking: str


class SignatureDelta(BaseModel):
    type: Literal["signature_delta"] = "signature_delta"
    signature: str


class InputDelta(BaseModel):
    type: Literal["input_json_delta"] = "input_json_delta"
    partial_json: str


ContentDelta = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockDelta(BaseModel):
    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: ContentDelta


class BlockStop(BaseModel):
    type: Literal["content_block_stop"] = "content_block_stop"
    index: int


class StopDetails(BaseModel):
    stop_reason: StopReason
    stop_sequence: str | None = None


class MessageDelta(BaseModel):
    type: Literal["message_delta"] = "message_delta"
    delta: StopDetails
    usage: AnthropicUsage


class MessageStop(BaseModel):
    type: Literal["message_stop"] = "message_stop"


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
