"""What a request asks of the sampler, from the wire through the real engine and back; the model is the alphabet."""

from typing import Any

import httpx2
import pytest

from services.engine.local import LocalEngine
from tests.apps import NewSite, Site
from tests.test_engine.fakes import LETTERS, Counting, loaded

PATH = "/v1/chat/completions"
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    def build(kind: str, /, **options: object) -> LocalEngine:
        return LocalEngine(loaded(), Counting(num_slots=4), max_num_batched_tokens=16, max_queue=8)

    return await new_site(build=build)


async def ask(site: Site, prompt: str = "abc", **fields: Any) -> httpx2.Response:
    messages = [{"content": prompt}]
    return await site.client.post(PATH, json={"messages": messages, "temperature": 0, "max_tokens": 6, **fields})


async def said(site: Site, prompt: str = "abc", **fields: Any) -> str:
    answer = (await ask(site, prompt, **fields)).json()
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
    assert await said(site, **fields) == text


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
    (choice,) = (await ask(site, **fields)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, finish)


@BOTH
async def test_ids_that_are_no_tokens_are_refused(site: Site, stream: bool) -> None:
    refused = await ask(site, logit_bias={str(LETTERS): 1}, stream=stream)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logit_bias")
    assert (await ask(site, logit_bias={str(LETTERS - 1): 1}, stream=stream)).status_code == 200
    refused = await ask(site, stop_token_ids=[LETTERS], stream=stream)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop_token_ids")
