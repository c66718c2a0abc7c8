"""What a request asks of the sampler, from the wire through the real engine and back; the model is the alphabet."""

import json
import math
from typing import Any

import httpx2
import pytest

from services.engine.execution.local_executor import LocalExecutor
from services.engine.local import LocalEngine
from tests.apps import NewSite, Site
from tests.test_engine.fakes import LETTERS, Counting, loaded

PATH = "/v1/chat/completions"
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    def build(kind: str, /, **options: object) -> LocalEngine:
        return LocalEngine(loaded(), LocalExecutor(Counting(num_slots=4)), max_num_batched_tokens=16, max_queue=8)

    return await new_site(build=build)


async def send(site: Site, prompt: str = "abc", **fields: Any) -> httpx2.Response:
    messages = [{"content": prompt}]
    return await site.client.post(PATH, json={"messages": messages, "temperature": 0, "max_tokens": 6, **fields})


async def text_of_answer(site: Site, prompt: str = "abc", **fields: Any) -> str:
    answer = (await send(site, prompt, **fields)).json()
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "defghi"),
        ({"logit_bias": {"0": 2}}, "aaaaaa"),
        ({"logit_bias": {"3": -2, "0": 0.5}}, "abcabc"),  # no d, so again from a
        ({"logit_bias": {"0": 2}, "frequency_penalty": 0.4}, "aaabcd"),
        ({"logit_bias": {"0": 2}, "presence_penalty": 1.5}, "abcdef"),
        ({"logit_bias": {"0": 2}, "presence_penalty": -1}, "aaaaaa"),
        ({"logit_bias": {"0": 2}, "repetition_penalty": 3}, "defghi"),  # the prompt has an a
        ({"temperature": 1, "min_p": 1}, "defghi"),
        ({"temperature": 1, "min_p": 0.5, "seed": 1}, "defghi"),
    ],
    ids=str,
)
async def test_logits_are_changed_as_asked(site: Site, fields: dict[str, Any], text: str) -> None:
    assert await text_of_answer(site, **fields) == text


@pytest.mark.parametrize(
    ("fields", "text", "finish"),
    [
        ({"max_tokens": 30}, "defghijklmnopqrstuvwxy", "stop"),
        ({"min_tokens": 23, "max_tokens": 30}, "defghijklmnopqrstuvwxyabcdefgh", "length"),  # a, where there is no z
        ({"metadata": {"min_tokens": 23}, "max_tokens": 30}, "defghijklmnopqrstuvwxyabcdefgh", "length"),
        ({"ignore_eos": True, "max_tokens": 25}, "defghijklmnopqrstuvwxyab", "length"),  # z is a token without text
        ({"stop_token_ids": [6]}, "def", "stop"),
        ({"stop_token_ids": [6, 5], "include_stop_str_in_output": True}, "def", "stop"),
        ({"stop_token_ids": [25], "ignore_eos": True, "max_tokens": 30}, "defghijklmnopqrstuvwxy", "stop"),
        ({"stop_token_ids": [6], "min_tokens": 4}, "defabc", "length"),
        ({"stop": "gh"}, "def", "stop"),
        ({"stop": "gh", "include_stop_str_in_output": True}, "defgh", "stop"),
        ({"stop": "de", "min_tokens": 2}, "defghi", "length"),
        ({"stop": ["de", "gh"], "min_tokens": 2}, "def", "stop"),
        ({"stop": "hi", "max_tokens": 6}, "defg", "stop"),  # on the last token there may be
        ({"stop": "ij", "max_tokens": 6}, "defghi", "length"),
    ],
    ids=str,
)
async def test_it_ends_where_it_is_asked_to(site: Site, fields: dict[str, Any], text: str, finish: str) -> None:
    (choice,) = (await send(site, **fields)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, finish)


@BOTH
async def test_ids_that_are_no_tokens_are_refused(site: Site, stream: bool) -> None:
    refused = await send(site, logit_bias={str(LETTERS): 1}, stream=stream)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logit_bias")
    assert (await send(site, logit_bias={str(LETTERS - 1): 1}, stream=stream)).status_code == 200
    refused = await send(site, stop_token_ids=[LETTERS], stream=stream)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop_token_ids")


def stream_chunks(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("stop", [None, "gh", "de", "z"])
async def test_logprobs_of_a_stream_are_those_of_the_plain_answer(site: Site, stop: str | None) -> None:
    """Of the model itself, whatever the request makes of it."""
    body = {"logprobs": True, "top_logprobs": 2, "stop": stop, "logit_bias": {"9": 5, "3": 5}, "presence_penalty": 2}
    plain = (await send(site, **body)).json()["choices"][0]
    chunks = [chunk["choices"][0] for chunk in stream_chunks(await send(site, **body, stream=True))]
    content = plain["logprobs"]["content"]

    assert [token for chunk in chunks for token in (chunk["logprobs"] or {"content": []})["content"]] == content
    for chunk in chunks:
        text = "".join(token["token"] for token in (chunk["logprobs"] or {"content": []})["content"])
        assert text == chunk["delta"].get("content", "")
    assert "".join(token["token"] for token in content) == plain["message"]["content"]
    assert all(bytes(token["bytes"]).decode() == token["token"] for token in content)
    others = math.log(math.e + LETTERS - 1)
    for token in content:
        likeliest, second = token["top_logprobs"]
        assert [likeliest["logprob"], second["logprob"]] == pytest.approx([1 - others, -others], abs=1e-5)
        assert token["logprob"] == pytest.approx(1 - others if token["token"] == likeliest["token"] else -others)


async def test_logprobs_come_without_others_or_not_at_all(site: Site) -> None:
    alone = (await send(site, logprobs=True)).json()["choices"][0]
    assert [token["top_logprobs"] for token in alone["logprobs"]["content"]] == [[]] * 6
    assert (await send(site)).json()["choices"][0]["logprobs"] is None


async def test_choices_are_in_order_each_with_its_own_seed(site: Site) -> None:
    body = {"temperature": 2, "n": 5, "seed": 7}
    plain = (await send(site, **body)).json()
    texts = [choice["message"]["content"] for choice in plain["choices"]]
    chunks = stream_chunks(await send(site, **body, stream=True, stream_options={"include_usage": True}))

    assert [choice["index"] for choice in plain["choices"]] == [0, 1, 2, 3, 4]
    assert len({*texts}) == 5
    assert [await text_of_answer(site, temperature=2, seed=7 + index) for index in range(5)] == texts
    streamed = ["".join(delta(chunk, index) for chunk in chunks) for index in range(5)]
    assert streamed == texts
    assert [chunk["choices"][0]["index"] for chunk in chunks[:5]] == [0, 1, 2, 3, 4]
    assert chunks[-1]["usage"] == plain["usage"]
    assert plain["usage"]["prompt_tokens"] == 3


async def test_choices_share_one_reading_of_the_prompt(new_site: NewSite) -> None:
    read: list[int] = []
    runner = Counting(num_slots=4, before=lambda scheduled: read.extend(work.num_tokens for work in scheduled))

    def build(kind: str, /, **options: object) -> LocalEngine:
        return LocalEngine(loaded(), LocalExecutor(runner), max_num_batched_tokens=16, max_queue=8)

    usage = (await send(await new_site(build=build), "a" * 40, n=4, max_tokens=2)).json()["usage"]

    assert sum(read) == 40 + 3 * 1 + 4 * 1  # the others' last token of it; and the first of each answer
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (40, 8)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}  # by others before, not by each other


def delta(chunk: dict[str, Any], index: int) -> str:
    return "".join(each["delta"].get("content", "") for each in chunk["choices"] if each["index"] == index)


async def test_token_ids_and_times(site: Site) -> None:
    body = {"return_token_ids": True, "stop": "gh"}
    plain = (await send(site, **body)).json()
    chunks = [chunk["choices"][0] for chunk in stream_chunks(await send(site, **body, stream=True))]

    assert plain["choices"][0]["message"]["token_ids"] == [3, 4, 5, 6, 7]
    assert [token for chunk in chunks for token in chunk["delta"].get("token_ids", [])] == [3, 4, 5, 6, 7]
    times = [chunk["arrival_time"] for chunk in chunks]
    assert times == sorted(times)
    assert times[0] >= 0
    assert "token_ids" not in (await send(site)).json()["choices"][0]["message"]


@BOTH
async def test_the_last_tokens_of_a_prompt_are_read(site: Site, stream: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = await send(site, "a" * 64, truncate_prompt_tokens=3, **options)
    usage = stream_chunks(answer)[-1]["usage"] if stream else answer.json()["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["prompt_tokens_details"]["truncated_tokens"] == 61
    assert (await send(site, "a" * 64)).status_code == 400
    assert (await send(site, "a" * 64, truncate_prompt_tokens=-1, max_tokens=4)).json()["usage"]["prompt_tokens"] == 60


async def test_last_message_goes_on_and_is_repeated(site: Site) -> None:
    begun = {"messages": [{"role": "assistant", "content": "abc"}], "continue_final_message": True}
    assert await text_of_answer(site, **begun) == "defghi"
    assert await text_of_answer(site, **begun, echo=True) == "abcdefghi"
