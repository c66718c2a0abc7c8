"""Structured answers of the default model, which could not keep to any of this by itself."""

import json
import re
from datetime import date
from enum import StrEnum
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

pytestmark = pytest.mark.live


class Size(StrEnum):
    small = "small"
    large = "large"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Owner(BaseModel):
    name: str = Field(max_length=12)
    born: date
    height: float = Field(gt=0, lt=3)
    size: Size | None
    pets: list[Cat | Dog] = Field(min_length=1, max_length=2)


ASKED: dict[str, Any] = {
    "model": "default",
    "messages": [{"role": "user", "content": "Tell me about a woman named Ada and her cat."}],
    "temperature": 0,
    "max_tokens": 200,
}


def test_a_model_is_parsed_from_the_answer(client: OpenAI) -> None:
    answer = client.chat.completions.parse(**ASKED, response_format=Owner)

    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Owner)


async def test_a_stream_is_parsed_too(async_client: AsyncOpenAI) -> None:
    async with async_client.chat.completions.stream(**ASKED, response_format=Owner) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()

    assert isinstance(final.choices[0].message.parsed, Owner)
    assert kinds.count("content.delta") > 1
    assert kinds.count("content.done") == 1


def test_an_answer_that_is_cut_is_told(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**ASKED | {"max_tokens": 5}, response_format=Owner)


def test_any_object(client: OpenAI) -> None:
    asked = ASKED | {"max_tokens": 24, "n": 2, "temperature": 1, "seed": 5}
    answer = client.chat.completions.create(**asked, response_format={"type": "json_object"})

    for choice in answer.choices:
        content = choice.message.content or ""
        assert content.startswith("{")
        assert "\n" not in content
        assert (choice.finish_reason == "stop") == isinstance(whole(content), dict)


def whole(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_choice": ["tabby", "siamese"]}, "tabby|siamese"),
        ({"guided_regex": "[A-Z][a-z]{2,5} [0-9]{4}"}, "[A-Z][a-z]{2,5} [0-9]{4}"),
        ({"guided_grammar": 'start: "a" /[0-9]{3}/'}, "a[0-9]{3}"),
        ({"guided_grammar": 'root ::= "a" [0-9] "!"'}, "a[0-9]!"),
        ({"guided_json": {"enum": [1, "é世"]}}, '1|"é世"'),
        ({"structured_outputs": {"choice": ["<|im_start|>x"]}}, r"<\|im_start\|>x"),
    ],
)
def test_other_grammars(client: OpenAI, extra: dict[str, object], pattern: str) -> None:
    asked = ASKED | {"temperature": 1, "extra_body": extra, "logprobs": True}
    (choice,) = client.chat.completions.create(**asked).choices

    assert choice.finish_reason == "stop"
    assert re.fullmatch(pattern, choice.message.content or "")
    assert choice.logprobs
    assert choice.logprobs.content
    text = b"".join(bytes(token.bytes or ()) for token in choice.logprobs.content).decode()
    assert re.fullmatch(f"({pattern})(<.im_end.>)?", text)


def test_a_legacy_completion_keeps_to_a_grammar(client: OpenAI) -> None:
    answer = client.completions.create(model="default", prompt="Pi is", extra_body={"guided_regex": r" 3\.[0-9]{2}"})

    assert re.fullmatch(r" 3\.[0-9]{2}", answer.choices[0].text)


def as_schema(json_schema: dict[str, object]) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


@pytest.mark.parametrize(
    ("asked", "param", "why"),
    [
        (as_schema({"schema": {}}), "response_format.json_schema.name", "name"),
        (as_schema({"name": "a", "schema": {"uniqueItems": True}}), "response_format", "uniqueItems"),
        ({"extra_body": {"guided_regex": "(?=a)"}}, "guided_regex", "look-around"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["a"]}}, "guided_choice", "guided_regex"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_name_what_is_wrong(client: OpenAI, asked: dict[str, Any], param: str, why: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=why) as refusal:
        client.chat.completions.create(**ASKED | asked, stream=stream)

    assert refusal.value.param == param
