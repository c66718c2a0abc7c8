"""How turns begin: what was given becomes items, and there is an empty answer. A few statements for many turns."""

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
from services.history.store import busy, no_conversation

Place = tuple[str, str]  # a conversation's id, and an item's


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TurnStart:
    """A new turn; where its conversation is not that of its context, that is new too."""

    row: TurnRow
    context: ConversationContext
    given: Sequence[Item]
    listed: bool  # if the conversation is new
    idempotency_key: IdempotencyKey | None

    @property
    def is_new(self) -> bool:
        return self.thread != self.context.conversation_id

    @property
    def thread(self) -> str:
        return self.row.conversation_id

    @property
    def named(self) -> set[str]:
        """The ids that what is given came with."""
        return {item["id"] for item in self.given if "id" in item}


async def begin(
    repositories: Repositories, starts: Sequence[TurnStart], held: Collection[str]
) -> Mapping[TurnStart, ServiceError]:
    """`held`: the conversations that are there, nobody else writes to them. Gives those that are refused, and why."""
    going_on = [each for each in starts if not each.is_new]
    known = await _known(repositories, going_on)
    refused = await _refused(repositories, going_on, held, known)
    await _write(repositories, [each for each in starts if each not in refused], known)
    return refused


async def _write(repositories: Repositories, begun: Sequence[TurnStart], known: set[Place]) -> None:
    new = [each for each in begun if each.is_new]
    await repositories.conversations.add([_conversation(each) for each in new])
    await repositories.conversations.touch([each.thread for each in begun if not each.is_new], time.time())
    copies = [row for each in new for row in item_rows.copies(each.context.branch, each.thread, each.row.created_at)]
    given = [row for each in begun for row in _given(each, known)]  # says what each answer hangs on
    await repositories.turns.add([each.row for each in begun])
    await repositories.items.add([*copies, *given])
    keys = [
        idempotency.row(each.idempotency_key, each.row.owner, each.thread, turn_id=each.row.id)
        for each in begun
        if each.idempotency_key
    ]
    # in their order, so that two processes never wait for each other
    await repositories.idempotency_keys.add(sorted(keys, key=lambda each: (each.owner, each.key)))


async def _known(repositories: Repositories, going_on: Sequence[TurnStart]) -> set[Place]:
    """What there is of the items that they name, or go on from."""
    places = {(each.thread, item) for each in going_on for item in each.named}
    places |= {(each.thread, each.context.tip) for each in going_on if each.context.tip and not each.context.is_newest}
    return await repositories.items.which(list(places))


async def _refused(
    repositories: Repositories,
    going_on: Sequence[TurnStart],
    held: Collection[str],
    known: set[Place],
) -> Mapping[TurnStart, ServiceError]:
    refused: dict[TurnStart, ServiceError] = {}
    alone = {each.thread for each in going_on if each.context.is_exclusive}
    states = await repositories.conversations.states(alone) if alone else {}
    begun: set[str] = set()
    for each in going_on:
        state = states.get(each.thread)
        if each.thread not in held:
            refused[each] = no_conversation(each.thread)
        elif state and (state.is_answered or state.newest != each.context.head or each.thread in begun):
            refused[each] = busy()
        elif each.context.tip and not each.context.is_newest and (each.thread, each.context.tip) not in known:
            refused[each] = busy()  # it was deleted meanwhile
        else:
            begun.add(each.thread)
    return refused


def _conversation(new: TurnStart) -> Conversation:
    at = new.row.created_at
    return Conversation(id=new.thread, owner=new.row.owner, listed=new.listed, created_at=at, updated_at=at)


def _given(start: TurnStart, known: set[Place]) -> list[ItemRow]:
    """What is given once more, or twice, under the id that it has is another item."""
    row, context = start.row, start.context
    items = [item_rows.whole(item) for item in start.given]
    if start.named:
        taken = {each.id for each in context.branch} | {item for thread, item in known if thread == row.conversation_id}
        items = item_rows.renamed(items, taken)
    given = item_rows.chain(items, item_rows.Place(row.owner, row.conversation_id, row.created_at, context.tip, row.id))
    row.parent_id = given[-1].id if given else context.tip
    return given
