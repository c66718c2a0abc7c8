"""Anthropic's official client against the real service and the real model."""

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.test_live.conftest import KEYS
from tests.test_live.service import CHAT, ENDLESS, Service, until

pytestmark = pytest.mark.live

ASKED: dict[str, Any] = {
    "model": CHAT,
    "max_tokens": 24,
    "messages": [{"role": "user", "content": "Write a story about a lighthouse."}],
    "extra_body": {"temperature": 0},
}


@pytest.fixture
def claude(service: Service) -> Iterator[Anthropic]:
    with Anthropic(api_key="unused", base_url=service.url, max_retries=0) as client:
        yield client


def test_stream_is_the_plain_message_in_pieces(claude: Anthropic) -> None:
    plain = claude.messages.create(**ASKED)
    with claude.messages.stream(**ASKED) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == plain.content[0].text == final.content[0].text
    assert len(texts) > 10
    assert plain.stop_reason == final.stop_reason == "max_tokens"
    for usage in (plain.usage, final.usage):
        assert usage.output_tokens == 24
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) > 10


def test_tokens_are_counted_as_they_are_used(claude: Anthropic) -> None:
    asked = {"model": CHAT, "messages": ASKED["messages"], "system": "Be brief."}
    counted = claude.messages.count_tokens(**asked).input_tokens
    usage = claude.messages.create(**asked, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_stop_sequence_is_named_and_not_said(claude: Anthropic) -> None:
    whole = claude.messages.create(**ASKED).content[0].text
    word = whole.split()[3]
    message = claude.messages.create(**ASKED, stop_sequences=["never said", word])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    assert message.content[0].text == whole[: whole.index(word)]


def test_begun_answer_is_continued(claude: Anthropic) -> None:
    begun = [*ASKED["messages"], {"role": "assistant", "content": "Once upon a"}]
    message = claude.messages.create(**{**ASKED, "messages": begun})
    assert message.content[0].text.lstrip().startswith("time")


async def test_many_at_once(service: Service) -> None:
    async with AsyncAnthropic(api_key="unused", base_url=service.url, max_retries=0) as claude:
        whole, *others = await asyncio.gather(*(claude.messages.create(**ASKED) for _ in range(4)))
        assert [other.content[0].text for other in others] == [whole.content[0].text] * 3


def test_reader_who_leaves_takes_the_sequence_along(service: Service, claude: Anthropic) -> None:
    endless = {**ASKED, "max_tokens": 4000, "messages": [{"role": "user", "content": ENDLESS}]}
    with claude.messages.stream(**endless) as stream:
        next(iter(stream.text_stream))
        assert service.gauge("num_requests_running") == 1
    until(lambda: service.gauge("num_requests_running") == 0)


def test_errors_have_the_clients_classes(claude: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**{**ASKED, "model": "claude"})
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(**{**ASKED, "messages": [{"role": "user", "content": "word " * 9000}]})
    assert refused.value.type == "invalid_request_error"


def test_keys(guarded: Service) -> None:
    with Anthropic(api_key=KEYS[0], base_url=guarded.url, max_retries=0) as claude:
        assert claude.messages.create(**ASKED).content
    with Anthropic(api_key="wrong", base_url=guarded.url, max_retries=0) as claude:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            claude.messages.create(**ASKED)
        assert refused.value.type == "authentication_error"


def test_forced_tool_is_called(claude: Anthropic) -> None:
    sky = {"type": "object", "properties": {"sky": {"enum": ["clear", "rainy"]}}, "required": ["sky"]}
    tools = [{"name": "weather", "description": "Tells it", "input_schema": sky | {"additionalProperties": False}}]
    asked = {**ASKED, "max_tokens": 60, "tools": tools, "tool_choice": {"type": "any"}}
    plain = claude.messages.create(**asked)
    (block,) = plain.content
    assert (block.type, block.name, plain.stop_reason) == ("tool_use", "weather", "tool_use")
    assert block.input["sky"] in ("clear", "rainy")
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_message().content[0].input == block.input
