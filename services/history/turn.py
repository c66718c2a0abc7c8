"""A turn: the input given to a model, and the answer generated for it.

A caller may open the turn itself and pass it to the chat pipeline; unstored requests use a turn too.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from uuid import uuid4

from database.usage_repository import Usage
from schemas.chat_schema import ChatMessage
from services.chat import items as chat_items
from services.chat.events import Event, Head
from services.chat.items import Item
from services.errors import ServiceError
from services.history.affinity import affinity_key
from services.history.context import ConversationContext
from services.history.idempotency import IdempotencyKey
from services.history.usage_ledger import UsageLedger

Kind = Literal["chat.completion", "response", "message"]
PREFIX: dict[Kind, str] = {"chat.completion": "chatcmpl-", "response": "resp_", "message": ""}
Facts = Mapping[str, Any]  # parameters of a request, which its stored answer is returned with
NO_FACTS: Facts = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """What a turn is opened with, before the engine has admitted its request."""

    owner: str
    kind: Kind = "chat.completion"
    input: Sequence[Item] = ()
    conversation: str | None = None  # to continue
    item: str | None = None  # of that conversation, to continue from; by default the newest
    previous: str | None = None  # id of the stored answer, of the same kind, to continue from
    create: bool = False  # makes a new conversation if none is named
    stored: bool = False  # can be retrieved by its id
    cache_key: str | None = None  # the client's own: requests with the same one begin alike
    instructions: str | None = None  # the system text, where that is not of the input
    background: bool = False
    logprobs: bool = False  # in the output items
    idempotency_key: IdempotencyKey | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_persistent(self) -> bool:
        return self.create or self.stored or self.conversation is not None

    def new_reply_id(self) -> str:
        """Ends with the turn's affinity key."""
        key = affinity_key(
            self.owner,
            conversation=self.conversation,
            previous=self.previous,
            cache_key=self.cache_key,
            instructions=self.instructions,
            input=self.input,
        )
        return uuid4().hex[: -len(key)] + key


class Turn(Protocol):
    """Whoever begins a turn must finish it, on every path."""

    @property
    def id(self) -> str:
        """The answer's id; like all properties known before the turn begins."""

    @property
    def reply_id(self) -> str:
        """The stem from which `OutputItems` derives the ids of output items."""

    @property
    def created_at(self) -> float: ...

    @property
    def conversation_id(self) -> str | None:
        """None if the turn belongs to no listed conversation."""

    @property
    def history(self) -> Sequence[ChatMessage]:
        """The messages of the branch that the turn continues, oldest first."""

    completed_at: float | None

    async def queue(
        self, model: str, facts: Facts = NO_FACTS, body: Facts | None = None, *, claimed: bool = True
    ) -> None:
        """Stores the turn before it is admitted: it can be retrieved, and its conversation is reserved. With its
        `body`, the whole request, another process can go on with it; one that is not `claimed` waits for that."""

    async def begin(self, head: Head, facts: Facts = NO_FACTS) -> None:
        """Durable on return; raises Conflict if the conversation has changed since the history was read. `facts`: what
        is stored of the request, in place of those it was queued with."""

    def add(self, event: Event) -> None:
        """Adds an output event, for the next checkpoint and the result."""

    async def finish(self, error: ServiceError | None = None, usage: Usage | None = None) -> None:
        """Only the first call counts. Callers shield it. After Unavailable the result is kept and written later.
        `usage` of a run that was admitted is counted with it."""


class UnstoredTurn:
    """A turn of a request that does not ask to be stored."""

    def __init__(self, ledger: UsageLedger, request: TurnRequest, context: ConversationContext | None = None) -> None:
        self._ledger = ledger
        self.reply_id = request.new_reply_id()
        self.id = PREFIX[request.kind] + self.reply_id
        self.created_at = time.time()
        self.completed_at: float | None = None
        self.conversation_id: str | None = None
        self.history: Sequence[ChatMessage] = history_of(context) if context else ()

    async def queue(
        self, model: str, facts: Facts = NO_FACTS, body: Facts | None = None, *, claimed: bool = True
    ) -> None: ...

    async def begin(self, head: Head, facts: Facts = NO_FACTS) -> None: ...

    def add(self, event: Event) -> None: ...

    async def finish(self, error: ServiceError | None = None, usage: Usage | None = None) -> None:
        if usage:
            await self._ledger.record(usage)


def history_of(context: ConversationContext) -> list[ChatMessage]:
    return chat_items.to_messages([row.data for row in context.branch])
