"""Requests that may come again: a client that got no answer asks once more, and nothing is to be stored twice."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from database.models import COMPLETED
from database.models import IdempotencyKey as IdempotencyRow
from database.models import Turn as TurnRow
from database.repositories import Repositories
from services.errors import InvalidRequest
from services.history.store import busy

PARAM = "Idempotency-Key"
KEPT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """`key` is the client's name for a request, `digest` tells it from others of that name; both are hashes."""

    key: str
    digest: str


async def earlier(
    repositories: Repositories, idempotency_key: IdempotencyKey | None, owner: str
) -> IdempotencyRow | None:
    """What became of the request when it came before."""
    if idempotency_key is None:
        return None
    found = await repositories.idempotency_keys.get(owner, idempotency_key.key)
    if found is not None and found.digest != idempotency_key.digest:
        raise InvalidRequest("This key was used for another request", param=PARAM)
    return found


async def remember(
    repositories: Repositories,
    idempotency_key: IdempotencyKey | None,
    owner: str,
    conversation_id: str,
    item_ids: Sequence[str] | None = None,
) -> None:
    """In the transaction that stores it."""
    if idempotency_key is not None:
        await repositories.idempotency_keys.add([row(idempotency_key, owner, conversation_id, item_ids=item_ids)])


def row(
    idempotency_key: IdempotencyKey,
    owner: str,
    conversation_id: str,
    *,
    turn_id: str | None = None,
    item_ids: Sequence[str] | None = None,
) -> IdempotencyRow:
    return IdempotencyRow(
        owner=owner,
        key=idempotency_key.key,
        digest=idempotency_key.digest,
        conversation_id=conversation_id,
        turn_id=turn_id,
        item_ids=list(item_ids) if item_ids is not None else None,
        created_at=time.time(),
    )


async def take_back(repositories: Repositories, turn: TurnRow) -> None:
    """An answer that never became whole, with what was asked: it is asked again."""
    assert turn.completed_at is not None
    assert turn.status != COMPLETED
    conversation = await repositories.conversations.get(turn.conversation_id, turn.owner, lock=True)
    turns = await repositories.turns.of_conversation(turn.conversation_id)
    if any(each.completed_at is None for each in turns):
        raise busy()
    await repositories.turns.dismiss_writers(turn.conversation_id, doomed=turn.id)
    if conversation is not None and not conversation.listed and len(turns) == 1:
        await repositories.conversations.delete(conversation.id)
        return
    await repositories.items.delete(await repositories.items.of_turn(turn.id))
    await repositories.turns.delete(turn.id)
