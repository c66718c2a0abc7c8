"""A turn of a repeated request (same Idempotency-Key): its stored answer is streamed again, nothing is generated."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from services.chat.events import Event
from services.history import replay
from services.history.answer import Answer
from services.history.context import ConversationContext
from services.history.turn import UnstoredTurn


class ReplayedTurn(UnstoredTurn):
    """`finished` waits for the complete answer; raises Conflict if it never completes."""

    def __init__(self, found: Answer, context: ConversationContext, finished: Callable[[], Awaitable[Answer]]) -> None:
        super().__init__(context=context)
        self.id, self.reply_id = found.id, found.id[-32:]
        self.created_at, self.completed_at = found.created_at, found.completed_at
        self.conversation_id = found.conversation_id
        self._finished = finished

    async def events(self) -> AsyncGenerator[Event, None]:
        answer = await self._finished()
        self.completed_at = answer.completed_at
        for event in replay.events(answer):
            yield event
