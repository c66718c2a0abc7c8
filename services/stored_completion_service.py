"""Stored chat completions: list, get, update metadata, delete."""

from schemas.generation_schema import Metadata
from schemas.page_schema import Order, Page, page
from schemas.stored_schema import Deleted, StoredChatCompletion, StoredChatMessage
from services.chat.answer import stored
from services.errors import InvalidRequest
from services.history import replay
from services.history.answer import Answer
from services.history.turn import Kind
from services.turn_service import Query, TurnService

KIND: Kind = "chat.completion"


class StoredCompletionService:
    def __init__(self, turns: TurnService) -> None:
        self._turns = turns

    async def page(self, owner: str, query: Query) -> Page[StoredChatCompletion]:
        found = [_completion(each) for each in await self._turns.page(owner, KIND, query.with_one_more())]
        return page(found, [each.id for each in found], query.limit)

    async def get(self, completion_id: str, owner: str) -> StoredChatCompletion:
        return _completion(await self._turns.finished_answer(completion_id, owner, KIND))

    async def update_metadata(self, completion_id: str, owner: str, metadata: Metadata) -> StoredChatCompletion:
        return _completion(await self._turns.update_metadata(completion_id, owner, KIND, metadata))

    async def delete(self, completion_id: str, owner: str) -> Deleted:
        await self._turns.delete(completion_id, owner, KIND)
        return Deleted(id=completion_id)

    async def messages(
        self, completion_id: str, owner: str, *, order: Order, limit: int, after: str | None
    ) -> Page[StoredChatMessage]:
        """The input messages; their position in the input makes their ids."""
        answer = await self._turns.finished_answer(completion_id, owner, KIND)
        found = stored.messages(answer.id, answer.input)
        if order == "desc":
            found.reverse()
        ids = [each.id for each in found]
        if after is not None and after not in ids:
            raise InvalidRequest("'after' is not a message of this completion", param="after")
        start = ids.index(after) + 1 if after is not None else 0
        return page(found[start : start + limit + 1], ids[start : start + limit + 1], limit)


def _completion(found: Answer) -> StoredChatCompletion:
    return stored.completion(replay.reply_of(found), found.request, found.metadata, found.status)
