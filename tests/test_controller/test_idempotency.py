"""Requests that come again under the same Idempotency-Key."""

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, ConflictError, InternalServerError
from openai.types.responses import Response

from services.errors import EngineFailed
from tests.apps import MODEL, Site
from tests.fakes import FakeEngine, Pause

pytestmark = pytest.mark.both_databases

HI: Any = [{"role": "user", "content": "Hi"}]
KEY = {"Idempotency-Key": "mine"}


async def send(openai: AsyncOpenAI, **more: Any) -> Any:
    fields: dict[str, Any] = {"model": MODEL, "messages": HI, "store": True, "extra_headers": KEY}
    return await openai.chat.completions.create(**fields | more)


async def contents(openai: AsyncOpenAI, conversation: str) -> list[str]:
    found = openai.conversations.items.list(conversation, order="asc")
    return [each.content[0].text async for each in found]  # type: ignore[union-attr]


async def test_a_stored_completion_is_given_once(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    first = await send(openai)
    engine.script = ("something else",)
    second = await send(openai)
    assert second.to_dict() == first.to_dict()
    assert len(engine.jobs) == 1
    assert [each.id async for each in openai.chat.completions.list()] == [first.id]


async def test_a_stream_has_the_same_content(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    received = []
    for _ in range(2):
        chunks = [chunk async for chunk in await send(openai, stream=True, stream_options={"include_usage": True})]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        received.append((chunks[0].id, chunks[0].created, text, chunks[-1].usage))
    assert received[0] == received[1]
    assert len(engine.jobs) == 1


async def test_another_request_of_that_key_is_refused(openai: AsyncOpenAI) -> None:
    await send(openai)
    with pytest.raises(BadRequestError) as refused:
        await send(openai, temperature=0.5)
    assert refused.value.param == "Idempotency-Key"


async def test_what_stores_nothing_has_no_need_of_keys(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    first, second = [await send(openai, store=False) for _ in range(2)]
    assert first.id != second.id
    assert len(engine.jobs) == 2


async def test_a_request_that_comes_meanwhile_gets_the_same_answer(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hel", pause, "lo")
    conversation = {"conversation": (await openai.conversations.create()).id}
    first = asyncio.create_task(send(openai, extra_body=conversation))
    await pause.reached.wait()
    second = asyncio.create_task(send(openai, extra_body=conversation))
    pause.go.set()
    assert (await first).to_dict() == (await second).to_dict()
    assert await contents(openai, conversation["conversation"]) == ["Hi", "Hello"]
    assert len(engine.jobs) == 1


async def test_an_interrupted_answer_is_repeated_and_stored_once(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    conversation = {"conversation": (await openai.conversations.create()).id}
    engine.script = ("Hel", EngineFailed("broken"))
    with pytest.raises(InternalServerError):
        await send(openai, extra_body=conversation)
    assert await contents(openai, conversation["conversation"]) == ["Hi", "Hel"]
    engine.script = ("Hello",)
    await send(openai, extra_body=conversation)
    assert await contents(openai, conversation["conversation"]) == ["Hi", "Hello"]
    assert engine.prompts[1] == engine.prompts[0]


async def test_it_is_not_joined_when_the_first_breaks_off(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hel", pause, EngineFailed("broken"))
    first = asyncio.create_task(send(openai))
    await pause.reached.wait()
    second = asyncio.create_task(send(openai))
    pause.go.set()
    for each in (first, second):
        with pytest.raises((ConflictError, InternalServerError)):
            await each
    engine.script = ("Hello",)
    assert (await send(openai)).choices[0].message.content == "Hello"
    assert len([each async for each in openai.chat.completions.list()]) == 1


async def test_responses_are_given_once(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    fields: dict[str, Any] = {"model": MODEL, "input": "Hi", "extra_headers": KEY}
    first, second = [await openai.responses.create(**fields) for _ in range(2)]
    assert isinstance(first, Response)
    assert second.to_dict() == first.to_dict()
    assert len(engine.jobs) == 1
    received: list[list[str]] = []
    for _ in range(2):
        stream = await openai.responses.create(**fields | {"extra_headers": {"Idempotency-Key": "stream"}}, stream=True)
        events = [event async for event in stream]
        received.append([events[0].response.id, events[-1].response.output_text, events[-1].type])
    assert received[0] == received[1]
    assert len(engine.jobs) == 2


async def test_a_response_in_the_background_is_begun_once(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hel", pause, "lo")
    fields: dict[str, Any] = {"model": MODEL, "input": "Hi", "background": True, "extra_headers": KEY}
    first = await openai.responses.create(**fields)
    await pause.reached.wait()
    assert (await openai.responses.create(**fields)).id == first.id
    pause.go.set()
    stream = await openai.responses.retrieve(first.id, stream=True)
    assert [event async for event in stream][-1].type == "response.completed"
    assert (await openai.responses.create(**fields)).output_text == "Hello"
    assert len(engine.jobs) == 1


async def test_conversations_and_items_are_made_once(openai: AsyncOpenAI) -> None:
    items: Any = [{"type": "message", "role": "user", "content": text} for text in "ab"]
    first, second = [await openai.conversations.create(items=items, extra_headers=KEY) for _ in range(2)]
    assert first == second
    other = {"Idempotency-Key": "other"}
    added = [await openai.conversations.items.create(first.id, items=items, extra_headers=other) for _ in range(2)]
    assert added[0] == added[1]
    assert await contents(openai, first.id) == ["a", "b", "a", "b"]


async def test_the_simple_route_answers_once(site: Site, engine: FakeEngine) -> None:
    started = (await site.client.post("/chat/new/message/", json={"prompt": "Hi"})).json()
    fields = {"prompt": "And now?", "conversation_id": started["conversation_id"]}
    first, second = [(await site.client.post("/chat/new/message/", json=fields, headers=KEY)).json() for _ in range(2)]
    assert second | {"time": ""} == first | {"time": ""}
    assert len(engine.jobs) == 2


async def test_keys_are_ones_own(new_site: Any, engine: FakeEngine) -> None:
    site = await new_site(api_keys="one,two")
    body = {"messages": HI, "store": True}
    ids = {
        (await site.client.post("/v1/chat/completions", json=body, headers=KEY | {"X-API-Key": key})).json()["id"]
        for key in ("one", "two")
    }
    assert len(ids) == 2
