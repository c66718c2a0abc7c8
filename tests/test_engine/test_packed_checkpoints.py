"""Quantised checkpoints in safetensors: weights are those that their codes stand for, in blocks on the CPU."""

from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.engine.base import Job, SamplingParams
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source, load
from services.engine.loading.unusable import UnusableModel
from services.engine.local import LocalEngine
from services.engine.lora.adapters import Adapters
from services.engine.quantization import AS_STORED
from services.engine.quantization.bit_packing import unpack_bits
from services.engine.quantization.block_experts import BlockExperts
from services.engine.quantization.block_layers import BlockLinear, ReorderedLinear
from services.engine.quantization.quantized_blocks import BlockFormat
from tests.test_engine.packed_files import (
    HIDDEN,
    Method,
    awq,
    block_float8,
    compressed_float8,
    compressed_integers,
    modelopt_float8,
    packed,
    save_mxfp4,
    set_quantization,
)
from tests.test_engine.packed_files import gptq as gptq_files

pytestmark = [
    pytest.mark.skipif(which("g++") is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("native_kernel"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SYMMETRIC, WITH_MINIMA = BlockFormat(4, zero=8), BlockFormat(4, minima=True)
BLOCKS: dict[str, tuple[Method, BlockFormat]] = {
    "gptq": (gptq_files(), SYMMETRIC),
    "gptq, groups of 32": (gptq_files(group=32), SYMMETRIC),
    "gptq, groups of 64, asymmetric": (gptq_files(group=64, symmetric=False), WITH_MINIMA),
    "gptq, one group": (gptq_files(group=-1), SYMMETRIC),
    "gptq, sorted": (gptq_files(group=64, act_order=True), SYMMETRIC),
    "gptq, sorted, asymmetric": (gptq_files(act_order=True, symmetric=False), WITH_MINIMA),
    "gptq_v2": (gptq_files(symmetric=False, version=2), WITH_MINIMA),
    "gptq, 8 bits": (gptq_files(bits=8), BlockFormat(8, zero=128)),
    "gptq, 3 bits": (gptq_files(bits=3), BlockFormat(4, zero=4)),
    "gptq, 2 bits": (gptq_files(bits=2, symmetric=False), WITH_MINIMA),
    "awq": (awq(), WITH_MINIMA),
    "awq, groups of 32": (awq(32), WITH_MINIMA),
    "compressed-tensors": (compressed_integers(4, 128), SYMMETRIC),
    "compressed-tensors, asymmetric": (compressed_integers(4, 64, symmetric=False), WITH_MINIMA),
    "compressed-tensors, sorted": (compressed_integers(4, 64, act_order=True), SYMMETRIC),
    "compressed-tensors, 8 bits": (compressed_integers(8, 32), BlockFormat(8, zero=128)),
    "compressed-tensors, integers": (compressed_integers(8, -1, is_packed=False), BlockFormat(8, zero=128)),
    "compressed-tensors, integers, asymmetric": (
        compressed_integers(8, -1, symmetric=False, is_packed=False),
        BlockFormat(8, minima=True),
    ),
}
EXPANDED: dict[str, Method] = {
    "compressed-tensors, floats": compressed_float8("tensor"),
    "compressed-tensors, floats of channels": compressed_float8("channel"),
    "compressed-tensors, floats in blocks": compressed_float8("block"),
    "fp8": block_float8(),
    "modelopt": modelopt_float8(),
    "gptq, groups of 48": gptq_files(group=48),
}
PROMPTS = [tuple(range(3, 9)), tuple(range(40, 60)), (7,)]
TOKENS = torch.arange(1, 13)[None]


def model_of(folder: Path, quantization: str | None = AS_STORED) -> Any:
    return load(Source(str(folder), quantization=quantization), "cpu", "float32").model


def products(model: nn.Module) -> dict[str, BlockLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BlockLinear)}


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_numbers_are_unpacked_from_words(bits: int) -> None:
    numbers = torch.randint(0, 2**bits, (3, 64), generator=torch.Generator().manual_seed(bits))
    assert torch.equal(unpack_bits(packed(numbers, bits), bits), numbers.to(torch.uint8))


@pytest.mark.parametrize("name", BLOCKS)
@torch.inference_mode()
def test_codes_stay_in_blocks(name: str, tmp_path: Path) -> None:
    method, form = BLOCKS[name]
    plain = method.save(tmp_path)
    model = model_of(tmp_path)
    found = products(model)
    assert len(found) == 2 * 4  # q, k and v are one, as are gate and up
    assert {module.format for module in found.values()} == {form}
    for layer, reference in zip(model.model.layers, plain.model.layers, strict=True):
        inputs = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
        attention, expected = layer.self_attn, reference.self_attn
        for each in ("q_proj", "k_proj", "v_proj", "o_proj"):
            assert difference(getattr(attention, each)(inputs), getattr(expected, each)(inputs)) < 0.01, each
        assert difference(layer.mlp(inputs), reference.mlp(inputs)) < 0.02
    logits, reference = model(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits
    assert torch.cosine_similarity(logits, reference, dim=-1).min() > 0.995


@pytest.mark.parametrize("name", [*BLOCKS, *EXPANDED])
@torch.inference_mode()
def test_expanded_weights_are_those_of_the_codes(name: str, tmp_path: Path) -> None:
    method = EXPANDED[name] if name in EXPANDED else BLOCKS[name][0]
    plain = method.save(tmp_path)
    state = model_of(tmp_path, None).state_dict()
    assert state.keys() == plain.state_dict().keys()
    for each, weight in plain.state_dict().items():
        torch.testing.assert_close(state[each], weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EXPANDED)
@torch.inference_mode()
def test_what_has_no_kernel_is_expanded(name: str, tmp_path: Path) -> None:
    EXPANDED[name].save(tmp_path)
    model = model_of(tmp_path)
    assert not products(model)
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear


@torch.inference_mode()
def test_weights_in_blocks_are_nearer_to_the_codes_than_rounding(tmp_path: Path) -> None:
    """Scales of bfloat16 and of zeros are rounded to float16."""
    plain = compressed_integers(4, 128, symmetric=False).save(tmp_path)
    layer = model_of(tmp_path).model.layers[0].mlp.down_proj
    weight = layer(torch.eye(layer.in_features)).T
    assert difference(weight, plain.model.layers[0].mlp.down_proj.weight) < 2e-4


@torch.inference_mode()
def test_inputs_are_sorted_with_the_groups(tmp_path: Path) -> None:
    gptq_files(act_order=True).save(tmp_path)
    assert {type(module) for module in products(model_of(tmp_path)).values()} == {ReorderedLinear}


EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 64, "head_dim": 64}
MIXTURES: dict[str, tuple[str, Method, dict[str, int]]] = {
    "gptq": ("qwen3_moe", gptq_files(group=32), EXPERTS),
    "awq": ("qwen3_moe", awq(32), EXPERTS),
    "compressed-tensors": ("qwen2_moe", compressed_integers(4, 64), EXPERTS | {"shared_expert_intermediate_size": 64}),
    "mixtral": ("mixtral", gptq_files(group=32, symmetric=False), {"num_local_experts": 2, "num_experts_per_tok": 1}),
}


@pytest.mark.parametrize("name", MIXTURES)
@torch.inference_mode()
def test_experts_stay_in_blocks(name: str, tmp_path: Path) -> None:
    kind, method, options = MIXTURES[name]
    plain = method.save(tmp_path, kind, **options)
    model = model_of(tmp_path)
    assert len([each for each in model.modules() if isinstance(each, BlockExperts)]) == model.config.num_hidden_layers
    assert not [each for each, _ in model.named_parameters() if each.endswith(("gate_up_proj", "down_proj"))]
    logits, reference = model(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits
    assert torch.cosine_similarity(logits, reference, dim=-1).min() > 0.995
    expanded = model_of(tmp_path, None).state_dict()
    for each, weight in plain.state_dict().items():
        torch.testing.assert_close(expanded[each], weight, rtol=1e-6, atol=1e-7)


@torch.inference_mode()
def test_experts_with_inputs_in_another_order_are_expanded(tmp_path: Path) -> None:
    plain = gptq_files(group=32, act_order=True).save(tmp_path, "qwen3_moe", **EXPERTS)
    model = model_of(tmp_path)
    assert not [each for each in model.modules() if isinstance(each, BlockExperts)]
    for name, weight in model.named_parameters():
        if "experts" in name:
            torch.testing.assert_close(weight, plain.state_dict()[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["gptq, sorted", "awq", "compressed-tensors", "fp8"])
async def test_engines_answer_alike_alone_and_in_company(name: str, tmp_path: Path) -> None:
    (EXPANDED.get(name) or BLOCKS[name][0]).save(tmp_path)
    loaded = load(Source(str(tmp_path), quantization=AS_STORED), "cpu", "float32")
    runner = build_runner(loaded.model, num_slots=4, length=64, budget=2**30)
    engine = LocalEngine(loaded, LocalExecutor(runner, Adapters(loaded.model)), max_num_batched_tokens=64, max_queue=8)
    engine.start()
    try:
        alone = [await answer(engine, prompt) for prompt in PROMPTS]
        streams = [await engine.submit(job(prompt)) for prompt in PROMPTS]
        together = [[token async for piece in stream for token in piece.token_ids] for stream in streams]
    finally:
        await engine.stop()
    assert alone == together
    assert all(alone)


@torch.inference_mode()
def test_experts_of_mxfp4_are_expanded(tmp_path: Path) -> None:
    plain = save_mxfp4(tmp_path)
    assert model_of(tmp_path).state_dict().keys() == plain.state_dict().keys()
    for name, weight in model_of(tmp_path).state_dict().items():
        torch.testing.assert_close(weight, plain.state_dict()[name])


def job(prompt: tuple[int, ...]) -> Job:
    return Job(f"job {len(prompt)}", prompt, SamplingParams(max_tokens=12, temperature=0))


async def answer(engine: LocalEngine, prompt: tuple[int, ...]) -> list[int]:
    return [token async for piece in await engine.submit(job(prompt)) for token in piece.token_ids]


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        (gptq_files(), {"bits": 5}, "weights of 5 bits in GPTQ: read are those of"),
        (gptq_files(), {"checkpoint_format": "marlin"}, "GPTQ in the format marlin.: repack it as gptq"),
        (gptq_files(), {"dynamic": {"+:.*": {"bits": 8}}}, "weights of several numbers of bits in GPTQ"),
        (modelopt_float8(), {"quant_algo": "NVFP4"}, "is quantised by ModelOpt to NVFP4: read is FP8"),
        (awq(), {"version": "gemv"}, "4 bits in AWQ's layout gemv: read are 4 in gemm"),
        (compressed_integers(4, 128), {"format": "marlin-24"}, "packed by compressed-tensors as marlin-24: read are"),
        (compressed_integers(4, 128), {"transform_config": {"config_groups": {}, "x": 1}}, "has transforms or sparse"),
    ],
)
def test_variants_that_are_not_read_are_refused(
    method: Method, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    method.save(tmp_path)
    set_quantization(tmp_path, method.config | change)
    with pytest.raises(UnusableModel, match=said):
        model_of(tmp_path)
