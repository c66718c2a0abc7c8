"""Responses that were stored: read, followed while they are written, cancelled and deleted."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial

from schemas.page_schema import Order, Page, page
from schemas.response_answer_schema import DeletedResponse, LifecycleEvent, Response, StreamEvent
from schemas.response_schema import Retrieval
from services.chat.answer.response_events import FINAL_EVENTS, stream_event
from services.chat.items import Item
from services.chat.request import responses
from services.errors import InvalidRequest
from services.history.response import response_of
from services.history.turn import Kind
from services.secret_service import SecretService
from services.stream_service import StreamService
from services.turn_service import TurnService

KIND: Kind = "response"

Begin = Callable[[], Awaitable[str]]  # returns the id of the response


class StoredResponseService:
    def __init__(self, turns: TurnService, streams: StreamService, secrets: SecretService) -> None:
        self._turns = turns
        self._streams = streams
        self._secrets = secrets

    def unknown_keys(self, query: Retrieval) -> list[str]:
        """What is left aside of it."""
        return responses.unknown_in_retrieval(query)

    async def retrieve(self, id: str, owner: str, query: Retrieval) -> Response:
        responses.check_retrieval(query)
        return await self.get(id, owner, query.include)

    async def get(self, id: str, owner: str, include: Sequence[str] = ()) -> Response:
        seal = await self._secrets.seal(owner) if responses.ENCRYPTED_REASONING in include else None
        return response_of(await self._turns.answer(id, owner, KIND), seal.closing("reasoning") if seal else None)

    def resume(self, id: str, owner: str, query: Retrieval) -> AsyncGenerator[StreamEvent, None]:
        """What comes after that event. The first step raises refusals."""
        responses.check_retrieval(query)
        after = -1 if query.starting_after is None else query.starting_after
        return self.follow(partial(self._in_background, id, owner), owner, after)

    async def _in_background(self, id: str, owner: str) -> str:
        if not (await self._turns.answer(id, owner, KIND)).background:
            raise InvalidRequest(
                "Only a response that was made in the background can be streamed again", param="stream"
            )
        return id

    async def follow(self, begin: Begin, owner: str, after: int = -1) -> AsyncGenerator[StreamEvent, None]:
        """The events after that number of the response that begins, or has begun. The first step raises refusals."""
        id = await begin()
        reader = self._streams.reader(id, after)
        while batch := await reader.read():
            for event in batch:
                yield event
        if not reader.has_last:
            for event in await self._missing_end(id, owner, after):
                yield event

    async def _missing_end(self, id: str, owner: str, after: int) -> list[StreamEvent]:
        """The last event of a stream whose writer is gone, for a reader of all that came after `after`."""
        last = await self._streams.last_event(id)
        if last is not None and (last.last or after > last.number):
            return []
        response = await self.get(id, owner)
        number = last.number + 1 if last else 0
        end = LifecycleEvent(type=FINAL_EVENTS[response.status], sequence_number=number, response=response)
        return [stream_event(end)]

    async def cancel(self, id: str, owner: str) -> Response:
        """Keeps the output so far; a response that has ended stays as it is."""
        if not (await self._turns.answer(id, owner, KIND)).background:
            raise InvalidRequest("Only a response that is made in the background can be cancelled", param="response_id")
        await self._turns.cancel(id, owner, KIND)
        await self._streams.stop(id)
        return await self.get(id, owner)

    async def delete(self, id: str, owner: str) -> DeletedResponse:
        """One that is made in the background, here or elsewhere, is stopped by that."""
        found = await self._turns.answer(id, owner, KIND)
        if found.background and not found.is_finished:
            await self._turns.cancel(id, owner, KIND)
            await self._streams.stop(id)
        await self._turns.delete(id, owner, KIND)
        return DeletedResponse(id=id)

    async def input_items(self, id: str, owner: str, *, limit: int, order: Order, after: str | None) -> Page[Item]:
        stored = (await self._turns.answer(id, owner, KIND)).input
        found = list(stored if order == "asc" else reversed(stored))
        if after is not None:
            place = next((index for index, item in enumerate(found) if item["id"] == after), None)
            if place is None:
                raise InvalidRequest("'after' is not an item of this response", param="after")
            found = found[place + 1 :]
        return page(found, [item["id"] for item in found], limit)
