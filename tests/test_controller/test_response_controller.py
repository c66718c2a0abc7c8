"""/v1/responses as the official client meets it."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from services.engine.base import Message
from services.errors import EngineFailed, Overloaded
from tests.apps import NewSite, Site, official
from tests.fakes import FakeEngine, FakeTokenizer, Pause

PATH = "/v1/responses"


Connect = Callable[..., AsyncOpenAI]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        def connect(site: Site, key: str = "x") -> AsyncOpenAI:
            client = official(site, key)
            stack.push_async_callback(client.close)
            return client

        yield connect


@pytest.fixture
def client(server: Site, connect: Connect) -> AsyncOpenAI:
    return connect(server)


async def until(client: AsyncOpenAI, response_id: str, *statuses: str) -> Response:
    while True:
        response = await client.responses.retrieve(response_id)
        if response.status in statuses:
            return response


class TestCreate:
    async def test_plain(self, client: AsyncOpenAI) -> None:
        answer = await client.responses.create(input="Hi", instructions="Be brief", metadata={"a": "b"}, user="me")
        assert (answer.status, answer.output_text, answer.model) == ("completed", "Hello, world!", "fake-chat")
        assert answer.id.startswith("resp_")
        assert answer.instructions == "Be brief"
        assert answer.metadata == {"a": "b"}
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        assert answer.completed_at

    async def test_what_was_stored_is_what_was_answered(self, client: AsyncOpenAI) -> None:
        answer = await client.responses.create(input="Hi", temperature=0.5, metadata={"a": "b"}, service_tier="flex")
        assert (answer.service_tier, answer.temperature) == ("flex", 0.5)
        assert await client.responses.retrieve(answer.id) == answer

    async def test_the_stream_is_what_was_answered(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        async with client.responses.stream(input="Hi", model="fake-chat") as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert [event.sequence_number for event in events] == list(range(len(events)))
        texts = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert texts == ["Hello", ", ", "world!"]
        assert final.output_text == "Hello, world!"
        stored = await client.responses.retrieve(final.id)
        assert stored.to_dict() == {
            **final.to_dict(),
            "output": [
                {**item, "content": [{k: v for k, v in part.items() if k != "parsed"} for part in item["content"]]}
                for item in final.to_dict()["output"]  # type: ignore[attr-defined]
            ],
        }

    async def test_the_wire_names_each_event_and_has_no_done(self, server: Site) -> None:
        answer = await server.client.post(PATH, json={"input": "Hi", "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = answer.text.strip().split("\n\n")
        assert blocks[0].startswith("event: response.created\ndata: {")
        assert blocks[-1].startswith("event: response.completed\ndata: {")
        for number, block in enumerate(blocks):
            name, data = block.split("\n")
            payload = json.loads(data.removeprefix("data: "))
            assert (name, payload["sequence_number"]) == (f"event: {payload['type']}", number)

    async def test_unstored_ones_leave_nothing(self, client: AsyncOpenAI) -> None:
        answer = await client.responses.create(input="Hi", store=False)
        assert answer.store is False  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(answer.id)

    async def test_without_v1(self, server: Site) -> None:
        made = (await server.client.post("/responses", json={"input": "Hi"})).json()
        found = await server.client.get(f"/responses/{made['id']}")
        assert found.json() == made

    async def test_a_limit_makes_it_incomplete(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.finish = "length"
        answer = await client.responses.create(input="Hi", max_output_tokens=3)
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert answer.output[0].status == "incomplete"  # type: ignore[union-attr]
        assert await client.responses.retrieve(answer.id) == answer

    async def test_unknown_keys_are_named(self, server: Site) -> None:
        answer = await server.client.post(PATH, json={"input": "Hi", "colour": "red"})
        assert answer.headers["x-parley-ignored"] == "colour"

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "input"),
            ({"input": "Hi", "model": "nobody"}, "model"),
            ({"input": "Hi", "previous_response_id": "resp_1"}, "previous_response_id"),
            ({"input": "Hi", "conversation": "conv_1"}, "conversation"),
            ({"input": [{"role": "user", "content": 5}]}, "input.0.content"),
            ({"input": "Hi", "background": True, "store": False}, "background"),
            ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id"),
        ],
    )
    async def test_refusals_name_their_part(self, site: Site, body: dict[str, Any], param: str) -> None:
        answer = await site.client.post(PATH, json=body)
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["param"] == param

    async def test_a_failure_on_the_way_is_the_last_event(self, server: Site, engine: FakeEngine) -> None:
        engine.script = ("Hel", EngineFailed("It broke"))
        answer = await server.client.post(PATH, json={"input": "Hi", "stream": True})
        last = json.loads(answer.text.strip().split("\n\n")[-1].split("data: ")[1])
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"] == {"code": "server_error", "message": "It broke"}
        stored = (await server.client.get(f"{PATH}/{last['response']['id']}")).json()
        assert (stored["status"], stored["output"]) == ("failed", last["response"]["output"])

    async def test_a_refusal_before_the_first_event_has_its_status(self, server: Site, engine: FakeEngine) -> None:
        engine.refusal = Overloaded("full")
        for stream in (False, True):
            answer = await server.client.post(PATH, json={"input": "Hi", "stream": stream})
            assert answer.status_code == 429


class TestHistory:
    async def test_an_answer_goes_on_from_another(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        first = await client.responses.create(input="One", instructions="Be brief")
        second = await client.responses.create(input="Two", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert engine.prompts[-1] == "<user>One\n<assistant>Hello, world!\n<user>Two\n<assistant>\n"
        third = await client.responses.create(input="Three", previous_response_id=second.id, instructions="Rhyme")
        assert engine.prompts[-1].startswith("<system>Rhyme\n<user>One\n")
        branch = await client.responses.create(input="Or", previous_response_id=first.id)
        assert engine.prompts[-1] == "<user>One\n<assistant>Hello, world!\n<user>Or\n<assistant>\n"
        assert len({first.id, second.id, third.id, branch.id}) == 4

    async def test_also_where_the_new_one_is_not_stored(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        first = await client.responses.create(input="One")
        await client.responses.create(input="Two", previous_response_id=first.id, store=False)
        assert engine.prompts[-1] == "<user>One\n<assistant>Hello, world!\n<user>Two\n<assistant>\n"

    async def test_a_conversation_goes_on(self, site: Site, engine: FakeEngine) -> None:
        payload = await site.client.post("/chat/new/message/", json={"prompt": "One"})
        conversation = payload.json()["conversation_id"]
        answer = await site.client.post(PATH, json={"input": "Two", "conversation": conversation})
        assert answer.json()["conversation"] == {"id": conversation}
        assert engine.prompts[-1] == "<user>One\n<assistant>Hello, world!\n<user>Two\n<assistant>\n"
        messages = (await site.client.get("/chat/get/messages/", params={"conversation_id": conversation})).json()
        assert [each["content"] for each in messages["data"]] == ["One", "Hello, world!", "Two", "Hello, world!"]

    async def test_items_may_be_referred_to(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        first = await client.responses.create(input="One")
        input_messages = [
            {"type": "item_reference", "id": first.output[0].id},
            {"role": "user", "content": "What was that?"},
        ]
        await client.responses.create(input=[{"role": "user", "content": "One"}, *input_messages])  # type: ignore[list-item]
        assert engine.prompts[-1] == "<user>One\n<assistant>Hello, world!\n<user>What was that?\n<assistant>\n"


class TestTruncation:
    async def test_the_oldest_messages_are_dropped_on_request(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.max_length = 100
        input_messages = [{"role": "user", "content": f"{number}" * 30} for number in range(4)]
        answer = await client.responses.create(input=input_messages, truncation="auto", instructions="Go")  # type: ignore[arg-type]
        assert "0" not in engine.prompts[-1]
        assert engine.prompts[-1].startswith("<system>Go\n<user>")
        assert engine.prompts[-1].endswith("3" * 30 + "\n<assistant>\n")
        assert answer.dropped_messages == 3  # type: ignore[attr-defined]
        assert await client.responses.retrieve(answer.id) == answer
        queued = await client.responses.create(input=input_messages, truncation="auto", background=True)  # type: ignore[arg-type]
        assert (await until(client, queued.id, "completed")).dropped_messages == 3  # type: ignore[attr-defined]

    @pytest.mark.parametrize("fields", [{}, {"context_management": [{"type": "compaction"}]}])
    async def test_what_is_counted_is_answered_as_it_is(
        self, client: AsyncOpenAI, engine: FakeEngine, fields: dict[str, Any]
    ) -> None:
        rendered: list[str] = []

        class Noting(FakeTokenizer):
            def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> list[int] | str:
                rendered.append(str(conversation[-1]["content"]))
                return super().apply_chat_template(conversation, **kwargs)

        engine.tokenizer = Noting()
        for text in ("One", "Two"):
            await client.responses.create(input=text, truncation="auto", **fields)
        assert [rendered.count(text) for text in ("One", "Two")] == [1, 1]

    async def test_else_it_is_refused(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.max_length = 20
        for truncation in ("disabled", "auto"):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(input="x" * 50, truncation=truncation)  # type: ignore[arg-type]
            assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


class TestBackground:
    async def test_it_goes_on_by_itself(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        queued = await client.responses.create(input="Hi", background=True)
        assert (queued.status, queued.output) == ("queued", [])
        await pause.reached.wait()
        await until(client, queued.id, "in_progress")
        pause.go.set()
        done = await until(client, queued.id, "completed")
        assert (done.output_text, done.background) == ("Hello!", True)

    async def test_its_stream_is_found_again_at_each_event(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        stream = await client.responses.create(input="Hi", background=True, stream=True)
        seen = [await anext(stream) for _ in range(6)]
        assert [event.type for event in seen] == [
            "response.created",
            "response.queued",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
        ]
        await stream.close()
        response_id = seen[0].response.id  # type: ignore[union-attr]
        rest = await client.responses.retrieve(response_id, stream=True, starting_after=5)
        pause.go.set()
        seen += [event async for event in rest]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert seen[-1].type == "response.completed"
        for after in range(len(seen)):
            again = await client.responses.retrieve(response_id, stream=True, starting_after=after)
            assert [event async for event in again] == seen[after + 1 :]
        everything = await client.responses.retrieve(response_id, stream=True)
        assert [event async for event in everything] == seen

    async def test_another_process_sees_and_resumes_it(
        self, new_server: NewSite, connect: Connect, engine: FakeEngine
    ) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        one, other = connect(await new_server()), connect(await new_server())
        stream = await one.responses.create(input="Hi", background=True, stream=True)
        seen = [await anext(stream) for _ in range(6)]
        response_id = seen[0].response.id  # type: ignore[union-attr]
        rest = await other.responses.retrieve(response_id, stream=True, starting_after=2)
        found = [await anext(rest) for _ in range(3)]
        assert found == seen[3:]
        pause.go.set()
        found += [event async for event in rest]
        seen += [event async for event in stream]
        assert found == seen[3:]

    async def test_it_can_be_cancelled(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        stream = await client.responses.create(input="Hi", background=True, stream=True)
        first = await anext(stream)
        await pause.reached.wait()
        cancelled = await client.responses.cancel(first.response.id)  # type: ignore[union-attr]
        assert (cancelled.status, cancelled.output_text) == ("cancelled", "Hello")
        *_, last = [event async for event in stream]
        assert (last.type, last.response.status) == ("response.incomplete", "cancelled")  # type: ignore[union-attr]
        await engine.idle.wait()
        assert await client.responses.cancel(cancelled.id) == cancelled
        assert last.response == cancelled  # type: ignore[union-attr]

    async def test_also_from_another_process(self, new_server: NewSite, connect: Connect, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        one, other = connect(await new_server()), connect(await new_server())
        queued = await one.responses.create(input="Hi", background=True)
        await pause.reached.wait()
        await until(other, queued.id, "in_progress")
        assert (await other.responses.cancel(queued.id)).status == "cancelled"
        await engine.idle.wait()
        *_, last = [event async for event in await other.responses.retrieve(queued.id, stream=True)]
        assert last.response.output_text == "Hello"  # type: ignore[union-attr]
        assert await other.responses.retrieve(queued.id) == last.response  # type: ignore[union-attr]

    async def test_a_full_engine_is_waited_for(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.refusal = Overloaded("full", retry_after=0.01)
        queued = await client.responses.create(input="Hi", background=True)
        assert (await client.responses.retrieve(queued.id)).status == "queued"
        engine.refusal = None
        assert (await until(client, queued.id, "completed")).output_text == "Hello, world!"

    async def test_one_that_still_waits_can_be_cancelled(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.refusal = Overloaded("full", retry_after=1000)
        queued = await client.responses.create(input="Hi", background=True)
        cancelled = await client.responses.cancel(queued.id)
        assert (cancelled.status, cancelled.output) == ("cancelled", [])

    async def test_one_that_is_refused_has_failed(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.max_length = 5
        queued = await client.responses.create(input="Hi there", background=True)
        failed = await until(client, queued.id, "failed")
        assert failed.error is not None
        assert failed.error.code == "invalid_prompt"
        assert failed.output == []
        events = [event async for event in await client.responses.retrieve(queued.id, stream=True)]
        assert [event.type for event in events] == ["response.created", "response.queued", "response.failed"]

    async def test_the_end_of_the_server_makes_it_incomplete(self, new_site: NewSite, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        site = await new_site()
        queued = (await site.client.post(PATH, json={"input": "Hi", "background": True})).json()
        await pause.reached.wait()
        await site.services.streams.close()
        found = (await site.client.get(f"{PATH}/{queued['id']}")).json()
        assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "interrupted"})
        assert found["output"][0]["content"][0]["text"] == "Hello"

    async def test_others_are_neither_cancelled_nor_streamed_again(self, client: AsyncOpenAI) -> None:
        answer = await client.responses.create(input="Hi")
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.cancel(answer.id)
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.retrieve(answer.id, stream=True)


class TestStored:
    async def test_deleted_ones_are_gone(self, client: AsyncOpenAI) -> None:
        answer = await client.responses.create(input="Hi")
        await client.responses.delete(answer.id)
        for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await call(answer.id)

    async def test_a_running_one_is_stopped_by_its_deletion(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        queued = await client.responses.create(input="Hi", background=True)
        await pause.reached.wait()
        await client.responses.delete(queued.id)
        await engine.idle.wait()
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(queued.id)

    async def test_input_items_come_in_pages(self, client: AsyncOpenAI) -> None:
        input_messages: Any = [{"role": "user", "content": f"{number}"} for number in range(5)]
        answer = await client.responses.create(input=input_messages)
        for order, expected in (("asc", "01234"), ("desc", "43210")):
            page = await client.responses.input_items.list(answer.id, limit=2, order=order)  # type: ignore[arg-type]
            found: list[Any] = [item async for item in page]
            assert "".join(item.content[0].text for item in found) == expected
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.input_items.list(answer.id, after="msg_1")
        assert refused.value.param == "after"

    async def test_logprobs_are_sent_where_included(self, client: AsyncOpenAI, engine: FakeEngine) -> None:
        included: Any = ["message.output_text.logprobs"]
        answer = await client.responses.create(input="Hi", include=included, top_logprobs=2)
        assert engine.jobs[-1].sampling.logprobs == 2
        assert await client.responses.retrieve(answer.id, include=included) == answer

    @pytest.mark.parametrize("query", ["starting_after=3", "include[].0=x"])
    async def test_queries_are_honoured_or_refused(self, site: Site, query: str) -> None:
        made = (await site.client.post(PATH, json={"input": "Hi"})).json()
        answer = await site.client.get(f"{PATH}/{made['id']}?{query.replace('.0', '')}")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == query.split("=")[0]

    async def test_query_for_more_than_there_is_is_left_aside(self, site: Site) -> None:
        made = (await site.client.post(PATH, json={"input": "Hi"})).json()
        query = "include_obfuscation=true&include[]=file_search_call.results&include[]=message.output_text.logprobs"
        answer = await site.client.get(f"{PATH}/{made['id']}?{query}")
        assert answer.status_code == 200
        assert answer.headers["x-parley-ignored"] == "include.file_search_call.results, include_obfuscation"

    async def test_input_tokens_are_counted(self, client: AsyncOpenAI) -> None:
        counted = await client.responses.input_tokens.count(input="Hi", instructions="Be brief")
        answer = await client.responses.create(input="Hi", instructions="Be brief")
        assert answer.usage is not None
        assert counted.input_tokens == len("<system>Be brief\n<user>Hi\n<assistant>\n")
        after = await client.responses.input_tokens.count(input="And?", previous_response_id=answer.id)
        assert after.input_tokens == len("<user>Hi\n<assistant>Hello, world!\n<user>And?\n<assistant>\n")

    async def test_each_key_has_its_own(self, new_server: NewSite, connect: Connect, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hello", pause)
        server = await new_server(api_keys=["one", "other"])
        mine, other = connect(server, "one"), connect(server, "other")
        made = await mine.responses.create(input="Hi", background=True)
        await pause.reached.wait()
        calls = [
            other.responses.retrieve(made.id),
            other.responses.retrieve(made.id, stream=True),
            other.responses.cancel(made.id),
            other.responses.delete(made.id),
            other.responses.input_items.list(made.id),
            other.responses.create(input="x", previous_response_id=made.id),
            other.responses.input_tokens.count(input="x", previous_response_id=made.id),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                await call
        pause.go.set()
        assert (await until(mine, made.id, "completed")).output_text == "Hello"
        item: Any = [{"type": "item_reference", "id": (await mine.responses.retrieve(made.id)).output[0].id}]
        with pytest.raises(openai.BadRequestError):
            await other.responses.create(input=item)


async def test_metadata_that_no_database_finds_again_is_refused(site: Site) -> None:
    answer = await site.client.post("/v1/responses", json={"input": "hi", "metadata": {"a": "\0"}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata.a")


async def test_instructions_and_developers_are_one_system_message_where_the_template_wants_it(
    site: Site, engine: FakeEngine
) -> None:
    engine.tokenizer = FakeTokenizer(
        "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
        "{{ raise_exception('it comes first') }}{% endif %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    )
    turns = [{"role": "developer", "content": "Use English."}, {"role": "user", "content": "hi"}]
    answer = await site.client.post(PATH, json={"instructions": "Be brief.", "input": turns})
    assert answer.status_code == 200
    assert engine.prompts == ["<system>Be brief.\n\nUse English.<user>hi"]
