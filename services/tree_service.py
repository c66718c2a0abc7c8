"""Conversations with their branches, and how each answer in them ended."""

from typing import Any, cast

from database.models import Item as ItemRow
from database.models import Turn as TurnRow
from database.repositories import Repositories
from database.session import Database
from schemas.page_schema import page
from schemas.response_answer_schema import ResponseError
from schemas.tree_schema import TreeAnswer, TreeNode, TreePage
from services.chat.answer.response_events import usage
from services.chat.compaction.item import public_item
from services.errors import InvalidRequest
from services.history.context import get_conversation
from services.history.item_rows import finite_timestamp
from services.history.response import COUNTS
from services.history.store import Store


class TreeService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)

    async def page(self, conversation_id: str, owner: str, *, limit: int, after: str | None = None) -> TreePage:
        """Items and answers oldest first, each item with its parent. The last page has the running answer, too."""
        async with self._store.reading() as repositories:
            await get_conversation(repositories, conversation_id, owner)
            start = None if after is None else await _cursor(repositories, conversation_id, after)
            found = await repositories.items.bounded_page(conversation_id, after=start, limit=limit)
            rows = found.rows[: found.size]
            turns = {
                turn.id: turn
                for turn in await repositories.turns.get_many({row.turn_id for row in rows if row.turn_id})
            }
            if len(found.rows) <= found.size and (running := await repositories.turns.running_in(conversation_id)):
                turns[running.id] = running
        ordered = sorted(turns.values(), key=lambda turn: (turn.created_at, turn.id))
        nodes = page([_node(row) for row in found.rows], [row.id for row in found.rows], found.size)
        return TreePage(**dict(nodes), answers=[_answer(turn) for turn in ordered])


async def _cursor(repositories: Repositories, conversation_id: str, after: str) -> ItemRow:
    row = await repositories.items.get(conversation_id, after) if "\0" not in after else None
    if row is None:
        raise InvalidRequest("'after' is not an item of this conversation", param="after")
    return row


def _node(row: ItemRow) -> TreeNode:
    return TreeNode(
        item=public_item(row.data),
        parent_item=row.parent_id,
        answer_id=row.turn_id,
        is_output=row.choice is not None,
        created_at=int(finite_timestamp(row.created_at)),
    )


def _answer(turn: TurnRow) -> TreeAnswer:
    choices: list[dict[str, Any]] = turn.choices or []
    return TreeAnswer(
        id=turn.id,
        status=cast("Any", turn.status),  # the database's check admits no other
        model=turn.model,
        parent_item=turn.parent_id,
        finish_reason=choices[0].get("finish_reason") if choices else None,
        usage=usage(*(turn.usage[name] for name in COUNTS)) if turn.usage else None,
        error=ResponseError.model_validate(turn.error) if turn.error else None,
        created_at=finite_timestamp(turn.created_at),
        completed_at=None if turn.completed_at is None else finite_timestamp(turn.completed_at),
    )
