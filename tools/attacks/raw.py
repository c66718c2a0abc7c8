"""Raw requests, without a client that would correct them."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from tools.attacks.target import PATIENCE_S, Target

MAX_READ = 65_536  # bytes of an answer
AT_ONCE = 16

Header = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # as sent
    headers: Sequence[Header] = ()
    body: bytes = b""
    host: str | None = ""  # "": the target's; None: no Host header

    def __str__(self) -> str:
        headers = " ".join(f"{name}: {value}" for name, value in self.headers)
        host = "" if self.host == "" else f" Host: {self.host}"
        return f"{self.method} {self.path}{host} {headers}".rstrip()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int  # 0: closed without an answer
    headers: dict[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.status} {self.body[:100]!r}"


async def send(target: Target, request: Request) -> Answer:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(_encoded(target, request))
        async with asyncio.timeout(PATIENCE_S):
            return _decoded(await _all(reader))
    except ConnectionError:
        return Answer(0, {}, b"")
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def all_of(work: Iterable[Awaitable[T]]) -> list[T]:
    """Sends a few at a time; answers in order."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(each: Awaitable[T]) -> T:
        async with turns:
            return await each

    return await asyncio.gather(*map(one, work))


def _encoded(target: Target, request: Request) -> bytes:
    host = f"{target.host}:{target.port}" if request.host == "" else request.host
    named = [] if host is None else [("Host", host)]
    sized = [("Content-Type", "application/json"), ("Content-Length", str(len(request.body)))] if request.body else []
    lines = [f"{name}: {value}" for name, value in [*named, ("Connection", "close"), *sized, *request.headers]]
    head = "\r\n".join([f"{request.method} {request.path} HTTP/1.1", *lines, "", ""])
    return head.encode("latin-1", "replace") + request.body


async def _all(reader: asyncio.StreamReader) -> bytes:
    found = b""
    while len(found) < MAX_READ and (part := await reader.read(MAX_READ)):
        found += part
    return found


def _decoded(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, headers, body)
