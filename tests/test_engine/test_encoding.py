"""A compiled encoder makes of each text what the model makes of it alone, whatever else is in the row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from services.engine.cpu.merged_linear import packed_weights
from services.engine.embedding import compiled_encoder
from services.engine.embedding.compiled_encoder import EncoderPlan, pack_where_it_agrees
from services.engine.embedding.encoder import Encoder
from services.engine.embedding.pooling import PoolingConfig
from tests.test_engine.compilers import compiled_once, needs_compiler

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [6, 5]]


def build(kind: str = "bert") -> Any:
    config = AutoConfig.for_model(kind, vocab_size=50, max_position_embeddings=64, initializer_range=0.5, **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(config, dtype=torch.float32).eval()


def made(folder: Path, model: Any) -> Path:
    file = EncoderPlan("nowhere", "", "float32").file(folder, model)

    def make() -> None:
        twin = build()
        pack_where_it_agrees(twin)
        twin.set_attn_implementation(compiled_encoder.ATTENTION)
        compiled_encoder.compile_to(file, twin)

    return compiled_once(file, make)


def vectors(encoder: Encoder, rows: list[list[int]]) -> Tensor:
    return torch.from_numpy(np.concatenate([encoder([row]) for row in rows]))


@needs_compiler
def test_texts_in_one_row_are_what_they_are_alone(folder: Path, native_kernel: None) -> None:
    model = build()
    pack_where_it_agrees(model)
    encoder = Encoder(model, PoolingConfig(poolings=("cls", "mean", "max", "lasttoken")))
    expected = vectors(encoder, ROWS)
    encoder.adopt(made(folder, model))
    assert encoder.is_compiled
    torch.testing.assert_close(torch.from_numpy(encoder(ROWS)), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vectors(encoder, ROWS), expected, atol=1e-4, rtol=1e-4)  # one token alone, too


@needs_compiler
def test_what_says_something_else_is_not_taken(folder: Path, native_kernel: None) -> None:
    model = build()
    pack_where_it_agrees(model)
    encoder = Encoder(model, PoolingConfig())
    file = made(folder, model)
    model.embeddings.register_forward_hook(lambda module, given, out: out.flip(-1))  # the package knows of none
    with pytest.raises(ValueError, match="something else"):
        encoder.adopt(file)
    assert not encoder.is_compiled


def test_weights_are_packed_where_nothing_changes() -> None:
    model = build()
    expected = Encoder(build(), PoolingConfig())(ROWS)
    pack_where_it_agrees(model)
    assert packed_weights(model)
    np.testing.assert_allclose(Encoder(model, PoolingConfig())(ROWS), expected, atol=1e-4)


def test_a_model_that_reaches_for_its_weights_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    output = type(model.encoder.layer[0].output)

    def forward(self: Any, hidden: Tensor, inputs: Tensor) -> Tensor:
        out = torch.nn.functional.linear(hidden, self.dense.weight, self.dense.bias)
        return self.LayerNorm(out + inputs)  # type: ignore[no-any-return]

    monkeypatch.setattr(output, "forward", forward)
    pack_where_it_agrees(model)
    assert not packed_weights(model)
    assert np.isfinite(Encoder(model, PoolingConfig())(ROWS)).all()


def test_the_plan_survives_its_way_to_the_compiling_process() -> None:
    plan = EncoderPlan("folder", "0_Transformer", "bfloat16")
    assert EncoderPlan(**json.loads(plan.to_json())) == plan
    assert plan.maker == "services.engine.embedding.compiled_encoder"
