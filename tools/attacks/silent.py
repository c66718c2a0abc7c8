"""Silent, incomplete and slow connections, more than the server may open files."""

import asyncio
import time
from contextlib import suppress
from itertools import cycle

from tools.attacks.raw import Request, send
from tools.attacks.target import Finding, Target

MANY = 300
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KINDS = (b"", b"GET /health HT", HEAD, HEAD + b'Content-Length: 100\r\n\r\n{"messages"')
DRIPS = 2  # the kind that sends a byte now and then
EACH_S = 0.1


class Silent:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, drips: bool) -> None:
        self._reader, self._writer, self._drips = reader, writer, drips
        writer.write(data)
        self._closed = asyncio.ensure_future(self._until_closed())

    async def _until_closed(self) -> None:
        with suppress(OSError):
            await self._reader.read()

    @property
    def is_open(self) -> bool:
        return not self._closed.done()

    def drip(self) -> None:
        if self._drips and self.is_open:
            self._writer.write(b"x")

    async def close(self) -> None:
        self._closed.cancel()
        await asyncio.wait({self._closed})
        self._writer.close()


async def silent(target: Target, finding: Finding, many: int = MANY) -> None:
    many = max(8, many // target.every)
    clients = [await _client(target, data, kind == DRIPS) for kind, data in _kinds(many)]
    began = time.monotonic()
    try:
        while any(each.is_open for each in clients) and time.monotonic() - began < target.listens_for_s:
            answer = await send(target, Request("GET", "/health"))
            finding.check(answer.status == 200, "the probe was not answered", answer)
            for each in clients:
                each.drip()
            await asyncio.sleep(EACH_S)
        left = sum(each.is_open for each in clients)
    finally:
        await asyncio.gather(*(each.close() for each in clients))
    finding.tries += many
    finding.through += ["a connection that says nothing was not ended"] * left
    finding.notes |= {"connections": many, "all ended after s": round(time.monotonic() - began, 1)}


def _kinds(many: int) -> "list[tuple[int, bytes]]":
    return [each for each, _ in zip(cycle(enumerate(KINDS)), range(many), strict=False)]


async def _client(target: Target, data: bytes, drips: bool) -> Silent:
    return Silent(*await asyncio.open_connection(target.host, target.port), data, drips)
