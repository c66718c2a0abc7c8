"""A client of every protocol that takes nothing for an answer but the right status and a whole stream."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import ClientSession, FormData

Body = dict[str, Any]


class Wrong(Exception):
    """An answer that is not what it must be."""


@dataclass(frozen=True, slots=True)
class Client:
    http: ClientSession

    async def call(self, method: str, path: str, body: Body | None = None, *, status: int = 200) -> Body:
        async with self.http.request(method, path, json=body) as response:
            text = await response.text()
            if response.status != status:
                raise Wrong(f"{method} {path}: {response.status} {text[:200]}")
            found: Body = orjson.loads(text) if response.content_type == "application/json" else {"text": text}
            return found

    async def post(self, path: str, body: Body) -> Body:
        return await self.call("POST", path, body)

    async def get(self, path: str) -> Body:
        return await self.call("GET", path)

    async def delete(self, path: str) -> None:
        """Deleted is gone."""
        await self.call("DELETE", path)
        await self.call("GET", path, status=404)

    async def upload(self, name: str, content: bytes, purpose: str) -> str:
        form = FormData()
        form.add_field("purpose", purpose)
        form.add_field("file", content, filename=name)
        async with self.http.post("/v1/files", data=form) as response:
            if response.status != 200:
                raise Wrong(f"POST /v1/files: {response.status} {(await response.text())[:200]}")
            id: str = (await response.json())["id"]
            return id

    async def lines(self, method: str, path: str, body: Body | None = None) -> AsyncIterator[bytes]:
        async with self.http.request(method, path, json=body) as response:
            if response.status != 200:
                raise Wrong(f"{method} {path}: {response.status} {(await response.text())[:200]}")
            async for line in response.content:
                yield line.strip()

    async def events(self, path: str, body: Body | None = None) -> list[Any]:
        """The data of all events; the last one must be what ends the stream."""
        lines = self.lines("POST" if body else "GET", path, body)
        data = [line.removeprefix(b"data: ") async for line in lines if line.startswith(b"data: ")]
        found = [orjson.loads(each) if each.startswith(b"{") else each.decode() for each in data]
        if any(isinstance(each, dict) and each.get("error") for each in found):
            raise Wrong(f"{path}: {found[-1]}")
        if not found:
            raise Wrong(f"{path}: no event")
        return found
