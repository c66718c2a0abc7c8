"""Full-text search, in the way of either database: items that have all of the phrases, the newest first.

The owner is one of the words that are indexed, so that an index answers for one owner alone. SQLite reads it from its
end and stops when a page is full. PostgreSQL cannot; there a page of frequent words is found among the newest items,
and only for rare ones is the index asked.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, column, func, literal_column, select, table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from database import terms
from database.models import Item
from database.portion import Portion, fitting, weight

FOUND = table("items_found", column("rowid"))
Places = Select[int, int]
NEWEST = 2000  # items that are looked at one by one


class SearchRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def find(self, owner: str, phrases: Sequence[str], *, limit: int, before: int | None = None) -> Portion:
        """As many as are light enough to be read at once. `before`: the place of the last one that was seen."""
        found = await self._places(owner, [terms.token(owner), *phrases], limit + 1, before)
        if not found:
            return Portion([], limit)
        size = fitting([row.weight for row in found[:limit]])
        query = select(Item).where(Item.seq.in_([row.seq for row in found[: size + 1]])).order_by(Item.seq.desc())
        return Portion((await self._session.scalars(query)).all(), size)

    async def _places(
        self, owner: str, wanted: Sequence[str], limit: int, before: int | None
    ) -> Sequence[Row[int, int]]:
        if (await self._session.connection()).dialect.name == "sqlite":
            return await self._all(_in_sqlite(owner, wanted, limit, before))
        found = await self._all(_among_the_newest(owner, wanted, limit, before))
        return found if len(found) == limit else await self._all(_in_the_index(owner, wanted, limit, before))

    async def _all(self, query: Places) -> Sequence[Row[int, int]]:
        return (await self._session.execute(query)).all()


def _place(item: type[Item]) -> Places:
    return select(item.seq, weight(item.data).label("weight"))


def _in_sqlite(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Places:
    match = literal_column("items_found").op("MATCH")(" AND ".join(f'"{phrase}"' for phrase in wanted))
    query = _place(Item).join(FOUND, FOUND.c.rowid == Item.seq).where(match, Item.owner == owner)
    if before is not None:
        query = query.where(FOUND.c.rowid < before)
    return query.order_by(FOUND.c.rowid.desc()).limit(limit)


def _among_the_newest(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Places:
    newest = _of_owner(select(Item), owner, before).order_by(Item.seq.desc()).limit(NEWEST)
    item = aliased(Item, newest.subquery())
    # to look for the letters costs little, to split a text into its words much: few are looked at twice
    has_letters = (func.strpos(item.terms, phrase) > 0 for phrase in wanted)
    return _place(item).where(*has_letters, _matches(item.terms, wanted)).order_by(item.seq.desc()).limit(limit)


def _in_the_index(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Places:
    query = _of_owner(select(Item.seq), owner, before).where(_matches(Item.terms, wanted))
    found = query.cte().prefix_with("MATERIALIZED")  # or it would be looked for from the newest on, all the way
    newest = select(found.c.seq).order_by(found.c.seq.desc()).limit(limit)
    return _place(Item).where(Item.seq.in_(newest)).order_by(Item.seq.desc())


def _of_owner(query: Select[Any], owner: str, before: int | None) -> Select[Any]:
    query = query.where(Item.owner == owner)
    return query if before is None else query.where(Item.seq < before)


def _matches(text: Any, wanted: Sequence[str]) -> ColumnElement[bool]:
    simple: ColumnElement[Any] = literal_column("'simple'")  # as in the index, not as a parameter
    queries: list[ColumnElement[Any]] = [func.phraseto_tsquery(simple, phrase) for phrase in wanted]
    return func.to_tsvector(simple, text).op("@@")(reduce(lambda all, one: all.op("&&")(one), queries))
