"""The official client's legacy completions, and the tokenizer's routes, against the real default model."""

import re
from typing import Any

import openai
import pytest
import requests
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

from tests.test_live.service import CHAT, ENDLESS, SECONDS, Service, until

pytestmark = pytest.mark.live

PROMPT = "The capital of France is"
GREEDY: dict[str, Any] = {"model": CHAT, "temperature": 0, "max_tokens": 12}


def told(chunks: list[Completion], index: int = 0) -> str:
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


def post(service: Service, path: str, **body: Any) -> dict[str, Any]:
    answer = requests.post(f"{service.url}{path}", json=body, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_plain_answer_has_every_field(client: OpenAI) -> None:
    answer = client.completions.create(prompt=PROMPT, **GREEDY)
    (choice,) = answer.choices
    assert "Paris" in choice.text
    assert (answer.object, answer.model, choice.finish_reason, choice.logprobs) == (
        "text_completion",
        CHAT,
        "length",
        None,
    )
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.system_fingerprint
    assert answer._request_id


def test_a_stream_is_the_plain_answer_in_pieces(client: OpenAI) -> None:
    plain = client.completions.create(prompt=PROMPT, **GREEDY)
    with client.completions.create(
        prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **GREEDY
    ) as stream:
        *chunks, last = list(stream)
    assert told(chunks) == plain.choices[0].text
    assert {(chunk.id, chunk.object, chunk.usage) for chunk in chunks} == {(last.id, "text_completion", None)}
    assert (last.choices, last.usage) == ([], plain.usage)


async def test_the_asynchronous_client_too(async_client: AsyncOpenAI) -> None:
    plain = await async_client.completions.create(prompt=[PROMPT, "One, two,"], **GREEDY)
    stream = await async_client.completions.create(prompt=[PROMPT, "One, two,"], stream=True, **GREEDY)
    chunks = [chunk async for chunk in stream]
    assert [told(chunks, index) for index in (0, 1)] == [choice.text for choice in plain.choices]
    assert "three" in plain.choices[1].text


def test_prompts_of_every_shape(client: OpenAI, service: Service) -> None:
    ids = post(service, "/tokenize", prompt=PROMPT)["tokens"]
    first = client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text
    for prompt in ([PROMPT], ids, [ids], [ids, ids]):
        assert {choice.text for choice in client.completions.create(prompt=prompt, **GREEDY).choices} == {first}
    echoed = client.completions.create(prompt=ids, echo=True, **GREEDY)
    assert echoed.choices[0].text == PROMPT + first


def test_logprobs(client: OpenAI) -> None:
    (choice,) = client.completions.create(prompt=PROMPT, logprobs=3, **GREEDY).choices
    found = choice.logprobs
    assert found
    assert found.tokens
    assert found.token_logprobs
    assert found.top_logprobs
    assert found.text_offset
    assert "".join(found.tokens) == choice.text
    for token, logprob, top, offset in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset, strict=True
    ):
        assert choice.text[offset:].startswith(token)
        assert len(top) == 3  # greedy: the token itself is the first of them
        assert (max(top, key=lambda name: top[name]), top[token]) == (token, logprob)


def test_best_of(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": CHAT, "prompt": PROMPT, "max_tokens": 8, "seed": 1, "temperature": 1.5}
    drawn = client.completions.create(n=4, logprobs=0, **asked)
    best = client.completions.create(best_of=4, **asked)
    sums = [sum(choice.logprobs.token_logprobs or []) for choice in drawn.choices if choice.logprobs]
    assert best.choices[0].text == drawn.choices[sums.index(max(sums))].text
    assert best.usage
    assert best.usage.completion_tokens == 32


def test_refusals_are_named(client: OpenAI) -> None:
    for fields, param in (
        ({"suffix": "."}, "suffix"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "a " * 9000}, "prompt"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**{**GREEDY, "prompt": PROMPT, **fields})
        assert refused.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt=PROMPT)


def test_the_text_has_the_form_that_is_asked_for(client: OpenAI) -> None:
    asked = {**GREEDY, "prompt": [PROMPT, "Two and two is"], "n": 2}
    for shape, form in (
        ({"guided_regex": " [A-Z][a-z]{2,5}\\."}, r" [A-Z][a-z]{2,5}\."),
        ({"guided_choice": [" London", " Paris"]}, " (London|Paris)"),
    ):
        choices = client.completions.create(**asked, extra_body=shape).choices
        assert len(choices) == 4
        assert all(re.fullmatch(form, choice.text) and choice.finish_reason == "stop" for choice in choices)


def test_who_leaves_ends_the_work(client: OpenAI, service: Service) -> None:
    with client.completions.create(model=CHAT, prompt=ENDLESS, max_tokens=4000, temperature=0, stream=True) as stream:
        next(iter(stream))
    until(lambda: service.gauge("num_requests_running") == 0)


def test_a_long_prompt_is_cut_if_asked(client: OpenAI) -> None:
    answer = client.completions.create(prompt="a " * 9000 + PROMPT, extra_body={"truncate_prompt_tokens": 5}, **GREEDY)
    assert "Paris" in answer.choices[0].text
    assert answer.usage
    assert answer.usage.prompt_tokens == 5


def test_tokens_there_and_back(service: Service) -> None:
    text = "Grüße, 你好 👋"
    tokens = post(service, "/tokenize", prompt=text, return_token_strs=True)
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert post(service, "/detokenize", tokens=tokens["tokens"]) == {"prompt": text}


def test_a_chat_is_counted_as_it_is_answered(client: OpenAI, service: Service) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    counted = post(service, "/v1/chat/completions/input_tokens", model=CHAT, messages=messages)
    tokens = post(service, "/tokenize", messages=messages)
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
    with_tools = post(service, "/tokenize", messages=messages, tools=tools)
    assert with_tools["count"] > tokens["count"]
    assert "now" in post(service, "/detokenize", tokens=with_tools["tokens"])["prompt"]
    answer = client.chat.completions.create(model=CHAT, messages=messages, max_tokens=1)
    assert answer.usage
    assert counted["input_tokens"] == tokens["count"] == answer.usage.prompt_tokens
