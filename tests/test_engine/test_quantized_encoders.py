"""Embedding models and rerankers with layers of 8 bits say nearly what the plain ones say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from services.engine.base import Embeddings
from services.engine.cpu import kernels
from services.engine.embedding import compiled_encoder
from services.engine.embedding.compiled_encoder import EncoderPlan, pack_where_it_agrees
from services.engine.embedding.embedder import LocalEmbedder
from services.engine.embedding.encoder import Encoder
from services.engine.embedding.pooling import PoolingConfig
from services.engine.embedding.quantized_encoder import quantise_encoder
from services.engine.embedding.reranker import LocalReranker
from services.engine.quantization import int8
from services.engine.quantization.int8 import Int8Linear, TorchInt8Linear
from services.errors import EngineFailed
from tests.test_engine import tiny_encoders
from tests.test_engine.compilers import compiled_once, needs_compiler
from tests.test_engine.test_encoding import ROWS, build
from tests.test_engine.test_reranker import pairs, scores


@pytest.fixture
def native_int8(native_kernel: None) -> None:
    if not int8.is_available():
        pytest.skip("a processor without AVX512-VNNI")


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_loaded", lambda: False)
    monkeypatch.setattr(int8, "is_available", lambda: False)


def quantised() -> Any:
    model = build()
    quantise_encoder(model, None)
    return model


def vectors(found: Embeddings) -> Tensor:
    return torch.from_numpy(np.frombuffer(found.data, dtype="<f4").reshape(-1, found.dimensions).copy())


async def embedded(engine: LocalEmbedder, inputs: Any) -> Embeddings:
    engine.start()
    try:
        return await engine.embed(inputs)
    finally:
        await engine.stop()


@needs_compiler
def test_all_layers_have_8_bits(native_int8: None) -> None:
    model = quantised()
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert [module for module in model.modules() if isinstance(module, Int8Linear)]


def test_without_a_compiler_it_is_torch_that_multiplies(no_kernel: None) -> None:
    model = quantised()
    assert [module for module in model.modules() if isinstance(module, TorchInt8Linear)]
    pack_where_it_agrees(model)
    assert Encoder(model, PoolingConfig())(ROWS).shape == (len(ROWS), 32)


@needs_compiler
async def test_vectors_are_nearly_the_same(native_int8: None, tmp_path: Path) -> None:
    tiny_encoders.save_embedder(tmp_path)
    rows = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [6, 5]]
    plain, other = [
        vectors(await embedded(LocalEmbedder.load(source=str(tmp_path), dtype="float32", **given), rows))
        for given in ({}, {"quantization": "int8"})
    ]
    assert torch.cosine_similarity(plain, other).min() > 0.995
    assert not torch.equal(plain, other)


@needs_compiler
async def test_scores_are_nearly_the_same(native_int8: None, tmp_path: Path) -> None:
    tiny_encoders.save_reranker(tmp_path)
    plain, other = [
        scores(await embedded(LocalReranker.load(source=str(tmp_path), dtype="float32", **given), pairs()))
        for given in ({}, {"quantization": "int8"})
    ]
    assert other == pytest.approx(plain, abs=0.15)  # a random model is a sharp one
    assert other != plain


@needs_compiler
@pytest.mark.extended
def test_compiled_encoders_say_what_eager_ones_say(native_int8: None, folder: Path) -> None:
    model = quantised()
    encoder = Encoder(model, PoolingConfig())
    expected = np.concatenate([encoder([row]) for row in ROWS])
    plain, plan = (EncoderPlan("nowhere", "", "float32", quantization=each) for each in (None, "int8"))
    file = plan.file(folder, model)
    assert file != plain.file(folder, model)

    def make() -> None:
        twin = quantised()
        twin.set_attn_implementation(compiled_encoder.ATTENTION)
        compiled_encoder.compile_to(file, twin)

    encoder.adopt(compiled_once(file, make))
    assert encoder.is_compiled
    np.testing.assert_allclose(encoder(ROWS), expected, atol=0.02)


@pytest.mark.parametrize("kind", [LocalEmbedder, LocalReranker])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quantization": "int4", "device": "cpu"}, "embedding models and rerankers are served in int8, not int4"),
        ({"quantization": "int8", "device": "cuda", "dtype": "float32"}, "int8 is for the CPU, this model is on cuda"),
    ],
)
def test_other_methods_and_devices_are_refused(kind: Any, given: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=f"'quantization': {said}"):
        kind.load(source=str(tmp_path), **given)


def test_models_that_reach_for_their_weights_are_refused(monkeypatch: pytest.MonkeyPatch, no_kernel: None) -> None:
    model = build()
    layer = model.encoder.layer[0].intermediate
    monkeypatch.setattr(layer, "forward", lambda x: nn.functional.gelu(nn.functional.linear(x, layer.dense.weight)))
    with pytest.raises(EngineFailed, match="'quantization': BertModel cannot be served in int8"):
        quantise_encoder(model, None)


def test_none_leaves_layers_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("it was quantised")

    monkeypatch.setattr(int8, "replace_layers", refuse)
    tiny_encoders.save_embedder(tmp_path)
    LocalEmbedder.load(source=str(tmp_path), device="cpu", quantization="none")
