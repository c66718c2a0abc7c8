"""What is deleted leaves SQLite's files as well: its log, where old pages stand until they are written over, and the
index of words, where a deletion is but one more entry until both are merged.

PostgreSQL's own vacuum sees to its files.
"""

from typing import Any

import aiosqlite
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

PAGES = 200  # of the index that are merged at once: nobody waits long for the one writer that SQLite has
PATIENCE_S = 0.1  # for readers of what is in the log: meanwhile nobody writes

CHANGES = text("SELECT total_changes()")
MERGE = text(f"INSERT INTO items_found (items_found, rank) VALUES ('merge', -{PAGES})")


class Deletions:
    """Counts them, on SQLite."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.is_counting = engine.dialect.name == "sqlite"
        self.count = int(self.is_counting)  # an earlier life may have left some
        self.erased = 0
        if self.is_counting:
            event.listen(engine.sync_engine, "after_cursor_execute", self._note)

    def _note(self, connection: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("DELETE") and cursor.rowcount != 0:
            self.count += 1


async def merge(session: AsyncSession) -> bool:
    """A part of the index; whether it is whole now."""
    before = await session.scalar(CHANGES)
    await session.execute(MERGE)
    after = await session.scalar(CHANGES)
    return bool(after - before < 2)  # FTS5's way to say that there was nothing to do


async def empty_log(path: str) -> bool:
    """False while somebody reads what stands in it."""
    async with aiosqlite.connect(path, timeout=PATIENCE_S, isolation_level=None) as connection:
        ((is_busy, *_),) = await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    return not is_busy
