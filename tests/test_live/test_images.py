"""The official client shows pictures to a model that sees, and to one that does not."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.pictures import data_url, encoded, part
from tests.test_engine.tiny_vision import write
from tests.test_live.service import running

pytestmark = pytest.mark.live

URL = data_url(encoded("JPEG", (60, 40)), "image/jpeg")
ASKED: dict[str, Any] = {
    "model": "default",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part(URL, detail="high")]}],
    "max_tokens": 6,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    model = write("qwen2_5_vl", tmp_path_factory.mktemp("eyes"))
    settings = {"MODEL__NAME": model, "ENGINE__ENABLE_MM": "true"}
    with running(tmp_path_factory.mktemp("seeing"), **settings) as service:
        with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
            yield client
        assert [line for line in service.complaints() if "no keys: anybody" not in line] == []


def test_a_picture_is_answered(seeing: OpenAI) -> None:
    plain = seeing.chat.completions.create(**ASKED)
    with seeing.chat.completions.create(**ASKED, stream=True) as stream:
        told = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert told == plain.choices[0].message.content
    assert plain.usage
    assert plain.usage.completion_tokens == 6
    assert plain.usage.prompt_tokens > len("<user>What is it?<assistant>")


def test_a_picture_in_a_response(seeing: OpenAI) -> None:
    content: Any = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": URL}]
    response = seeing.responses.create(
        model="default", input=[{"role": "user", "content": content}], max_output_tokens=6
    )
    assert response.usage
    assert response.usage.input_tokens == seeing.chat.completions.create(**ASKED).usage.prompt_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("url", ["data:image/png;base64,aGVsbG8=", "http://127.0.0.1/a.png"])
def test_what_is_no_picture_is_named(seeing: OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        seeing.chat.completions.create(**ASKED | {"messages": [{"role": "user", "content": [part(url)]}]})
    assert refused.value.param == "messages.0.content.0.image_url.url"
    assert url not in refused.value.message


def test_a_model_that_takes_text_only_says_so(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="text only") as refused:
        client.chat.completions.create(**ASKED)
    assert refused.value.param == "messages.0.content.1.image_url.url"
