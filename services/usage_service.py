"""Usage, as OpenAI's administration and the command line show it."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from database.session import Database
from database.usage_repository import Dimension, UsageCounts
from schemas.usage_schema import (
    WIDTHS,
    CompletionsResult,
    EmbeddingsResult,
    Group,
    UsageBucket,
    UsagePage,
    UsageQuery,
    UsageResult,
)
from services.history.store import Store

Kind = Literal["completions", "embeddings"]
COLUMNS: dict[Group, Dimension] = {"project_id": "owner", "api_key_id": "key_id", "model": "model"}
HOUR_S = 3600


class UsageService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)

    async def page(self, kind: Kind, query: UsageQuery) -> UsagePage:
        """Buckets begin at multiples of their width (UTC), also those without usage."""
        width = WIDTHS[query.bucket_width]
        start = int(query.page) if query.page is not None else query.start_time // width * width
        stop = int(time.time()) + 1 if query.end_time is None else query.end_time
        end = min(start + query.buckets * width, max(stop, start))
        starts = range(start, end, width)
        groups = list(dict.fromkeys(COLUMNS[each] for each in query.group_by))
        only = {"owner": query.project_ids, "key_id": query.api_key_ids, "model": query.models, "kind": [kind]}
        async with self._store.reading() as repositories:
            sums = await repositories.usage.sums(["hour", *groups], start, end, **only)
        found = _by_bucket(sums, width)
        has_more = end < stop
        return UsagePage(
            data=[_bucket(each, width, found[each], kind) for each in starts],
            has_more=has_more,
            next_page=str(end) if has_more else None,
        )

    async def by(self, dimension: Dimension, since: float) -> Sequence[tuple[str, UsageCounts]]:
        """Sums since the hour of a time."""
        async with self._store.reading() as repositories:
            sums = await repositories.usage.sums([dimension], since // HOUR_S * HOUR_S)
        return [(str(group[dimension]), counts) for group, counts in sums]


Found = Mapping[int, Mapping[tuple[tuple[str, Any], ...], UsageCounts]]


def _by_bucket(sums: Sequence[tuple[Mapping[str, Any], UsageCounts]], width: int) -> Found:
    found: defaultdict[int, defaultdict[tuple[tuple[str, Any], ...], UsageCounts]] = defaultdict(
        lambda: defaultdict(UsageCounts)
    )
    for group, counts in sums:
        values = tuple((name, value) for name, value in group.items() if name != "hour")
        found[group["hour"] // width * width][values] += counts
    return found


def _bucket(
    start: int, width: int, results: Mapping[tuple[tuple[str, Any], ...], UsageCounts], kind: Kind
) -> UsageBucket:
    shown = [_result(dict(values), counts, kind) for values, counts in results.items()]
    return UsageBucket(start_time=start, end_time=start + width, results=shown)


def _result(group: Mapping[str, str], counts: UsageCounts, kind: Kind) -> CompletionsResult | EmbeddingsResult:
    common = UsageResult(
        input_tokens=counts.prompt_tokens,
        num_model_requests=counts.requests,
        num_failed_requests=counts.errors,
        seconds=counts.seconds,
        project_id=group.get("owner"),
        api_key_id=group.get("key_id"),
        model=group.get("model"),
    ).model_dump()
    if kind == "embeddings":
        return EmbeddingsResult(**common)
    return CompletionsResult(
        **common,
        output_tokens=counts.completion_tokens,
        input_cached_tokens=counts.cached_tokens,
        output_reasoning_tokens=counts.reasoning_tokens,
    )
