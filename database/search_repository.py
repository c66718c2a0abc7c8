"""Full-text search, in the way of either database: items that have all of the phrases, the newest first.

The owner is one of the words that are indexed, so that an index answers for one owner alone. SQLite reads it from its
end and stops when a page is full. PostgreSQL cannot; there a page of frequent words is found among the newest items,
and only for rare ones is the index asked.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from sqlalchemy import ColumnElement, Select, column, func, literal_column, select, table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from database import terms
from database.models import Item

FOUND = table("items_found", column("rowid"))
NEWEST = 2000  # items that are looked at one by one


class SearchRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def find(
        self, owner: str, phrases: Sequence[str], *, limit: int, before: int | None = None
    ) -> Sequence[Item]:
        """`before`: the place of the last one that was seen."""
        wanted = [terms.token(owner), *phrases]
        if (await self._session.connection()).dialect.name == "sqlite":
            return await self._all(_in_sqlite(owner, wanted, limit, before))
        found = await self._all(_among_the_newest(owner, wanted, limit, before))
        return found if len(found) == limit else await self._all(_in_the_index(owner, wanted, limit, before))

    async def _all(self, query: Select[Any]) -> Sequence[Item]:
        return (await self._session.scalars(query)).all()


def _in_sqlite(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Select[Any]:
    match = literal_column("items_found").op("MATCH")(" AND ".join(f'"{phrase}"' for phrase in wanted))
    query = select(Item).join(FOUND, FOUND.c.rowid == Item.seq).where(match, Item.owner == owner)
    if before is not None:
        query = query.where(FOUND.c.rowid < before)
    return query.order_by(FOUND.c.rowid.desc()).limit(limit)


def _among_the_newest(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Select[Any]:
    newest = _of_owner(select(Item), owner, before).order_by(Item.seq.desc()).limit(NEWEST)
    item = aliased(Item, newest.subquery())
    # to look for the letters costs little, to split a text into its words much: few are looked at twice
    has_letters = (func.strpos(item.terms, phrase) > 0 for phrase in wanted)
    return select(item).where(*has_letters, _matches(item.terms, wanted)).order_by(item.seq.desc()).limit(limit)


def _in_the_index(owner: str, wanted: Sequence[str], limit: int, before: int | None) -> Select[Any]:
    query = _of_owner(select(Item.seq), owner, before).where(_matches(Item.terms, wanted))
    found = query.cte().prefix_with("MATERIALIZED")  # or it would be looked for from the newest on, all the way
    newest = select(found.c.seq).order_by(found.c.seq.desc()).limit(limit)
    return select(Item).where(Item.seq.in_(newest)).order_by(Item.seq.desc())


def _of_owner(query: Select[Any], owner: str, before: int | None) -> Select[Any]:
    query = query.where(Item.owner == owner)
    return query if before is None else query.where(Item.seq < before)


def _matches(text: Any, wanted: Sequence[str]) -> ColumnElement[bool]:
    simple: ColumnElement[Any] = literal_column("'simple'")  # as in the index, not as a parameter
    queries: list[ColumnElement[Any]] = [func.phraseto_tsquery(simple, phrase) for phrase in wanted]
    return func.to_tsvector(simple, text).op("@@")(reduce(lambda all, one: all.op("&&")(one), queries))
