"""Writes the start of turns: input items and an empty answer. A batch of turns takes a few statements."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from database.models import Conversation
from database.models import Item as ItemRow
from database.models import Turn as TurnRow
from database.repositories import Repositories
from services.chat.items import Item
from services.errors import ServiceError
from services.history import idempotency, item_rows
from services.history.context import ConversationContext
from services.history.idempotency import IdempotencyKey
from services.history.store import conversation_busy, conversation_not_found

ItemKey = tuple[str, str]  # conversation id, item id


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TurnStart:
    """A turn to be written; its conversation is new where it differs from that of its context."""

    row: TurnRow
    context: ConversationContext
    input: Sequence[Item]
    listed: bool  # of a new conversation
    idempotency_key: IdempotencyKey | None

    @property
    def is_new_conversation(self) -> bool:
        return self.conversation_id != self.context.conversation_id

    @property
    def conversation_id(self) -> str:
        return self.row.conversation_id

    @property
    def input_ids(self) -> set[str]:
        """Ids that the input items came with."""
        return {item["id"] for item in self.input if "id" in item}


async def start_turns(
    repositories: Repositories, starts: Sequence[TurnStart], locked: Collection[str]
) -> Mapping[TurnStart, ServiceError]:
    """Returns a map from each rejected start to its error. `locked`: ids of the locked conversations."""
    continuing = [each for each in starts if not each.is_new_conversation]
    existing = await _existing_keys(repositories, continuing)
    rejected = await _rejected(repositories, continuing, locked, existing)
    await _write(repositories, [each for each in starts if each not in rejected], existing)
    return rejected


async def _write(repositories: Repositories, starts: Sequence[TurnStart], existing: set[ItemKey]) -> None:
    new = [each for each in starts if each.is_new_conversation]
    await repositories.conversations.add([_conversation(each) for each in new])
    await repositories.conversations.touch(
        [each.conversation_id for each in starts if not each.is_new_conversation], time.time()
    )
    copies = [
        row
        for each in new
        for row in item_rows.copied_rows(each.context.branch, each.conversation_id, each.row.created_at)
    ]
    inputs = [row for each in starts for row in _input_rows(each, existing)]  # sets the parent of each turn
    await repositories.turns.add([each.row for each in starts])
    await repositories.items.add([*copies, *inputs])
    keys = [
        idempotency.key_row(each.idempotency_key, each.row.owner, each.conversation_id, turn_id=each.row.id)
        for each in starts
        if each.idempotency_key
    ]
    # sorted, so that two processes cannot deadlock
    await repositories.idempotency_keys.add(sorted(keys, key=lambda each: (each.owner, each.key)))


async def _existing_keys(repositories: Repositories, continuing: Sequence[TurnStart]) -> set[ItemKey]:
    """Item keys that exist, of the input's ids and of the items the turns continue from."""
    keys = {(each.conversation_id, item) for each in continuing for item in each.input_ids}
    keys |= {
        (each.conversation_id, each.context.tip)
        for each in continuing
        if each.context.tip and not each.context.is_newest
    }
    return await repositories.items.existing_keys(list(keys))


async def _rejected(
    repositories: Repositories,
    continuing: Sequence[TurnStart],
    locked: Collection[str],
    existing: set[ItemKey],
) -> Mapping[TurnStart, ServiceError]:
    rejected: dict[TurnStart, ServiceError] = {}
    exclusive = {each.conversation_id for each in continuing if each.context.is_exclusive}
    states = await repositories.conversations.states(exclusive) if exclusive else {}
    started: set[str] = set()
    for each in continuing:
        conversation, context = each.conversation_id, each.context
        state = states.get(conversation)
        if conversation not in locked:
            rejected[each] = conversation_not_found(conversation)
        elif state and (state.is_running or state.newest_item_id != context.newest_id or conversation in started):
            rejected[each] = conversation_busy()
        elif context.tip and not context.is_newest and (conversation, context.tip) not in existing:
            rejected[each] = conversation_busy()  # the item was deleted since the context was read
        else:
            started.add(conversation)
    return rejected


def _conversation(start: TurnStart) -> Conversation:
    at = start.row.created_at
    return Conversation(
        id=start.conversation_id, owner=start.row.owner, listed=start.listed, created_at=at, updated_at=at
    )


def _input_rows(start: TurnStart, existing: set[ItemKey]) -> list[ItemRow]:
    """An input item whose id is taken becomes an item of a new id."""
    row, context = start.row, start.context
    items = [item_rows.with_defaults(item) for item in start.input]
    if start.input_ids:
        taken = {each.id for each in context.branch} | {
            item for conversation, item in existing if conversation == row.conversation_id
        }
        items = item_rows.with_unique_ids(items, taken)
    position = item_rows.ItemPosition(row.owner, row.conversation_id, row.created_at, context.tip, row.id)
    rows = item_rows.linked_rows(items, position)
    row.parent_id = rows[-1].id if rows else context.tip
    return rows
