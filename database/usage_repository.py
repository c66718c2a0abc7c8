"""Statements on usage. The caller's session ends the transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from database.usage_models import UsageHour, UsageWriter

UsageKind = Literal["completions", "embeddings", "rerank"]
Dimension = Literal["hour", "owner", "key_id", "model", "kind"]


@dataclass(frozen=True, slots=True)
class UsageBucket:
    """What a count is for. `hour`: its beginning, in seconds since the epoch."""

    hour: int
    owner: str
    key_id: str
    model: str
    kind: UsageKind


@dataclass(frozen=True, slots=True)
class UsageCounts:
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "UsageCounts") -> "UsageCounts":
        return UsageCounts(*(getattr(self, name) + getattr(other, name) for name in COUNTS))

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Usage:
    bucket: UsageBucket
    counts: UsageCounts


COUNTS = tuple(field.name for field in fields(UsageCounts))
BUCKET = tuple(field.name for field in fields(UsageBucket))
COLUMNS = BUCKET + COUNTS
ADD = text(
    f"INSERT INTO usage_hours ({', '.join(COLUMNS)}) VALUES ({', '.join(f':{each}' for each in COLUMNS)})"
    f" ON CONFLICT ({', '.join(BUCKET)}) DO UPDATE SET "
    + ", ".join(f"{each} = usage_hours.{each} + excluded.{each}" for each in COUNTS)
)
NEXT_BATCH = text(
    "INSERT INTO usage_writers (writer, batch, at) VALUES (:writer, :batch, :at) "
    "ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, at = excluded.at"
)


class UsageRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, usage: Iterable[Usage]) -> None:
        """To be the last statement of a transaction: rows are locked in the order of their keys."""
        if merged := merge(usage):
            in_order = sorted(merged, key=lambda each: tuple(getattr(each, name) for name in BUCKET))
            await self._session.execute(ADD, [_row(each, merged[each]) for each in in_order])

    async def last_batch(self, writer: str) -> int:
        return await self._session.scalar(select(UsageWriter.batch).where(UsageWriter.writer == writer)) or 0

    async def set_batch(self, writer: str, batch: int, at: float) -> None:
        await self._session.execute(NEXT_BATCH, {"writer": writer, "batch": batch, "at": at})

    async def sums(
        self, by: Sequence[Dimension], since: float, until: float | None = None, **only: Sequence[str] | None
    ) -> Sequence[tuple[Mapping[str, Any], UsageCounts]]:
        """Sums over each value of `by`, in its order; `only` are values of other columns to look at."""
        groups: list[ColumnElement[Any]] = [UsageHour.__table__.c[name] for name in by]
        sums: list[ColumnElement[Any]] = [func.sum(UsageHour.__table__.c[name]) for name in COUNTS]
        query = select(*groups, *sums).where(UsageHour.hour >= since)
        if until is not None:
            query = query.where(UsageHour.hour < until)
        for name, values in only.items():
            if values is not None:
                query = query.where(UsageHour.__table__.c[name].in_(values))
        if groups:
            query = query.group_by(*groups).order_by(*groups)
        rows = (await self._session.execute(query)).all()
        return [(dict(zip(by, row, strict=False)), _counts(row[len(by) :])) for row in rows if row[len(by)] is not None]

    async def last_hours(self, key_ids: Sequence[str]) -> dict[str, int]:
        """The hour of each key's last request."""
        query = select(UsageHour.key_id, func.max(UsageHour.hour)).where(UsageHour.key_id.in_(key_ids))
        return {row[0]: row[1] for row in await self._session.execute(query.group_by(UsageHour.key_id))}

    async def tokens_of_key(self, key_id: str, since: int) -> int:
        total = func.sum(UsageHour.prompt_tokens + UsageHour.completion_tokens)
        query = select(total).where(UsageHour.key_id == key_id, UsageHour.hour >= since)
        return int(await self._session.scalar(query) or 0)

    async def delete_before(self, hour: float, writers: float) -> None:
        """Hours that began before `hour`, and the marks of processes that wrote nothing since `writers`."""
        await self._session.execute(delete(UsageHour).where(UsageHour.hour < hour))
        await self._session.execute(delete(UsageWriter).where(UsageWriter.at < writers))


def merge(usage: Iterable[Usage]) -> dict[UsageBucket, UsageCounts]:
    merged: dict[UsageBucket, UsageCounts] = {}
    for each in usage:
        known = merged.get(each.bucket)
        merged[each.bucket] = each.counts if known is None else known + each.counts
    return merged


def _row(bucket: UsageBucket, counts: UsageCounts) -> dict[str, Any]:
    values = {name: getattr(bucket, name) for name in BUCKET}
    return values | {name: getattr(counts, name) for name in COUNTS}


def _counts(values: Sequence[Any]) -> UsageCounts:
    """PostgreSQL sums to decimals."""
    *counts, seconds = values
    return replace(UsageCounts(*map(int, counts)), seconds=float(seconds))
