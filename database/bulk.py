"""Many rows in one statement. SQLAlchemy's unit of work takes several times as long to find out what they are.

The statements are made once: making one costs as much as executing it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from sqlalchemy import Insert, Table, Update, insert, inspect
from sqlalchemy.ext.asyncio import AsyncSession

from database.models import Base


async def insert_all(session: AsyncSession, rows: Sequence[Base]) -> None:
    """In this order. All of one table; what the database numbers itself it does not tell."""
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
    given = [column for column in table.columns if column is not table.autoincrement_column]
    readers = {column.key: attrgetter(mapper.get_property_by_column(column).key) for column in given}
    return insert(table), readers
