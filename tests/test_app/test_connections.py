"""The limit on connections, and which ones are closed at the limit."""

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import h11
import pytest

from app.common.connection import Deadlines
from app.common.connections import Connections, max_connections
from app.common.log import RateLimit
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine, Pause

CHAT = "/v1/chat/completions"
STREAMED = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}


async def received(site: Site, request: bytes) -> bytes:
    """Everything received until the server closes the connection."""
    url = site.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request)
    everything = await reader.read()
    writer.close()
    return everything


async def test_late_connections_are_closed(new_server: NewSite) -> None:
    site = await new_server(server={"headers_timeout_s": 0.2, "body_timeout_s": 0.2})
    body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    answers = await asyncio.gather(*(received(site, begun) for begun in (b"", b"GET / HT", body)))
    assert [answer[:12] for answer in answers] == [b"", b"HTTP/1.1 408", b"HTTP/1.1 408"]


async def test_silent_stream_is_not_closed(new_server: NewSite, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hello", pause, "world")
    site = await new_server(server={"headers_timeout_s": 0.05, "body_timeout_s": 0.05, "keepalive_s": 0.5})
    async with site.client.stream("POST", CHAT, json=STREAMED) as answer:
        lines = answer.aiter_lines()
        await _until(lines, ": keep-alive")
        pause.go.set()
        await _until(lines, "data: [DONE]")


async def _until(lines: AsyncIterator[str], wanted: str) -> None:
    async for line in lines:
        if line == wanted:
            return
    raise AssertionError(f"no {wanted}")


async def test_only_probes_are_answered_beyond_the_limit(new_server: NewSite, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hello", pause)
    site = await new_server(server={"max_connections": 2})
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(site.client.stream("POST", CHAT, json=STREAMED))
        refused = await received(site, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (refused[:12], b"connection: close" in refused) == (b"HTTP/1.1 503", True)
        assert b'"service_unavailable_error"' in refused
        assert b"retry-after: 1" in refused
        assert (await site.client.get("/health")).status_code == 200
        pause.go.set()
    assert (await site.client.get("/v1/models")).status_code == 200


async def test_longest_silent_connection_is_closed_at_the_limit(new_server: NewSite) -> None:
    site = await new_server(server={"max_connections": 3})
    url = site.client.base_url
    silent = [await asyncio.open_connection(url.host, url.port) for _ in range(4)]
    assert await silent[0][0].read() == b""
    assert (await site.client.get("/v1/models")).status_code == 200
    assert await silent[1][0].read() == b""
    for _, writer in silent:
        writer.close()


class Http(asyncio.Protocol):
    """Says whether its connection delays small writes."""

    def __init__(self, delays: "asyncio.Queue[bool]") -> None:
        self.conn = h11.Connection(h11.SERVER)
        self._delays = delays

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        accepted = transport.get_extra_info("socket")
        self._delays.put_nowait(not accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


async def test_small_writes_are_not_delayed() -> None:
    """By a listener that names no protocol, as those of uvicorn's workers."""
    connections = Connections(Deadlines(headers=1, body=1, body_rate=1, send=1), limit=None)
    connections.install()
    delays: asyncio.Queue[bool] = asyncio.Queue()
    listener = socket.create_server(("127.0.0.1", 0))
    async with await asyncio.get_running_loop().create_server(lambda: Http(delays), sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert not await delays.get()
        writer.close()
    await connections.uninstall()


async def test_unsupported_protocol_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections(Deadlines(headers=1, body=1, body_rate=1, send=1), limit=None)
    connections.install()
    loop = asyncio.get_running_loop()
    made = asyncio.Semaphore(0)
    async with await loop.create_server(lambda: made.release() or asyncio.Protocol(), "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        for _ in range(2):
            transport, _ = await loop.create_connection(asyncio.Protocol, host, port)
            await made.acquire()
            transport.close()
    await connections.uninstall()
    assert [record.message[-10:] for record in caplog.records] == ["--http h11"]
    assert "create_server" not in vars(loop)


def test_limit_leaves_room_for_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1024))
    assert 512 < max_connections() < 1024 - 140
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    assert max_connections() == 16


def test_frequent_log_line_is_rate_limited() -> None:
    seldom = RateLimit("no files")
    lines = [logging.makeLogRecord({"msg": "no files\nand more", "created": second}) for second in range(100, 121)]
    assert [line.created for line in lines if seldom.filter(line)] == [100, 110, 120]
    assert lines[0].getMessage() == "no files"
    assert seldom.filter(logging.makeLogRecord({"msg": "another"}))
