"""Ollama's routes that change which models there are: pull and delete, for administrators."""

import hashlib
from contextlib import aclosing

from app.common.disconnect import while_connected
from app.spec import Framing, InvalidRequest, NamedEvent, Payload, PayloadStream, Request, Response, Server
from app.spec.framing import to_json
from app.spec.ollama.request import model
from schemas.ignored_keys import ignored_keys
from schemas.ollama_answer_schema import PullLine
from schemas.ollama_schema import DeleteRequest, PullRequest

SUCCESS = PullLine(status="success")


class Pulls:
    def __init__(self, server: Server, framing: Framing[Payload | NamedEvent]) -> None:
        self._server = server
        self._framing = framing

    async def pull(self, body: PullRequest, request: Request) -> Response:
        headers = self._server.ignored(ignored_keys(body)).headers
        lines = self._lines(_name(body))
        if body.stream:
            return await self._server.stream(lines, self._framing, headers)
        await while_connected(request, _read(lines))
        return Response(to_json(SUCCESS), headers=headers, media_type="application/json")

    async def delete(self, body: DeleteRequest) -> Response:
        headers = self._server.ignored(ignored_keys(body)).headers
        await self._server.delete(_name(body))
        return Response(headers=headers)

    async def _lines(self, name: str) -> PayloadStream:
        digest = hashlib.sha256(name.encode()).hexdigest()
        has_begun = False
        async with aclosing(self._server.pull(name)) as reports:
            async for report in reports:
                if not has_begun:  # not ahead of a refusal, which has a status
                    yield PullLine(status="pulling manifest")
                    has_begun = True
                status, place = f"pulling {digest[:12]}", f"sha256:{digest}"
                yield PullLine(status=status, digest=place, total=report.total, completed=report.completed)
        yield PullLine(status="verifying sha256 digest")
        yield PullLine(status="writing manifest")
        yield SUCCESS


async def _read(lines: PayloadStream) -> None:
    async with aclosing(lines):
        async for _ in lines:
            pass


def _name(body: PullRequest | DeleteRequest) -> str:
    name = model(body.model or body.name)
    if not name:
        raise InvalidRequest("'%s' is missing", "model")
    return name
