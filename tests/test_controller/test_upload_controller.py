"""Uploads in parts through the official client: what is joined, what is refused, and what is left."""

import time
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, NotFoundError
from sqlalchemy import text, update

from database.session import Database
from database.upload_models import Upload
from services.upload_service import MAX_PART_BYTES
from tests.apps import NewSite, Site, official
from tests.test_controller.test_file_controller import on_disk


async def create(client: AsyncOpenAI, size: int, **more: Any) -> str:
    options: Any = {"filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data", **more}
    return (await client.uploads.create(bytes=size, **options)).id


async def add(client: AsyncOpenAI, upload_id: str, *parts: bytes) -> list[str]:
    return [(await client.uploads.parts.create(upload_id, data=each)).id for each in parts]


async def test_parts_are_joined_in_the_order_of_their_ids(openai: AsyncOpenAI, tmp_path: Path) -> None:
    expiry = {"anchor": "created_at", "seconds": 3600}
    id = await create(openai, 6, expires_after=expiry)
    one, two, unused = await add(openai, id, b"abc", b"de", b"f")
    refused: Any = [
        ({"part_ids": [one, one]}, "part_ids"),
        ({"part_ids": [one, "part_none"]}, "part_ids"),
        ({"part_ids": [one, two]}, "part_ids"),
        ({"part_ids": [one, two, unused], "md5": md5(b"other").hexdigest()}, "md5"),
        ({"part_ids": [one, two, unused], "md5": "x"}, "md5"),
    ]
    for options, param in refused:
        with pytest.raises(APIStatusError) as error:
            await openai.uploads.complete(id, **options)
        assert (error.value.status_code, error.value.param) == (400, param)
    made = await openai.uploads.complete(id, part_ids=[unused, two, one], md5=md5(b"fdeabc").hexdigest().upper())
    assert (made.status, made.file is not None) == ("completed", True)
    assert made.file is not None
    assert (made.file.bytes, made.file.filename, made.file.purpose) == (6, "a.txt", "user_data")
    assert made.file.expires_at
    assert (await openai.files.content(made.file.id)).content == b"fdeabc"
    assert on_disk(tmp_path) == [made.file.id]
    for call in (openai.uploads.cancel(id), openai.uploads.parts.create(id, data=b"x")):
        with pytest.raises(APIStatusError) as error:
            await call
        assert error.value.status_code == 409


async def test_what_is_cancelled_or_expired_leaves_nothing(
    new_server: NewSite, database: Database, database_url: str, tmp_path: Path
) -> None:
    site = await new_server(database={"url": database_url, "migrate": False})
    async with official(site) as client:
        first, second = await create(client, 6), await create(client, 6)
        await add(client, first, b"abc")
        await add(client, second, b"abc")
        with pytest.raises(APIStatusError) as error:
            await add(client, first, b"more")
        assert (error.value.status_code, error.value.param) == (400, "data")
        assert (await client.uploads.cancel(first)).status == "cancelled"
        assert len(on_disk(tmp_path)) == 1
        async with database.write() as session:
            await session.execute(update(Upload).values(expires_at=time.time() - 100_000))
        with pytest.raises(APIStatusError) as error:
            await add(client, second, b"def")
        assert (error.value.status_code, "expired" in str(error.value)) == (409, True)
        await site.services.uploads.sweep()
        assert on_disk(tmp_path) == []
        with pytest.raises(NotFoundError):
            await client.uploads.cancel(second)
    async with database.read() as session:
        assert await session.scalar(text("SELECT count(*) FROM uploads")) == 0


async def test_limits(new_site: NewSite) -> None:
    site: Site = await new_site(
        server={"max_body_bytes": 1024},
        files={"folder": "/nonexistent", "max_upload_bytes": 10_000, "max_total_bytes": 15_000},
    )
    body = {"filename": "a", "mime_type": "text/plain", "purpose": "batch"}

    async def status(size: int) -> int:
        return int((await site.client.post("/v1/uploads", json={"bytes": size, **body})).status_code)

    assert [await status(each) for each in (0, 10_001, 10_000, 10_000)] == [400, 413, 200, 413]
    # what an upload has reserved is not taken by a file at once either
    form = {"data": {"purpose": "batch"}, "files": {"file": ("a", b"x" * 6000)}}
    answer = await site.client.post("/v1/files", **form, headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "file")
    headers = {"Content-Length": str(MAX_PART_BYTES + 1_000_000), "Content-Type": "multipart/form-data; boundary=b"}
    answer = await site.client.post("/v1/uploads/upload_1/parts", content=b"", headers=headers)
    assert answer.status_code == 413
