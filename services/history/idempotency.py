"""Idempotency keys: a client that got no answer repeats its request, and nothing is stored twice."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from database.models import COMPLETED
from database.models import IdempotencyKey as IdempotencyRow
from database.models import Turn as TurnRow
from database.repositories import Repositories
from services.errors import InvalidRequest
from services.history.store import conversation_busy

PARAM = "Idempotency-Key"
KEY_TTL_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """`key` is a hash of the client's key, `digest` a hash of the request it was sent with."""

    key: str
    digest: str


async def find_key(
    repositories: Repositories, idempotency_key: IdempotencyKey | None, owner: str
) -> IdempotencyRow | None:
    """The record of an earlier request with this key; raises InvalidRequest if that request differed."""
    if idempotency_key is None:
        return None
    found = await repositories.idempotency_keys.get(owner, idempotency_key.key)
    if found is not None and found.digest != idempotency_key.digest:
        raise InvalidRequest("This key was used for another request", param=PARAM)
    return found


async def store_key(
    repositories: Repositories,
    idempotency_key: IdempotencyKey | None,
    owner: str,
    conversation_id: str,
    item_ids: Sequence[str] | None = None,
) -> None:
    """To be called in the transaction that stores the result of the request."""
    if idempotency_key is not None:
        row = key_row(idempotency_key, owner, conversation_id, item_ids=item_ids)
        await repositories.idempotency_keys.add([row])


def key_row(
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


async def discard_turn(repositories: Repositories, turn: TurnRow) -> None:
    """Deletes a turn that did not complete, with its input, so that the repeated request runs again."""
    assert turn.completed_at is not None
    assert turn.status != COMPLETED
    conversation = await repositories.conversations.get(turn.conversation_id, turn.owner, lock=True)
    turns = await repositories.turns.of_conversation(turn.conversation_id)
    if any(each.completed_at is None for each in turns):
        raise conversation_busy()
    await repositories.turns.clear_writers(turn.conversation_id, also_lock=turn.id)
    if conversation is not None and not conversation.listed and len(turns) == 1:
        await repositories.conversations.delete(conversation.id)
        return
    await repositories.items.delete(await repositories.items.of_turn(turn.id))
    await repositories.turns.delete(turn.id)
