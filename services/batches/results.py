"""Results of a batch's requests: lines of its output files, stored as they come, many in one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from uuid import uuid4

import orjson

from database.batch_models import Batch, BatchResult
from database.repositories import Repositories
from database.usage_repository import Usage, UsageCounts
from services.errors import Conflict, ServiceError
from services.history.store import Store

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What a route would have answered."""

    status: int
    request_id: str
    body: bytes  # JSON


@dataclass(frozen=True, slots=True, eq=False)
class LineResult:
    batch_id: str
    line: int
    failed: bool
    data: str
    counts: UsageCounts  # of the batch
    usage: Sequence[Usage] = field(default=())  # that is not counted elsewhere


class Lost(Conflict):
    """Another process runs this batch."""

    def __init__(self) -> None:
        super().__init__("Another process runs this batch")


def answered(custom_id: str, answer: LineAnswer) -> str:
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": orjson.Fragment(answer.body)}
    return _line(custom_id, response, None)


def not_executed(custom_id: str, code: str, message: str) -> str:
    return _line(custom_id, None, {"code": code, "message": message})


def _line(custom_id: str, response: Mapping[str, object] | None, error: Mapping[str, str] | None) -> str:
    line = {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(line).decode()


def counts_of(usage: Iterable[Usage], body: bytes) -> UsageCounts:
    """Of a request. An answer that is stored counts itself: then its body says how many tokens it took."""
    counts = [each.counts for each in usage]
    return sum(counts, UsageCounts()) if counts else _counts_in(body)


def _counts_in(body: bytes) -> UsageCounts:
    used = orjson.loads(body).get("usage") or {}
    kinds = [used.get(f"{kind}_tokens_details") or {} for kind in ("prompt", "input", "completion", "output")]
    return UsageCounts(
        prompt_tokens=used.get("prompt_tokens", used.get("input_tokens", 0)),
        completion_tokens=used.get("completion_tokens", used.get("output_tokens", 0)),
        cached_tokens=sum(each.get("cached_tokens") or 0 for each in kinds[:2]),
        reasoning_tokens=sum(each.get("reasoning_tokens") or 0 for each in kinds[2:]),
    )


async def commit(store: Store, writer: str, results: Sequence[LineResult]) -> Mapping[LineResult, ServiceError]:
    """Results, counts and usage in one transaction. Rejects those of batches that this process does not run."""
    rejected: dict[LineResult, ServiceError] = {}
    usage: list[Usage] = []
    async with store.writing() as repositories:
        for batch_id, group in groupby(sorted(results, key=attrgetter("batch_id")), attrgetter("batch_id")):
            own = list(group)
            if (batch := await repositories.batches.lock_own(batch_id, writer)) is None:
                rejected |= {each: Lost() for each in own}
            else:
                usage += await _add(repositories, batch, own)
        await repositories.usage.add(usage)
    return rejected


async def _add(repositories: Repositories, batch: Batch, results: Sequence[LineResult]) -> list[Usage]:
    """Returns what is to be counted. A commit that was not confirmed may have written some of them."""
    existing = await repositories.batches.existing(batch.id, [each.line for each in results])
    new = [each for each in results if each.line not in existing]
    rows = [BatchResult(batch_id=batch.id, line=each.line, failed=each.failed, data=each.data) for each in new]
    await repositories.batches.add_results(rows)
    batch.failed += sum(each.failed for each in new)
    batch.completed += sum(not each.failed for each in new)
    batch.attempts = 0 if new else batch.attempts
    counts = sum((each.counts for each in new), UsageCounts())
    batch.usage = {name: batch.usage.get(name, 0) + getattr(counts, name) for name in TOKENS}
    return [usage for each in new for usage in each.usage]
