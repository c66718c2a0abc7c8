"""Batches through the official client: from the input file to the output files."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, ConflictError, NotFoundError
from openai.types import Batch, BatchError

from tests.apps import MODEL
from tests.fakes import FakeEngine, Pause

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


def request(custom_id: object, url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = {"model": MODEL, **({"messages": HELLO} if url == CHAT else {}), **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def json_lines(*requests: Any) -> bytes:
    return b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in requests)


async def create(client: AsyncOpenAI, *requests: Any, endpoint: Any = CHAT, **more: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", json_lines(*requests)), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


async def until(client: AsyncOpenAI, batch: Batch, is_so: Callable[[Batch], bool]) -> Batch:
    while not is_so(batch):
        await asyncio.sleep(0.02)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def ended(client: AsyncOpenAI, batch: Batch) -> Batch:
    return await until(client, batch, lambda each: each.status in ("completed", "failed", "expired", "cancelled"))


async def lines(client: AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """By custom_id."""
    assert file_id
    text = (await client.files.content(file_id)).text
    found = [json.loads(line) for line in text.splitlines()]
    assert len({each["id"] for each in found}) == len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each for each in found}


def errors_of(batch: Batch) -> list[BatchError]:
    assert batch.errors is not None
    return batch.errors.data or []


async def test_results_are_in_two_files(openai: AsyncOpenAI) -> None:
    good = [request(f"good {n}", max_tokens=5) for n in range(60)]
    bad = [request("bad", temperature="hot"), request("stream", stream=True)]
    made = await create(openai, *good, b"", *bad, metadata={"a": "b"})
    assert (made.object, made.status, made.metadata, made.expires_at) == (
        "batch",
        "validating",
        {"a": "b"},
        made.created_at + 24 * 3600,
    )
    batch = await ended(openai, made)
    counts = batch.request_counts
    assert counts is not None
    assert (batch.status, batch.model, batch.errors) == ("completed", MODEL, None)
    assert (counts.total, counts.completed, counts.failed) == (62, 60, 2)
    assert all((batch.in_progress_at, batch.finalizing_at, batch.completed_at))
    output = await lines(openai, batch.output_file_id)
    assert output.keys() == {each["custom_id"] for each in good}
    one = output["good 7"]
    assert one.keys() == {"id", "custom_id", "response", "error"}
    assert one["id"].startswith("batch_req_")
    assert one["error"] is None
    response = one["response"]
    assert (response.keys(), response["status_code"]) == ({"status_code", "request_id", "body"}, 200)
    assert response["body"]["object"] == "chat.completion"
    assert response["body"]["choices"][0]["message"]["content"] == "Hello, world!"
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(
        each["response"]["body"]["usage"]["prompt_tokens"] for each in output.values()
    )
    errors = await lines(openai, batch.error_file_id)
    assert {name: each["response"]["status_code"] for name, each in errors.items()} == {"bad": 400, "stream": 400}
    assert errors["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["stream"]["response"]["body"]["error"]["param"] == "stream"
    files = [each async for each in openai.files.list(purpose="batch_output")]
    assert {each.filename for each in files} == {f"{batch.id}_output.jsonl", f"{batch.id}_error.jsonl"}


async def test_wrong_lines_fail_the_batch(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    wrong = (b"{", request("a"), request("b", model="another"), request("c", model="fake-embedding"))
    batch = await ended(openai, await create(openai, request("a"), b" ", *wrong))
    assert batch.status == "failed"
    assert batch.failed_at
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert [(each.line, each.code, each.param) for each in errors_of(batch)] == [
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "model_not_found", "body.model"),
        (6, "invalid_request", "body.model"),
    ]
    assert all(each.message for each in errors_of(batch))
    assert engine.jobs == []


async def test_what_cannot_be_created(openai: AsyncOpenAI) -> None:
    wrong = await openai.files.create(file=b"{}", purpose="user_data")
    right = await openai.files.create(file=b"{}", purpose="batch")

    async def param(error: type[APIStatusError], file_id: str = right.id, **more: Any) -> Any:
        options = {"endpoint": CHAT, "completion_window": "24h", **more}
        with pytest.raises(error) as refused:
            await openai.batches.create(input_file_id=file_id, **options)
        return refused.value.param

    assert await param(NotFoundError, "file-none") == "input_file_id"
    assert await param(BadRequestError, wrong.id) == "input_file_id"
    assert await param(BadRequestError, endpoint="/v1/models") == "endpoint"
    assert await param(BadRequestError, completion_window="1h") == "completion_window"
    expiry = {"anchor": "created_at", "seconds": 1}
    assert await param(BadRequestError, output_expires_after=expiry) == "output_expires_after.seconds"
    for call in (openai.batches.retrieve, openai.batches.cancel):
        with pytest.raises(NotFoundError):
            await call("batch_none")


async def test_cancelling_keeps_what_is_done(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hello", pause)
    made = await create(openai, *(request(str(n)) for n in range(40)))
    await pause.reached.wait()
    cancelled = await openai.batches.cancel(made.id)
    assert (cancelled.status, bool(cancelled.cancelling_at)) == ("cancelling", True)
    batch = await ended(openai, cancelled)
    assert (batch.status, bool(batch.cancelled_at)) == ("cancelled", True)
    errors = await lines(openai, batch.error_file_id)
    assert len(errors) == 40
    assert errors["39"]["response"] is None
    assert errors["39"]["error"]["code"] == "batch_cancelled"
    assert not engine.running
    with pytest.raises(ConflictError):
        await openai.batches.cancel(made.id)
