"""Full-text search, in the way of either database. The owner is one of the words: an index then answers for one
alone."""

from collections.abc import Sequence
from functools import reduce

from sqlalchemy import ColumnElement, Select, bindparam, column, func, literal_column, select, table
from sqlalchemy.ext.asyncio import AsyncSession

from database import terms
from database.models import Item

FOUND = table("items_found", column("rowid"))


def search(owner: str, phrases: Sequence[str], dialect: str, *, limit: int, before: int | None = None) -> Select[Item]:
    """Items that have all of the phrases, the newest first; `before` is the place of the last one that was seen."""
    wanted = [terms.token(owner), *phrases]
    query = select(Item).where(Item.owner == owner).limit(limit)
    if dialect == "sqlite":
        query = query.join(FOUND, FOUND.c.rowid == Item.seq).where(_sqlite(wanted))
        place: ColumnElement[int] = FOUND.c.rowid  # in this order its index is read, and only as far as needed
    else:
        query = query.where(_postgresql(wanted))
        place = Item.seq  # type: ignore[assignment]  # of two indexes the planner knows which: are the words frequent?
    if before is not None:
        query = query.where(place < before)
    return query.order_by(place.desc())


def _sqlite(wanted: Sequence[str]) -> ColumnElement[bool]:
    return literal_column("items_found").op("MATCH")(" AND ".join(f'"{phrase}"' for phrase in wanted))


def _postgresql(wanted: Sequence[str]) -> ColumnElement[bool]:
    queries: list[ColumnElement[object]] = [func.phraseto_tsquery(_inline("simple"), _inline(each)) for each in wanted]
    looked_for = reduce(lambda all, one: all.op("&&")(one), queries)
    return func.to_tsvector(_inline("simple"), Item.terms).op("@@")(looked_for)


def _inline(text: str) -> ColumnElement[str]:
    """Not as a parameter: the plan depends on how frequent the word is."""
    return bindparam(None, text, literal_execute=True)


class SearchRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def find(
        self, owner: str, phrases: Sequence[str], *, limit: int, before: int | None = None
    ) -> Sequence[Item]:
        dialect = (await self._session.connection()).dialect.name
        query = search(owner, phrases, dialect, limit=limit, before=before)
        return (await self._session.scalars(query)).all()
