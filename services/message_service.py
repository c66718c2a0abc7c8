"""The simple chat routes: new messages, and the stored messages of a conversation."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime

from schemas.chat_schema import ChatCompletionRequest, ChatMessage
from schemas.message_schema import (
    HistoryItem,
    NewMessage,
    NewMessageAnswer,
    Question,
    StoredMessages,
    TextPiece,
)
from services.chat import items
from services.chat.events import Event, Text, head_of, reply_of
from services.chat.request import contents
from services.chat_service import ChatContext, ChatService
from services.conversation_service import ConversationService
from services.errors import InvalidRequest, ServiceError
from services.history.idempotency import IdempotencyKey
from services.history.replay import Replay
from services.history.turn import NO_FACTS, Turn, TurnRequest
from services.parameter_names import ParameterNames, translate_error, translate_errors
from services.turn_service import TurnService

# What a chat completion calls it -> what these routes call it.
NAMES: ParameterNames = {"conversation": "conversation_id"}


def _translated(error: ServiceError) -> ServiceError:
    return translate_error(error, NAMES)


class MessageService:
    def __init__(self, chat: ChatService, turns: TurnService, conversations: ConversationService) -> None:
        self._chat = chat
        self._turns = turns
        self._conversations = conversations

    async def new(
        self, request: NewMessage, owner: str, idempotency_key: IdempotencyKey | None = None
    ) -> NewMessageAnswer:
        chat_request = _chat_request(request)
        opened = await self._open(chat_request, owner, idempotency_key)
        reply = await reply_of(self._events(chat_request, owner, opened))
        head = reply.head
        assert head is not None
        assert head.conversation_id is not None
        return NewMessageAnswer(
            response=reply.text,
            history=[
                *(_history_item(each) for each in [*opened.history, *chat_request.messages]),
                HistoryItem(role="assistant", content=reply.text),
            ],
            time=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            message_id=head.id,
            conversation_id=head.conversation_id,
        )

    async def stream(
        self, request: NewMessage, owner: str, idempotency_key: IdempotencyKey | None = None
    ) -> AsyncGenerator[TextPiece, None]:
        chat_request = _chat_request(request)
        opened = await self._open(chat_request, owner, idempotency_key)
        async with aclosing(self._events(chat_request, owner, opened)) as events:
            head = await head_of(events)
            async for event in events:
                if isinstance(event, Text):
                    yield TextPiece(text=event.text, message_id=head.id)

    async def whole(
        self, request: NewMessage, owner: str, idempotency_key: IdempotencyKey | None = None
    ) -> AsyncGenerator[TextPiece, None]:
        """The answer as one piece, for readers of event streams that did not set `stream`."""
        chat_request = _chat_request(request)
        opened = await self._open(chat_request, owner, idempotency_key)
        reply = await reply_of(self._events(chat_request, owner, opened))
        assert reply.head is not None
        yield TextPiece(text=reply.text, message_id=reply.head.id)

    async def messages(self, owner: str, conversation: str | None, limit: int, after: str | None) -> StoredMessages:
        with translate_errors(_translated):
            return await self._conversations.messages(owner, conversation, limit=limit, after=after)

    async def begin(self, question: Question, owner: str) -> tuple[str, AsyncGenerator[Event, None]]:
        """The id of a new answer, and its events."""
        chat_request = _chat_request(question)
        opened = await self._open(chat_request, owner)
        return opened.id, self._events(chat_request, owner, opened)

    def _events(
        self, chat_request: ChatCompletionRequest, owner: str, opened: Turn | Replay
    ) -> AsyncGenerator[Event, None]:
        if isinstance(opened, Replay):
            return opened.events()
        return self._chat.run(chat_request, owner, ChatContext(opened, opened.history, NO_FACTS))

    async def _open(
        self, chat_request: ChatCompletionRequest, owner: str, idempotency_key: IdempotencyKey | None = None
    ) -> Turn | Replay:
        turn_request = TurnRequest(
            owner=owner,
            kind="message",
            input=items.from_messages(chat_request.messages),
            conversation=chat_request.conversation,
            create=True,
            idempotency_key=idempotency_key,
        )
        with translate_errors(_translated):
            return await self._turns.open(turn_request)


def _history_item(message: ChatMessage) -> HistoryItem:
    return HistoryItem(role=message.role, content=contents.text(message.content or message.refusal))


def _chat_request(question: Question) -> ChatCompletionRequest:
    history = question.history if isinstance(question, NewMessage) else None
    if history and question.conversation_id:
        raise InvalidRequest("'%s' goes without '%s': a conversation has its own", "history", "conversation_id")
    return ChatCompletionRequest(
        messages=[*(history or []), ChatMessage(content=question.prompt)],
        conversation=question.conversation_id,
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        top_p=question.top_p,
    )
