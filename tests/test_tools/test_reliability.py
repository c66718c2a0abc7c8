"""The ledger of acknowledged writes notices lost and resurrected data."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, web

from tools.faults.ledger import Ledger, broken

Store = dict[str, dict[str, str]]


@pytest.fixture
def store() -> Store:
    return {}


@pytest.fixture
async def client(store: Store) -> AsyncIterator[ClientSession]:
    async def read(request: web.Request) -> web.Response:
        found = store.get(request.path)
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
