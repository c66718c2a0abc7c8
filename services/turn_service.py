"""Turns: opened for requests, checkpointed while they run, and retrieved by the id of their answer."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from database.item_repository import Order
from database.models import CANCELLED, COMPLETED
from database.models import Item as ItemRow
from database.models import Turn as TurnRow
from database.repositories import Repositories
from database.session import Database
from database.turn_repository import Unclaimed
from services.chat.items import Item
from services.errors import Conflict, InvalidRequest, NotFound
from services.history import audit
from services.history.answer import Answer, answer_of
from services.history.checkpoint_task import KEEP_ALL, CheckpointTask
from services.history.checkpoint_task import KeptRecords as KeptRecords
from services.history.context import (
    TURN_ID,
    ConversationContext,
    answer_context,
    conversation_context,
    turn_context,
)
from services.history.idempotency import PARAM, discard_turn, find_key
from services.history.idempotency import IdempotencyKey as IdempotencyKey
from services.history.replay import Replay
from services.history.store import Store
from services.history.stored_turn import StoredTurn
from services.history.turn import Kind, Turn, TurnRequest, UnstoredTurn, history_of
from services.history.turn_result import force_finish
from services.history.usage_ledger import UsageLedger
from services.history.write_batcher import WriteBatcher
from services.history.writer import this_writer as this_writer
from services.history.writes import Write, commit

LOGPROBS = "message.output_text.logprobs"  # of `include`
MAX_UNCLAIMED = 1000  # that are looked at
POLL_S = 0.5  # interval at which a running answer is read until it is finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Selects a page of stored answers."""

    limit: int
    order: Order = "asc"
    after: str | None = None
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def with_one_more(self) -> "Query":
        """One row beyond the page tells whether there is another page."""
        return replace(self, limit=self.limit + 1)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A background answer that this process goes on with."""

    turn: Turn
    owner: str
    key_id: str | None  # of the project's key that asked
    body: Mapping[str, Any]  # the request
    attempt: int


class TurnService:
    def __init__(
        self,
        database: Database,
        *,
        writer: str,
        checkpoint_s: float = 5.0,
        ttl_s: float | None = None,
        kept: KeptRecords = KEEP_ALL,
    ) -> None:
        self._store = Store(database)
        self._writer = writer
        self._writes: WriteBatcher[Write] = WriteBatcher(partial(commit, self._store, writer))
        self._running: dict[str, StoredTurn] = {}
        self.usage = UsageLedger(self._store, writer)
        self.checkpoints = CheckpointTask(
            self._store,
            self._running,
            self.usage,
            writer=writer,
            checkpoint_s=checkpoint_s,
            ttl_s=ttl_s,
            kept=kept,
        )

    async def start(self) -> None:
        await self.checkpoints.start()

    async def stop(self) -> None:
        await self.checkpoints.stop()

    async def ping(self) -> None:
        """Raises Unavailable if the store cannot be reached."""
        await self._store.ping()

    @property
    def has_others(self) -> bool:
        """Whether other processes serve the same database."""
        return self.checkpoints.lease.has_others

    @property
    def num_queued(self) -> int:
        """Turns of this process that no engine has admitted."""
        return sum(turn.is_queued for turn in self._running.values())

    async def claim(self, limit: int, older_than_s: float = 0.0) -> list[Claimed]:
        """Takes over some of the background answers without a writer: of owners with the fewest running ones first."""
        now = time.time()
        async with self._store.reading() as repositories:
            waiting = await repositories.turns.unclaimed(MAX_UNCLAIMED, now - older_than_s)
            if not waiting:
                return []
            held = await repositories.turns.num_claimed()
        chosen = [each.id for each in in_turn(waiting, held)[:limit]]
        with self.checkpoints.claiming(chosen):
            return await self._take_over(chosen, now)

    async def _take_over(self, chosen: Collection[str], now: float) -> list[Claimed]:
        async with self._store.writing() as repositories:
            rows = await repositories.turns.claim(chosen, self._writer, now)
            listed = await repositories.conversations.listed({row.conversation_id for row in rows})
            contexts = [await turn_context(repositories, row) for row in rows]
        return [
            self._claimed(row, context, is_listed=row.conversation_id in listed)
            for row, context in zip(rows, contexts, strict=True)
        ]

    async def release(self, turn_ids: Collection[str]) -> None:
        """Leaves background answers of this process to the others."""
        async with self._store.writing() as repositories:
            await repositories.conversations.lock_of_turns(turn_ids)
            rows = await repositories.turns.lock_running(turn_ids)
            released = [row for row in rows if row.writer == self._writer and row.body is not None]
            for row in released:
                await repositories.turns.release(row, time.time())
        for row in released:
            self._running.pop(row.id, None)

    def _claimed(self, row: TurnRow, context: ConversationContext, *, is_listed: bool) -> Claimed:
        assert row.body is not None
        request = TurnRequest(
            owner=row.owner,
            kind="response",
            conversation=row.conversation_id if is_listed else None,
            stored=row.stored,
            background=True,
            logprobs=LOGPROBS in cast("list[str]", row.body.get("include", [])),
            metadata=row.metadata_,
        )
        turn = StoredTurn.claimed(self._writes, self._running, request, row, context)
        return Claimed(turn, row.owner, row.key_id, row.body, row.attempt)

    async def open(self, request: TurnRequest) -> Turn | Replay:
        """A new turn, or the stored answer if the request repeats another one's idempotency key."""
        replay = await self._replay(request) if request.is_persistent else None
        return replay or await self.new_turn(request)

    async def new_turn(self, request: TurnRequest) -> Turn:
        """Reads only: a request that is rejected later leaves nothing behind."""
        context = None
        if request.conversation is not None:
            async with self._store.reading() as repositories:
                context = await conversation_context(repositories, request.conversation, request.owner, request.item)
        elif request.previous is not None:
            async with self._store.reading() as repositories:
                context = await answer_context(repositories, request.previous, request.owner, request.kind)
        if not request.is_persistent:
            return UnstoredTurn(self.usage, request, context)
        return StoredTurn(self._writes, self._running, self._writer, request, context)

    async def _replay(self, request: TurnRequest) -> Replay | None:
        """The answer of an earlier request with the same idempotency key. One that did not complete is discarded."""
        if request.idempotency_key is None:
            return None
        async with self._store.reading() as repositories:
            turn = await _turn_of_key(repositories, request.idempotency_key, request.owner)
            if turn is not None and (turn.completed_at is None or turn.status == COMPLETED):
                context = await turn_context(repositories, turn)
                found = await _answer(repositories, turn)
                return Replay(found, history_of(context), partial(self._finished_answer, turn.id, turn.owner))
        if turn is not None:
            async with self._store.writing() as repositories:
                await repositories.conversations.lock_of_turns([turn.id])
                locked = await _turn_of_key(repositories, request.idempotency_key, request.owner)
                if locked is not None and locked.id == turn.id and locked.status != COMPLETED:
                    await discard_turn(repositories, locked)
        return None

    async def _finished_answer(self, turn_id: str, owner: str) -> Answer:
        """Waits until the turn is finished, whichever process runs it."""
        while True:
            async with self._store.reading() as repositories:
                turn = await repositories.turns.get(turn_id, owner)
                if turn is None or (turn.completed_at is not None and turn.status != COMPLETED):
                    raise Conflict("The first request of this key was not answered", param=PARAM)
                if turn.completed_at is not None:
                    return await _answer(repositories, turn)
            await asyncio.sleep(POLL_S)

    async def answer(self, turn_id: str, owner: str, kind: Kind) -> Answer:
        async with self._store.reading() as repositories:
            return await _answer(repositories, await _get(repositories, turn_id, owner, kind))

    async def finished_answer(self, turn_id: str, owner: str, kind: Kind) -> Answer:
        """Raises NotFound while the turn is running."""
        found = await self.answer(turn_id, owner, kind)
        if not found.is_finished:
            raise _not_found(turn_id, kind)
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
            return await _answers(repositories, turns)

    async def items_by_id(self, ids: Collection[str], owner: str) -> dict[str, Item]:
        async with self._store.reading() as repositories:
            return {row.id: row.data for row in await repositories.items.of_owner(owner, ids)}

    async def update_metadata(self, turn_id: str, owner: str, kind: Kind, metadata: Mapping[str, Any]) -> Answer:
        async with self._store.writing() as repositories:
            turn = await _lock(repositories, turn_id, owner, kind)
            turn.metadata_ = dict(metadata)
            return await _answer(repositories, turn)

    async def cancel(self, turn_id: str, owner: str, kind: Kind) -> Answer:
        """Its process, this one or another, stops within a second. A finished turn stays as it is."""
        async with self._store.writing() as repositories:
            turn = await _lock(repositories, turn_id, owner, kind)
            for running in await repositories.turns.lock_running([turn.id]):
                await force_finish(repositories, running, CANCELLED)
            stopped = await _answer(repositories, turn)
        if turn_id in self._running:
            self._running[turn_id].stopped.set()
        return stopped

    async def delete(self, turn_id: str, owner: str, kind: Kind) -> None:
        """Deletes the turn and its items; items of a listed conversation stay."""
        async with self._store.writing() as repositories:
            turn = await _lock(repositories, turn_id, owner, kind)
            conversation = await repositories.conversations.get(turn.conversation_id, owner)
            assert conversation is not None
            audit.record(repositories, owner, f"{kind}.deleted", turn_id)
            turns = await repositories.turns.of_conversation(conversation.id)
            if not conversation.listed and len(turns) == 1:
                await repositories.conversations.delete(conversation.id)
                return
            if any(each.completed_at is None for each in turns):
                raise Conflict("Another answer is being written where this one belongs")
            await repositories.turns.clear_writers(conversation.id, also_lock=turn.id)
            if not conversation.listed:
                await repositories.items.delete(await repositories.items.of_turn(turn.id))
            await repositories.turns.delete(turn.id)


def in_turn(waiting: Sequence[Unclaimed], held: Mapping[str, int]) -> list[Unclaimed]:
    """Each owner's in their order, the owners in turns. `held`: how many each has running."""
    places = dict(held)

    def place(each: Unclaimed) -> int:
        places[each.owner] = places.get(each.owner, 0) + 1
        return places[each.owner]

    return [each for _, each in sorted(((place(each), each) for each in waiting), key=lambda pair: pair[0])]


async def _turn_of_key(repositories: Repositories, idempotency_key: IdempotencyKey, owner: str) -> TurnRow | None:
    found = await find_key(repositories, idempotency_key, owner)
    return await repositories.turns.get(found.turn_id, owner) if found and found.turn_id else None


async def _lock(repositories: Repositories, turn_id: str, owner: str, kind: Kind) -> TurnRow:
    """Locks the turn's conversation until the transaction ends."""
    if TURN_ID.fullmatch(turn_id):
        await repositories.conversations.lock_of_turns([turn_id])
    return await _get(repositories, turn_id, owner, kind)


async def _get(repositories: Repositories, turn_id: str, owner: str, kind: Kind) -> TurnRow:
    if TURN_ID.fullmatch(turn_id):
        turn = await repositories.turns.get(turn_id, owner, kind)
        if turn is not None and (turn.stored or kind == "message"):
            return turn
    raise _not_found(turn_id, kind)


def _not_found(turn_id: str, kind: Kind) -> NotFound:
    return NotFound(f"No {kind} with id '{turn_id[:64]}'")


async def _cursor(repositories: Repositories, after: str, owner: str, kind: Kind) -> TurnRow:
    try:
        return await _get(repositories, after, owner, kind)
    except NotFound:
        raise InvalidRequest("'after' is none of those that are listed", param="after") from None


async def _answer(repositories: Repositories, turn: TurnRow) -> Answer:
    return (await _answers(repositories, [turn]))[0]


async def _answers(repositories: Repositories, turns: Sequence[TurnRow]) -> list[Answer]:
    listed = await repositories.conversations.listed({turn.conversation_id for turn in turns})
    items: dict[str | None, list[ItemRow]] = {}
    for row in await repositories.items.of_turns([turn.id for turn in turns]):
        items.setdefault(row.turn_id, []).append(row)
    return [answer_of(turn, items.get(turn.id, []), listed=turn.conversation_id in listed) for turn in turns]
