"""Anthropic's Messages, asked by its official client."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from services.engine.base import Piece
from services.errors import EngineFailed, Overloaded, Unavailable
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine

HI: dict[str, Any] = {"model": "default", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def client(server: Site) -> AsyncIterator[AsyncAnthropic]:
    async with client_of(server) as client:
        yield client


def client_of(site: Site, key: str = "unused") -> AsyncAnthropic:
    return AsyncAnthropic(api_key=key, base_url=str(site.client.base_url), max_retries=0)


def message_param(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


class TestMessage:
    async def test_has_every_field(self, client: AsyncAnthropic) -> None:
        message = await client.messages.create(**HI)
        assert (message.type, message.role, message.model) == ("message", "assistant", "default")
        assert message.id.startswith("msg_")
        assert [block.model_dump(exclude_none=True) for block in message.content] == [
            {"type": "text", "text": "Hello, world!"}
        ]
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert message._request_id

    async def test_stream_adds_up_to_it(self, client: AsyncAnthropic) -> None:
        plain = await client.messages.create(**HI)
        async with client.messages.stream(**HI) as stream:
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
        assert texts == ["Hello", ", ", "world!"]
        differs = {"id", "content"}
        assert final.model_dump(exclude=differs) == plain.model_dump(exclude=differs)

    async def test_order_of_a_streams_events(self, client: AsyncAnthropic) -> None:
        stream = await client.messages.create(**HI, stream=True)
        assert [event.type async for event in stream] == [
            "message_start",
            "content_block_start",
            *["content_block_delta"] * 3,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]

    async def test_transcript_to_the_byte(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("é",)
        answer = await site.client.post("/v1/messages", json={**HI, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        _, *rest = answer.text.split("\n\n")
        usage = (
            '{"input_tokens":21,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1,'
            '"output_tokens_details":{"thinking_tokens":0}}'
        )
        assert rest == [
            'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
            '"content_block":{"type":"text","text":"","citations":null}}',
            'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            '"delta":{"type":"text_delta","text":"é"}}',
            'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}',
            'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn",'
            f'"stop_sequence":null}},"usage":{usage}}}',
            'event: message_stop\ndata: {"type":"message_stop"}',
            "",
        ]

    async def test_usage_separates_cached_tokens(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        engine.script, engine.finish = (Piece("Hello", (1, 2), "stop", cached_tokens=16),), None
        usage = (await client.messages.create(**HI)).usage
        assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 16, 2)

    async def test_tokens_are_counted_beforehand(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        fields = {"model": "default", "messages": HI["messages"], "system": "be"}
        counted = await client.messages.count_tokens(**fields)
        usage = (await client.messages.create(**fields, max_tokens=1)).usage
        assert counted.input_tokens == usage.input_tokens == len(engine.jobs[0].prompt)


class TestStopReason:
    @pytest.mark.parametrize(
        ("last", "fields", "reason"),
        [
            (Piece("", (1,), "stop"), {}, ("end_turn", None)),
            (Piece("", (1,), "stop", stop="END"), {"stop_sequences": ["STOP", "END"]}, ("stop_sequence", "END")),
            (Piece("", (1,), "length"), {"max_tokens": 2}, ("max_tokens", None)),
            (Piece("", (1,), "length"), {}, ("model_context_window_exceeded", None)),
        ],
        ids=["end", "stop-sequence", "length", "window"],
    )
    async def test_is_truthful(
        self, client: AsyncAnthropic, engine: FakeEngine, last: Piece, fields: dict[str, Any], reason: tuple[str, str]
    ) -> None:
        engine.script, engine.finish = ("Hello", last), None
        message = await client.messages.create(**{**HI, **fields})
        assert (message.stop_reason, message.stop_sequence) == reason
        async with client.messages.stream(**{**HI, **fields}) as stream:
            final = await stream.get_final_message()
        assert (final.stop_reason, final.stop_sequence) == reason


class TestPrompt:
    @pytest.mark.parametrize("system", ["be brief", [{"type": "text", "text": "be brief", "cache_control": {}}]])
    async def test_system(self, client: AsyncAnthropic, engine: FakeEngine, system: Any) -> None:
        await client.messages.create(**HI, system=system)
        assert engine.prompts == ["<system>be brief\n<user>hi\n<assistant>\n"]

    async def test_last_message_of_the_assistants_is_continued(
        self, client: AsyncAnthropic, engine: FakeEngine
    ) -> None:
        begun = [*HI["messages"], {"role": "assistant", "content": "I say"}]
        message = await client.messages.create(**{**HI, "messages": begun})
        assert engine.prompts == ["<user>hi\n<assistant>I say"]
        assert message.content[0].text == "Hello, world!"

    async def test_answer_of_which_nothing_came_is_left_out(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        await client.messages.create(**{**HI, "messages": [*HI["messages"], message_param(role="assistant")]})
        assert engine.prompts == ["<user>hi\n<assistant>\n"]

    async def test_answer_can_be_handed_back(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        first = await client.messages.create(**HI)
        await client.messages.create(**{**HI, "messages": [*HI["messages"], first.to_param(), *HI["messages"]]})
        assert engine.prompts[1] == "<user>hi\n<assistant>Hello, world!\n<user>hi\n<assistant>\n"

    async def test_sampling(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        more = {"temperature": 0.5, "top_k": 3, "top_p": 0.25}
        await client.messages.create(**HI, stop_sequences=["x"], metadata={"user_id": "u"}, extra_body=more)
        params = engine.jobs[0].sampling
        assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (100, 0.5, 3, 0.25)
        assert params.stop == ("x",)


class TestRefusals:
    async def test_unserved_routes_answer_with_the_protocols_error_body(self, client: AsyncAnthropic) -> None:
        for call in (client.messages.batches.list(), client.messages.batches.retrieve("msgbatch_1")):
            with pytest.raises(anthropic.NotFoundError, match="batches of messages") as refused:
                await call
            assert (refused.value.type, bool(refused.value.request_id)) == ("not_found_error", True)

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"temperature": 1.5}, "temperature"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"messages": []}, "messages"),
            ({"messages": [message_param()]}, "messages.0.content"),
            ({"messages": [message_param({"type": "video"})]}, "messages.0.content.0"),
            ({"messages": [message_param({"type": "text"})]}, "messages.0.content.0.text"),
            ({"messages": [message_param({"type": "thinking", "thinking": "x"})]}, "messages.0.content.0"),
            (
                {"system": "s", "messages": [message_param({"type": "tool_result", "tool_use_id": "x"})]},
                "messages.0.content.0.tool_use_id",
            ),
            ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name"),
            ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
            ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
            ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ],
        ids=str,
    )
    async def test_name_what_is_wrong(self, client: AsyncAnthropic, fields: dict[str, Any], named: str) -> None:
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(**HI, extra_body=fields)
        assert f"'{named}'" in refused.value.api_message
        assert refused.value.type == "invalid_request_error"
        assert refused.value.request_id

    async def test_strict_server_refuses_unknown_keys_before_it_counts(
        self, new_server: NewSite, engine: FakeEngine
    ) -> None:
        strict = await new_server(strict=True)
        async with client_of(strict) as client:
            with pytest.raises(anthropic.BadRequestError, match="unheard_of"):
                await client.messages.count_tokens(
                    model="default", messages=HI["messages"], extra_body={"unheard_of": 1}
                )
        assert not any(card.loaded for card in strict.services.models.cards())

    async def test_neutral_values_are_accepted(self, client: AsyncAnthropic) -> None:
        more = {"speed": "standard", "service_tier": "auto", "mcp_servers": [], "cache_control": {"type": "ephemeral"}}
        raw = await client.messages.with_raw_response.create(**HI, extra_body={**more, "unheard_of": 1})
        assert raw.headers["x-parley-ignored"] == "unheard_of"

    @pytest.mark.parametrize(
        ("error", "kind", "named"),
        [
            (Overloaded("full"), anthropic.RateLimitError, "rate_limit_error"),
            (Unavailable("loading"), anthropic.ServiceUnavailableError, "overloaded_error"),
            (EngineFailed("broken"), anthropic.InternalServerError, "api_error"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
    async def test_have_the_clients_classes(
        self,
        client: AsyncAnthropic,
        engine: FakeEngine,
        error: Any,
        kind: type[anthropic.APIStatusError],
        named: str,
        stream: bool,
    ) -> None:
        engine.refusal = error
        with pytest.raises(kind) as refused:
            await client.messages.create(**HI, stream=stream)
        assert (refused.value.type, refused.value.api_message) == (named, error.message)

    async def test_unknown_model(self, client: AsyncAnthropic) -> None:
        with pytest.raises(anthropic.NotFoundError) as refused:
            await client.messages.create(**{**HI, "model": "claude"})
        assert refused.value.type == "not_found_error"

    async def test_keys(self, new_server: NewSite) -> None:
        site = await new_server(api_keys=["key"])
        async with client_of(site, "key") as client:
            assert (await client.messages.create(**HI)).content
        async with AsyncAnthropic(auth_token="key", base_url=str(site.client.base_url)) as client:
            assert (await client.messages.create(**HI)).content
        async with client_of(site, "other") as client:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await client.messages.create(**HI)
        assert refused.value.type == "authentication_error"
        assert refused.value.request_id

    async def test_after_the_first_byte_they_are_events(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        engine.script = ("Hello", EngineFailed("out of luck"))
        async with client.messages.stream(**HI) as stream:
            assert await anext(stream.text_stream) == "Hello"
            with pytest.raises(anthropic.APIStatusError) as broken:
                await stream.until_done()
        assert (broken.value.type, broken.value.api_message) == ("api_error", "out of luck")


async def test_it_is_switched_off_in_the_settings(new_site: NewSite) -> None:
    site = await new_site(specs=[])
    assert (await site.client.post("/v1/messages", json=HI)).status_code == 404


WEATHER = {"name": "weather", "description": "Of a city", "input_schema": {"type": "object"}}


class TestTools:
    async def test_are_called_and_their_results_handed_back(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        engine.script = ('{"name": "wea', 'ther", "arguments": {"city": "Pa', 'ris"}}')
        plain = await client.messages.create(**HI, tools=[WEATHER])
        (block,) = plain.content
        assert (block.type, block.name, block.input) == ("tool_use", "weather", {"city": "Paris"})
        assert plain.stop_reason == "tool_use"
        async with client.messages.stream(**HI, tools=[WEATHER]) as stream:
            final = await stream.get_final_message()
        assert (final.content[0].input, final.stop_reason) == (block.input, plain.stop_reason)
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain", "is_error": True}
        turn = [plain.to_param(), message_param(result, {"type": "text", "text": "well?"})]
        engine.script = ("It rains",)
        reply = await client.messages.create(**{**HI, "messages": [*HI["messages"], *turn]}, tools=[WEATHER])
        assert reply.stop_reason == "end_turn"
        assert "Error: rain" in engine.prompts[-1]
        assert engine.prompts[-1].index("Error: rain") < engine.prompts[-1].index("well?")

    @pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=str)
    async def test_can_be_forced(self, client: AsyncAnthropic, engine: FakeEngine, choice: dict[str, str]) -> None:
        await client.messages.create(**HI, tools=[WEATHER], tool_choice=choice)
        assert engine.jobs[0].sampling.grammar

    async def test_can_be_forbidden(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        await client.messages.create(**HI, tools=[WEATHER], tool_choice={"type": "none"})
        assert engine.prompts == ["<user>hi\n<assistant>\n"]

    async def test_a_schema_is_held(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
        await client.messages.create(**HI, output_config=form)
        assert engine.jobs[0].sampling.grammar
