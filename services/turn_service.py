"""Turns: opened for whoever answers, kept while they run, and found again by their answer's id."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from database.item_repository import Order
from database.models import CANCELLED, COMPLETED
from database.models import Item as ItemRow
from database.models import Turn as TurnRow
from database.repositories import Repositories
from database.session import Database
from services.chat.items import Item
from services.errors import Conflict, InvalidRequest, NotFound
from services.history.answer import Answer, answer
from services.history.checkpoint_task import CheckpointTask
from services.history.context import TURN_ID, of_answer, of_conversation, of_turn
from services.history.idempotency import PARAM, earlier, take_back
from services.history.idempotency import IdempotencyKey as IdempotencyKey
from services.history.replayed_turn import ReplayedTurn
from services.history.store import Store
from services.history.stored_turn import StoredTurn
from services.history.turn import Kind, Turn, TurnRequest, UnstoredTurn
from services.history.turn_result import give_up
from services.history.write_batcher import WriteBatcher
from services.history.writer import this_writer as this_writer
from services.history.writes import Write, commit

POLL_S = 0.5  # how often an answer that is being written is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which of the stored answers."""

    limit: int
    order: Order = "asc"
    after: str | None = None
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def with_one_more(self) -> "Query":
        """Which tells whether there is more."""
        return replace(self, limit=self.limit + 1)


class TurnService:
    def __init__(
        self, database: Database, *, writer: str, checkpoint_s: float = 5.0, ttl_s: float | None = None
    ) -> None:
        self._store = Store(database)
        self._writer = writer
        self._writes: WriteBatcher[Write] = WriteBatcher(partial(commit, self._store, writer))
        self._running: dict[str, StoredTurn] = {}
        self.checkpoints = CheckpointTask(
            self._store, self._running, writer=writer, checkpoint_s=checkpoint_s, ttl_s=ttl_s
        )

    async def start(self) -> None:
        await self.checkpoints.start()

    async def stop(self) -> None:
        await self.checkpoints.stop()

    async def ping(self) -> None:
        """Raises Unavailable while the store is away."""
        await self._store.ping()

    async def open(self, request: TurnRequest) -> Turn:
        """Reads only: a request that is refused later on leaves nothing behind."""
        if request.is_remembered and (given := await self._given(request)) is not None:
            return given
        context = None
        if request.conversation is not None:
            async with self._store.reading() as repositories:
                context = await of_conversation(repositories, request.conversation, request.owner, request.item)
        elif request.previous is not None:
            async with self._store.reading() as repositories:
                context = await of_answer(repositories, request.previous, request.owner, request.kind)
        if not request.is_remembered:
            return UnstoredTurn(request.kind, context)
        return StoredTurn(self._writes, self._running, self._writer, request, context)

    async def _given(self, request: TurnRequest) -> ReplayedTurn | None:
        """The turn of a request that came before. What never became whole is taken back, and asked again."""
        if request.idempotency_key is None:
            return None
        async with self._store.reading() as repositories:
            turn = await _earlier(repositories, request.idempotency_key, request.owner)
            if turn is not None and (turn.completed_at is None or turn.status == COMPLETED):
                context = await of_turn(repositories, turn)
                found = await _whole(repositories, turn)
                return ReplayedTurn(found, context, partial(self._ended, turn.id, turn.owner))
        if turn is not None:
            async with self._store.writing() as repositories:
                await repositories.conversations.hold_of_turns([turn.id])
                again = await _earlier(repositories, request.idempotency_key, request.owner)
                if again is not None and again.id == turn.id and again.status != COMPLETED:
                    await take_back(repositories, again)
        return None

    async def _ended(self, turn_id: str, owner: str) -> Answer:
        """Once it is over, whoever writes it."""
        while True:
            async with self._store.reading() as repositories:
                turn = await repositories.turns.get(turn_id, owner)
                if turn is None or (turn.completed_at is not None and turn.status != COMPLETED):
                    raise Conflict("The first request of this key was not answered", param=PARAM)
                if turn.completed_at is not None:
                    return await _whole(repositories, turn)
            await asyncio.sleep(POLL_S)

    async def answer(self, turn_id: str, owner: str, kind: Kind) -> Answer:
        async with self._store.reading() as repositories:
            return await _whole(repositories, await _existing(repositories, turn_id, owner, kind))

    async def finished(self, turn_id: str, owner: str, kind: Kind) -> Answer:
        """Not found as long as it is being written."""
        found = await self.answer(turn_id, owner, kind)
        if not found.is_over:
            raise _no_turn(turn_id, kind)
        return found

    async def page(self, owner: str, kind: Kind, query: Query) -> list[Answer]:
        async with self._store.reading() as repositories:
            after = None
            if query.after is not None:
                after = await _cursor(repositories, query.after, owner, kind)
            turns = await repositories.turns.page(
                owner,
                kind,
                order=query.order,
                limit=query.limit,
                after=after,
                model=query.model,
                metadata=query.metadata,
            )
            return await _all(repositories, turns)

    async def referred(self, ids: Collection[str], owner: str) -> dict[str, Item]:
        """What has been stored under these ids."""
        async with self._store.reading() as repositories:
            return {row.id: row.data for row in await repositories.items.of_owner(owner, ids)}

    async def describe(self, turn_id: str, owner: str, kind: Kind, metadata: Mapping[str, Any]) -> Answer:
        """Gives it other metadata."""
        async with self._store.writing() as repositories:
            turn = await _held(repositories, turn_id, owner, kind)
            turn.metadata_ = dict(metadata)
            return await _whole(repositories, turn)

    async def cancel(self, turn_id: str, owner: str, kind: Kind) -> Answer:
        """Whoever writes it, here or elsewhere, sees it within a second; what is over stays as it is."""
        async with self._store.writing() as repositories:
            turn = await _held(repositories, turn_id, owner, kind)
            for running in await repositories.turns.still_running([turn.id]):
                await give_up(repositories, running, CANCELLED)
            stopped = await _whole(repositories, turn)
        if turn_id in self._running:
            self._running[turn_id].stopped.set()
        return stopped

    async def delete(self, turn_id: str, owner: str, kind: Kind) -> None:
        """With what was said in it, but for what belongs to a conversation."""
        async with self._store.writing() as repositories:
            turn = await _held(repositories, turn_id, owner, kind)
            conversation = await repositories.conversations.get(turn.conversation_id, owner)
            assert conversation is not None
            turns = await repositories.turns.of_conversation(conversation.id)
            if not conversation.listed and len(turns) == 1:
                await repositories.conversations.delete(conversation.id)
                return
            if any(each.completed_at is None for each in turns):
                raise Conflict("Another answer is being written where this one belongs")
            await repositories.turns.dismiss_writers(conversation.id, doomed=turn.id)
            if not conversation.listed:
                await repositories.items.delete(await repositories.items.of_turn(turn.id))
            await repositories.turns.delete(turn.id)


async def _earlier(repositories: Repositories, idempotency_key: IdempotencyKey, owner: str) -> TurnRow | None:
    found = await earlier(repositories, idempotency_key, owner)
    return await repositories.turns.get(found.turn_id, owner) if found and found.turn_id else None


async def _held(repositories: Repositories, turn_id: str, owner: str, kind: Kind) -> TurnRow:
    """Nobody else changes it, or writes to its conversation, until the transaction ends."""
    if TURN_ID.fullmatch(turn_id):
        await repositories.conversations.hold_of_turns([turn_id])
    return await _existing(repositories, turn_id, owner, kind)


async def _existing(repositories: Repositories, turn_id: str, owner: str, kind: Kind) -> TurnRow:
    if TURN_ID.fullmatch(turn_id):
        turn = await repositories.turns.get(turn_id, owner, kind)
        if turn is not None and (turn.stored or kind == "message"):
            return turn
    raise _no_turn(turn_id, kind)


def _no_turn(turn_id: str, kind: Kind) -> NotFound:
    return NotFound(f"No {kind} with id '{turn_id[:64]}'")


async def _cursor(repositories: Repositories, after: str, owner: str, kind: Kind) -> TurnRow:
    try:
        return await _existing(repositories, after, owner, kind)
    except NotFound:
        raise InvalidRequest("'after' is none of those that are listed", param="after") from None


async def _whole(repositories: Repositories, turn: TurnRow) -> Answer:
    return (await _all(repositories, [turn]))[0]


async def _all(repositories: Repositories, turns: Sequence[TurnRow]) -> list[Answer]:
    listed = await repositories.conversations.listed({turn.conversation_id for turn in turns})
    items: dict[str | None, list[ItemRow]] = {}
    for row in await repositories.items.of_turns([turn.id for turn in turns]):
        items.setdefault(row.turn_id, []).append(row)
    return [answer(turn, items.get(turn.id, []), listed=turn.conversation_id in listed) for turn in turns]
