"""A turn: what was given to a model, and the answer that becomes of it.

Who asks may open it himself, and pass it to the one pipeline; what is not to be remembered is a turn as well.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from uuid import uuid4

from schemas.chat_schema import ChatMessage
from services.chat import items as chat_items
from services.chat.events import Event, Head
from services.chat.items import Item
from services.errors import ServiceError
from services.history.context import ConversationContext
from services.history.idempotency import IdempotencyKey
from services.history.turn_result import End

Kind = Literal["chat.completion", "response", "message"]
PREFIX: dict[Kind, str] = {"chat.completion": "chatcmpl-", "response": "resp_", "message": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """What a turn is opened with, before it is known whether it will be answered."""

    owner: str
    kind: Kind = "chat.completion"
    input: Sequence[Item] = ()
    conversation: str | None = None  # to go on with and to add to
    item: str | None = None  # of that conversation, to go on from instead of the newest
    previous: str | None = None  # the stored answer, of the same kind, to go on from
    create: bool = False  # a conversation, where none is named
    stored: bool = False  # to be found again by its id
    background: bool = False
    logprobs: bool = False  # in the items of its answer
    idempotency_key: IdempotencyKey | None = None  # if the request may come again
    request: Mapping[str, Any] = field(default_factory=dict)  # what is shown of it later
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_remembered(self) -> bool:
        return self.create or self.stored or self.conversation is not None


class Turn(Protocol):
    """Who has begun a turn finishes it, whatever happens."""

    @property
    def id(self) -> str:
        """The answer's; known before the turn begins, as all the others are."""

    @property
    def reply_id(self) -> str:
        """Of which the ids of the answer's items are made, as `Output` does."""

    @property
    def created_at(self) -> float: ...

    @property
    def conversation_id(self) -> str | None:
        """None where the answer is in no conversation that its owner could name."""

    completed_at: float | None
    history: Sequence[ChatMessage]
    """The active branch, oldest first. Who makes the whole prompt himself takes it from here."""

    async def queue(self, model: str) -> None:
        """Begins it before it is admitted: from now on it is found, and nobody else adds to its conversation."""

    async def begin(self, head: Head) -> None:
        """Durable when it returns; raises Conflict where somebody else has written since the history was read."""

    def add(self, event: Event) -> None:
        """What is said, for the next checkpoint and the end."""

    async def finish(self, error: ServiceError | None = None, *, status: End | None = None) -> None:
        """The first call counts. To be shielded. After Unavailable the result is kept and written later."""


class UnstoredTurn:
    """A turn nobody asked to remember."""

    def __init__(self, kind: Kind = "chat.completion", context: ConversationContext | None = None) -> None:
        self.reply_id = uuid4().hex
        self.id = PREFIX[kind] + self.reply_id
        self.created_at = time.time()
        self.completed_at: float | None = None
        self.conversation_id: str | None = None
        self.history: Sequence[ChatMessage] = history_of(context) if context else ()

    async def queue(self, model: str) -> None: ...

    async def begin(self, head: Head) -> None: ...

    def add(self, event: Event) -> None: ...

    async def finish(self, error: ServiceError | None = None, *, status: End | None = None) -> None: ...


def history_of(context: ConversationContext) -> list[ChatMessage]:
    return chat_items.messages([row.data for row in context.branch])
