"""The simple routes: one prompt in, text out, for back ends and browsers that speak no OpenAI."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.chat_schema import ChatMessage
from schemas.page_schema import Page
from schemas.request_schema import Request
from schemas.sampling_schema import MODELS, Temperature, TopP

PromptText = Annotated[str, StringConstraints(min_length=1)]


class Question(Request):
    """What a browser's `EventSource` can ask, all of it in the query."""

    prompt: PromptText
    conversation_id: str | None = Field(None, max_length=64)
    max_tokens: int | None = Field(None, ge=1)
    temperature: Temperature | None = Field(None, description=MODELS)
    top_p: TopP | None = Field(None, description=MODELS)


class BrowserQuestion(Question):
    """A reconnect asks nothing: the header Last-Event-ID says what it waits for."""

    model_config = ConfigDict(strict=False, extra="ignore")  # all in a query is text; its unknown keys are named

    prompt: str = ""


class NewMessage(Question):
    history: list[ChatMessage] | None = Field(None, description="Earlier messages; not with a conversation_id")
    stream: bool = False


class HistoryItem(BaseModel):
    role: str
    content: str


class NewMessageAnswer(BaseModel):
    response: str
    history: list[HistoryItem]
    status: Literal[200] = 200
    time: str = Field(description="YYYY-MM-DD HH:MM:SS, the server's local time")
    message_id: str
    conversation_id: str


class TextPiece(BaseModel):
    text: str
    message_id: str


class StoredMessage(BaseModel):
    id: str
    conversation_id: str
    role: str
    content: str | list[dict[str, Any]] | None
    status: Literal["in_progress", "completed", "incomplete", "cancelled"]
    finish_reason: str | None
    model: str | None
    created_at: float = Field(description="epoch seconds")


StoredMessages = Page[StoredMessage]


class BrowserEvent(BaseModel):
    """One event for `EventSource`; its id comes back with a reconnect."""

    id: str
    data: str
    event: Literal["start", "done", "error"] | None = None
    retry: int | None = Field(None, description="milliseconds until the browser reconnects")


class StoppedMessage(BaseModel):
    """An answer that was over keeps the status it had."""

    message_id: str
    status: str


class StreamToken(BaseModel):
    """For `EventSource`, which cannot send headers: goes into the query as `token`."""

    token: str
    expires_in: int = Field(description="seconds")
