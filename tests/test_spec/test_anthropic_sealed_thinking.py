"""Thoughts that Anthropic's clients are shown, or keep sealed, and send back."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message

from database.session import Database
from services.callers import ANYBODY
from services.chat.sealed import Seal
from tests.agents import apps
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine

SECRET = "the secret of this server"
SEAL = Seal(SECRET.encode(), ANYBODY)
THOUGHT = "They ask. Look at the clock."
TOOL: Any = {"name": "get_time", "input_schema": {"type": "object"}}
CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
HI: Any = {"role": "user", "content": "How late is it?"}
ASKED: dict[str, Any] = {"model": "fake-chat", "max_tokens": 500, "tools": [TOOL]}
OMITTED: Any = {"type": "adaptive", "display": "omitted"}
SHOWN: Any = {"type": "adaptive", "display": "summarized"}


@pytest.fixture
def engine() -> FakeEngine:
    engine = apps.engine(apps.THINKS)
    engine.script = ("<think>", "They ask. ", "Look at the clock.", "</think>", CALL)
    return engine


@pytest.fixture
async def site(new_server: NewSite) -> Site:
    return await new_server(server={"secret": SECRET})


@pytest.fixture
async def client(site: Site) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key="any", base_url=str(site.client.base_url), max_retries=0) as client:
        yield client


def answered(message: Message) -> list[Any]:
    """The question, the answer as it came, and what its tool returned."""
    call = message.content[-1]
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "noon"}
    return [HI, message.to_param(), {"role": "user", "content": [result]}]


def history(*blocks: dict[str, Any]) -> list[Any]:
    answer = {"role": "assistant", "content": [*blocks, {"type": "text", "text": "Noon."}]}
    return [HI, answer, {"role": "user", "content": "Sure?"}]


async def ignored_by(client: AsyncAnthropic, messages: list[Any], **more: Any) -> str:
    """What was left aside of it."""
    raw = await client.messages.with_raw_response.create(**ASKED, messages=messages, **more)
    return str(raw.headers.get("x-parley-ignored", ""))


class TestAnswer:
    @pytest.mark.parametrize("display", ["omitted", "updates"])
    async def test_an_omitted_thought_goes_on_in_the_next_request(
        self, client: AsyncAnthropic, engine: FakeEngine, display: str
    ) -> None:
        thinking: Any = {"type": "adaptive", "display": display}
        first = await client.messages.create(**ASKED, messages=[HI], thinking=thinking)
        thought = first.content[0]
        assert thought.type == "thinking"
        assert (thought.thinking, SEAL.open(thought.signature, "reasoning")) == ("", THOUGHT)
        assert await ignored_by(client, answered(first), thinking=thinking) == ""
        assert f"<think>{THOUGHT}</think>" in engine.prompts[-1]

    async def test_a_stream_has_only_its_signature(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        async with client.messages.stream(**ASKED, messages=[HI], thinking=OMITTED) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_message()
        deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
        assert deltas == ["signature_delta", "input_json_delta"]
        await ignored_by(client, answered(final))
        assert f"<think>{THOUGHT}</think>" in engine.prompts[-1]

    @pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
    async def test_a_shown_thought_is_sealed_too(
        self, client: AsyncAnthropic, engine: FakeEngine, stream: bool
    ) -> None:
        if stream:
            async with client.messages.stream(**ASKED, messages=[HI], thinking=SHOWN) as streamed:
                message = await streamed.get_final_message()
        else:
            message = await client.messages.create(**ASKED, messages=[HI], thinking=SHOWN)
        thought = message.content[0]
        assert thought.type == "thinking"
        assert thought.thinking == SEAL.open(thought.signature, "reasoning") == THOUGHT
        thought.thinking = ""  # as gateways do that pass on signatures alone
        await ignored_by(client, answered(message))
        assert f"<think>{THOUGHT}</think>" in engine.prompts[-1]

    async def test_reasoning_is_not_encrypted_unless_requested(self, client: AsyncAnthropic) -> None:
        message = await client.messages.create(**ASKED, messages=[HI])
        assert [block.type for block in message.content] == ["tool_use"]


class TestHistory:
    @pytest.mark.parametrize(
        "block",
        [
            {"type": "thinking", "thinking": "", "signature": SEAL.close(THOUGHT, "reasoning")},
            {"type": "thinking", "signature": SEAL.close(THOUGHT, "reasoning")},
            {"type": "redacted_thinking", "data": SEAL.close(THOUGHT, "reasoning")},
        ],
        ids=["empty", "without", "redacted"],
    )
    async def test_what_was_sealed_here_is_opened(
        self, client: AsyncAnthropic, engine: FakeEngine, block: dict[str, Any]
    ) -> None:
        assert await ignored_by(client, history({**block, "unheard_of": 1})) == "messages.1.content.0.unheard_of"
        assert f"<think>{THOUGHT}</think>Noon." in engine.prompts[-1]

    @pytest.mark.parametrize(
        "sealed",
        [
            "unsigned",
            "EqQBCgIYAhIM",
            Seal(SECRET.encode(), "another").close(THOUGHT, "reasoning"),
            Seal(b"another secret", ANYBODY).close(THOUGHT, "reasoning"),
            SEAL.close(THOUGHT, "compaction"),
        ],
        ids=["unsigned", "another-kind", "another-owner", "another-server", "another-use"],
    )
    async def test_what_was_sealed_elsewhere_is_left_aside_and_named(
        self, client: AsyncAnthropic, engine: FakeEngine, sealed: str
    ) -> None:
        blocks = (
            {"type": "thinking", "thinking": "", "signature": sealed},
            {"type": "redacted_thinking", "data": sealed},
        )
        assert await ignored_by(client, history(*blocks)) == "messages.1.content.0, messages.1.content.1"
        assert "think" not in engine.prompts[-1].replace("<think></think>", "")
        assert sealed not in engine.prompts[-1]

    @pytest.mark.parametrize(
        "signature",
        ["", "unsigned", "EqQBCgIYAhIM", SEAL.close("Other.", "reasoning")],
        ids=["empty", "unsigned", "foreign", "own"],
    )
    async def test_a_text_counts_whoever_signed_it(
        self, client: AsyncAnthropic, engine: FakeEngine, signature: str
    ) -> None:
        block = {"type": "thinking", "thinking": THOUGHT, "signature": signature}
        assert await ignored_by(client, history(block)) == ""
        assert f"<think>{THOUGHT}</think>Noon." in engine.prompts[-1]

    async def test_a_block_with_nothing_in_it_is_nothing(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        empty = {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": ""}]}
        assert await ignored_by(client, [HI, empty, HI]) == ""
        assert engine.prompts[-1].count("<assistant>") == 1

    async def test_opened_thoughts_are_counted(self, client: AsyncAnthropic, engine: FakeEngine) -> None:
        messages = history({"type": "redacted_thinking", "data": SEAL.close(THOUGHT, "reasoning")})
        counted = await client.messages.count_tokens(model="fake-chat", messages=messages, tools=[TOOL])
        await ignored_by(client, messages)
        assert counted.input_tokens == len(engine.jobs[0].prompt)


async def test_keys_do_not_open_each_others(new_server: NewSite, engine: FakeEngine) -> None:
    site = await new_server(api_keys=["one", "other"])
    one, other = (AsyncAnthropic(api_key=key, base_url=str(site.client.base_url)) for key in ("one", "other"))
    async with one, other:
        first = await one.messages.create(**ASKED, messages=[HI], thinking=OMITTED)
        assert await ignored_by(other, answered(first)) == "messages.1.content.0"
        assert THOUGHT not in engine.prompts[-1]
        assert await ignored_by(one, answered(first)) == ""
        assert THOUGHT in engine.prompts[-1]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_without_a_database_it_goes_on(
    new_site: NewSite, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The secret is read when the service starts."""
    site = await new_site()

    def away(*_: object) -> None:
        raise OSError("away")

    monkeypatch.setattr(Database, "read", away)
    body = {**ASKED, "messages": [HI], "thinking": OMITTED, "stream": stream}
    answer = await site.client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert '"signature":"gAAAA' in answer.text
