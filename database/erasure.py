"""Erases deleted rows from SQLite's files: from the write-ahead log, where old pages stay until they are overwritten,
and from the full-text index, where a deletion is an entry of its own until segments are merged.

PostgreSQL's vacuum does this for its files.
"""

from typing import Any

import aiosqlite
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

MERGED_PAGES = 200  # of the index per step, so that other writers wait briefly
CHECKPOINT_TIMEOUT_S = 0.1  # waits for readers of the log, and blocks writers meanwhile

CHANGES = text("SELECT total_changes()")
MERGE = text(f"INSERT INTO items_found (items_found, rank) VALUES ('merge', -{MERGED_PAGES})")


class Deletions:
    """Counts the deletions of this process, on SQLite."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.is_counting = engine.dialect.name == "sqlite"
        self.count = int(self.is_counting)  # an earlier process may have left some
        self.erased = 0
        if self.is_counting:
            event.listen(engine.sync_engine, "after_cursor_execute", self._count_deletion)

    def _count_deletion(self, connection: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("DELETE") and cursor.rowcount != 0:
            self.count += 1


async def merge(session: AsyncSession) -> bool:
    """Merges a part of the index; returns whether it is fully merged."""
    before = await session.scalar(CHANGES)
    await session.execute(MERGE)
    after = await session.scalar(CHANGES)
    return bool(after - before < 2)  # how FTS5 reports that nothing was left to merge


async def empty_log(path: str) -> bool:
    """Returns False while a reader uses the log."""
    async with aiosqlite.connect(path, timeout=CHECKPOINT_TIMEOUT_S, isolation_level=None) as connection:
        ((is_busy, *_),) = await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    return not is_busy
