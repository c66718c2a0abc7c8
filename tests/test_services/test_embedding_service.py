"""Requests in OpenAI's four shapes to its answer: limits, truncation, encodings, and an event loop that stays free."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from schemas.embeddings_schema import EmbeddingRequest
from schemas.input_schema import MAX_INPUTS
from services.embedding_service import EmbeddingService, prompted, rows_of, shorten
from services.engine.base import Embeddings, TextPrompts
from services.errors import InvalidRequest, PromptTooLong, ServiceError
from services.metrics_service import Metrics
from tests.fakes import FakeLedger

MINILM = Path(__file__).parents[2] / "models" / "all-MiniLM-L6-v2"
CLS, SEP = 1, 2


# --- fakes ---


class Words:
    """One token a word, between CLS and SEP."""

    all_special_ids = (0, CLS, SEP)

    def __len__(self) -> int:
        return 1000

    def __call__(self, text: Sequence[str], **options: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[CLS, *(3 + len(word) for word in line.split()), SEP] for line in text]}


class Engine:
    """Vectors of four numbers that tell what was asked: the length, the first tokens."""

    tokenizer = Words()
    max_length = 8
    dimensions = 4
    prompts = TextPrompts()

    def __init__(self) -> None:
        self.inputs: list[list[int]] = []

    async def embed(self, inputs: Sequence[list[int]], owner: str) -> Embeddings:
        self.inputs = list(inputs)
        rows = [(len(row), *(row + [0] * 3)[:3]) for row in inputs]
        return Embeddings(np.array(rows, dtype="<f4").tobytes(), 4)


class Models:
    def __init__(self, engine: Any) -> None:
        self.engine = engine

    @asynccontextmanager
    async def lease(self, name: str | None, kind: str) -> AsyncIterator[SimpleNamespace]:
        assert kind == "embedding"
        yield SimpleNamespace(id="m", name=name or "default", engine=self.engine)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def service(engine) -> EmbeddingService:
    return EmbeddingService(Models(engine), Metrics(), FakeLedger())  # type: ignore[arg-type]


async def test_tokens_are_counted(engine) -> None:
    metrics = Metrics()
    answer = await create(EmbeddingService(Models(engine), metrics, FakeLedger()), input=[[5, 6], [7]])  # type: ignore[arg-type]
    assert answer["usage"]["prompt_tokens"] == 3
    assert metrics.registry.get_sample_value("parley_embedding_tokens_total", {"model": "m"}) == 3


async def create(service: EmbeddingService, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await service.create(EmbeddingRequest(**body), "me"))
    return answer


async def refusal(service: EmbeddingService, **body: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await create(service, **body)
    return caught.value


# --- the answer ---


async def test_answer_has_openais_shape_the_requested_name_and_the_usage(service):
    assert await create(service, input=["one two", ""], model="gpt-4o") == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [4.0, 1.0, 6.0, 6.0]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 1.0, 2.0, 0.0]},
        ],
        "model": "gpt-4o",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }


@pytest.mark.parametrize(
    ("input", "tokens"),
    [
        ("a bb", [[CLS, 4, 5, SEP]]),
        (["a", "bb"], [[CLS, 4, SEP], [CLS, 5, SEP]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (None, [[CLS, SEP]]),
    ],
)
async def test_every_shape_of_input_reaches_the_engine_as_rows(service, engine, input, tokens):
    await create(service, input=input)
    assert engine.inputs == tokens


async def test_base64_holds_the_same_vectors_as_float(service):
    plain = await create(service, input=["a b c", "d"])
    packed = await create(service, input=["a b c", "d"], encoding_format="base64")
    decoded = [np.frombuffer(b64decode(item["embedding"]), dtype="<f4").tolist() for item in packed["data"]]
    assert decoded == [item["embedding"] for item in plain["data"]]


async def test_fewer_dimensions_are_cut_and_normalised_again(service):
    (item,) = (await create(service, input=[3, 4, 5], dimensions=2))["data"]
    assert item["embedding"] == pytest.approx([3 / 18**0.5, 3 / 18**0.5])


async def test_all_dimensions_leave_the_vector_as_it_is(service):
    (item,) = (await create(service, input=[3, 4, 5], dimensions=4))["data"]
    assert item["embedding"] == [3.0, 3.0, 4.0, 5.0]


# --- limits ---


async def test_more_dimensions_than_the_model_has_are_refused(service):
    error = await refusal(service, dimensions=5)
    assert isinstance(error, InvalidRequest)
    assert error.param == "dimensions"


@pytest.mark.parametrize(("input", "name"), [("w " * 7, "input"), (["a", "w " * 7], "input.1"), ([5] * 9, "input")])
async def test_an_input_too_long_is_named_with_both_counts(service, input, name):
    error = await refusal(service, input=input)
    assert isinstance(error, PromptTooLong)
    assert (error.param, error.tokens, error.limit) == (name, 9, 8)
    assert "maximum context length is 8 tokens" in error.message
    assert "your input resulted in 9 tokens" in error.message


async def test_truncation_to_the_models_length_keeps_the_end_marker(service, engine):
    answer = await create(service, input=["w " * 20, "a"], truncate_prompt_tokens=-1)
    assert engine.inputs == [[CLS, *[4] * 6, SEP], [CLS, 4, SEP]]
    assert answer["usage"]["prompt_tokens"] == 11


async def test_truncation_beyond_the_models_length_is_refused(service):
    assert (await refusal(service, truncate_prompt_tokens=9)).param == "truncate_prompt_tokens"


@pytest.mark.parametrize(
    ("limit", "tokens"), [(5, [CLS, 4, 5, 6, SEP]), (4, [CLS, 4, 5, SEP]), (2, [CLS, SEP]), (1, [SEP])]
)
def test_shorten_keeps_the_special_tokens_at_the_end(limit, tokens):
    assert shorten([CLS, 4, 5, 6, SEP], limit, frozenset({CLS, SEP})) == tokens


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ({}, "in general "),
        ({"prompt_name": "query"}, "look for "),
        ({"prompt_name": "plain"}, ""),
        ({"input_type": "query"}, "look for "),
        ({"input_type": "search_query"}, "look for "),
        ({"input_type": "document"}, "from a page "),
    ],
)
def test_the_prompt_that_is_named_comes_first(asked: dict[str, str], prompt: str) -> None:
    prompts = TextPrompts({"query": "look for ", "passage": "from a page ", "plain": "", "x": "in general "}, "x")
    assert prompted(EmbeddingRequest(input=["a", "b"], **asked), prompts) == [f"{prompt}a", f"{prompt}b"]


def test_a_model_without_prompts_treats_queries_and_documents_alike() -> None:
    assert prompted(EmbeddingRequest(input="a", input_type="query"), TextPrompts()) == ["a"]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt_name": "nothing"}, "prompt_name"),
        ({"input_type": "nothing"}, "input_type"),
        ({"input_type": "query", "prompt_name": "query"}, "prompt_name"),
        ({"prompt_name": "query", "input": [[5, 6]]}, "prompt_name"),
    ],
)
def test_prompts_that_cannot_be_had_are_refused(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        prompted(EmbeddingRequest(**{"input": "a", **asked}), TextPrompts({"query": "look for "}))
    assert refusal.value.param == param


def test_a_prompt_that_is_not_pooled_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="leaves prompts out of its pooling"):
        prompted(EmbeddingRequest(input="a", prompt_name="query"), TextPrompts({"query": "look for "}, pools=False))


def test_shorten_cuts_plainly_where_nothing_ends_the_input():
    assert shorten([4, 5, 6], 2, frozenset({CLS, SEP})) == [4, 5]


@pytest.mark.parametrize("token", [1000, 2**70])
async def test_token_ids_outside_the_vocabulary_are_refused(service, token):
    error = await refusal(service, input=[[1, 2], [3, token]])
    assert (type(error), error.param) == (InvalidRequest, "input.1")


# --- the schema ---


@pytest.mark.parametrize(
    ("input", "where"),
    [
        ([], ("input",)),
        (5, ("input",)),
        ({"a": 1}, ("input",)),
        ([None], ("input",)),
        ([True], ("input",)),
        (["a"] * (MAX_INPUTS + 1), ("input",)),
        (["a"] * 17 + [3], ("input", 17)),
        ([5, "a"], ("input", 1)),
        ([5, -1], ("input",)),
        ([[5], []], ("input", 1)),
        ([[5], "a"], ("input", 1)),
        ([[5], [6, 7.5]], ("input", 1, 1)),
        ([[5], [6, -7]], ("input", 1)),
    ],
)
def test_a_wrong_input_makes_one_short_error_that_names_the_culprit(input, where):
    with pytest.raises(ValidationError) as caught:
        EmbeddingRequest(input=input)
    (error,) = caught.value.errors()
    assert error["loc"] == where
    assert len(error["msg"]) < 200


@pytest.mark.parametrize("input", [["a"] * MAX_INPUTS, [[5] * 256] * MAX_INPUTS, [5] * 10_000])
def test_the_largest_inputs_are_taken_as_they_are(input):
    assert EmbeddingRequest(input=input).input is input


def test_nulls_are_absent_fields():
    fields = dict.fromkeys(EmbeddingRequest.model_fields)
    assert EmbeddingRequest(**fields) == EmbeddingRequest()
    assert EmbeddingRequest().input == [""]


@pytest.mark.parametrize(
    "body",
    [
        {"dimensions": 0},
        {"dimensions": "4"},
        {"encoding_format": "hex"},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -2},
    ],
)
def test_fields_out_of_range_are_refused_by_name(body):
    with pytest.raises(ValidationError) as caught:
        EmbeddingRequest(**body)
    assert [error["loc"] for error in caught.value.errors()] == [(next(iter(body)),)]


# --- with the real model ---


def test_the_short_way_to_token_ids_is_the_tokenizer_s_own() -> None:
    from tests.test_engine.tiny_encoders import tokenizer

    engine, texts = SimpleNamespace(tokenizer=tokenizer(), max_length=32), ["abc", "z!", ""]
    rows = rows_of(texts, engine, None, str)  # type: ignore[arg-type]
    assert rows == engine.tokenizer(texts)["input_ids"]
    assert rows[0] == [1, 4, 5, 6, 2]


@asynccontextmanager
async def real_service() -> AsyncIterator[EmbeddingService]:
    from services.engine.embedding.embedder import LocalEmbedder  # torch is loaded for this test only

    embedder = LocalEmbedder.load(source=str(MINILM))
    embedder.start()
    try:
        yield EmbeddingService(Models(embedder), Metrics(), FakeLedger())  # type: ignore[arg-type]
    finally:
        await embedder.stop()


@pytest.mark.live
@pytest.mark.skipif(not MINILM.exists(), reason="the default embedding model is not there")
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_the_event_loop_turns_while_2048_texts_are_embedded(encoding):
    async with real_service() as service:
        work = asyncio.create_task(create(service, input=["a short text"] * MAX_INPUTS, encoding_format=encoding))
        turns = 0
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        answer = await work
    assert [item["index"] for item in answer["data"]] == list(range(MAX_INPUTS))
    assert turns > 500


@pytest.mark.live
@pytest.mark.skipif(not MINILM.exists(), reason="the default embedding model is not there")
async def test_the_real_tokenizer_counts_refuses_and_truncates():
    async with real_service() as service:
        answer = await create(service, input=["", "hello world"])
        assert answer["usage"]["prompt_tokens"] == 2 + 4
        error = await refusal(service, input="word " * 300)
        assert (error.tokens, error.limit) == (302, 256)
        truncated = await create(service, input=["word " * 300, "word " * 254], truncate_prompt_tokens=-1)
        assert truncated["usage"]["prompt_tokens"] == 512
        first, second = (item["embedding"] for item in truncated["data"])
        assert first == pytest.approx(second, abs=1e-2)
