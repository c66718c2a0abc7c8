"""Measures how long a request blocks the event loop."""

import asyncio
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message

CHUNK = 65_536  # uvicorn's chunk size


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    seconds: float  # longest CPU time for which nothing else on the loop ran


class _Heart:
    """Measures the CPU time of this process between two iterations of the loop."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.process_time()
        self._task = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0)
            self._count()

    def _count(self) -> None:
        now = time.process_time()
        self.longest, self._last = max(self.longest, now - self._last), now

    async def stop(self) -> float:
        self._count()
        self._task.cancel()
        await asyncio.wait({self._task})
        return self.longest


async def held(app: ASGIApp, method: str, path: str, body: bytes, query: bytes = b"") -> Answer:
    """Sends a request to the app in process."""
    chunks = [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)] or [b""]
    sent: list[Message] = []
    gone = asyncio.Event()

    async def receive() -> Message:
        if not chunks:
            await gone.wait()
            return {"type": "http.disconnect"}
        await asyncio.sleep(0)
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": headers,
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "state": {},
    }
    heart = _Heart()
    try:
        await app(scope, receive, send)
    finally:
        seconds = await heart.stop()
    return Answer(sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:]), seconds)
