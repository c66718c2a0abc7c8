"""Every method by which the official client keeps, finds, changes and deletes what was said, on both databases."""

import asyncio
import inspect
import json
from contextlib import suppress
from hashlib import md5
from typing import Any

import pytest
from openai import AsyncOpenAI, ConflictError, NotFoundError
from pydantic import BaseModel

from tests.apps import MODEL
from tests.fakes import FakeEngine

pytestmark = pytest.mark.both_databases

RESOURCES = (
    "batches",
    "chat.completions",
    "chat.completions.messages",
    "conversations",
    "conversations.items",
    "files",
    "uploads",
    "uploads.parts",
    "responses",
    "responses.input_items",
    "responses.input_tokens",
)
OTHERS = {
    "responses.connect",  # over a WebSocket, which has its own transport
    *("files.retrieve_content", "files.wait_for_processing"),  # by `content` and `retrieve`
}


class Watched:
    """The client, and which of its methods were called."""

    def __init__(self, target: Any, name: str, called: set[str]) -> None:
        self._target, self._name, self._called = target, name, called

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        full = f"{self._name}.{name}".lstrip(".")
        if callable(found):
            self._called.add(full)
            return found
        return Watched(found, full, self._called)


def methods(client: AsyncOpenAI) -> set[str]:
    found = set()
    for name in RESOURCES:
        resource: Any = client
        for part in name.split("."):
            resource = getattr(resource, part)
        found |= {
            f"{name}.{each}" for each, _ in inspect.getmembers(type(resource), inspect.isfunction) if each[0] != "_"
        }
    return found - OTHERS


class Answer(BaseModel):
    n: int


MESSAGES: Any = [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]


async def test_every_method_is_served(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    called: set[str] = set()
    client: Any = Watched(openai, "", called)
    await stored_completions(client)
    await conversations(client)
    await files(client)
    await uploads(client)
    await batches(client)
    await responses(client)
    await in_the_background(client)
    await parsed(client, engine)
    assert called == methods(openai)


async def stored_completions(client: Any) -> None:
    completions = client.chat.completions
    fields: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "store": True}
    made = [await completions.create(**fields, metadata={"n": str(n)}) for n in range(3)]
    ids = [each.id for each in made]
    assert [each.id async for each in completions.list(limit=2)] == ids
    assert [each.id async for each in completions.list(limit=2, order="desc")] == ids[::-1]
    assert [each.id async for each in completions.list(metadata={"n": "1"}, model=MODEL)] == ids[1:2]
    assert [each.id async for each in completions.list(model="another")] == []
    assert (await completions.update(ids[0], metadata={"a": "b"})).metadata == {"a": "b"}
    assert (await completions.retrieve(ids[0])).choices[0].message.content == "Hello, world!"
    for order, texts in (("asc", ["One", "Two"]), ("desc", ["Two", "One"])):
        assert [each.content async for each in completions.messages.list(ids[0], limit=1, order=order)] == texts
    assert (await completions.delete(ids[0])).deleted
    with pytest.raises(NotFoundError):
        await completions.retrieve(ids[0])
    async with completions.stream(**fields) as stream:
        final = await stream.get_final_completion()
    assert (await completions.retrieve(final.id)).choices[0].message.content == final.choices[0].message.content


async def conversations(client: Any) -> None:
    made = await client.conversations.create(metadata={"a": "b"}, items=MESSAGES)
    assert (await client.conversations.update(made.id, metadata={"c": "d"})).metadata == {"c": "d"}
    assert (await client.conversations.retrieve(made.id)).metadata == {"c": "d"}
    items = client.conversations.items
    (third,) = (await items.create(made.id, items=[{"role": "user", "content": "Three"}])).data
    for order, texts in (("asc", ["One", "Two", "Three"]), ("desc", ["Three", "Two", "One"])):
        assert [each.content[0].text async for each in items.list(made.id, limit=1, order=order)] == texts
    assert await items.retrieve(third.id, conversation_id=made.id) == third
    assert (await items.delete(third.id, conversation_id=made.id)).id == made.id
    with pytest.raises(NotFoundError):
        await items.retrieve(third.id, conversation_id=made.id)
    assert (await client.conversations.delete(made.id)).deleted
    with pytest.raises(NotFoundError):
        await client.conversations.retrieve(made.id)


async def files(client: Any) -> None:
    made = [await client.files.create(file=(f"{n}.txt", b"text"), purpose="user_data") for n in range(3)]
    assert [each.id async for each in client.files.list(limit=2, order="asc")] == [each.id for each in made]
    assert await client.files.retrieve(made[0].id) == made[0]
    assert (await client.files.content(made[0].id)).content == b"text"
    assert (await client.files.delete(made[0].id)).deleted
    with pytest.raises(NotFoundError):
        await client.files.retrieve(made[0].id)


async def uploads(client: Any) -> None:
    whole = await client.uploads.upload_file_chunked(
        file=b"abcdefg", filename="a.txt", bytes=7, mime_type="text/plain", purpose="user_data", part_size=3
    )
    assert (await client.files.content(whole.file.id)).content == b"abcdefg"
    made = await client.uploads.create(bytes=7, filename="a.txt", mime_type="text/plain", purpose="user_data")
    first, second = [await client.uploads.parts.create(made.id, data=data) for data in (b"efg", b"abcd")]
    done = await client.uploads.complete(made.id, part_ids=[second.id, first.id], md5=md5(b"abcdefg").hexdigest())
    assert (await client.files.content(done.file.id)).content == b"abcdefg"
    other = await client.uploads.create(bytes=7, filename="a.txt", mime_type="text/plain", purpose="user_data")
    assert (await client.uploads.cancel(other.id)).status == "cancelled"


async def batches(client: Any) -> None:
    requests = [
        b'{"custom_id": "%d", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}' % n for n in (1, 2)
    ]
    file = await client.files.create(file=("in.jsonl", b"\n".join(requests)), purpose="batch")
    options = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    made = [await client.batches.create(**options) for _ in range(3)]
    assert [each.id async for each in client.batches.list(limit=2)] == [each.id for each in reversed(made)]
    with suppress(ConflictError):  # it may have ended
        assert (await client.batches.cancel(made[0].id)).status in ("cancelling", "cancelled")
    while (batch := await client.batches.retrieve(made[1].id)).status != "completed":  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    output = (await client.files.content(batch.output_file_id)).text.splitlines()
    assert {json.loads(line)["custom_id"] for line in output} == {"1", "2"}


async def responses(client: Any) -> None:
    first = await client.responses.create(input=MESSAGES)
    assert await client.responses.retrieve(first.id) == first
    second = await client.responses.create(input="Three", previous_response_id=first.id)
    for order, texts in (("asc", ["One", "Two"]), ("desc", ["Two", "One"])):
        listed = client.responses.input_items.list(first.id, limit=1, order=order)
        assert [each.content[0].text async for each in listed] == texts
    counted = await client.responses.input_tokens.count(input="Three", previous_response_id=first.id)
    assert counted.input_tokens == second.usage.input_tokens
    async with client.responses.stream(input="Hi", model=MODEL) as stream:
        events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    await client.responses.delete(first.id)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(first.id)
    assert (await client.responses.retrieve(second.id)).output_text == "Hello, world!"
    compacted = await client.responses.compact(model=MODEL, input="Hi")
    assert [item.type for item in compacted.output] == ["message", "compaction"]


async def in_the_background(client: Any) -> None:
    stream = await client.responses.create(input="Hi", background=True, stream=True)
    events = [event async for event in stream]
    made = events[0].response.id
    for after in range(len(events)):
        rest = await client.responses.retrieve(made, stream=True, starting_after=after)
        assert [event async for event in rest] == events[after + 1 :]
    assert await client.responses.cancel(made) == events[-1].response  # it is over


async def parsed(client: Any, engine: FakeEngine) -> None:
    engine.script = ('{"n": 5}',)
    answer = await client.responses.parse(input="Hi", text_format=Answer)
    assert answer.output_parsed == Answer(n=5)
    completion = await client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Answer, store=True)
    assert completion.choices[0].message.parsed == Answer(n=5)
    assert (await client.chat.completions.retrieve(completion.id)).choices[0].message.content == '{"n": 5}'
