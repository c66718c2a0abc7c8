"""The simple routes on the wire, and GET /chat/stream as a browser reads it."""

import asyncio
import json
import re
import threading
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.common import sse
from services.errors import EngineFailed, Overloaded
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine, Pause
from tests.test_controller.event_source import Dispatched, EventSource

NEW, GET, STREAM = "/chat/new/message/", "/chat/get/messages/", "/chat/stream"
MESSAGE_ID = "[0-9a-f]{32}"


async def new(site: Site, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    """As its clients send it: JSON that does not say so."""
    return await site.client.post(NEW, content=json.dumps({"prompt": "hi", **fields}), headers=headers)


async def listen(site: Site, last_event_id: str | None = None, **query: Any) -> httpx2.Response:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    return await site.client.get(STREAM, params={"prompt": "hi", **query}, headers=headers)


def text_of(events: list[Dispatched]) -> str:
    return "".join(event.data for event in events if event.event == "message")


class TestUnknownKeys:
    @pytest.mark.parametrize("way", [{}, {"stream": True}, {"headers": {"Accept": "text/event-stream"}}], ids=str)
    async def test_are_named_in_a_header(self, site: Site, way: dict[str, Any]) -> None:
        answer = await new(site, stop=["x"], conversation_id=None, **way)
        assert (answer.status_code, answer.headers["x-parley-ignored"]) == (200, "stop")
        assert "x-parley-ignored" not in (await new(site, **way)).headers

    async def test_of_a_query_too_but_not_its_token(self, site: Site) -> None:
        assert (await listen(site, stop="x", token="y")).headers["x-parley-ignored"] == "stop"
        assert "x-parley-ignored" not in (await listen(site, token="y")).headers

    async def test_are_refused_by_a_strict_server(self, new_site: NewSite, engine: FakeEngine) -> None:
        site = await new_site(strict=True)
        for answer in (await new(site, stop=["x"]), await listen(site, stop="x")):
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stop")
        assert engine.jobs == []


class TestNewMessage:
    async def test_plain(self, site: Site) -> None:
        answer = await new(site, history=[{"role": "user", "content": "before"}])
        assert answer.status_code == 200
        body = answer.json()
        assert list(body) == ["response", "history", "status", "time", "message_id", "conversation_id"]
        assert body["response"] == "Hello, world!"
        assert body["status"] == 200
        assert body["history"] == [
            {"role": "user", "content": "before"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Hello, world!"},
        ]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", body["time"])
        assert re.fullmatch(MESSAGE_ID, body["message_id"])

    @pytest.mark.parametrize(
        "content_type",
        [
            "application/json",
            "application/json; charset=utf-8",
            "text/plain;charset=UTF-8",
            "application/x-www-form-urlencoded",
        ],
    )
    async def test_no_content_type_is_the_wrong_one(self, site: Site, content_type: str) -> None:
        assert (await new(site, headers={"Content-Type": content_type})).json()["response"] == "Hello, world!"

    async def test_what_is_no_json_is_refused(self, site: Site) -> None:
        for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json"}):
            for content in (b"", b"{", b'"hi"', b'{"prompt": "\xff"}', rb'{"prompt": "\ud800"}'):
                refused = await site.client.post(NEW, content=content, headers=headers)
                assert refused.status_code == 400
                assert refused.json()["error"]["code"] == "invalid_json"

    async def test_streamed_to_the_byte(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("你", "好", "\n")
        answer = await new(site, stream=True)
        message_id = re.findall(MESSAGE_ID, answer.text)[0]
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text == "".join(
            f'data: {{"text":"{text}","message_id":"{message_id}"}}\n\n' for text in ("你", "好", "\\n")
        )

    async def test_whole_answer_as_one_event(self, site: Site) -> None:
        answer = await new(site, headers={"Accept": "text/event-stream"}, stream=False)
        (event,) = EventSource().read(answer.content)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert json.loads(event.data)["text"] == "Hello, world!"
        assert re.fullmatch(MESSAGE_ID, json.loads(event.data)["message_id"])

    @pytest.mark.parametrize("type_", ["text/plain", "application/x-www-form-urlencoded"])
    async def test_json_under_any_type(self, site: Site, type_: str) -> None:
        body = b'{"prompt": "Hello"}'
        answer = await site.client.post("/chat/new/message/", content=body, headers={"Content-Type": type_})
        assert (answer.status_code, answer.json()["response"]) == (200, "Hello, world!")

    async def test_an_empty_output_is_empty_in_each_protocol(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ()
        assert (await new(site)).json()["response"] == ""
        streamed = await new(site, stream=True)
        assert (streamed.status_code, streamed.content) == (200, b"")
        (event,) = EventSource().read((await new(site, headers={"Accept": "text/event-stream"})).content)
        assert json.loads(event.data)["text"] == ""
        assert [event.event for event in EventSource().read((await listen(site)).content)] == ["start", "done"]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_it_goes_on_with_a_conversation(self, site: Site, engine: FakeEngine, stream: bool) -> None:
        conversation = (await new(site)).json()["conversation_id"]
        await new(site, prompt="more", conversation_id=conversation, stream=stream)
        assert engine.prompts[-1] == "<user>hi\n<assistant>Hello, world!\n<user>more\n<assistant>\n"

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("fields", "status", "param"),
        [
            ({"prompt": ""}, 400, "prompt"),
            ({"prompt": None}, 400, "prompt"),
            ({"max_tokens": 0}, 400, "max_tokens"),
            ({"temperature": 3}, 400, "temperature"),
            ({"top_p": 0}, 400, "top_p"),
            ({"history": [{"role": "robot", "content": "x"}]}, 400, "history.0.role"),
            ({"history": [{"content": "x"}], "conversation_id": "conv_" + "0" * 32}, 400, "history"),
            ({"conversation_id": "conv_" + "0" * 32}, 404, "conversation_id"),
        ],
        ids=str,
    )
    async def test_refusals(self, site: Site, fields: dict[str, Any], status: int, param: str, stream: bool) -> None:
        refused = await new(site, stream=stream, **fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)

    async def test_failure_midway_is_a_named_event(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("Hel", EngineFailed("broken"))
        text, failure = EventSource().read((await new(site, stream=True)).content)
        assert json.loads(text.data)["text"] == "Hel"
        assert failure.event == "error"
        assert json.loads(failure.data)["error"]["type"] == "server_error"


class TestGetMessages:
    async def test_oldest_first_in_pages(self, site: Site) -> None:
        conversation = (await new(site, prompt="one")).json()["conversation_id"]
        await new(site, prompt="two", conversation_id=conversation)
        await new(site, prompt="another conversation")
        page = (await site.client.get(GET, params={"conversation_id": conversation, "limit": 3})).json()
        assert [each["content"] for each in page["data"]] == ["one", "Hello, world!", "two"]
        assert (page["object"], page["has_more"], page["last_id"]) == ("list", True, page["data"][-1]["id"])
        assert set(page["data"][1]) == {
            "id",
            "conversation_id",
            "role",
            "content",
            "status",
            "finish_reason",
            "model",
            "created_at",
        }
        query = {"conversation_id": conversation, "limit": 3, "after": page["last_id"]}
        rest = (await site.client.get(GET, params=query)).json()
        assert [each["content"] for each in rest["data"]] == ["Hello, world!"]
        assert not rest["has_more"]

    async def test_latest_conversation_where_none_is_named(self, site: Site) -> None:
        assert (await site.client.get(GET)).json() == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }
        await new(site, prompt="one")
        await new(site, prompt="two")
        assert [each["content"] for each in (await site.client.get(GET)).json()["data"]] == ["two", "Hello, world!"]

    @pytest.mark.parametrize(
        ("query", "status", "param"),
        [
            ({"limit": 0}, 400, "limit"),
            ({"limit": 1001}, 400, "limit"),
            ({"after": "x"}, 400, "after"),
            ({"conversation_id": "conv_" + "0" * 32}, 404, "conversation_id"),
        ],
        ids=str,
    )
    async def test_refusals(self, site: Site, query: dict[str, Any], status: int, param: str) -> None:
        await new(site)
        refused = await site.client.get(GET, params=query)
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


class TestEventSource:
    async def test_first_event_has_the_ids_and_no_text(self, site: Site) -> None:
        answer = await listen(site)
        first, *_ = answer.text.partition("\n\n")
        source = EventSource()
        (start,) = source.read(f"{first}\n\n".encode())
        assert start.event == "start"
        assert source.last_event_id == f"{json.loads(start.data)['message_id']}:0"
        assert json.loads(start.data)["conversation_id"].startswith("conv_")
        assert source.retry

    async def test_an_empty_request_is_refused(self, site: Site) -> None:
        answer = await site.client.get("/chat/stream")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")

    async def test_every_block_has_an_id(self, site: Site) -> None:
        answer = await listen(site)
        blocks = [block for block in answer.text.split("\n\n") if block]
        assert all(re.match(rf"id: {MESSAGE_ID}:(\d+|end)\n", block) for block in blocks)

    async def test_text_then_done(self, site: Site) -> None:
        *texts, end = EventSource().read((await listen(site)).content)
        assert text_of(texts) == "Hello, world!"
        assert end.event == "done"
        assert set(json.loads(end.data)) == {"message_id", "conversation_id", "finish_reason"}

    async def test_after_the_end_204(self, site: Site, engine: FakeEngine) -> None:
        source = EventSource()
        source.read((await listen(site)).content)
        again = await listen(site, last_event_id=source.last_event_id)
        assert (again.status_code, again.content) == (204, b"")
        assert len(engine.jobs) == 1

    @given(
        pieces=st.lists(st.sampled_from([" ", "\n", "\r", "\u2028", "\x85", "\0", ":", "data: x", "é", "\ufeff", "😀"]))
    )
    @settings(max_examples=30)
    async def test_any_text_arrives_unchanged(self, site: Site, engine: FakeEngine, pieces: list[str]) -> None:
        """But for carriage returns, which event streams cannot carry: they are line breaks."""
        engine.script = tuple(pieces)
        *texts, end = EventSource().read((await listen(site)).content)
        assert text_of(texts) == "".join(pieces).replace("\r\n", "\n").replace("\r", "\n")
        assert end.event == "done"

    async def test_line_break_in_two_pieces_is_one(self, site: Site, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("one\r", pause, "\ntwo\r")
        listening = asyncio.create_task(listen(site))
        await pause.reached.wait()
        pause.go.set()
        assert text_of(EventSource().read((await listening).content)) == "one\ntwo\n"

    async def test_after_any_event_exactly_the_rest(self, site: Site, engine: FakeEngine) -> None:
        first = EventSource()
        *texts, _ = first.read((await listen(site)).content)
        message_id = first.last_event_id.partition(":")[0]
        for id_ in (f"{message_id}:0", *(event.last_event_id for event in texts)):
            *rest, end = EventSource().read((await listen(site, last_event_id=id_)).content)
            assert text_of(rest) == "Hello, world!"[int(id_.partition(":")[2]) :]
            assert (end.event, end.last_event_id) == ("done", f"{message_id}:end")
        assert len(engine.jobs) == 1

    async def test_reader_leaves_and_comes_back_while_it_is_written(self, server: Site, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        source, seen = EventSource(), ""
        async with server.client.stream("GET", STREAM, params={"prompt": "hi"}) as answer:
            body = ""
            async for line in answer.aiter_lines():
                body += line + "\n"
                if seen := text_of(source.read(body.encode())):
                    break
        await pause.reached.wait()
        back = asyncio.create_task(listen(server, last_event_id=source.last_event_id))
        pause.go.set()
        *rest, end = source.read((await back).content)
        assert seen + text_of(rest) == "Hello"
        assert end.event == "done"
        assert len(engine.jobs) == 1
        assert (await server.client.get(GET)).json()["data"][-1]["status"] == "completed"

    @pytest.mark.parametrize(
        ("last_event_id", "status"),
        [("garbage", 400), ("x" * 65, 400), ("0" * 32 + ":5", 404)],
        ids=["garbage", "long", "unknown"],
    )
    async def test_ids_that_are_not_ours(self, site: Site, last_event_id: str, status: int) -> None:
        refused = await listen(site, last_event_id=last_event_id)
        assert refused.status_code == status
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}

    async def test_refusals_have_a_status(self, site: Site, engine: FakeEngine) -> None:
        assert (await site.client.get(STREAM)).json()["error"]["param"] == "prompt"
        assert (await listen(site, temperature=3)).json()["error"]["param"] == "temperature"
        assert (await listen(site, conversation_id="conv_" + "0" * 32)).status_code == 404
        engine.refusal = Overloaded("full")
        assert (await listen(site)).status_code == 429

    async def test_failure_midway_is_the_end(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("Hel", EngineFailed("broken"))
        source = EventSource()
        *texts, end = source.read((await listen(site)).content)
        assert (text_of(texts), end.event) == ("Hel", "error")
        assert set(json.loads(end.data)["error"]) == {"message", "type", "param", "code"}
        assert (await listen(site, last_event_id=source.last_event_id)).status_code == 204

    async def test_late_refusal_is_the_end_too(self, new_site: NewSite, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sse, "FIRST_EVENT_WAIT_S", 0.0)
        begun, gate = threading.Event(), threading.Event()

        def build(kind: str, /, **options: object) -> FakeEngine:
            begun.set()
            gate.wait()
            raise OSError("no such file")

        site = await new_site(build=build)
        listening = asyncio.create_task(listen(site))
        await asyncio.to_thread(begun.wait)
        gate.set()
        source = EventSource()
        (end,) = source.read((await listening).content)
        assert end.event == "error"
        assert (await listen(site, last_event_id=source.last_event_id)).status_code == 204
