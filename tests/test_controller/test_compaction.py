"""Conversations that are told by a summary, as the official client meets them, on both databases."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, ConflictError, InternalServerError, RateLimitError
from openai.types.responses import Response

from services.chat.compaction.item import SUMMARY_PREFIX
from services.errors import EngineFailed, Overloaded
from tests.agents import apps
from tests.apps import NewSite, Site, post, refusal
from tests.fakes import NotingEngine, Pause

MODEL = "fake-chat"
LIMIT: list[Any] = [{"type": "compaction", "compact_threshold": 2_000}]
LONG = "word " * 600
ASKED: Any = {"type": "compaction_trigger"}
TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
SEARCH: Any = {"type": "tool_search", "execution": "client"}
FOUND: list[Any] = [
    {"type": "tool_search_call", "execution": "client", "call_id": "s", "arguments": {"query": "brush"}},
    {"type": "tool_search_output", "execution": "client", "call_id": "s", "tools": [TOOL | {"name": "paint"}]},
]


@pytest.fixture
def engine() -> NotingEngine:
    return NotingEngine("Go ", "on.")


def talk(*texts: str) -> list[Any]:
    """The user's and the assistant's, in turn."""
    return [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)]


def kinds(answer: Response) -> list[str]:
    return [item.type for item in answer.output]


def plain(item: Any) -> dict[str, Any]:
    """The official client knows of no messages of the user's in an output, and warns of its own."""
    found: dict[str, Any] = item.to_dict(warnings=False)
    return found


def shown(engine: NotingEngine) -> list[str]:
    """What the newest prompt says, line by line, with the notes as such."""
    text = engine.prompts[-1].replace(f"{SUMMARY_PREFIX}\n\n", "")
    return [line if len(line) < 100 else "<long>" for line in text.splitlines()]


class TestOnDemand:
    async def test_the_answer_is_what_to_go_on_from(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        given = [{"role": "developer", "content": "Be good."}, *talk("One", "Two", "Three")]
        compacted = await openai.responses.compact(model=MODEL, input=given, instructions="Serve tea.")
        assert compacted.object == "response.compaction"
        developer, one, three, compaction = map(plain, compacted.output)
        assert [each["role"] for each in (developer, one, three)] == ["developer", "user", "user"]
        assert set(compaction) == {"id", "type", "encrypted_content"}
        assert str(compaction["id"]).startswith("cmp_")
        assert compacted.usage.input_tokens == len(engine.jobs[-1].prompt)
        assert compacted.usage.output_tokens == 2
        assert "[assistant]\nTwo" in engine.prompts[-1]
        assert "Serve tea." in engine.prompts[-1]
        answer = await openai.responses.create(
            model=MODEL, input=[*map(plain, compacted.output), *talk("Four")], store=False
        )
        assert answer.output_text == "Go on."
        assert shown(engine) == [
            *("<system>Be good.", "<user>One", "<user>Three", "<user>The notes.", "<user>Four", "<assistant>")
        ]

    async def test_of_a_chain(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        first = await openai.responses.create(input="One")
        compacted = await openai.responses.compact(model=MODEL, input="Two", previous_response_id=first.id)
        assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
        assert "[user]\nOne\n\n[assistant]\nGo on.\n\n[user]\nTwo" in engine.prompts[-1]

    async def test_of_a_conversation(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        conversation = await openai.conversations.create(items=talk("One", "Two"))
        compacted = await openai.responses.compact(model=MODEL, extra_body={"conversation": conversation.id})
        assert [item.type for item in compacted.output] == ["message", "compaction"]
        assert "[assistant]\nTwo" in engine.prompts[-1]

    async def test_of_more_than_the_context_takes(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        given = [message for number in range(20) for message in talk(f"{number}: {LONG}", "Yes")]
        compacted = await openai.responses.compact(model=MODEL, input=given)
        assert len(engine.jobs) > 5
        users = compacted.output[:-1]
        assert 0 < len(users) < 20
        assert plain(users[-1])["content"][0]["text"].startswith("19: ")
        answer = await openai.responses.create(input=[compacted.output[-1], *talk("Go on")])
        assert answer.status == "completed"

    async def test_calls_and_results_are_included(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"at": "door"}'}
        given: list[Any] = [
            *talk("Look"),
            call,
            {"type": "function_call_output", "call_id": "c", "output": "It is shut."},
        ]
        compacted = await openai.responses.compact(model=MODEL, input=given)
        assert [item.type for item in compacted.output] == ["message", "compaction"]
        assert '[assistant calls look]\n{"at": "door"}\n\n[result of look]\nIt is shut.' in engine.prompts[-1]

    async def test_tools_that_were_found_can_still_be_called(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        engine.tokenizer = apps.Tokenizer(apps.THINKS)
        given: list[Any] = [*talk("Find"), *FOUND, *talk("One", "Two")[::-1]]
        compacted = await openai.responses.compact(model=MODEL, input=given)
        assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
        await openai.responses.create(input=[*map(plain, compacted.output), *talk("Three")], tools=[SEARCH])
        assert '"name": "paint"' in engine.prompts[-1]

    async def test_leaves_nothing(self, site: Site, engine: NotingEngine) -> None:
        made = await post(site, "/responses/compact", model=MODEL, input="Hi")
        assert (await site.client.get(f"/v1/responses/{made['id']}")).status_code == 404
        assert (await site.client.get("/v1/conversations")).json()["data"] == []

    async def test_what_changes_no_summary_is_named(self, site: Site) -> None:
        body = {"input": "Hi", "tools": [TOOL], "prompt_cache_retention": "24h"}
        answer = await site.client.post("/v1/responses/compact", json=body)
        assert answer.headers["x-parley-ignored"] == "prompt_cache_retention, tools"

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "input"),
            ({"input": []}, "input"),
            ({"input": [{"role": "developer", "content": "Be good."}]}, "input"),
            ({"input": [{"type": "mesage"}]}, "input.0.type"),
            ({"input": "Hi", "prompt": {"id": "p"}}, "prompt"),
            ({"input": "Hi", "previous_response_id": "resp_1", "conversation": "conv_1"}, "previous_response_id"),
            ({"input": [{"type": "compaction"}]}, "input.0.encrypted_content"),
        ],
    )
    async def test_refusals(self, site: Site, body: dict[str, Any], param: str) -> None:
        assert await refusal(site, "/v1/responses/compact", **body) == param

    async def test_a_full_queue_refuses_it(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        engine.refusal = Overloaded("full")
        with pytest.raises(RateLimitError):
            await openai.responses.compact(model=MODEL, input="Hi")

    async def test_a_client_that_leaves_ends_it(self, server: Site, engine: NotingEngine) -> None:
        pause = Pause()
        engine.notes = ("The ", pause)
        fields = asyncio.create_task(server.client.post("/v1/responses/compact", json={"input": "Hi"}))
        await pause.reached.wait()
        fields.cancel()
        await engine.idle.wait()


class TestReading:
    @pytest.fixture
    async def two(self, new_server: NewSite) -> AsyncIterator[tuple[AsyncOpenAI, AsyncOpenAI]]:
        server = await new_server(api_keys=["one", "other"])
        url = f"{server.client.base_url}/v1"
        async with AsyncOpenAI(base_url=url, api_key="one") as one, AsyncOpenAI(base_url=url, api_key="other") as other:
            yield one, other

    async def test_another_keys_is_left_aside_and_named(
        self, two: tuple[AsyncOpenAI, AsyncOpenAI], engine: NotingEngine
    ) -> None:
        one, other = two
        given: Any = list(map(plain, (await one.responses.compact(model=MODEL, input="Hi")).output))
        for client, named, seen in ((one, None, True), (other, "input.1.encrypted_content", False)):
            raw = await client.responses.with_raw_response.create(input=given)
            assert raw.headers.get("x-parley-ignored") == named
            assert ("The notes." in engine.prompts[-1]) is seen
            counted = await client.responses.input_tokens.count(input=given)
            assert counted.input_tokens == len(engine.jobs[-1].prompt)

    async def test_what_a_stored_answer_was_given_is_read_again(
        self, openai: AsyncOpenAI, engine: NotingEngine
    ) -> None:
        given: Any = list(map(plain, (await openai.responses.compact(model=MODEL, input="Hi")).output))
        first = await openai.responses.create(input=[*given, *talk("One")])
        await openai.responses.create(input="Two", previous_response_id=first.id)
        assert shown(engine)[:3] == ["<user>Hi", "<user>The notes.", "<user>One"]
        listed = [item async for item in openai.responses.input_items.list(first.id, order="asc")]
        assert [set(item.to_dict()) for item in listed if item.type == "compaction"] == [
            {"id", "type", "encrypted_content"}
        ]

    async def test_a_conversation_may_begin_with_it(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        given: Any = list(map(plain, (await openai.responses.compact(model=MODEL, input="Hi")).output))
        created = await openai.conversations.create(items=given)
        added = await openai.conversations.create()
        listed = await openai.conversations.items.create(added.id, items=given)
        assert set(plain(listed.data[1])) == {"id", "type", "encrypted_content"}
        for conversation in (created, added):
            await openai.responses.create(input="One", conversation=conversation.id)
            assert shown(engine) == ["<user>Hi", "<user>The notes.", "<user>One", "<assistant>"]


class TestAsAResponse:
    """`compaction_trigger`, by which Codex asks for it."""

    async def test_it_has_one_item(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        stream = await openai.responses.create(input=[*talk("One", "Two"), ASKED], stream=True)
        events = [event async for event in stream]
        assert [event.type for event in events] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            *["response.compaction.compacting"] * 3,
            "response.output_item.done",
            "response.completed",
        ]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last: Any = events[-1]
        assert kinds(last.response) == ["compaction"]
        assert events[-2].item == last.response.output[0]  # type: ignore[union-attr]
        assert last.response.usage.input_tokens == len(engine.jobs[-1].prompt)
        assert await openai.responses.retrieve(last.response.id) == last.response
        assert len(engine.jobs) == 1

    async def test_a_chain_goes_on_from_it(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        first = await openai.responses.create(input="One")
        compacted = await openai.responses.create(input=[ASKED], previous_response_id=first.id)
        assert kinds(compacted) == ["compaction"]
        await openai.responses.create(input="Two", previous_response_id=compacted.id)
        assert shown(engine) == ["<user>One", "<user>The notes.", "<user>Two", "<assistant>"]
        listed = [item async for item in openai.responses.input_items.list(compacted.id)]
        assert listed == []

    async def test_the_client_may_keep_it_all(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        given = talk("One", "Two", "Three", "Four")
        compacted = await openai.responses.create(input=[*given, ASKED], store=False)
        await openai.responses.create(input=[*given, compacted.output[0], *talk("Five")])
        assert shown(engine) == ["<user>One", "<user>Three", "<user>The notes.", "<user>Five", "<assistant>"]

    async def test_it_is_last(self, site: Site) -> None:
        assert await refusal(site, "/v1/responses", input=[ASKED, *talk("One")]) == "input.0"
        assert await refusal(site, "/v1/responses", input=[ASKED]) == "input"

    async def test_a_failure_is_reported(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        engine.notes = ("  ",)
        stream = await openai.responses.create(input=[*talk("One"), ASKED], stream=True)
        last: Any = [event async for event in stream][-1]
        assert (last.type, last.response.error.code) == ("response.failed", "server_error")
        assert (await openai.responses.retrieve(last.response.id)).status == "failed"


class TestBeforeAnAnswer:
    async def test_a_short_prompt_stays(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        answer = await openai.responses.create(input=talk("One", "Two", "Three"), context_management=LIMIT)
        assert kinds(answer) == ["message"]
        assert len(engine.jobs) == 1

    async def test_nothing_but_questions_becomes_no_shorter(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        answer = await openai.responses.create(input=LONG, context_management=LIMIT)
        assert kinds(answer) == ["message"]

    async def test_the_compaction_comes_first(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        given = [{"role": "developer", "content": "Be good."}, *talk("One", LONG, "Two")]
        stream = await openai.responses.create(input=given, context_management=LIMIT, stream=True)
        events = [event async for event in stream]
        types = [event.type for event in events]
        assert types[:7] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            *["response.compaction.compacting"] * 3,
            "response.output_item.done",
        ]
        assert types[7] == "response.output_item.added"
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last: Any = events[-1]
        assert kinds(last.response) == ["compaction", "message"]
        assert last.response.usage.input_tokens == len(engine.jobs[-1].prompt)  # of the answer itself
        assert shown(engine) == ["<system>Be good.", "<user>One", "<user>The notes.", "<user>Two", "<assistant>"]
        assert await openai.responses.retrieve(last.response.id) == last.response

    async def test_a_chain_goes_on_from_it(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        answer = await openai.responses.create(input=talk("One", LONG, "Two"), context_management=LIMIT)
        for number in range(2):
            answer = await openai.responses.create(input=f"More {number}", previous_response_id=answer.id)
        assert shown(engine) == [
            *("<user>One", "<user>The notes.", "<user>Two", "<assistant>Go on."),
            *("<user>More 0", "<assistant>Go on.", "<user>More 1", "<assistant>"),
        ]

    async def test_a_chain_is_compacted_again_and_again(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        engine.script = (LONG,)
        answer = await openai.responses.create(input="0")
        for number in range(1, 5):
            answer = await openai.responses.create(
                input=str(number), previous_response_id=answer.id, context_management=LIMIT
            )
            assert kinds(answer) == ["compaction", "message"]
            assert shown(engine) == [
                *(f"<user>{before}" for before in range(number)),
                *("<user>The notes.", f"<user>{number}", "<assistant>"),
            ]
        assert "[notes so far]\nThe notes." in engine.prompts[-2]

    async def test_a_conversation_goes_on_from_it(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        conversation = await openai.conversations.create(items=talk("One", LONG))
        for text in ("Two", "Three"):
            await openai.responses.create(input=text, conversation=conversation.id, context_management=LIMIT)
        assert shown(engine) == [
            *("<user>One", "<user>The notes.", "<user>Two", "<assistant>Go on.", "<user>Three", "<assistant>")
        ]
        listed = [item async for item in openai.conversations.items.list(conversation.id, order="asc")]
        assert [item.type for item in listed][:4] == ["message", "message", "message", "compaction"]
        compaction = next(item.to_dict() for item in listed if item.type == "compaction")
        assert set(compaction) - {"status"} == {"id", "type", "encrypted_content"}
        found = await openai.conversations.items.retrieve(str(compaction["id"]), conversation_id=conversation.id)
        assert found.to_dict() == compaction

    async def test_chat_completions_go_on_from_it(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        conversation = await openai.conversations.create(items=talk("One", LONG))
        await openai.responses.create(input="Two", conversation=conversation.id, context_management=LIMIT)
        fields: Any = {"messages": talk("Three"), "extra_body": {"conversation": conversation.id}}
        await openai.chat.completions.create(model=MODEL, **fields)
        assert shown(engine)[1:3] == ["<user>The notes.", "<user>Two"]

    async def test_a_client_that_keeps_its_own_sends_it_back(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        """All that was said and comes before it is superseded, whether it is sent or not."""
        given = talk("One", LONG, "Two")
        fields: dict[str, Any] = {"store": False, "context_management": LIMIT}
        answer = await openai.responses.create(input=given, **fields)
        output: list[Any] = answer.output
        for before in (given, []):
            again = await openai.responses.create(input=[*before, *output, *talk("Three")], **fields)
            assert kinds(again) == ["message"]
            assert shown(engine) == [
                *("<user>One", "<user>The notes.", "<user>Two", "<assistant>Go on.", "<user>Three", "<assistant>")
            ]

    async def test_an_open_call_stays(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
        result = {"type": "function_call_output", "call_id": "c", "output": "It is shut."}
        answer = await openai.responses.create(
            input=[*talk("One", LONG, "Look"), call, result], context_management=LIMIT, tools=[TOOL]
        )
        assert kinds(answer) == ["compaction", "message"]
        assert "<user>Look\n" in engine.prompts[-1]
        assert engine.prompts[-1].index("The notes.") < engine.prompts[-1].index("It is shut.")

    @pytest.mark.parametrize("answered", [False, True])
    async def test_tools_that_were_found_can_still_be_called(
        self, openai: AsyncOpenAI, engine: NotingEngine, answered: bool
    ) -> None:
        engine.tokenizer = apps.Tokenizer(apps.THINKS)
        given: list[Any] = [*talk("One", LONG, "Find"), *FOUND, *(talk("Two", "Three")[::-1] if answered else [])]
        fields: Any = {"tools": [SEARCH], "context_management": LIMIT}
        answer = await openai.responses.create(input=given, **fields)
        assert kinds(answer) == ["compaction", "message"]
        assert '"name": "paint"' in engine.prompts[-1]
        assert "<conversation>" not in engine.prompts[-1]
        again = await openai.responses.create(input="Four", previous_response_id=answer.id, **fields)
        assert kinds(again) == ["message"]
        assert '"name": "paint"' in engine.prompts[-1]

    async def test_so_can_those_that_a_truncation_leaves_out(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        engine.tokenizer = apps.Tokenizer(apps.THINKS)
        given: list[Any] = [*talk("Find"), *FOUND, *talk("Two", "Three", LONG + LONG, LONG + LONG, "Five")[1:]]
        await openai.responses.create(input=given, tools=[SEARCH], truncation="auto")
        assert "Find" not in engine.prompts[-1]
        assert '"name": "paint"' in engine.prompts[-1]

    async def test_what_alone_outgrows_the_context_is_summarised_too(
        self, openai: AsyncOpenAI, engine: NotingEngine
    ) -> None:
        with pytest.raises(BadRequestError, match="maximum context length"):
            await openai.responses.create(input=LONG * 3)
        answer = await openai.responses.create(input=LONG * 3, context_management=[{"type": "compaction"}])
        assert kinds(answer) == ["compaction", "message"]
        assert shown(engine) == ["<user>The notes.", "<assistant>"]

    async def test_in_the_background(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        made = await openai.responses.create(
            input=talk("One", LONG, "Two"), context_management=LIMIT, background=True, stream=True
        )
        events = [event async for event in made]
        last: Any = events[-1]
        assert (last.type, kinds(last.response)) == ("response.completed", ["compaction", "message"])
        assert await openai.responses.retrieve(last.response.id) == last.response

    async def test_a_request_that_comes_again_is_not_summarised_again(
        self, openai: AsyncOpenAI, engine: NotingEngine
    ) -> None:
        fields: dict[str, Any] = {
            "input": talk("One", LONG, "Two"),
            "context_management": LIMIT,
            "extra_headers": {"Idempotency-Key": "k"},
        }
        first = await openai.responses.create(**fields)
        assert await openai.responses.create(**fields) == first
        assert len(engine.jobs) == 2

    async def test_the_answer_waits_for_room(
        self, openai: AsyncOpenAI, engine: NotingEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        submit, refused = engine.submit, iter([False, True, True, False])

        async def sometimes(job: Any) -> Any:
            if next(refused):
                raise Overloaded("full", retry_after=0)
            return await submit(job)

        monkeypatch.setattr(engine, "submit", sometimes)
        answer = await openai.responses.create(input=talk("One", LONG, "Two"), context_management=LIMIT)
        assert kinds(answer) == ["compaction", "message"]

    async def test_a_refused_one_leaves_nothing(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        conversation = await openai.conversations.create(items=talk("One", LONG))
        engine.refusal = Overloaded("full")
        with pytest.raises(RateLimitError):
            await openai.responses.create(input="Two", conversation=conversation.id, context_management=LIMIT)
        assert len([item async for item in openai.conversations.items.list(conversation.id)]) == 2

    @pytest.mark.both_databases
    async def test_nobody_else_writes_to_its_conversation_meanwhile(
        self, openai: AsyncOpenAI, engine: NotingEngine
    ) -> None:
        conversation = await openai.conversations.create(items=talk("One", LONG))
        pause = Pause()
        engine.notes = ("The ", pause, "notes.")
        fields: dict[str, Any] = {"conversation": conversation.id, "context_management": LIMIT}
        first = asyncio.create_task(openai.responses.create(input="Two", **fields))
        await pause.reached.wait()
        with pytest.raises(ConflictError):
            await openai.responses.create(input="Three", **fields)
        pause.go.set()
        assert kinds(await first) == ["compaction", "message"]

    async def test_a_failed_summary_is_reported(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        engine.notes = ("",)
        with pytest.raises(InternalServerError, match="no summary"):
            await openai.responses.create(input=talk("One", LONG, "Two"), context_management=LIMIT)

    async def test_a_summary_that_breaks_off_is_no_output(self, openai: AsyncOpenAI, engine: NotingEngine) -> None:
        engine.notes = ("The ", EngineFailed("It broke"))
        stream = await openai.responses.create(input=talk("One", LONG, "Two"), context_management=LIMIT, stream=True)
        last: Any = [event async for event in stream][-1]
        assert (last.type, last.response.output) == ("response.failed", [])
        assert await openai.responses.retrieve(last.response.id) == last.response

    async def test_a_client_that_leaves_ends_it(self, server: Site, engine: NotingEngine) -> None:
        pause = Pause()
        engine.notes = ("The ", pause)
        body = {"input": talk("One", LONG, "Two"), "context_management": LIMIT, "stream": True}
        async with server.client.stream("POST", "/v1/responses", json=body) as answer:
            lines = answer.aiter_lines()
            while "response.created" not in (line := await anext(lines)):
                pass
            await pause.reached.wait()
        assert line
        await engine.idle.wait()

    @pytest.mark.parametrize("threshold", [0, 999, -5, 2**31, 1.5, "2000", True])
    async def test_thresholds_have_limits(self, site: Site, threshold: object) -> None:
        edits = [{"type": "compaction", "compact_threshold": threshold}]
        param = await refusal(site, "/v1/responses", input="Hi", context_management=edits)
        assert param == "context_management.0.compact_threshold"

    async def test_other_edits_are_named(self, site: Site) -> None:
        edits = [{"type": "clear_tool_uses"}, {"type": "compaction", "compact_threshold": None, "keep": 3}]
        answer = await site.client.post("/v1/responses", json={"input": "Hi", "context_management": edits})
        assert answer.headers["x-parley-ignored"] == "context_management.0.clear_tool_uses, context_management.1.keep"

    async def test_the_lowest_threshold_counts(self, openai: AsyncOpenAI) -> None:
        edits: list[Any] = [{"type": "compaction"}, *LIMIT, {"type": "compaction", "compact_threshold": 5_000}]
        answer = await openai.responses.create(input=talk("One", LONG, "Two"), context_management=edits)
        assert kinds(answer) == ["compaction", "message"]
