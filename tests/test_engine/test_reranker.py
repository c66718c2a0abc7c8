"""Pairs of texts to scores, right against a plain loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.engine.base import Embeddings, Pair
from services.engine.embedding.reranker import LocalReranker
from services.errors import EngineFailed
from tests.test_engine import tiny_encoders

TEXTS = [("ab", "cde"), ("ab", "c"), ("abcdefgh", "ijklmnopq"), ("z", "ab"), ("ab", "z")]


def pairs() -> list[Pair]:
    encoded = tiny_encoders.tokenizer()(*map(list, zip(*TEXTS, strict=True)))
    return [Pair(ids, types) for ids, types in zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)]


def scores(embeddings: Embeddings) -> list[float]:
    found: list[float] = np.frombuffer(embeddings.data, dtype="<f4").tolist()
    return found


@torch.inference_mode()
def one_at_a_time(model: Any) -> list[torch.Tensor]:
    """The logits, the plain way."""
    return [
        model(input_ids=torch.tensor([pair]), token_type_ids=torch.tensor([pair.types])).logits[0] for pair in pairs()
    ]


@asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[LocalReranker]:
    engine = LocalReranker.load(source=str(folder), device="cpu", dtype="float32", **options)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def test_equals_a_plain_loop_in_batches_of_any_size(tmp_path: Path) -> None:
    logits = one_at_a_time(tiny_encoders.save_reranker(tmp_path))
    expected = [float(each.sigmoid()) for each in logits]
    assert len({round(score, 3) for score in expected}) > 3  # what is compared differs
    for batch_tokens in (1, 24, 2048):
        async with running(tmp_path, batch_tokens=batch_tokens) as engine:
            assert engine.dimensions == 1
            assert scores(await engine.embed(pairs())) == pytest.approx(expected, abs=1e-5)


async def test_several_callers_share_batches(tmp_path: Path) -> None:
    tiny_encoders.save_reranker(tmp_path)
    async with running(tmp_path) as engine:
        whole = scores(await engine.embed(pairs()))
        parts = await asyncio.gather(*(engine.embed([pair]) for pair in pairs()))
    assert [scores(part)[0] for part in parts] == pytest.approx(whole, abs=1e-5)


async def test_the_second_of_two_labels_is_yes(tmp_path: Path) -> None:
    logits = one_at_a_time(tiny_encoders.save_reranker(tmp_path, labels=2))
    async with running(tmp_path) as engine:
        found = scores(await engine.embed(pairs()))
    assert found == pytest.approx([float(each.softmax(-1)[1]) for each in logits], abs=1e-5)


def test_a_model_that_says_more_is_refused(tmp_path: Path) -> None:
    tiny_encoders.save_reranker(tmp_path, labels=3)
    with pytest.raises(EngineFailed, match="3"):
        LocalReranker.load(source=str(tmp_path), device="cpu")
