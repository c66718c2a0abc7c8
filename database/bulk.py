"""Bulk inserts and updates: many rows in one statement, several times as fast as SQLAlchemy's unit of work.

Statements are cached: building one costs as much as executing it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from sqlalchemy import Insert, Table, Update, insert, inspect
from sqlalchemy.ext.asyncio import AsyncSession

from database.models import Base


async def insert_all(session: AsyncSession, rows: Sequence[Base]) -> None:
    """Inserts rows of one table in this order; autoincremented keys are not read back."""
    if rows:
        statement, readers = _insertion(type(rows[0]))
        await execute_all(session, statement, [{name: read(row) for name, read in readers.items()} for row in rows])


async def execute_all(session: AsyncSession, statement: Insert | Update, rows: Sequence[Mapping[str, object]]) -> None:
    if rows:
        await (await session.connection()).execute(statement, rows)


@cache
def _insertion(kind: type[Base]) -> tuple[Insert, Mapping[str, Callable[[Base], Any]]]:
    mapper, table = inspect(kind), kind.__table__
    assert isinstance(table, Table)
    inserted = [column for column in table.columns if column is not table.autoincrement_column]
    readers = {column.key: attrgetter(mapper.get_property_by_column(column).key) for column in inserted}
    return insert(table), readers
