"""Usage through the official client, on both databases."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError
from typer.testing import CliRunner

from database.session import Database
from database.usage_repository import UsageCounts
from services.callers import Caller
from services.errors import EngineFailed
from services.history.usage import usage_of
from services.turn_service import TurnService
from tests.apps import MODEL, NewSite, Site, official
from tests.fakes import FakeEngine
from tests.test_tools.test_keys import run_in_thread
from tools import usage as command

ROOT = "root-key-of-the-settings"
HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def site(new_server: NewSite, database_url: str) -> Site:
    return await new_server(database={"url": database_url, "migrate": False}, admin_key=ROOT)


@pytest.fixture
async def client(site: Site, database_url: str) -> AsyncIterator[AsyncOpenAI]:
    """With a key of a project, and as administrator."""
    key = (await run_in_thread("create", "--name", "laptop", url=database_url)).stdout.strip()
    await site.services.stored_keys.refresh()
    async with official(site, key, admin_api_key=ROOT) as client:
        yield client


async def completions(client: AsyncOpenAI, **query: Any) -> list[dict[str, Any]]:
    """The results of the newest bucket with any."""
    usage = client.admin.organization.usage
    page = await usage.completions(start_time=int(time.time()) - 86_400, **query)
    return [result.to_dict() for bucket in page.data for result in bucket.results]


async def test_every_answer_is_counted_once(client: AsyncOpenAI, site: Site, engine: FakeEngine) -> None:
    stored: Any = {"model": MODEL, "messages": HI, "store": True, "extra_headers": {"Idempotency-Key": "k"}}
    answers = [await client.chat.completions.create(**stored) for _ in range(2)]
    assert answers[0].id == answers[1].id  # replayed: counted once
    async for _ in await client.chat.completions.create(model=MODEL, messages=HI, stream=True):
        pass
    response = await client.responses.create(model=MODEL, input="hi", background=True)
    while (await client.responses.retrieve(response.id)).status != "completed":
        pass
    legacy = await client.completions.create(model=MODEL, prompt="hi")
    assert legacy.usage is not None
    assert answers[0].usage is not None
    engine.script = ("Hel", EngineFailed("broken"))
    with pytest.raises(Exception, match="broken"):
        await client.chat.completions.create(model=MODEL, messages=HI)
    (result,) = await completions(client, group_by=["model", "project_id"])
    assert (result["num_model_requests"], result["num_failed_requests"]) == (5, 1)
    assert result["output_tokens"] == 4 * 3 + 1
    assert result["input_tokens"] == 4 * answers[0].usage.prompt_tokens + legacy.usage.prompt_tokens
    assert result["model"] == MODEL
    assert result["seconds"] > 0
    ((key, project),) = await site.services.stored_keys.keys()
    assert result["project_id"] == project.id
    shown = await client.admin.organization.projects.api_keys.retrieve(key.id, project_id=project.id)
    assert shown.last_used_at is not None
    assert 0 <= time.time() - shown.last_used_at < 7200


async def test_a_client_that_leaves_has_used_what_it_got(client: AsyncOpenAI, engine: FakeEngine) -> None:
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await engine.idle.wait()
    while not (found := await completions(client)):
        pass
    assert (found[0]["num_model_requests"], found[0]["num_failed_requests"]) == (1, 0)


async def add(database: Database, hours_ago: int, key: str, **counts: int) -> None:
    usage = usage_of(Caller(f"proj_{key}", f"key_{key}"), "m", "completions", UsageCounts(**counts))
    moved = replace(usage, bucket=replace(usage.bucket, hour=usage.bucket.hour - 3600 * hours_ago))
    await TurnService(database, writer=f"host:{hours_ago}{key}").usage.record(moved)


@pytest.mark.both_databases
async def test_buckets_filters_and_pages(client: AsyncOpenAI, database: Database) -> None:
    for hours_ago in range(3):
        for key in "ab":
            await add(database, hours_ago, key, requests=1, prompt_tokens=10**hours_ago)
    usage = client.admin.organization.usage
    hour = int(time.time()) // 3600 * 3600
    query: Any = {"start_time": hour - 2 * 3600, "end_time": hour + 3600, "bucket_width": "1h"}
    page = await usage.completions(**query, api_key_ids=["key_a"], limit=2)
    assert [each.start_time for each in page.data] == [hour - 7200, hour - 3600]
    assert [each.results[0].to_dict()["input_tokens"] for each in page.data] == [100, 10]
    assert (page.has_more, page.next_page) == (True, str(hour))
    rest = await usage.completions(**query, api_key_ids=["key_a"], limit=2, page=str(page.next_page))
    assert [each.results[0].to_dict()["input_tokens"] for each in rest.data] == [1]
    assert (rest.has_more, rest.next_page) == (False, None)
    by_key = await usage.completions(**query, group_by=["api_key_id"], project_ids=["proj_b"])
    assert {each.results[0].to_dict()["api_key_id"] for each in by_key.data} == {"key_b"}
    nothing = await usage.embeddings(start_time=hour, bucket_width="1h")
    assert [each.results for each in nothing.data] == [[]]
    for wrong in ({"bucket_width": "1m"}, {"limit": 32}, {"page": "x"}, {"group_by": ["user_id"]}):
        with pytest.raises(BadRequestError):
            await usage.completions(start_time=hour, **wrong)  # type: ignore[arg-type]


async def test_command_line_adds_up(database: Database, database_url: str) -> None:
    await add(database, 0, "a", requests=2, errors=1, prompt_tokens=5, cached_tokens=3, completion_tokens=4)
    await add(database, 1, "a", requests=1, reasoning_tokens=7)
    await add(database, 48, "b", requests=1)

    async def shown(*arguments: str) -> list[str]:
        result = await asyncio.to_thread(CliRunner().invoke, command.app, [*arguments, "--database-url", database_url])
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    head = "key,name,requests,errors,prompt,cached,completion,reasoning,seconds"
    assert await shown("--csv", "--since", "1d") == [head, "key_a,,3,1,5,3,4,7,0.0"]
    assert len(await shown("--by", "project")) == 3
    hours = [row.split(",") for row in await shown("--by", "hour", "--since", "1d", "--csv")]
    assert [row[2:5] for row in hours] == [["requests", "errors", "prompt"], ["1", "0", "0"], ["2", "1", "5"]]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00Z", row[0]) for row in hours[1:])
    assert await shown("--by", "model", "--csv") == [head.replace("key", "model"), "m,,4,1,5,3,4,7,0.0"]


async def test_a_user_sees_no_usage(client: AsyncOpenAI, site: Site) -> None:
    answer: httpx2.Response = await site.client.get(
        "/v1/organization/usage/completions?start_time=0", headers={"Authorization": f"Bearer {client.api_key}"}
    )
    assert answer.status_code == 404
