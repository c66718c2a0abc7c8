"""Full-text search over the caller's history."""

import asyncio
from collections.abc import Collection, Sequence

from database import terms
from database.models import Item as ItemRow
from database.repositories import Repositories
from database.session import Database
from schemas.conversation_schema import SearchResult
from schemas.page_schema import Page, page
from services.errors import InvalidRequest
from services.history.item_rows import finite_timestamp, readable_text
from services.history.store import Store


class SearchService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)

    async def find(self, owner: str, query: str, *, limit: int, after: str | None = None) -> Page[SearchResult]:
        """Newest first."""
        phrases = terms.phrases(query)
        if not phrases:
            raise InvalidRequest("'query' has no word to look for", param="query")
        async with self._store.reading() as repositories:
            before = None if after is None else await _cursor(repositories, after, owner)
            matches = await repositories.search.find(owner, phrases, limit=limit, before=before)
            rows = matches.rows
            listed = await repositories.conversations.listed({row.conversation_id for row in rows})
        found = await asyncio.to_thread(_all_found, rows, query, listed)
        return page(found, [f"{row.conversation_id}:{row.id}" for row in rows], matches.size)


async def _cursor(repositories: Repositories, after: str, owner: str) -> int:
    conversation_id, _, item_id = after.partition(":")
    row = await repositories.items.get(conversation_id, item_id) if "\0" not in after else None
    if row is None or row.owner != owner:
        raise InvalidRequest("'after' is none of what was found", param="after")
    return row.seq


def _all_found(rows: Sequence[ItemRow], query: str, listed: Collection[str]) -> list[SearchResult]:
    """Runs in a thread: it searches each text for the words of the query."""
    return [_found(row, query, is_listed=row.conversation_id in listed) for row in rows]


def _found(row: ItemRow, query: str, *, is_listed: bool) -> SearchResult:
    return SearchResult(
        conversation_id=row.conversation_id if is_listed else None,
        answer_id=None if is_listed else row.turn_id,
        item=row.data,
        snippet=terms.snippet(readable_text(row.data), query),
        created_at=int(finite_timestamp(row.created_at)),
    )
