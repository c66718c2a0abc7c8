"""Batches through starts, stops and takeovers of the whole app: every line once, and nothing is left running."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text, update

from database.batch_models import Batch
from database.session import Database
from services.engine.base import Job
from services.errors import Overloaded
from services.turn_service import this_writer
from tests.fakes import FakeEngine, FakeStream, Pause

LINES = 100
AT_ONCE = 5  # lines that are answered between two stops


class HesitantEngine(FakeEngine):
    """Answers so many jobs, and no others."""

    def __init__(self) -> None:
        super().__init__("Hello")
        self.left = 0
        self.refused = 0
        self.stuck = asyncio.Event()

    async def submit(self, job: Job) -> FakeStream:
        if self.refused:
            self.refused -= 1
            raise Overloaded("The queue is full", retry_after=0.01)
        return await super().submit(job)

    def open(self) -> FakeStream:
        if self.left:
            self.left -= 1
            return super().open()
        self.script = (Pause(),)
        try:
            self.stuck.set()
            return super().open()
        finally:
            self.script = ("Hello",)


@pytest.fixture
def engine() -> HesitantEngine:
    return HesitantEngine()


class Served:
    """The app in this process, between a start and a stop."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __aenter__(self) -> httpx2.AsyncClient:
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()
        self._client = httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), base_url="http://localhost")
        return self._client

    async def __aexit__(self, *error: Any) -> None:
        await self._client.aclose()
        await self._lifespan.__aexit__(None, None, None)


async def create(client: httpx2.AsyncClient, lines: int = LINES, **body: Any) -> str:
    requests = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": "hi"}], **body},
        }
        for number in range(lines)
    ]
    upload = {"file": ("in.jsonl", "\n".join(map(json.dumps, requests)))}
    file = (await client.post("/v1/files", files=upload, data={"purpose": "batch"})).json()["id"]
    window = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    answer = await client.post("/v1/batches", json={"input_file_id": file, **window})
    batch_id: str = answer.json()["id"]
    return batch_id


async def ended(client: httpx2.AsyncClient, batch_id: str) -> Any:
    while True:
        batch = (await client.get(f"/v1/batches/{batch_id}")).json()
        if batch["status"].endswith("ed"):
            return batch
        await asyncio.sleep(0.02)


async def lines_of(client: httpx2.AsyncClient, file_id: str) -> list[Any]:
    return [json.loads(line) for line in (await client.get(f"/v1/files/{file_id}/content")).text.splitlines()]


async def completed(database: Database, lines: int) -> None:
    """Waits until so many are."""
    num_completed = 0
    while num_completed < lines:
        await asyncio.sleep(0.01)
        async with database.read() as session:
            num_completed = await session.scalar(text("SELECT sum(completed) FROM batches")) or 0


async def usage(database: Database) -> Any:
    async with database.read() as session:
        return (await session.execute(text("SELECT sum(requests), sum(completion_tokens) FROM usage_hours"))).one()


NewApp = Callable[..., FastAPI]


@pytest.mark.parametrize("stops", [3, pytest.param(20, marks=pytest.mark.extended)])
async def test_every_line_once_through_stops_that_leave_nothing_behind(
    new_app: NewApp, database: Database, database_url: str, engine: HesitantEngine, stops: int
) -> None:
    settings = {"database": {"url": database_url, "migrate": False}}
    before, batch_id = asyncio.all_tasks(), ""
    for stop in range(stops):
        engine.left, engine.stuck = AT_ONCE if stop < stops - 1 else LINES, asyncio.Event()
        async with Served(new_app(**settings)) as client:
            batch_id = batch_id or await create(client)
            if stop == stops - 1:
                batch = await ended(client, batch_id)
                output = await lines_of(client, batch["output_file_id"])
            else:
                await engine.stuck.wait()
                await completed(database, AT_ONCE * (stop + 1))
        assert asyncio.all_tasks() - before == set()
        assert not engine.running
        assert not [each for each in threading.enumerate() if "batch" in each.name]
    assert (batch["status"], batch["request_counts"]) == (
        "completed",
        {"total": LINES, "completed": LINES, "failed": 0},
    )
    assert sorted(int(each["custom_id"]) for each in output) == [*range(LINES)]
    assert (*await usage(database),) == (LINES, LINES)
    async with database.read() as session:
        assert await session.scalar(text("SELECT count(*) FROM batch_results")) == 0


async def test_stored_answers_are_stored_once(new_app: NewApp, database_url: str, engine: HesitantEngine) -> None:
    settings = {"database": {"url": database_url, "migrate": False}}
    engine.left = 3
    async with Served(new_app(**settings)) as client:
        batch_id = await create(client, 8, store=True)
        await engine.stuck.wait()
    engine.left = LINES
    async with Served(new_app(**settings)) as client:
        batch = await ended(client, batch_id)
        output = await lines_of(client, batch["output_file_id"])
        stored = (await client.get("/v1/chat/completions?limit=100")).json()["data"]
    assert len(output) == 8
    assert {each["response"]["body"]["id"] for each in output} == {each["id"] for each in stored if each["choices"]}
    assert batch["usage"]["output_tokens"] == 8


async def test_a_full_engine_and_expiry(
    new_app: NewApp, database: Database, database_url: str, engine: HesitantEngine
) -> None:
    """Lines that are refused for want of room are tried again, and those that are too late are in the error file."""
    settings = {"database": {"url": database_url, "migrate": False}}
    engine.left, engine.refused = 5, 40
    async with Served(new_app(**settings)) as client:
        batch_id = await create(client, 20)
        await completed(database, 5)
    async with database.write() as session:
        await session.execute(update(Batch).values(expires_at=time.time() - 1))
    async with Served(new_app(**settings)) as client:
        batch = await ended(client, batch_id)
        done = await lines_of(client, batch["output_file_id"])
        late = await lines_of(client, batch["error_file_id"])
    assert (batch["status"], len(done), len(late)) == ("expired", 5, 15)
    assert {each["custom_id"] for each in [*done, *late]} == {str(number) for number in range(20)}
    assert {(each["response"], each["error"]["code"]) for each in late} == {(None, "batch_expired")}


async def test_a_batch_that_ends_its_process_again_and_again_fails(
    new_app: NewApp, store: Database, engine: HesitantEngine
) -> None:
    async with Served(new_app()) as client:
        batch_id = await create(client, 4)
        await engine.stuck.wait()
    async with store.write() as session:  # as if this process had been killed
        await session.execute(update(Batch).values(attempts=2, writer=this_writer()))
    async with Served(new_app()) as client:
        batch = await ended(client, batch_id)
    assert (batch["status"], [each["code"] for each in batch["errors"]["data"]]) == ("failed", ["server_error"])
