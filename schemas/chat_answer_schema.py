"""OpenAI's chat completion and chunk, as they go over the wire."""

from typing import Literal

from pydantic import BaseModel, Field

from schemas.answer_schema import Omitted
from schemas.chat_schema import ServedTier
from schemas.generation_schema import Metadata
from schemas.tool_schema import AnyToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    truncated_tokens: Omitted[int] = Field(None, description="cut off, as asked")


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AssistantMessage(BaseModel):
    """What an answer does not have is not sent, but for content and refusal."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning_content: Omitted[str] = None
    tool_calls: Omitted[list[AnyToolCall]] = None
    token_ids: Omitted[list[int]] = None


class TopToken(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class Token(TopToken):
    top_logprobs: list[TopToken]


class ChoiceLogprobs(BaseModel):
    content: list[Token]
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ConversationRef(BaseModel):
    id: str


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    system_fingerprint: str
    service_tier: Omitted[ServedTier] = None
    metadata: Metadata | None = None
    conversation: ConversationRef | None = None


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str = ""


class CustomDelta(BaseModel):
    name: str | None = None
    input: str = ""


class ToolCallDelta(BaseModel):
    """The first of a call has its id, type and name, the others only more of its arguments or its input."""

    index: int
    id: str | None = None
    type: Literal["function", "custom"] | None = None
    function: Omitted[FunctionDelta] = None
    custom: Omitted[CustomDelta] = None


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] = Field(default_factory=list)  # a list would be deeply copied for each chunk
    token_ids: list[int] = Field(default_factory=list)


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None
    arrival_time: float | None = Field(None, description="seconds since the request arrived")


class ChatCompletionChunk(BaseModel):
    """Fields that were never set are not sent: `usage` is null or absent, as the client asked."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    service_tier: ServedTier | None = None
    obfuscation: str | None = None
    usage: CompletionUsage | None = None
    conversation: ConversationRef | None = None
