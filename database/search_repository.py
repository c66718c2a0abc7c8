"""Full-text search on SQLite (FTS5) and PostgreSQL (tsvector): items that contain all phrases, newest first.

The owner is indexed as a word, so that a lookup reads the entries of one owner only. SQLite reads the index from its
end and stops when the page is full. PostgreSQL cannot: there, frequent words are looked up among the newest items
first, and the index is read only for rare ones.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, column, func, literal_column, select, table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from database import terms
from database.bounded_page import BoundedPage, json_length, num_within_limit
from database.models import Item

FOUND = table("items_found", column("rowid"))
Positions = Select[int, int]
NUM_SCANNED = 2000  # newest items that are scanned without the index


class SearchRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def find(self, owner: str, phrases: Sequence[str], *, limit: int, before: int | None = None) -> BoundedPage:
        """A page of matching items. `before`: the sequence number of the last item of the previous page."""
        found = await self._positions(owner, [terms.token(owner), *phrases], limit + 1, before)
        if not found:
            return BoundedPage([], limit)
        size = num_within_limit([row.json_length for row in found[:limit]])
        query = select(Item).where(Item.seq.in_([row.seq for row in found[: size + 1]])).order_by(Item.seq.desc())
        return BoundedPage((await self._session.scalars(query)).all(), size)

    async def _positions(
        self, owner: str, wanted: Sequence[str], limit: int, before: int | None
    ) -> Sequence[Row[int, int]]:
        if (await self._session.connection()).dialect.name == "sqlite":
            return await self._all(_in_fts5(owner, wanted, limit, before))
        found = await self._all(_in_newest_items(owner, wanted, limit, before))
        return found if len(found) == limit else await self._all(_in_index(owner, wanted, limit, before))

    async def _all(self, query: Positions) -> Sequence[Row[int, int]]:
        return (await self._session.execute(query)).all()


def _position(item: type[Item]) -> Positions:
    return select(item.seq, json_length(item.data).label("json_length"))


def _in_fts5(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Positions:
    match = literal_column("items_found").op("MATCH")(" AND ".join(f'"{phrase}"' for phrase in wanted))
    query = _position(Item).join(FOUND, FOUND.c.rowid == Item.seq).where(match, Item.owner == owner)
    if before is not None:
        query = query.where(FOUND.c.rowid < before)
    return query.order_by(FOUND.c.rowid.desc()).limit(limit)


def _in_newest_items(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Positions:
    newest = _of_owner(select(Item), owner, before).order_by(Item.seq.desc()).limit(NUM_SCANNED)
    item = aliased(Item, newest.subquery())
    # a substring search is cheap, splitting a text into words is not: few items need the second test
    contains = (func.strpos(item.terms, phrase) > 0 for phrase in wanted)
    return _position(item).where(*contains, _matches(item.terms, wanted)).order_by(item.seq.desc()).limit(limit)


def _in_index(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Positions:
    query = _of_owner(select(Item.seq), owner, before).where(_matches(Item.terms, wanted))
    found = query.cte().prefix_with("MATERIALIZED")  # else PostgreSQL scans all items from the newest on
    newest = select(found.c.seq).order_by(found.c.seq.desc()).limit(limit)
    return _position(Item).where(Item.seq.in_(newest)).order_by(Item.seq.desc())


def _of_owner(query: Select[Any], owner: str, before: int | None) -> Select[Any]:
    query = query.where(Item.owner == owner)
    return query if before is None else query.where(Item.seq < before)


def _matches(text: Any, wanted: Sequence[str]) -> ColumnElement[bool]:
    simple: ColumnElement[Any] = literal_column("'simple'")  # as in the index, not as a parameter
    queries: list[ColumnElement[Any]] = [func.phraseto_tsquery(simple, phrase) for phrase in wanted]
    return func.to_tsvector(simple, text).op("@@")(reduce(lambda all, one: all.op("&&")(one), queries))
