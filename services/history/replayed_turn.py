"""The turn of a request that has come before: it is not asked again, its answer is told again."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from services.chat.events import Event
from services.history import replay
from services.history.answer import Answer
from services.history.context import ConversationContext
from services.history.turn import UnstoredTurn


class ReplayedTurn(UnstoredTurn):
    """`ended` waits until the answer is there as a whole; raises Conflict where it never will be."""

    def __init__(self, found: Answer, context: ConversationContext, ended: Callable[[], Awaitable[Answer]]) -> None:
        super().__init__(context=context)
        self.id, self.reply_id = found.id, found.id[-32:]
        self.created_at, self.completed_at = found.created_at, found.completed_at
        self.conversation_id = found.conversation_id
        self._ended = ended

    async def events(self) -> AsyncGenerator[Event, None]:
        answer = await self._ended()
        self.completed_at = answer.completed_at
        for event in replay.events(answer):
            yield event
