"""Turns: opened for whoever answers, kept while they run, and found again by their answer's id."""

from collections.abc import Mapping
from typing import Any

from database.models import CANCELLED
from database.models import Turn as Row
from database.repositories import Repositories
from database.session import Database
from services.errors import Conflict, NotFound
from services.history.answer import Answer, answer
from services.history.keeper import Keeper
from services.history.keeper import this_writer as this_writer
from services.history.past import TURN_ID, of_answer, of_conversation
from services.history.store import Store
from services.history.turn import Kind, Opening, StoredTurn, Turn, UnstoredTurn, give_up


class TurnService:
    def __init__(self, database: Database, *, writer: str, checkpoint_s: float = 5.0) -> None:
        self._store = Store(database)
        self._writer = writer
        self._running: dict[str, StoredTurn] = {}
        self.keeper = Keeper(self._store, self._running, writer=writer, checkpoint_s=checkpoint_s)

    async def start(self) -> None:
        await self.keeper.start()

    async def stop(self) -> None:
        await self.keeper.stop()

    async def ping(self) -> None:
        """Raises Unavailable while the store is away."""
        await self._store.ping()

    async def open(self, opening: Opening) -> Turn:
        """Reads only: a request that is refused later on leaves nothing behind."""
        if not opening.is_remembered:
            return UnstoredTurn(opening.kind)
        past = None
        if opening.conversation is not None:
            async with self._store.reading() as repositories:
                past = await of_conversation(repositories, opening.conversation, opening.owner)
        elif opening.previous is not None:
            async with self._store.reading() as repositories:
                past = await of_answer(repositories, opening.previous, opening.owner, opening.kind)
        return StoredTurn(self._store, self._running, self._writer, opening, past)

    async def answer(self, turn_id: str, owner: str, kind: Kind) -> Answer:
        async with self._store.reading() as repositories:
            return await _whole(repositories, await _existing(repositories, turn_id, owner, kind))

    async def describe(self, turn_id: str, owner: str, kind: Kind, metadata: Mapping[str, Any]) -> Answer:
        """Gives it other metadata."""
        async with self._store.writing() as repositories:
            turn = await _existing(repositories, turn_id, owner, kind)
            turn.metadata_ = dict(metadata)
            return await _whole(repositories, turn)

    async def cancel(self, turn_id: str, owner: str, kind: Kind) -> Answer:
        """Whoever writes it, here or elsewhere, sees it at the next checkpoint; what is over stays as it is."""
        async with self._store.writing() as repositories:
            turn = await _existing(repositories, turn_id, owner, kind)
            for running in await repositories.turns.still_running([turn.id]):
                await give_up(repositories, running, CANCELLED)
            return await _whole(repositories, turn)

    async def delete(self, turn_id: str, owner: str, kind: Kind) -> None:
        """With what was said in it, but for what belongs to a conversation."""
        async with self._store.writing() as repositories:
            turn = await _existing(repositories, turn_id, owner, kind)
            conversation = await repositories.conversations.get(turn.conversation_id, owner, lock=True)
            assert conversation is not None
            turns = await repositories.turns.of_conversation(conversation.id)
            if not conversation.listed and len(turns) == 1:
                await repositories.conversations.delete(conversation.id)
                return
            if any(each.completed_at is None for each in turns):
                raise Conflict("Another answer is being written where this one belongs")
            if not conversation.listed:
                await repositories.items.delete(await repositories.items.of_turn(turn.id))
            await repositories.turns.delete(turn.id)


async def _existing(repositories: Repositories, turn_id: str, owner: str, kind: Kind) -> Row:
    if TURN_ID.fullmatch(turn_id):
        turn = await repositories.turns.get(turn_id, owner, kind)
        if turn is not None and (turn.stored or kind == "message"):
            return turn
    raise NotFound(f"No {kind} with id '{turn_id[:64]}'")


async def _whole(repositories: Repositories, turn: Row) -> Answer:
    conversation = await repositories.conversations.get(turn.conversation_id, turn.owner)
    assert conversation is not None
    return answer(turn, await repositories.items.of_turn(turn.id), listed=conversation.listed)
