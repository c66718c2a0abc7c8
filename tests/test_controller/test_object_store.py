"""Files, uploads and batches whose contents are in a server of S3's protocol, through the official client."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import md5

import pytest
from openai import APIStatusError, AsyncOpenAI

from services.file_stores.object_store import ObjectStore
from tests.apps import NewSite, Site
from tests.s3_server import BUCKET, S3
from tests.test_controller.test_batch_controller import create, ended, lines, request

SENT = bytes(range(256)) * 80_000  # several parts


@pytest.fixture
async def stored(new_server: NewSite, database_url: str, s3: S3) -> Site:
    files = {"url": f"s3://{BUCKET}/parley", "options": s3.options, "folder": None}
    return await new_server(database={"url": database_url, "migrate": False}, files=files)


@pytest.fixture
async def client(stored: Site) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stored.client.base_url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_a_file_is_kept_and_deleted(client: AsyncOpenAI, s3: S3) -> None:
    made = await client.files.create(file=("a.bin", SENT), purpose="user_data")
    assert s3.names("parley") == [made.id]
    assert (await client.files.content(made.id)).content == SENT
    await client.files.delete(made.id)
    assert s3.names("parley") == s3.unfinished() == []


async def test_an_upload_is_joined(client: AsyncOpenAI, s3: S3) -> None:
    upload = await client.uploads.create(bytes=len(SENT) + 3, filename="a", mime_type="text/plain", purpose="user_data")
    parts = [(await client.uploads.parts.create(upload.id, data=each)).id for each in (b"abc", SENT)]
    done = await client.uploads.complete(upload.id, part_ids=parts, md5=md5(b"abc" + SENT).hexdigest())
    assert done.file is not None
    assert (await client.files.content(done.file.id)).content == b"abc" + SENT
    assert s3.names("parley") == [done.file.id]


async def test_a_batch_reads_and_writes_there(client: AsyncOpenAI, s3: S3) -> None:
    requests = [request(f"{number} " + "x" * 400, max_tokens=5) for number in range(600)]  # more than one chunk
    batch = await ended(client, await create(client, *requests))
    assert (batch.status, batch.request_counts and batch.request_counts.completed) == ("completed", 600)
    found = await lines(client, batch.output_file_id)
    assert found.keys() == {each["custom_id"] for each in requests}
    assert s3.names("parley") == sorted([batch.input_file_id, str(batch.output_file_id)])


async def test_a_file_in_a_message_is_read(client: AsyncOpenAI) -> None:
    file = await client.files.create(file=("notes.txt", b"a text"), purpose="user_data")
    answer = await client.responses.create(
        model="fake-chat", input=[{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}]
    )
    assert answer.output_text == "Hello, world!"


async def test_an_outage_is_a_503(client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await client.files.create(file=b"text", purpose="user_data")

    def fails(*_: object) -> None:
        raise OSError("Could not connect to the endpoint URL")

    for name in ("write", "open", "delete"):
        monkeypatch.setattr(ObjectStore, name, fails)
    for call in (client.files.create(file=b"text", purpose="user_data"), client.files.content(made.id)):
        with pytest.raises(APIStatusError) as refused:
            await call
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"] == "60"
        assert refused.value.type == "service_unavailable_error"
    assert (await client.files.delete(made.id)).deleted
    monkeypatch.undo()
    assert [each.id async for each in client.files.list()] == []


async def test_a_batch_waits_for_the_end_of_an_outage(client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not failed: its file is not gone."""
    was_tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fails(*_: object) -> None:
        loop.call_soon_threadsafe(was_tried.set)
        raise OSError("Could not connect to the endpoint URL")

    file = await client.files.create(file=b"text", purpose="user_data")
    with monkeypatch.context() as outage:
        outage.setattr(ObjectStore, "open", fails)
        made = await create(client, request("one"))
        await was_tried.wait()
    assert (await ended(client, made)).status == "completed"
    assert (await client.files.content(file.id)).content == b"text"
