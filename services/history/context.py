"""What a turn goes on from: a conversation, or an answer that was stored by itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from database.models import IN_PROGRESS, QUEUED, Conversation, Turn
from database.models import Item as ItemRow
from database.repositories import Repositories
from services.errors import Conflict, InvalidRequest, NotFound
from services.history.store import busy, no_conversation

CONVERSATION_ID = re.compile(r"conv_[0-9a-f]{32}")
TURN_ID = re.compile(r"(chatcmpl-|resp_)?[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class ConversationContext:
    """`head` is the newest item of the conversation: nobody may have added to it when the turn begins. None of it where
    answers branch freely. `copied`: the branch goes on in a conversation of its own."""

    conversation_id: str
    branch: tuple[ItemRow, ...] = ()  # oldest first; the turn hangs on the last
    head: str | None = None
    is_exclusive: bool = True
    copied: bool = False

    @property
    def tip(self) -> str | None:
        """The item to go on from."""
        return self.branch[-1].id if self.branch else None

    @property
    def is_newest(self) -> bool:
        return self.tip == self.head


async def of_conversation(
    repositories: Repositories, conversation: str, owner: str, item: str | None = None
) -> ConversationContext:
    """Up to that item, or else to the newest."""
    await existing(repositories, conversation, owner)
    if await repositories.turns.running_in(conversation) is not None:
        raise busy()
    rows = await repositories.items.page(conversation)
    tip = next((row for row in rows if row.id == item), None) if item else rows[-1] if rows else None
    if item and tip is None:
        raise InvalidRequest("That item is not in the conversation", param="parent_item")
    return ConversationContext(conversation, _branch(rows, tip) if tip else (), rows[-1].id if rows else None)


async def of_answer(repositories: Repositories, previous: str, owner: str, kind: str) -> ConversationContext:
    """All that was said up to the end of this answer."""
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
    return ConversationContext(turn.conversation_id, branch, is_exclusive=False, copied=conversation.listed)


async def of_turn(repositories: Repositories, turn: Turn) -> ConversationContext:
    """What was there when it began."""
    rows = await repositories.items.page(turn.conversation_id)
    given = [row for row in rows if row.turn_id == turn.id and row.choice is None]
    tip = next((row for row in rows if given and row.id == given[0].parent_id), None)
    return ConversationContext(turn.conversation_id, _branch(rows, tip) if tip else ())


async def existing(repositories: Repositories, conversation: str, owner: str, *, lock: bool = False) -> Conversation:
    if CONVERSATION_ID.fullmatch(conversation):
        found = await repositories.conversations.get(conversation, owner, lock=lock)
        if found is not None and found.listed:
            return found
    raise no_conversation(conversation)


def _branch(rows: Sequence[ItemRow], tip: ItemRow) -> tuple[ItemRow, ...]:
    """From an item up its parents."""
    by_id = {row.id: row for row in rows}
    branch = [tip]
    while (parent := branch[-1].parent_id) is not None:
        branch.append(by_id[parent])
    return tuple(reversed(branch))
