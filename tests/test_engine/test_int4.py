"""Layers of 4 bits: scales and minima are those of least squares, and models made of them go everywhere."""

from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.engine.base import Job, SamplingParams
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.local import LocalEngine
from services.engine.quantization import int4
from services.engine.quantization.block_layers import BlockEmbedding, BlockHead
from services.engine.quantization.int4 import quantise
from services.engine.quantization.quantized_blocks import PackedBlocks, pack
from services.engine.quantization.rounded_weights import EIGHT, FIVE, FOUR, RoundedWeight
from services.errors import EngineFailed
from tests.test_engine.test_compiled import LENGTH, SLOTS, close, prompt_of, read
from tests.test_engine.tiny_models import build
from tests.test_engine.tiny_tokenizers import byte_level

pytestmark = [
    pytest.mark.skipif(which("g++") is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("native_kernel"),
]

RUNTIME = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def numbers(outputs: int, inputs: int, size: float = 1.0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs)) * size


def rounded(weight: Tensor, form: Any = FOUR) -> Tensor:
    source = RoundedWeight(weight, form)
    packed: PackedBlocks = pack(source.parts(), source.outputs, source.inputs, source.factor)
    return packed.dequantize()


def error(found: Tensor, weight: Tensor) -> float:
    return float((found.double() - weight).norm() / weight.double().norm())


def plainly(weight: Tensor) -> Tensor:
    """From the least to the largest of each block in 15 steps."""
    blocks = weight.view(len(weight), -1, 32)
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    steps = (high - low) / 15
    return (((blocks - low) / steps).round() * steps + low).flatten(1)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_searched_scales_are_better_than_those_of_the_range(size: float) -> None:
    weight = numbers(64, 256, size)
    assert error(rounded(weight), weight) < 0.97 * error(plainly(weight), weight)


@pytest.mark.parametrize(("form", "most"), [(FOUR, 0.09), (FIVE, 0.045), (EIGHT, 0.006)])
@pytest.mark.parametrize("inputs", [32, 70, 576])
def test_weights_of_any_size(form: Any, most: float, inputs: int) -> None:
    weight = numbers(33, inputs)
    assert error(rounded(weight, form), weight) < most


def test_no_block_is_worse_than_its_range() -> None:
    weight = numbers(64, 256) ** 3  # with outliers
    found, plain = ((each - weight).view(-1, 32).norm(dim=1) for each in (rounded(weight), plainly(weight)))
    assert (found <= 1.001 * plain).all()


def test_blocks_of_one_number_are_that_number() -> None:
    weight = torch.tensor([[0.0] * 32 + [-0.5] * 32, [3.0] * 64])
    assert torch.equal(rounded(weight), weight)


def quantised(name: str) -> Any:
    model = build(name)
    quantise(model, None)
    return model


@torch.inference_mode()
def test_what_suffers_most_has_more_bits() -> None:
    model = quantised("llama")
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    assert attention.k_proj.packed.format == EIGHT  # with the values
    assert {each.format for each in (attention.q_proj, attention.o_proj, mlp.gate_proj.packed)} == {FOUR}
    assert mlp.down_proj.format == FIVE
    assert isinstance(model.lm_head, BlockHead)
    assert model.lm_head.format == FIVE
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert type(model.model.embed_tokens) is nn.Embedding


@torch.inference_mode()
def test_a_tied_embedding_shares_the_blocks_of_the_head() -> None:
    model = build("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    quantise(model, None)
    assert isinstance(model.model.embed_tokens, BlockEmbedding)
    assert model.lm_head.codes.data_ptr() == model.model.embed_tokens.codes.data_ptr()


@RUNTIME
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
@torch.inference_mode()
def test_steps_in_company_say_what_the_model_says(name: str) -> None:
    runner = build_runner(quantised(name), num_slots=SLOTS, length=LENGTH, budget=2**30)
    assert isinstance(runner, BatchedRunner)
    lengths = {0: 1, 5: 1, 1: 4}
    for (slot, left), logits in zip(lengths.items(), runner.run(read(runner, lengths)), strict=True):
        tokens = torch.tensor([[*prompt_of(slot, left)]])
        close(logits, quantised(name)(input_ids=tokens, use_cache=False).logits[0, -1])


def test_models_that_bear_no_rounding_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4, "ALIKE", 1.1)
    with pytest.raises(EngineFailed, match="LlamaForCausalLM cannot be served in int4: its logits differ"):
        quantise(build("llama"), None)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4, "ensure_kernel", lambda folder: False)
    with pytest.raises(EngineFailed, match=r"'quantization': int4 needs a C.. compiler"):
        quantise(build("llama"), None)


async def test_an_engine_answers_in_int4(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    engine = LocalEngine.load(source=str(tmp_path), device="cpu", max_num_seqs=2, quantization="int4")
    engine.start()
    try:
        stream = await engine.submit(Job("job", (5, 6, 7), SamplingParams(max_tokens=5)))
        pieces = [piece async for piece in stream]
    finally:
        await engine.stop()
    assert pieces[-1].finish
    assert sum(len(piece.token_ids) for piece in pieces) == 5
