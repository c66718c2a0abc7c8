"""Files through the official client: what is kept, for how long, and how much of it."""

import asyncio
import io
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from httpx2 import RemoteProtocolError
from openai import APIStatusError, AsyncOpenAI, BadRequestError
from sqlalchemy import text, update

from app.common.file_content import PIECE_BYTES
from database.file_models import UPLOADING, File
from database.session import Database
from services.file_contents import FileContents
from services.file_service import FileLimits, FileService, NewFile
from services.file_stores.folder import FolderStore
from tests.apps import NewSite, Site


def on_disk(tmp_path: Path) -> list[str]:
    folder = tmp_path / "files"
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


async def test_a_file_is_kept_as_it_was_sent(openai: AsyncOpenAI, tmp_path: Path) -> None:
    sent = bytes(range(256)) * 12_000  # more than is held in memory
    made = await openai.files.create(
        file=("ä b.bin", sent), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(sent), "ä b.bin", "vision", "processed")
    assert made.expires_at == made.created_at + 3600
    content = await openai.files.content(made.id)
    assert content.content == sent
    assert content.response.headers["content-disposition"].startswith("attachment")
    assert content.response.headers["content-type"] == "application/octet-stream"
    assert on_disk(tmp_path) == [made.id]
    assert (tmp_path / "files" / made.id).stat().st_mode & 0o077 == 0
    await openai.files.delete(made.id)
    assert on_disk(tmp_path) == []


async def test_files_are_listed_newest_first_by_purpose(openai: AsyncOpenAI) -> None:
    purposes: Any = ("batch", "user_data", "batch")
    made = [await openai.files.create(file=b"text", purpose=each) for each in purposes]
    ids = [each.id for each in made]
    assert [each.id async for each in openai.files.list()] == ids[::-1]
    assert [each.id async for each in openai.files.list(purpose="batch", limit=1)] == [ids[2], ids[0]]


@pytest.mark.parametrize(
    ("file", "more", "param"),
    [
        (b"", {}, "file"),
        (("x" * 300, b"text"), {}, "file"),
        (b"text", {"purpose": "fine-tune"}, "purpose"),
        (b"text", {"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after[seconds]"),
    ],
)
async def test_what_is_refused(openai: AsyncOpenAI, tmp_path: Path, file: Any, more: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        await openai.files.create(file=file, **{"purpose": "batch", **more})
    assert refused.value.param == param
    assert on_disk(tmp_path) == []


async def test_a_name_with_nul_is_refused(site: Site) -> None:
    """PostgreSQL's texts have no NUL."""
    part = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\nbatch\r\n'
    body = part % (b"purpose", b"") + part % (b"file", b'; filename="a\0b"') + b"--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await site.client.post("/v1/files", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


async def test_an_unknown_field_is_named(site: Site) -> None:
    fields = {"purpose": "batch", "colour": "red"}
    answer = await site.client.post("/v1/files", files={"file": ("a", b"text")}, data=fields)
    assert (answer.status_code, answer.headers["x-parley-ignored"]) == (200, "colour")


class TestLimits:
    @pytest.fixture
    async def site(self, new_site: NewSite) -> Site:
        """Takes larger files than other bodies."""
        return await new_site(
            server={"max_body_bytes": 1024},
            files={"folder": "/nonexistent", "max_bytes": 100_000, "max_total_bytes": 150_000},
        )

    async def upload(self, site: Site, size: int, **headers: str) -> Any:
        return await site.client.post(
            "/v1/files", files={"file": ("a", b"x" * size)}, data={"purpose": "batch"}, headers=headers
        )

    async def test_of_a_file(self, site: Site) -> None:
        for size in (100_001, 10_000_000):
            answer = await self.upload(site, size)
            assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")

    async def test_of_a_compressed_body(self, site: Site) -> None:
        bomb = zlib.compress(b"x" * 10_000_000)
        headers = {"Content-Encoding": "deflate", "Content-Type": "multipart/form-data; boundary=b"}
        assert (await site.client.post("/v1/files", content=bomb, headers=headers)).status_code == 413

    async def test_many_fields_and_files_are_refused(self, site: Site) -> None:
        many = [("file", ("a", b"x"))] * 2
        fields = {f"f{n}": "x" for n in range(20)}
        for sent in (
            {"files": many},
            {"files": many[:1], "data": fields},
            {"files": many[:1], "data": {"f": "x" * 5000}},
        ):
            answer = await site.client.post("/v1/files", **sent)
            assert answer.status_code == 400

    async def test_a_folder_that_cannot_be_written(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(FolderStore, "write", fails)
        assert (await self.upload(site, 10)).status_code == 503
        assert (await site.client.get("/v1/files")).json()["data"] == []


@pytest.mark.both_databases
async def test_all_files_of_a_project_have_a_limit(new_server: NewSite, database_url: str, tmp_path: Path) -> None:
    site = await new_server(
        database={"url": database_url, "migrate": False},
        files={"folder": tmp_path / "files", "max_total_bytes": 1500},
        api_keys="mine,yours",
    )
    url = f"{site.client.base_url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="mine", max_retries=0) as mine:
        first = await mine.files.create(file=b"x" * 1000, purpose="batch")
        with pytest.raises(APIStatusError) as refused:
            await mine.files.create(file=b"x" * 1000, purpose="batch")
        assert refused.value.status_code == 413
        await mine.with_options(api_key="yours").files.create(file=b"x" * 1000, purpose="batch")
        await mine.files.delete(first.id)
        await mine.files.create(file=b"x" * 1000, purpose="batch")


@pytest.mark.both_databases
class TestSweep:
    @pytest.fixture
    def files(self, database: Database, tmp_path: Path) -> FileService:
        return FileService(database, FileContents(FolderStore(tmp_path / "files")), FileLimits(1000, 10_000))

    async def create(self, files: FileService, tmp_path: Path, expires_after_s: int | None = None) -> str:
        (source := tmp_path / "source").write_bytes(b"text")
        with source.open("rb") as opened:
            new = NewFile(filename="a", purpose="batch", source=opened, bytes=4, expires_after_s=expires_after_s)
            return (await files.create("me", new)).id

    async def count(self, database: Database) -> int:
        async with database.read() as session:
            return int(await session.scalar(text("SELECT count(*) FROM files")) or 0)

    async def test_expired_files_go(self, files: FileService, database: Database, tmp_path: Path) -> None:
        stays, goes = [await self.create(files, tmp_path, each) for each in (None, 3600)]
        await files.sweep()
        assert len(on_disk(tmp_path)) == 2
        async with database.write() as session:
            await session.execute(update(File).where(File.id == goes).values(expires_at=time.time() - 1))
        with pytest.raises(Exception, match="No file"):
            await files.get(goes, "me")
        await files.sweep()
        assert (on_disk(tmp_path), await self.count(database)) == ([stays], 1)

    async def test_what_a_crash_leaves_goes(
        self, files: FileService, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of an upload whose contents are there and whose row does not say so yet, and of a deletion."""
        id = await self.create(files, tmp_path)
        other = await self.create(files, tmp_path)
        async with database.write() as session:
            values = {"status": UPLOADING, "expires_at": time.time() - 1}
            await session.execute(update(File).where(File.id == id).values(values))

        async def dies(*_: object) -> None:
            raise asyncio.CancelledError

        with monkeypatch.context() as crash:
            crash.setattr(FileContents, "delete", dies)
            with pytest.raises(asyncio.CancelledError):
                await files.delete(other, "me")
        for each in (id, other):
            with pytest.raises(Exception, match="No file"):
                await files.content(each, "me")
        await files.sweep()
        assert (on_disk(tmp_path), await self.count(database)) == ([], 0)


class TestRanges:
    @pytest.fixture
    async def url(self, site: Site) -> str:
        sent = {"files": {"file": ("a.bin", bytes(range(100)))}, "data": {"purpose": "user_data"}}
        made = (await site.client.post("/v1/files", **sent)).json()
        return f"/v1/files/{made['id']}/content"

    @pytest.mark.parametrize(
        ("wanted", "status", "first", "length"),
        [
            ("bytes=10-19", 206, 10, 10),
            ("bytes=90-", 206, 90, 10),
            ("bytes=-5", 206, 95, 5),
            ("bytes=90-1000", 206, 90, 10),
            ("bytes=100-", 416, 0, 0),
            ("bytes=-0", 416, 0, 0),
            ("bytes=5-2", 200, 0, 100),
            ("bytes=0-1,4-5", 200, 0, 100),
            ("lines=1-2", 200, 0, 100),
        ],
    )
    async def test_a_download_can_go_on(
        self, site: Site, url: str, wanted: str, status: int, first: int, length: int
    ) -> None:
        answer = await site.client.get(url, headers={"Range": wanted})
        assert (answer.status_code, list(answer.content)) == (status, list(range(first, first + length)))
        if status != 200:
            place = f"{first}-{first + length - 1}" if length else "*"
            assert answer.headers["content-range"] == f"bytes {place}/100"

    async def test_only_of_the_same_file(self, site: Site, url: str) -> None:
        etag = (await site.client.get(url)).headers["etag"]
        for sent, status in ((etag, 206), ('"other"', 200)):
            answer = await site.client.get(url, headers={"Range": "bytes=90-", "If-Range": sent})
            assert answer.status_code == status

    async def test_the_head_alone(self, site: Site, url: str) -> None:
        answer = await site.client.head(url)
        assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "100", b"")


class FailingFile(io.BytesIO):
    """Of a store that goes away after so many bytes."""

    def __init__(self, data: bytes, read_bytes: int) -> None:
        super().__init__(data)
        self._read_bytes = read_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= self._read_bytes:
            raise OSError("The store is away")
        return super().read(size)


async def received_of(site: Site, url: str) -> bytes:
    """Up to the end of a connection that breaks."""
    received = b""
    async with site.client.stream("GET", url) as answer:
        with suppress(RemoteProtocolError):
            async for piece in answer.aiter_bytes():
                received += piece
    return received


@pytest.mark.parametrize("pieces", [0, 2])
async def test_a_store_that_fails_while_a_file_is_read(
    new_server: NewSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pieces: int
) -> None:
    """An error before the first byte; after it the client misses the rest, and can ask for it."""
    site = await new_server()
    data = bytes(range(256)) * 4096
    made = (await site.client.post("/v1/files", files={"file": ("a", data)}, data={"purpose": "user_data"})).json()
    url = f"/v1/files/{made['id']}/content"
    with monkeypatch.context() as patched:
        patched.setattr(FolderStore, "open", lambda *_: FailingFile(data, pieces * PIECE_BYTES))
        if not pieces:
            assert (await site.client.get(url)).status_code == 503
            return
        received = await received_of(site, url)
    rest = await site.client.get(url, headers={"Range": f"bytes={len(received)}-"})
    assert 0 < len(received) < len(data)
    assert received + rest.content == data
    log = capsys.readouterr().err
    assert "cannot be read now" in log
    assert "Traceback" not in log
