"""A server's `/v1/batches` as a target: the requests of a round as one batch."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import orjson
from aiohttp import ClientError, ClientSession, FormData

from tools.bench.answer import Answer, Usage
from tools.bench.exchange import failure, session
from tools.bench.load import encoded
from tools.bench.server import Server
from tools.bench.turn import Played, Turn

POLL_S = 0.05
STREAMING = ("stream", "stream_options")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Batches(Server):
    """The number of streams is what the server makes of it."""

    async def play(self, turn: Turn) -> Played:
        bodies = [orjson.loads(each) for each in encoded(turn.load, self.model, turn.seed, turn.number)]
        content = b"\n".join(_line(number, body, turn.load.path) for number, body in enumerate(bodies))
        started = perf_counter()
        try:
            async with asyncio.timeout(turn.seconds), session(self._key, {}) as client:
                file = await _upload(client, f"{self.url}/files", content)
                started = perf_counter()
                batch = await self._run(client, file, turn.load.path)
                seconds = perf_counter() - started
                lines = await self._lines(client, batch)
        except (ClientError, OSError) as problem:  # OSError: also TimeoutError
            seconds = perf_counter() - started
            return Played(seconds, [Answer(seconds, None, [], 0, None, failure(problem))])
        return Played(seconds, [_answer(each, seconds) for each in lines])

    async def _run(self, client: ClientSession, file: str, path: str) -> Json:
        request = {"input_file_id": file, "endpoint": f"/v1{path}", "completion_window": "24h"}
        batch = await _json(client, "POST", f"{self.url}/batches", json=request)
        while batch["status"] in ("validating", "in_progress", "finalizing"):
            await asyncio.sleep(POLL_S)
            batch = await _json(client, "GET", f"{self.url}/batches/{batch['id']}")
        return batch

    async def _lines(self, client: ClientSession, batch: Json) -> Sequence[Json]:
        files = [batch[name] for name in ("output_file_id", "error_file_id") if batch.get(name)]
        if not files:
            return [{"error": {"message": f"the batch is {batch['status']}: {batch.get('errors')}"}}]
        contents = [await _read(client, f"{self.url}/files/{each}/content") for each in files]
        return [orjson.loads(line) for content in contents for line in content.splitlines()]


def _line(number: int, body: Json, path: str) -> bytes:
    sent = {name: value for name, value in body.items() if name not in STREAMING}
    return orjson.dumps({"custom_id": str(number), "method": "POST", "url": f"/v1{path}", "body": sent})


def _answer(line: Json, seconds: float) -> Answer:
    body = (line.get("response") or {}).get("body") or {}
    if error := line.get("error") or body.get("error"):
        return Answer(seconds, None, [], 0, None, str(error.get("message")))
    usage = Usage.model_validate(body["usage"])
    units = usage.completion_tokens or len(body.get("data", []))
    return Answer(seconds, None, [], units, usage.prompt_tokens, None)


async def _upload(client: ClientSession, url: str, content: bytes) -> str:
    form = FormData({"purpose": "batch"})
    form.add_field("file", content, filename="bench.jsonl")
    return str((await _json(client, "POST", url, data=form))["id"])


async def _json(client: ClientSession, method: str, url: str, **sent: Any) -> Json:
    return dict(orjson.loads(await _read(client, url, method, **sent)))


async def _read(client: ClientSession, url: str, method: str = "GET", **sent: Any) -> bytes:
    async with client.request(method, url, raise_for_status=True, **sent) as response:
        return await response.read()
