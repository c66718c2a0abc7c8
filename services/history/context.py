"""The context a turn continues from: a branch of a conversation, or the branch up to a stored answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from database.models import IN_PROGRESS, QUEUED, Conversation, Turn
from database.models import Item as ItemRow
from database.repositories import Repositories
from services.errors import Conflict, InvalidRequest, NotFound
from services.history.store import conversation_busy, conversation_not_found

CONVERSATION_ID = re.compile(r"conv_[0-9a-f]{32}")
TURN_ID = re.compile(r"(chatcmpl-|resp_)?[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class ConversationContext:
    """`is_exclusive`: `newest_id` must still be the conversation's newest item when the turn begins. Stored answers
    branch freely. `is_copied`: the branch continues in a conversation of its own."""

    conversation_id: str
    branch: tuple[ItemRow, ...] = ()  # oldest first
    newest_id: str | None = None
    is_exclusive: bool = True
    is_copied: bool = False

    @property
    def tip(self) -> str | None:
        """Id of the item that the turn becomes a child of."""
        return self.branch[-1].id if self.branch else None

    @property
    def is_newest(self) -> bool:
        return self.tip == self.newest_id


async def conversation_context(
    repositories: Repositories, conversation: str, owner: str, item: str | None = None
) -> ConversationContext:
    """The branch up to `item`, by default up to the newest item. An empty `item`: before the first one."""
    await get_conversation(repositories, conversation, owner)
    if await repositories.turns.running_in(conversation) is not None:
        raise conversation_busy()
    rows = await repositories.items.page(conversation)
    tip = _tip(rows, item)
    return ConversationContext(conversation, _branch(rows, tip) if tip else (), rows[-1].id if rows else None)


def _tip(rows: Sequence[ItemRow], item: str | None) -> ItemRow | None:
    if item is None:
        return rows[-1] if rows else None
    tip = next((row for row in rows if row.id == item), None)
    if item and tip is None:
        raise InvalidRequest("That item is not in the conversation", param="parent_item")
    return tip


async def answer_context(repositories: Repositories, previous: str, owner: str, kind: str) -> ConversationContext:
    """The branch up to the end of a stored answer."""
    turn = await repositories.turns.get(previous, owner, kind) if TURN_ID.fullmatch(previous) else None
    if turn is None or not turn.stored:
        raise NotFound(f"No {kind} with id '{previous[:64]}'", param="previous_response_id")
    if turn.status in (QUEUED, IN_PROGRESS):
        raise Conflict("That answer is still being written", param="previous_response_id")
    conversation = await repositories.conversations.get(turn.conversation_id, owner)
    assert conversation is not None
    rows = await repositories.items.page(turn.conversation_id)
    own = [row for row in rows if row.turn_id == turn.id and not row.choice]
    branch = _branch(rows, own[-1]) if own else ()
    return ConversationContext(turn.conversation_id, branch, is_exclusive=False, is_copied=conversation.listed)


async def turn_context(repositories: Repositories, turn: Turn) -> ConversationContext:
    """The branch that the turn began with."""
    rows = await repositories.items.page(turn.conversation_id)
    inputs = [row for row in rows if row.turn_id == turn.id and row.choice is None]
    parent = inputs[0].parent_id if inputs else turn.parent_id
    tip = next((row for row in rows if row.id == parent), None)
    return ConversationContext(turn.conversation_id, _branch(rows, tip) if tip else ())


async def get_conversation(
    repositories: Repositories, conversation: str, owner: str, *, lock: bool = False
) -> Conversation:
    if CONVERSATION_ID.fullmatch(conversation):
        found = await repositories.conversations.get(conversation, owner, lock=lock)
        if found is not None and found.listed:
            return found
    raise conversation_not_found(conversation)


def _branch(rows: Sequence[ItemRow], tip: ItemRow) -> tuple[ItemRow, ...]:
    """The ancestors of `tip`, and `tip` itself."""
    by_id = {row.id: row for row in rows}
    branch = [tip]
    while (parent := branch[-1].parent_id) is not None:
        branch.append(by_id[parent])
    return tuple(reversed(branch))
