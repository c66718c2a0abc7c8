"""Chat completions that were stored, as they are found again."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from schemas.answer_schema import Omitted
from schemas.chat_answer_schema import ChatCompletion
from schemas.generation_schema import Metadata
from schemas.request_schema import Request
from schemas.tool_schema import AnyToolCall


class StoredChatCompletion(ChatCompletion):
    """With the parameters of its request. `status` is there where the answer was cut short."""

    status: Omitted[str] = None
    input_user: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class StoredChatMessage(BaseModel):
    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, Any]] | None = Field(None, description="where the content was given in parts")
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[AnyToolCall] | None = None
    tool_call_id: str | None = None


class MetadataUpdate(Request):
    metadata: Metadata = Field({}, max_length=16)


class Deleted(BaseModel):
    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True
