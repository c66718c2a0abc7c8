"""OpenAI's response, and the events of a streamed one, as they go over the wire."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from schemas.chat_answer_schema import ConversationRef


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(BaseModel):
    code: str
    message: str


class IncompleteDetails(BaseModel):
    reason: str


class Response(BaseModel):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    completed_at: int | None = None
    background: bool
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[dict[str, Any]] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    conversation: ConversationRef | None = None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    dropped_messages: int = Field(0, description="of the oldest, by truncation: auto")
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


class ResponseEvent(BaseModel):
    type: str
    sequence_number: int


class LifecycleEvent(ResponseEvent):
    response: Response


class ItemEvent(ResponseEvent):
    output_index: int
    item: dict[str, Any]


class CallEvent(ResponseEvent):
    """A piece of a call's arguments, or of its input, or all of them."""

    item_id: str
    output_index: int
    delta: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class PartEvent(ResponseEvent):
    item_id: str
    output_index: int
    content_index: int = 0
    part: dict[str, Any] | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[dict[str, Any]] | None = None


class CompactionEvent(ResponseEvent):
    """A summary is being written."""

    item_id: str
    output_index: int


class SummaryEvent(ResponseEvent):
    """Of the summary of a thought."""

    item_id: str
    output_index: int
    summary_index: int = 0
    part: dict[str, Any] | None = None
    delta: str | None = None
    text: str | None = None


class ErrorEvent(ResponseEvent):
    type: str = "error"
    code: str | None
    message: str
    param: str | None


class StreamEvent(BaseModel):
    """An event as it is kept and sent: `number` says where it stands in its stream."""

    number: int
    type: str
    data: str
    last: bool = False


class CompactedResponse(BaseModel):
    """What to send in the place of the conversation."""

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[dict[str, Any]]
    usage: ResponseUsage


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
