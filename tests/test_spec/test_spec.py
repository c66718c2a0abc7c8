"""Specs as they are written: the example, and what one may do beyond it."""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from app.spec import (
    ChatCompletionRequest,
    Head,
    NamedEvent,
    Output,
    Payload,
    PayloadStream,
    Problem,
    Request,
    Response,
    Spec,
    Text,
)
from services.errors import Overloaded
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine, Pause

EXAMPLE = "examples.shout_spec:Shout"


class Told(BaseModel):
    model_config = ConfigDict(extra="allow")

    content: str | list[str] = "hi"
    stream: bool = False


class Telegram(Spec[Told]):
    """Names its events, its errors and the request's id in its own way."""

    request_id = "telegram-id"

    def setup(self, server: Any) -> None:
        super().setup(server)
        self.add_endpoint("/telegram", self.send, ["post"])
        self.add_endpoint("/telegram/{number}", self.number, ["GET"])

    async def send(self, body: Told, request: Request) -> Response:
        return await self.answer(body, request)

    async def number(self, number: int) -> dict[str, Any]:
        return {"number": number, "models": [card.id for card in self.server.models()]}

    def decode_request(self, request: Told) -> ChatCompletionRequest:
        return ChatCompletionRequest.model_validate({"messages": [{"content": request.content}], "user": "x"})

    def encode_response(self, output: Output[Told]) -> PayloadStream | Awaitable[Payload]:
        return self.words(output) if output.request.stream else self.message(output)

    async def words(self, output: Output[Told]) -> PayloadStream:
        async for event in output:
            match event:
                case Head(id=id):
                    yield NamedEvent("start", {"id": id})
                case Text(text):
                    yield NamedEvent("word", {"word": text})

    async def message(self, output: Output[Told]) -> Payload:
        return {"message": f"{(await output.whole()).text} STOP"}

    def error_body(self, problem: Problem) -> dict[str, Any]:
        return {"wrong": problem.message}


SPEC = f"{__name__}:Telegram"


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    return await new_site(specs=[EXAMPLE, SPEC])


class TestExample:
    async def test_answers_whole(self, site: Site, engine: FakeEngine) -> None:
        answer = await site.client.post("/shout", json={"text": "hi"})
        assert answer.json() == {"shouted": "HELLO, WORLD!"}
        assert engine.prompts == ["<user>hi\n<assistant>\n"]

    async def test_answers_in_pieces(self, site: Site) -> None:
        answer = await site.client.post("/shout", json={"text": "hi", "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text == 'data: {"shouted":"HELLO"}\n\ndata: {"shouted":", "}\n\ndata: {"shouted":"WORLD!"}\n\n'

    async def test_errors_have_the_usual_body(self, site: Site, engine: FakeEngine) -> None:
        answer = await site.client.post("/shout", json={})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text")
        engine.refusal = Overloaded("too much")
        for stream in (False, True):
            answer = await site.client.post("/shout", json={"text": "hi", "stream": stream})
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")

    def test_imports_one_module_of_ours(self) -> None:
        from tests.test_architecture import ROOT, imports

        ours = {name.rpartition(".")[0] for name in imports(ROOT / "examples/shout_spec.py") if name.startswith("app.")}
        assert ours == {"app.spec"}


class TestWireFormat:
    async def test_plain(self, site: Site) -> None:
        answer = await site.client.post("/telegram", json={"extra": 1})
        assert answer.json() == {"message": "Hello, world! STOP"}
        assert answer.headers["x-parley-ignored"] == "extra"

    async def test_streamed(self, site: Site) -> None:
        answer = await site.client.post("/telegram", json={"stream": True, "extra": 1})
        names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
        assert names == ["start", "word", "word", "word"]
        assert answer.headers["x-parley-ignored"] == "extra"

    async def test_other_methods_and_paths(self, site: Site) -> None:
        answer = await site.client.get("/telegram/7")
        assert answer.json() == {"number": 7, "models": ["fake-chat", "fake-embedding"]}

    async def test_strict_server_refuses_unknown_keys(self, new_site: NewSite) -> None:
        site = await new_site(specs=[SPEC], strict=True)
        answer = await site.client.post("/telegram", json={"extra": 1})
        assert (answer.status_code, answer.json()) == (400, {"wrong": "Unknown parameter: 'extra'"})

    async def test_id_of_the_request_has_its_second_name(self, site: Site) -> None:
        answer = await site.client.post("/telegram", json={}, headers={"x-request-id": "abc"})
        assert (answer.headers["telegram-id"], answer.headers["x-request-id"]) == ("abc", "abc")
        answer = await site.client.post("/shout", json={"text": "hi"})
        assert "telegram-id" not in answer.headers


class TestErrors:
    async def test_whatever_goes_wrong_has_the_specs_body(self, new_site: NewSite, engine: FakeEngine) -> None:
        site = await new_site(specs=[SPEC], api_keys=["key"], server={"max_body_bytes": 2000})
        key = {"Authorization": "Bearer key"}
        found = [
            await site.client.post("/telegram", json={}),
            await site.client.get("/telegram", headers=key),
            await site.client.post("/telegram", json=[], headers=key),
            await site.client.post("/telegram", content=b"{", headers={**key, "content-type": "application/json"}),
            await site.client.post("/telegram", json={"content": ["part"]}, headers=key),
            await site.client.post("/telegram", json={"content": "x" * 2000}, headers=key),
            await site.client.get("/telegram/seven", headers=key),
        ]
        engine.refusal = Overloaded("too much")
        found.append(await site.client.post("/telegram", json={"stream": True}, headers=key))
        site.services.drain.has_begun = True
        found.append(await site.client.post("/telegram", json={}, headers=key))
        assert [answer.status_code for answer in found] == [401, 405, 400, 400, 400, 413, 400, 429, 503]
        assert all(list(answer.json()) == ["wrong"] and answer.headers["telegram-id"] for answer in found)

    async def test_after_the_first_byte_it_is_an_event(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("one", RuntimeError("a secret"))
        answer = await site.client.post("/telegram", json={"stream": True})
        *_, last, nothing = answer.text.split("\n\n")
        assert nothing == ""
        assert last.splitlines()[0] == "event: error"
        assert json.loads(last.splitlines()[1].removeprefix("data: ")) == {
            "wrong": "The server had an error while processing the request"
        }

    async def test_what_the_spec_lets_through_and_the_chat_does_not_names_its_part(self, site: Site) -> None:
        answer = await site.client.post("/telegram", json={"content": ["part"]})
        assert answer.json()["wrong"].startswith("'messages.0.content.0': ")


class TestReaderWhoLeaves:
    @pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
    async def test_takes_the_answer_along(self, new_server: NewSite, engine: FakeEngine, stream: bool) -> None:
        site = await new_server(specs=[SPEC])
        pause = Pause()
        engine.script = ("one", pause, "two")
        posted = asyncio.create_task(site.client.post("/telegram", json={"stream": stream}))
        await pause.reached.wait()
        posted.cancel()
        await engine.idle.wait()
