"""Compressed bodies are read like plain ones, and limited by their decompressed size."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator

import httpx2
import pytest

from app.common.compression import STEP
from tests.apps import NewSite, Site

CHAT = "/v1/chat/completions"
LIMIT = 1024 * 1024


def body(text: str = "hi") -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 5, "prompt": text}).encode()


async def post(site: Site, data: bytes | AsyncIterator[bytes], encoding: str, path: str = CHAT) -> httpx2.Response:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    return await site.client.post(path, content=data, headers=headers)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("gzip", gzip.compress(body())), ("GZIP", gzip.compress(body())), ("deflate", zlib.compress(body()))],
    ids=["gzip", "GZIP", "deflate"],
)
async def test_compressed_body_is_read(site: Site, encoding: str, data: bytes) -> None:
    answer = await post(site, data, encoding)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "Hello, world!"


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat", "/chat/new/message/"])
async def test_compressed_body_is_read_on_every_protocol(site: Site, path: str) -> None:
    assert (await post(site, gzip.compress(body()), "gzip", path)).status_code == 200


@pytest.mark.parametrize("extra", [-1, 0, 1])
async def test_compressed_body_is_read_in_steps(new_server: NewSite, extra: int) -> None:
    """Also if the body ends with a step."""
    site = await new_server()
    text = "x" * (2 * STEP + extra - len(body("")))
    data = gzip.compress(body(text))

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100):
            yield data[at : at + 100]

    answer = await post(site, pieces(), "gzip")
    assert answer.json()["error"]["code"] == "context_length_exceeded"  # all of it was read


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
async def test_decompression_bomb_is_rejected(new_site: NewSite, path: str) -> None:
    site = await new_site(server={"max_body_bytes": LIMIT})
    bomb = gzip.compress(b"[" + b" " * (200 * LIMIT))
    assert len(bomb) < LIMIT
    answer = await post(site, bomb, "gzip", path)
    assert answer.status_code == 413, answer.text


async def test_limit_applies_to_the_decompressed_size(new_site: NewSite) -> None:
    site = await new_site(server={"max_body_bytes": LIMIT})
    fits = body() + b" " * (LIMIT - len(body()))
    assert (await post(site, gzip.compress(fits), "gzip")).status_code == 200
    assert (await post(site, gzip.compress(fits + b" "), "gzip")).status_code == 413


@pytest.mark.parametrize("encoding", ["zstd", "br", "gzip, gzip"])
async def test_unknown_encoding_is_rejected(site: Site, encoding: str) -> None:
    answer = await post(site, body(), encoding)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (415, "content-encoding", "unsupported_encoding")
    assert answer.headers["accept-encoding"] == "gzip, deflate"


async def test_unknown_encoding_has_the_protocols_error_body(site: Site) -> None:
    answer = await post(site, body(), "zstd", "/v1/messages")
    assert (answer.status_code, answer.json()["type"]) == (415, "error")


@pytest.mark.parametrize(
    "data",
    [b"{}", gzip.compress(body())[:-9], gzip.compress(body()) + b"more", b""],
    ids=["none", "cut", "goes on", "empty"],
)
async def test_invalid_gzip_is_rejected(site: Site, data: bytes) -> None:
    answer = await post(site, data, "gzip")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content-encoding")
