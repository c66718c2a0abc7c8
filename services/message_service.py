"""The simple routes, and answers whose readers may come and go.

A browser's `EventSource` reconnects by itself and says which event it saw last. Event ids are `<message id>:<offset>`,
the offset counting the characters sent so far: the rest of the answer can be cut from the text alone, in memory while
it is being written, from the database afterwards, in this process or another. `<message id>:end` is the last event.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime

import orjson

from schemas.chat_schema import ChatCompletionRequest, ChatMessage
from schemas.message_schema import (
    BrowserEvent,
    BrowserQuestion,
    HistoryItem,
    NewMessage,
    NewMessageAnswer,
    Question,
    StoredMessage,
    StoredMessages,
    TextPiece,
)
from services.chat import contents, items
from services.chat.events import Event, Head, Reply, Text, head_of
from services.chat_service import ChatService
from services.conversation_service import ConversationService
from services.errors import EngineFailed, InvalidRequest, ServiceError, Unavailable
from services.history.turn import Opening, Turn
from services.turn_service import TurnService

logger = logging.getLogger(__name__)

EVENT_ID = re.compile(r"([0-9a-f]{32}):(\d{1,9}|end)")
RETRY_MS = 1000
POLL_S = 0.5  # how often an answer that another process is writing is looked at
INTERRUPTED = "The answer was interrupted"


class MessageService:
    def __init__(self, chat: ChatService, turns: TurnService, conversations: ConversationService) -> None:
        self._chat = chat
        self._turns = turns
        self._conversations = conversations
        self._live: dict[str, LiveReply] = {}

    @property
    def num_live(self) -> int:
        return len(self._live)

    async def new(self, request: NewMessage, owner: str) -> NewMessageAnswer:
        asked = _as_chat(request)
        turn = await self._open(asked, owner)
        reply = await self._chat.whole(asked, owner, turn)
        head = reply.head
        assert head is not None
        assert head.conversation_id is not None
        return NewMessageAnswer(
            response=reply.text,
            history=[
                *(_history_item(each) for each in [*turn.history, *asked.messages]),
                HistoryItem(role="assistant", content=reply.text),
            ],
            time=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            message_id=head.id,
            conversation_id=head.conversation_id,
        )

    async def stream(self, request: NewMessage, owner: str) -> AsyncGenerator[TextPiece, None]:
        async with aclosing(self._run(_as_chat(request), owner)) as run:
            head = await head_of(run)
            async for event in run:
                if isinstance(event, Text):
                    yield TextPiece(text=event.text, message_id=head.id)

    async def whole(self, request: NewMessage, owner: str) -> AsyncGenerator[TextPiece, None]:
        """The answer as one piece, for readers of event streams that did not ask for several."""
        asked = _as_chat(request)
        reply = await self._chat.whole(asked, owner, await self._open(asked, owner))
        assert reply.head is not None
        yield TextPiece(text=reply.text, message_id=reply.head.id)

    async def messages(self, owner: str, conversation: str | None, limit: int, after: str | None) -> StoredMessages:
        found = await self._conversations.messages(owner, conversation, limit=limit + 1, after=after)
        data = [StoredMessage.model_validate(each, from_attributes=True) for each in found[:limit]]
        return StoredMessages(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(found) > limit,
        )

    async def ask(self, question: BrowserQuestion, owner: str) -> AsyncGenerator[BrowserEvent, None]:
        """A new answer, written whether or not its reader stays. The first event has its id, before any text."""
        if not question.prompt:
            raise InvalidRequest("'prompt' is required", param="prompt")
        live = LiveReply(self._run(_as_chat(question), owner), owner)
        head = await live.start()
        self._live[head.id] = live
        live.when_over(lambda: self._live.pop(head.id, None))
        async with aclosing(live.follow(0)) as events:
            yield _start(head)
            async for event in events:
                yield event

    async def resume(self, last_event_id: str, owner: str) -> AsyncGenerator[BrowserEvent, None] | None:
        """What came after that event; None when nothing did, and never a second answer."""
        match = EVENT_ID.fullmatch(last_event_id)
        if match is None:
            raise InvalidRequest("The last event id is not one of this server's", param="Last-Event-ID")
        message_id, seen = match.groups()
        if seen == "end":
            return None
        live = self._live.get(message_id)
        if live is not None and live.owner == owner:
            return live.follow(int(seen))
        await self._turns.answer(message_id, owner, "message")  # NotFound before the stream begins
        return self._stored_rest(message_id, int(seen), owner)

    async def _stored_rest(self, message_id: str, seen: int, owner: str) -> AsyncGenerator[BrowserEvent, None]:
        stored = await self._turns.answer(message_id, owner, "message")
        while not stored.is_over:  # by another process, or not yet settled after a crash
            await asyncio.sleep(POLL_S)
            stored = await self._turns.answer(message_id, owner, "message")
        text = items.text(stored.output[0])
        if text[seen:]:
            yield _text(message_id, text, seen)
        if stored.status == "completed":
            yield _done(message_id, stored.conversation_id, stored.choices[0]["finish_reason"])
        else:
            yield _error(message_id, INTERRUPTED)

    async def _run(self, asked: ChatCompletionRequest, owner: str) -> AsyncGenerator[Event, None]:
        async with aclosing(self._chat.run(asked, owner, await self._open(asked, owner))) as run:
            async for event in run:
                yield event

    async def _open(self, asked: ChatCompletionRequest, owner: str) -> Turn:
        return await self._turns.open(
            Opening(
                owner=owner,
                kind="message",
                input=items.of_messages(asked.messages),
                conversation=asked.conversation,
                create=True,
            )
        )

    async def stop(self) -> None:
        for live in list(self._live.values()):
            await live.stop()


class LiveReply:
    """An answer being written by a task of its own, and the readers that follow it."""

    def __init__(self, run: AsyncGenerator[Event, None], owner: str) -> None:
        self.owner = owner
        self._run = run
        self._reply = Reply()
        self._error: ServiceError | None = None
        self._over = False
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._write(), name="live reply")

    async def start(self) -> Head:
        """The head, once the request is admitted. A reader that leaves before that takes the request with it."""
        try:
            while self._reply.head is None and not self._over:
                await self._changed.wait()
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if self._error:
            raise self._error
        assert self._reply.head is not None
        return self._reply.head

    def when_over(self, forget: Callable[[], object]) -> None:
        self._task.add_done_callback(lambda _: forget())

    async def follow(self, seen: int) -> AsyncGenerator[BrowserEvent, None]:
        head = self._reply.head
        assert head is not None
        while True:
            changed, over, text = self._changed, self._over, self._reply.text
            if not over:
                text = text.removesuffix("\r")  # perhaps half a line break, which an event cannot end in
            if text[seen:]:
                yield _text(head.id, text, seen)
                seen = len(text)
            elif over:
                break
            else:
                await changed.wait()
        yield self._end(head)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _write(self) -> None:
        try:
            async with aclosing(self._run) as run:
                async for event in run:
                    self._reply.add(event)
                    self._wake()
        except asyncio.CancelledError:
            self._error = Unavailable("The server is shutting down")
            raise
        except ServiceError as error:
            self._error = error
        except Exception:
            logger.exception("an answer broke off")
            self._error = EngineFailed(INTERRUPTED)
        finally:
            self._over = True
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _end(self, head: Head) -> BrowserEvent:
        if finish := self._reply.finish:
            return _done(head.id, head.conversation_id, finish.reason)
        return _error(head.id, self._error.message if self._error else INTERRUPTED)


def _history_item(message: ChatMessage) -> HistoryItem:
    return HistoryItem(role=message.role, content=contents.text(message.content or message.refusal))


def _as_chat(question: Question) -> ChatCompletionRequest:
    history = question.history if isinstance(question, NewMessage) else None
    if history and question.conversation_id:
        raise InvalidRequest("'history' goes without 'conversation_id': a conversation has its own", param="history")
    return ChatCompletionRequest(
        messages=[*(history or []), ChatMessage(content=question.prompt)],
        conversation=question.conversation_id,
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        top_p=question.top_p,
    )


def _text(message_id: str, text: str, seen: int) -> BrowserEvent:
    return BrowserEvent(id=f"{message_id}:{len(text)}", data=text[seen:])


def _start(head: Head) -> BrowserEvent:
    facts = {"message_id": head.id, "conversation_id": head.conversation_id}
    return BrowserEvent(id=f"{head.id}:0", event="start", data=orjson.dumps(facts).decode(), retry=RETRY_MS)


def _done(message_id: str, conversation_id: str | None, reason: str | None) -> BrowserEvent:
    facts = {"message_id": message_id, "conversation_id": conversation_id, "finish_reason": reason}
    return BrowserEvent(id=f"{message_id}:end", event="done", data=orjson.dumps(facts).decode())


def _error(message_id: str, message: str) -> BrowserEvent:
    facts = {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
    return BrowserEvent(id=f"{message_id}:end", event="error", data=orjson.dumps(facts).decode())
