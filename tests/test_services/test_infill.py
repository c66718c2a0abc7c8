"""Fill-in-the-middle: prompt and suffix between a tokenizer's marks."""

import json
from typing import Any

import pytest

from services.chat.request import infill
from services.chat.request.infill import InfillMarks
from services.errors import InvalidRequest, UnsupportedParameter
from tests.apps import NewSite, refusal
from tests.fakes import FakeEngine
from tests.test_engine.tiny_tokenizers import byte_level

QWEN, CODESTRAL = infill.ALL[0], infill.ALL[-1]


def tokenizer_with(*marks: str) -> Any:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    return tokenizer


@pytest.mark.parametrize("marks", infill.ALL, ids=lambda marks: marks.prefix)
def test_prompt_and_suffix_stand_between_the_marks(marks: InfillMarks) -> None:
    tokenizer = tokenizer_with(*marks.marks)
    ids = tokenizer.encode(infill.infilled("def a(", "return b", tokenizer), add_special_tokens=False)
    parts = {True: ["[SUFFIX]", "return b", "[PREFIX]", "def a("]}
    expected = parts.get(marks.suffix_first, [marks.prefix, "def a(", marks.suffix, "return b", marks.middle])
    assert tokenizer.decode(ids) == "".join(expected)
    assert [each for each in tokenizer.convert_ids_to_tokens(ids) if each in marks.marks] == [
        each for each in expected if each in marks.marks
    ]


def test_marks_that_are_text_to_a_tokenizer_are_none() -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        infill.infilled("a", "b", tokenizer_with(QWEN.prefix, QWEN.suffix))
    assert refused.value.param == "suffix"


def test_token_ids_have_no_suffix() -> None:
    with pytest.raises(InvalidRequest, match="prompts that are texts"):
        infill.infilled([1, 2], "b", tokenizer_with(*QWEN.marks))


async def test_completions_fill_in_and_end_where_such_models_end(new_site: NewSite, engine: FakeEngine) -> None:
    engine.tokenizer = tokenizer = tokenizer_with(*QWEN.marks, "<|fim_pad|>")
    site = await new_site()
    body = {"prompt": ["def a(", "x ="], "suffix": "return b"}
    got = await site.client.post("/v1/completions", json=body)
    assert got.status_code == 200, got.text
    assert [choice["text"] for choice in got.json()["choices"]] == ["Hello, world!"] * 2
    assert [tokenizer.decode(list(job.prompt)) for job in engine.jobs] == [
        f"<|fim_prefix|>{prompt}<|fim_suffix|>return b<|fim_middle|>" for prompt in body["prompt"]
    ]
    pad = tokenizer.convert_tokens_to_ids("<|fim_pad|>")
    assert all(pad in job.sampling.stop_token_ids for job in engine.jobs)


async def test_ollama_s_generate_fills_in(new_site: NewSite, engine: FakeEngine) -> None:
    engine.tokenizer = tokenizer = tokenizer_with(*QWEN.marks)
    site = await new_site()
    body = {"prompt": "def a(", "suffix": "return b", "stream": False, "options": {"temperature": 0, "seed": 3}}
    got = await site.client.post("/api/generate", json=body)
    assert (got.status_code, got.json()["response"], got.json()["done"]) == (200, "Hello, world!", True), got.text
    (job,) = engine.jobs
    assert tokenizer.decode(list(job.prompt)) == "<|fim_prefix|>def a(<|fim_suffix|>return b<|fim_middle|>"
    assert (job.sampling.temperature, job.sampling.seed) == (0, 3)
    lines = (await site.client.post("/api/generate", json={**body, "stream": True})).text.splitlines()
    assert "".join(json.loads(line)["response"] for line in lines) == "Hello, world!"


@pytest.mark.parametrize("fields", [{}, {"echo": True}, {"truncate_prompt_tokens": 8}], ids=str)
async def test_what_cannot_be_filled_in_is_refused(
    fields: dict[str, Any], new_site: NewSite, engine: FakeEngine
) -> None:
    if fields:
        engine.tokenizer = tokenizer_with(*QWEN.marks)
    site = await new_site()
    assert await refusal(site, "/v1/completions", prompt="a", suffix="b", **fields) == "suffix"


async def test_an_empty_suffix_asks_for_nothing(new_site: NewSite, engine: FakeEngine) -> None:
    site = await new_site()
    assert (await site.client.post("/v1/completions", json={"prompt": "a", "suffix": ""})).status_code == 200
    assert engine.prompts == ["a"]
