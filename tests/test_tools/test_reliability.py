"""The ledger of acknowledged writes notices lost and resurrected data."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession, web

from database.usage_repository import UsageCounts
from tools.faults.batches import LINES, BatchReport, check_batches, check_files
from tools.faults.ledger import Ledger, broken

Store = dict[str, dict[str, str]]


@pytest.fixture
def store() -> Store:
    return {}


@pytest.fixture
async def client(store: Store) -> AsyncIterator[ClientSession]:
    async def read(request: web.Request) -> web.Response:
        found: object = store.get(request.path)
        if isinstance(found, list):  # JSON Lines
            return web.Response(body=b"\n".join(map(orjson.dumps, found)))
        return web.json_response(found or {}, status=200 if found else 404)

    app = web.Application()
    app.router.add_get("/{path:.*}", read)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
        yield client
    await runner.cleanup()


def _is_a(found: dict[str, str]) -> bool:
    return found["text"] == "a"


@pytest.mark.parametrize(
    ("stored", "complaint"),
    [({"text": "a"}, None), ({"text": "b"}, "not what was acknowledged"), (None, "lost")],
)
async def test_acknowledged_writes_must_be_there(
    client: ClientSession, store: Store, stored: dict[str, str] | None, complaint: str | None
) -> None:
    ledger = Ledger()
    ledger.promise("item", "/item", _is_a)
    if stored:
        store["/item"] = stored
    found = await broken(ledger, client)
    assert [complaint in each for each in found] == [True] if complaint else found == []


async def test_deleted_objects_must_be_gone(client: ClientSession, store: Store) -> None:
    ledger = Ledger()
    ledger.promise("deletion", "/item", None)
    assert await broken(ledger, client) == []
    store["/item"] = {"text": "a"}
    assert len(await broken(ledger, client)) == 1


async def test_last_promise_on_a_path_counts(client: ClientSession, store: Store) -> None:
    ledger = Ledger()
    ledger.promise("item", "/item", _is_a)
    ledger.promise("deletion", "/item", None)
    assert (await broken(ledger, client), ledger.num_acknowledged) == ([], 2)


async def test_files_must_have_their_bytes(client: ClientSession, store: Store) -> None:
    store["/v1/files/file-1/content"] = {"text": "a"}
    for sent, complaints in ((b'{"text": "a"}', 0), (b'{"text": "b"}', 1)):
        ledger, report = Ledger(files={"file-1": sent}), BatchReport()
        await check_files(client, ledger, report)
        assert (report.files, len(report.broken)) == (1, complaints)
    ledger, report = Ledger(files={"file-2": b"a"}), BatchReport()
    await check_files(client, ledger, report)
    assert len(report.broken) == 1


@pytest.mark.parametrize(
    ("answered", "requests", "complaints"),
    [(LINES, LINES, 0), (LINES - 1, LINES - 1, 1), (LINES, LINES + 1, 1), (LINES + 1, LINES + 1, 1)],
)
async def test_each_line_is_answered_and_counted_once(
    client: ClientSession, store: Any, answered: int, requests: int, complaints: int
) -> None:
    tokens = {"prompt_tokens": 3, "completion_tokens": 2}
    lines = [{"custom_id": str(each % LINES), "response": {"body": {"usage": tokens}}} for each in range(answered)]
    store["/v1/batches"] = {"data": [{"id": "batch-1"}], "has_more": False}
    batch = {"status": "completed", "output_file_id": "file-1", "error_file_id": None, "request_counts": {}}
    store["/v1/batches/batch-1"] = batch
    store["/v1/files/file-1/content"] = lines

    async def usage(owner: str) -> UsageCounts:
        return UsageCounts(requests=requests, prompt_tokens=3 * answered, completion_tokens=2 * answered)

    report = BatchReport()
    await check_batches(client, Ledger(batches=["batch-1"]), report, usage)
    assert len(report.broken) == complaints


async def test_an_acknowledged_batch_must_be_there(client: ClientSession, store: Any) -> None:
    store["/v1/batches"] = {"data": [], "has_more": False}

    async def usage(owner: str) -> UsageCounts:
        return UsageCounts()

    report = BatchReport()
    await check_batches(client, Ledger(batches=["batch-1"]), report, usage)
    assert report.broken == ["batch-1: lost"]
