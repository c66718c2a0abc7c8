"""Token ids to vectors: right against a plain loop, fair between callers, and never stuck."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from services.engine.base import Embeddings
from services.engine.embedding.batching import Call, cut, share
from services.engine.embedding.embedder import LocalEmbedder
from services.engine.embedding.encoder import Encoder, Floats
from services.engine.embedding.pooling import POOLINGS, PoolingConfig, read_pooling_config
from services.errors import EngineFailed, InvalidRequest, Overloaded, PromptTooLong, Unavailable

MINILM = Path(__file__).parents[2] / "models" / "all-MiniLM-L6-v2"


# --- fakes ---


class Echo:
    """Every row becomes (its first token, its length). Batches wait while `gate` is closed, and token 666 fails."""

    dimensions = 2
    pads = True
    device = "cpu"
    dtype = "float32"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[Sequence[int]]] = []

    def __call__(self, rows: Sequence[Sequence[int]]) -> Floats:
        self.batches.append(list(rows))
        self.entered.release()
        assert self.gate.wait(30)
        if any(666 in row for row in rows):
            raise ValueError("a bad token")
        return np.array([(row[0], len(row)) for row in rows], dtype=np.float32)

    async def has_begun(self) -> None:
        """Returns once one more batch has been entered."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)


@asynccontextmanager
async def running(encode: Any, **options: Any) -> AsyncIterator[LocalEmbedder]:
    embedder = LocalEmbedder(encode, tokenizer=None, **{"max_length": 512, **options})  # type: ignore[arg-type]
    embedder.start()
    try:
        yield embedder
    finally:
        await embedder.stop()


def array(embeddings: Embeddings) -> Floats:
    return np.frombuffer(embeddings.data, dtype="<f4").reshape(-1, embeddings.dimensions)


def small_bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def random_rows(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, 100, size=size).tolist() for size in random.integers(1, longest, size=count)]


@torch.inference_mode()
def one_at_a_time(model: Any, rows: Sequence[Sequence[int]]) -> Floats:
    """The plain way: no batch, no padding; mean and normalise."""
    hidden = [model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    return np.stack([normalize(states.mean(0), dim=0).numpy() for states in hidden])


# --- the vectors are right ---


async def test_equals_a_plain_loop_under_mixed_lengths_and_keeps_the_order():
    model = small_bert()
    rows = random_rows(100)
    async with running(Encoder(model, PoolingConfig()), batch_tokens=256) as embedder:
        vectors = array(await embedder.embed(rows))
    np.testing.assert_allclose(vectors, one_at_a_time(model, rows), atol=1e-5)


async def test_merged_callers_get_what_they_would_get_alone():
    encode = Encoder(small_bert(), PoolingConfig())
    calls = [random_rows(count, seed=count) for count in (1, 7, 40, 2, 13)]
    async with running(encode, batch_tokens=128) as embedder:
        alone = [array(await embedder.embed(rows)) for rows in calls]
        together = await asyncio.gather(*(embedder.embed(rows) for rows in calls))
    for expected, answer in zip(alone, together, strict=True):
        np.testing.assert_allclose(array(answer), expected, atol=1e-5)


REFERENCES = {
    "cls": lambda states: states[0],
    "max": lambda states: states.max(0).values,
    "mean": lambda states: states.mean(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / len(states) ** 0.5,
    "weightedmean": lambda states: sum((n + 1) * state for n, state in enumerate(states)) / sum(range(len(states) + 1)),
    "lasttoken": lambda states: states[-1],
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_equals_its_definition_on_unpadded_rows(pooling):
    model = small_bert()
    rows = random_rows(9)
    vectors = Encoder(model, PoolingConfig(poolings=(pooling,), normalise=False))(rows)
    for row, vector in zip(rows, vectors, strict=True):
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([row])).last_hidden_state[0]
        np.testing.assert_allclose(vector, REFERENCES[pooling](states).numpy(), atol=1e-5)


def test_several_poolings_are_joined_and_counted():
    encode = Encoder(small_bert(), PoolingConfig(poolings=("cls", "mean")))
    assert encode.dimensions == 64
    assert encode([[1, 2, 3]]).shape == (1, 64)


def test_vectors_have_length_one_only_if_the_recipe_says_so():
    lengths = [
        np.linalg.norm(Encoder(small_bert(), PoolingConfig(normalise=normalise))(random_rows(5)), axis=1)
        for normalise in (True, False)
    ]
    np.testing.assert_allclose(lengths[0], 1, atol=1e-6)
    assert abs(lengths[1] - 1).min() > 0.1


# --- what a model's folder says ---


def folder(path: Path, modules: Sequence[str], **files: Any) -> str:
    """A sentence-transformers folder, without weights; `files` are JSON by name, '__' for '/'."""
    listed = [
        {"type": f"sentence_transformers.models.{name}", "path": f"{n}_{name}" if n else ""}
        for n, name in enumerate(modules)
    ]
    for name, content in {"modules": listed, **files}.items():
        target = path / f"{name.replace('__', '/')}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(content))
    return str(path)


def test_recipe_of_a_bare_folder_is_the_normalised_mean(tmp_path):
    assert read_pooling_config(str(tmp_path)) == PoolingConfig(poolings=("mean",), normalise=True)


@pytest.mark.parametrize(
    ("config", "poolings"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": True}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({}, ("mean",)),
    ],
)
def test_recipe_reads_old_and_new_pooling_configurations(tmp_path, config, poolings):
    source = folder(tmp_path, ["Transformer", "Pooling"], **{"1_Pooling__config": config})
    assert read_pooling_config(source) == PoolingConfig(poolings, normalise=False)


def test_recipe_reads_length_case_and_normalisation(tmp_path):
    sentence = {"max_seq_length": 256, "do_lower_case": True}
    source = folder(tmp_path, ["Transformer", "Pooling", "Normalize"], sentence_bert_config=sentence)
    assert read_pooling_config(source) == PoolingConfig(normalise=True, max_length=256, lower_case=True)


def test_a_module_that_would_be_left_out_is_refused(tmp_path):
    for modules in (["Transformer", "Pooling", "CNN"], ["Transformer", "CNN", "Pooling"], ["CNN"]):
        with pytest.raises(EngineFailed, match="CNN module"):
            read_pooling_config(folder(tmp_path, modules))


def test_an_unknown_pooling_is_refused(tmp_path):
    source = folder(tmp_path, ["Transformer", "Pooling"], **{"1_Pooling__config": {"pooling_mode": "attention"}})
    with pytest.raises(EngineFailed, match="'attention' pooling"):
        read_pooling_config(source)


def test_load_refuses_an_option_it_does_not_know():
    with pytest.raises(TypeError, match="max_num_seqs"):
        LocalEmbedder.load(source="anything", max_num_seqs=4)  # type: ignore[call-arg]


# --- who is next ---


async def test_every_call_gets_its_share_and_the_rest_goes_to_the_large():
    large, small = Call([[1] * 10] * 100, 2), Call([[2] * 10], 2)
    rows = share([large, small], budget=100)
    assert [sum(row.call is call for row in rows) for call in (large, small)] == [9, 1]


async def test_a_share_is_at_least_one_input():
    calls = [Call([[1] * 50], 2) for _ in range(10)]
    assert {row.call for row in share(calls, budget=20)} == set(calls)


async def test_batches_stay_in_the_budget_and_waste_little():
    call = Call(random_rows(200), 2)
    batches = list(cut(call.take(10**6), 256))
    for batch in batches:
        lengths = [len(row.tokens) for row in batch]
        assert max(lengths) * len(lengths) <= 256
        assert max(lengths) * len(lengths) - sum(lengths) <= 16
    assert sorted(row.index for batch in batches for row in batch) == list(range(200))


async def test_without_padding_lengths_may_differ():
    rows = Call([[1], [1] * 100, [1] * 90], 2).take(10**6)
    assert [len(batch) for batch in cut(rows, 200, pads=False)] == [3]
    assert [len(batch) for batch in cut(rows, 150, pads=False)] == [2, 1]


async def test_a_row_beyond_the_budget_stands_alone():
    assert [len(batch) for batch in cut(Call([[1], [1] * 500], 2).take(10**6), 100)] == [1, 1]


async def test_a_small_call_is_in_the_next_batches_though_a_large_one_was_first():
    encode = Echo()
    async with running(encode, batch_tokens=100) as embedder:
        encode.gate.clear()
        large = asyncio.create_task(embedder.embed([[1] * 10] * 2048))
        await encode.has_begun()
        small = asyncio.create_task(embedder.embed([[7, 7]]))
        await asyncio.sleep(0)  # lets it be submitted
        encode.gate.set()
        await asyncio.gather(large, small)
    batch_of_small = next(n for n, batch in enumerate(encode.batches) if [7, 7] in batch)
    assert batch_of_small <= 2
    assert len(encode.batches) > 200
    assert array(small.result()).tolist() == [[7, 2]]


async def test_calls_that_wait_together_share_batches():
    encode = Echo()
    async with running(encode) as embedder:
        encode.gate.clear()
        first = asyncio.create_task(embedder.embed([[1]]))
        await encode.has_begun()
        others = [asyncio.create_task(embedder.embed([[n, n]])) for n in range(2, 30)]
        await asyncio.sleep(0)
        encode.gate.set()
        answers = await asyncio.gather(first, *others)
    assert [array(answer)[0, 0] for answer in answers] == list(range(1, 30))
    assert len(encode.batches) == 2


# --- what goes wrong ---


async def test_a_cancelled_call_is_worked_on_no_more():
    encode = Echo()
    async with running(encode, batch_tokens=10) as embedder:
        encode.gate.clear()
        task = asyncio.create_task(embedder.embed([[1] * 10] * 1000))
        await encode.has_begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert embedder.stats().waiting == 0
        encode.gate.set()
        assert array(await embedder.embed([[5]])).tolist() == [[5, 1]]
    assert len(encode.batches) <= 3


async def test_an_exception_fails_the_calls_of_its_batch_alone(caplog):
    encode = Echo()
    async with running(encode, batch_tokens=32) as embedder:
        encode.gate.clear()
        first = asyncio.create_task(embedder.embed([[1]]))
        await encode.has_begun()
        bad = asyncio.create_task(embedder.embed([[666]]))
        good = asyncio.create_task(embedder.embed([[3] * 30]))
        await asyncio.sleep(0)
        encode.gate.set()
        with pytest.raises(EngineFailed):
            await bad
        assert array(await good).tolist() == [[3, 30]]
        assert array(await first).tolist() == [[1, 1]]
        assert array(await embedder.embed([[4]])).tolist() == [[4, 1]]
        assert embedder.stats().running == 0
    assert "a bad token" in caplog.text


async def test_vectors_of_another_width_fail_their_calls_alone():
    """They ended the engine's thread, and with it every later request."""
    echo = Echo()
    async with running(echo) as embedder:
        embedder.dimensions = 3
        with pytest.raises(EngineFailed):
            await embedder.embed([[1]])
        embedder.dimensions = 2
        assert array(await embedder.embed([[7, 7]])).tolist() == [[7, 2]]


async def test_a_full_queue_refuses_at_once_but_one_call_may_be_of_any_size():
    encode = Echo()
    async with running(encode, max_waiting=10) as embedder:
        encode.gate.clear()
        large = asyncio.create_task(embedder.embed([[1]] * 100))
        await encode.has_begun()
        with pytest.raises(Overloaded):
            await embedder.embed([[1]])
        assert embedder.stats().waiting + embedder.stats().running == 100
        encode.gate.set()
        await large
        await embedder.embed([[1]])


async def test_an_owner_with_less_than_its_share_comes_in_where_the_queue_is_full():
    encode = Echo()
    async with running(encode, max_waiting=10) as embedder:
        encode.gate.clear()
        calls = [asyncio.create_task(embedder.embed([[1]] * 10, "alpha"))]
        await encode.has_begun()
        calls += [asyncio.create_task(embedder.embed([[2]] * 5, "beta"))]
        await asyncio.sleep(0)  # it is taken in
        for owner in ("alpha", "beta"):
            with pytest.raises(Overloaded, match="its share"):
                await embedder.embed([[1]], owner)
        encode.gate.set()
        await asyncio.gather(*calls)


async def test_any_number_of_calls_of_one_owner_is_in_front_of_anothers_for_one_batch():
    encode = Echo()
    async with running(encode, batch_tokens=100) as embedder:
        encode.gate.clear()
        crowd = [asyncio.create_task(embedder.embed([[1] * 10], "alpha")) for _ in range(200)]
        await encode.has_begun()
        single = asyncio.create_task(embedder.embed([[2] * 10], "beta"))
        await asyncio.sleep(0)
        encode.gate.set()
        await single
        await asyncio.gather(*crowd)
    assert [2] * 10 in [row for batch in encode.batches[: 1 + 2] for row in batch]


async def test_rounds_between_owners_leave_nothing_behind():
    calls = [Call([[1] * 10] * (1 + 7 * index), 2, owner) for owner in "abc" for index in range(6)]
    taken = []
    while any(call.tokens_left for call in calls):
        rows = share([call for call in calls if call.tokens_left], budget=60)
        assert len({row.call.owner for row in rows}) == len({row.call.owner for row in rows + rows})
        assert sum(len(row.tokens) for row in rows) <= 60
        taken += rows
    assert len(taken) == sum(1 + 7 * index for index in range(6)) * 3


async def test_inputs_the_model_cannot_take_are_refused():
    async with running(Echo(), max_length=3) as embedder:
        with pytest.raises(PromptTooLong, match=r"3 tokens.* 4 tokens"):
            await embedder.embed([[1], [1] * 4])
        with pytest.raises(InvalidRequest):
            await embedder.embed([[1], []])


async def test_no_inputs_no_vectors():
    async with running(Echo()) as embedder:
        assert await embedder.embed([]) == Embeddings(b"", 2)


async def test_stop_fails_what_is_pending_and_ends_the_thread():
    encode = Echo()
    async with running(encode, batch_tokens=10) as embedder:
        encode.gate.clear()
        task = asyncio.create_task(embedder.embed([[1] * 10] * 1000))
        await encode.has_begun()
        stop = asyncio.create_task(embedder.stop())
        await asyncio.sleep(0)
        encode.gate.set()
        await stop
        with pytest.raises(Unavailable):
            await task
        with pytest.raises(Unavailable):
            await embedder.embed([[1]])
    assert "embedder" not in {thread.name for thread in threading.enumerate()}


async def test_a_stopped_embedder_starts_again():
    async with running(Echo()) as embedder:
        await embedder.stop()
        embedder.start()
        assert array(await embedder.embed([[5]])).tolist() == [[5, 1]]


# --- the real model ---


@pytest.mark.live
@pytest.mark.skipif(not MINILM.exists(), reason="the default embedding model is not there")
async def test_the_real_model_equals_a_plain_loop():
    texts = ["", "Hello!", "Ein längerer Satz über Katzen.", "猫" * 40, "word " * 120, "a cat sat on a mat"]
    embedder = LocalEmbedder.load(source=str(MINILM), device="cpu", dtype="float32")
    embedder.start()
    try:
        rows = embedder.tokenizer(texts)["input_ids"]  # type: ignore[operator]
        vectors = array(await embedder.embed(rows))
    finally:
        await embedder.stop()
    assert (embedder.max_length, embedder.dimensions) == (256, 384)
    assert rows == AutoTokenizer.from_pretrained(MINILM)(texts, truncation=False, padding=False)["input_ids"]
    np.testing.assert_allclose(vectors, one_at_a_time(AutoModel.from_pretrained(MINILM).eval(), rows), atol=1e-5)


@pytest.mark.live
@pytest.mark.skipif(not MINILM.exists(), reason="the default embedding model is not there")
async def test_the_real_model_finds_the_nearest_in_the_default_dtype():
    texts = ["How do I bake bread?", "A recipe for a loaf", "The stock market fell today"]
    embedder = LocalEmbedder.load(source=str(MINILM))
    embedder.start()
    try:
        question, near, far = array(await embedder.embed(embedder.tokenizer(texts)["input_ids"]))  # type: ignore[operator]
    finally:
        await embedder.stop()
    assert question @ near > 0.4 > 0.2 > question @ far
