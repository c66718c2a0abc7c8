"""Ollama's official client against the real service and the real models."""

from collections.abc import Iterator
from typing import Any

import pytest
from ollama import Client

from tests.test_live.service import CHAT, ENDLESS, Service, until

pytestmark = pytest.mark.live

ASKED: dict[str, Any] = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Write a story about a lighthouse."}],
    "options": {"temperature": 0, "num_predict": 24},
}


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


def test_stream_is_the_plain_answer_in_pieces(client: Client) -> None:
    plain = client.chat(**ASKED)
    *lines, last = client.chat(**ASKED, stream=True)
    assert "".join(line.message.content or "" for line in lines) == plain.message.content
    assert len(lines) > 10
    assert plain.done_reason == last.done_reason == "length"
    assert last.eval_count == 24
    assert 0 < last.eval_duration < last.total_duration


def test_generate_says_what_chat_says(client: Client) -> None:
    said = client.generate(CHAT, ASKED["messages"][0]["content"], options=ASKED["options"])
    assert said.response == client.chat(**ASKED).message.content


def test_reader_who_leaves_takes_the_sequence_along(service: Service, client: Client) -> None:
    stream = client.chat(CHAT, [{"role": "user", "content": ENDLESS}], stream=True, options={"temperature": 0})
    next(stream)
    assert service.gauge("num_requests_running") == 1
    stream.close()
    until(lambda: service.gauge("num_requests_running") == 0)


def test_embeddings(client: Client) -> None:
    found = client.embed("default", ["a cat", "word " * 2000])
    assert [len(each) for each in found.embeddings] == [384, 384]
    assert found.prompt_eval_count
    assert list(client.embeddings("default", "a cat").embedding) == list(found.embeddings[0])


def test_models(client: Client) -> None:
    client.chat(**ASKED)
    assert CHAT in [each.model for each in client.list().models]
    assert CHAT in [each.model for each in client.ps().models]
    shown = client.show(CHAT)
    assert shown.modelinfo
    assert shown.modelinfo["unknown.context_length"] >= 2048
