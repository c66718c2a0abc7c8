"""POST /tokenize, /detokenize and /v1/chat/completions/input_tokens."""

from typing import Any

import httpx2
import pytest

from tests.apps import MODEL, NewSite, Site, post, refusal
from tests.fakes import FakeEngine
from tests.test_engine.tiny_tokenizers import EOS, byte_level

CHAT = [{"role": "user", "content": "hi"}]
WRITTEN = "<user>hi\n<assistant>\n"


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_there_and_back(site: Site, prefix: str) -> None:
    tokens = {"count": 3, "max_model_len": 4096, "tokens": [97, 195, 169]}
    assert await post(site, f"{prefix}/tokenize", prompt="aé") == tokens
    assert await post(site, f"{prefix}/detokenize", tokens=tokens["tokens"]) == {"prompt": "aé"}


async def test_tokens_as_they_are_written(site: Site) -> None:
    assert (await post(site, "/tokenize", prompt="ab", return_token_strs=True))["token_strs"] == ["a", "b"]


async def test_nothing_is_something(site: Site) -> None:
    assert (await post(site, "/tokenize", prompt=""))["tokens"] == []
    assert await post(site, "/detokenize", tokens=[]) == {"prompt": ""}


async def test_a_chat_is_what_would_be_submitted(site: Site, engine: FakeEngine) -> None:
    for fields in (
        {},
        {"add_generation_prompt": False},
        {"continue_final_message": True, "messages": [{"role": "user", "content": "a"}, *CHAT]},
    ):
        body: dict[str, Any] = {"messages": CHAT, **fields}
        tokens = (await post(site, "/tokenize", **body))["tokens"]
        counted = await post(site, "/v1/chat/completions/input_tokens", **body)
        await post(site, "/v1/chat/completions", **body)
        assert tuple(tokens) == engine.jobs[-1].prompt
        assert counted == {"object": "response.input_tokens", "input_tokens": len(tokens)}
    assert bytes((await post(site, "/tokenize", messages=CHAT))["tokens"]).decode() == WRITTEN


async def test_a_conversation_is_counted_with_its_history(site: Site) -> None:
    first = await post(site, "/chat/new/message/", prompt="hi")
    body = {"messages": CHAT, "conversation": first["conversation_id"]}
    counted = await post(site, "/chat/completions/input_tokens", **body)
    assert counted["input_tokens"] == len("<user>hi\n<assistant>Hello, world!\n" + WRITTEN)
    stored = await site.client.get(f"/chat/get/messages/?conversation_id={first['conversation_id']}")
    assert len(stored.json()["data"]) == 2  # and nothing is added to it


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"messages": CHAT, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "assistant", "content": "first"}]}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("/detokenize", {"tokens": [1, 256]}, "tokens.1"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/v1/chat/completions/input_tokens", {}, "messages"),
        ("/v1/chat/completions/input_tokens", {"messages": CHAT, "audio": {}}, "audio"),
    ],
    ids=str,
)
async def test_what_is_refused(site: Site, path: str, body: dict[str, Any], param: str) -> None:
    assert await refusal(site, path, **body) == param


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})])
async def test_of_any_model(new_site: NewSite, path: str, body: dict[str, Any]) -> None:
    site = await new_site()
    assert (await post(site, path, model="fake-embedding", **body)) == await post(site, path, **body)
    missing = await site.client.post(path, json={**body, "model": "another"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    unknown: httpx2.Response = await site.client.post(path, json={**body, "zebra": 1})
    assert unknown.headers["x-parley-ignored"] == "zebra"


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokenizer_is_described(prefix: str, new_site: NewSite, engine: FakeEngine) -> None:
    engine.tokenizer = tokenizer = byte_level()
    tokenizer.chat_template = "{{ messages[0].content }}"
    site = await new_site()
    answer = await site.client.get(f"{prefix}/tokenizer_info", params={"model": MODEL})
    assert answer.json() == {
        "model": MODEL,
        "tokenizer_class": type(tokenizer).__name__,
        "max_model_len": 4096,
        "bos_token": None,
        "eos_token": EOS,
        "pad_token": None,
        "unk_token": None,
        "additional_special_tokens": [],
        "chat_template": "{{ messages[0].content }}",
    }
    assert (await site.client.get(f"{prefix}/tokenizer_info", params={"model": "another"})).status_code == 404
