"""Experts in blocks: each row is what a linear layer of its expert's weight makes of it, in any company."""

from copy import deepcopy
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor
from transformers import AutoConfig

from services.engine.cpu.compiled_step import CompiledStep
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source, load
from services.engine.quantization import AS_STORED, int4, int8
from services.engine.quantization.block_experts import (
    BlockExperts,
    ExpertProduct,
    expert_modules,
    first_weight,
)
from services.engine.quantization.block_layers import instructions
from services.engine.quantization.quantized_blocks import FORMATS, BlockFormat, PackedExperts
from services.engine.quantization.rounded_weights import EIGHT, FIVE, FOUR, RoundedWeight, round_experts
from tests.test_engine.compilers import step_file
from tests.test_engine.gguf_files import EXPERT, HIDDEN, INNER, NUM_USED, write_gguf
from tests.test_engine.gguf_files import NUM_EXPERTS as NUM_IN_FILE
from tests.test_engine.test_compiled import LENGTH, SLOTS, close, read
from tests.test_engine.test_gguf import TOKENS, packed, written
from tests.test_engine.test_quantized_blocks import blocks_of, difference, inputs_of, product
from tests.test_engine.test_quantized_blocks import packed as pack_layer
from tests.test_engine.tiny_models import EXPERTS, build_kind
from tests.test_engine.tiny_tokenizers import byte_level

Kind = GGMLQuantizationType

pytestmark = [
    pytest.mark.skipif(which("g++") is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("native_kernel"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

PARTS = ("gate", "up", "down")
NUM_EXPERTS, CHOICES, TOKENS_A_STEP = 5, 3, 23
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
KINDS: dict[str, dict[str, Any]] = {
    "qwen2_moe": EXPERTS,
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
    "mixtral": MIXTURE,
    "gpt_oss": {**MIXTURE, "head_dim": 16},  # transposed, with biases, gates and ups in turns
    "nemotron_h": {  # no gates
        "layer_types": ["attention", "moe"],
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "moe_shared_expert_intermediate_size": 64,
        "head_dim": 16,
    },
}


def choices(num_experts: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num_experts, generator=random)[:CHOICES] for _ in range(TOKENS_A_STEP)])


def experts_of(form: tuple[int, int, bool], outputs: int, inputs: int) -> PackedExperts:
    layers = [
        pack_layer(blocks_of(form, outputs + index, inputs).rows(torch.arange(outputs))) for index in range(NUM_EXPERTS)
    ]
    assert len({layer.factor for layer in layers}) == 1
    codes, scales = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("codes", "scales"))
    return PackedExperts(codes, scales, outputs, inputs, layers[0].format, layers[0].factor)


def products(rows: Tensor, experts: Tensor, weights: PackedExperts, path: str) -> Tensor:
    form = weights.format
    arguments = (form.bits, form.group, form.minima, form.zero, weights.factor)
    out: Tensor = torch.ops.parley.quantized_experts(
        rows, experts, weights.codes, weights.scales, None, weights.outputs, *arguments, None, path
    )
    return out


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 64), (33, 70), (130, 2100)])
@pytest.mark.parametrize("form", sorted(FORMATS))
@torch.inference_mode()
def test_rows_are_what_linear_layers_make_of_them_alone(form: tuple[int, int, bool], outputs: int, inputs: int) -> None:
    weights, rows = experts_of(form, outputs, inputs), inputs_of(TOKENS_A_STEP, inputs)
    chosen = choices(NUM_EXPERTS)
    for path in instructions():
        found = products(rows, chosen, weights, path)
        for token, experts in enumerate(chosen.tolist()):
            for place, expert in enumerate(experts):
                expected = product(rows[token : token + 1], weights[expert], path)[0]
                assert torch.equal(found[token, place], expected), (path, token, expert)


@torch.inference_mode()
def test_who_has_no_expert_gets_nothing() -> None:
    weights, rows = experts_of((4, 32, True), 33, 70), inputs_of(2, 70)
    found = products(rows, torch.tensor([[1, NUM_EXPERTS], [NUM_EXPERTS, NUM_EXPERTS + 7]]), weights, "")
    assert found[0, 0].abs().sum() > 0
    assert not found[0, 1].any()
    assert not found[1].any()
    with pytest.raises(IndexError, match="no expert -1"):
        products(rows, torch.tensor([[1], [-1]]), weights, "")


@torch.inference_mode()
def test_products_without_tokens() -> None:
    weights = experts_of((8, 32, False), 33, 70)
    assert products(inputs_of(2, 70)[:0], torch.empty(0, 2, dtype=torch.int64), weights, "").shape == (0, 2, 33)


def dequantized(model: Any, form: BlockFormat) -> Any:
    """The same model with the weights that its experts stand for when they were rounded."""
    plain = deepcopy(model)
    for _, experts in expert_modules(plain):
        for name in (first_weight(experts), "down_proj"):
            for weight in getattr(experts, name).data:
                own = weight.T if experts.is_transposed else weight
                own.copy_(torch.cat([part.dequantize() for part in RoundedWeight(own.clone(), form).parts()]))
    return plain


@pytest.mark.parametrize(("form", "most"), [(FOUR, 0.02), (EIGHT, 0.02)], ids=["int4", "int8"])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_experts_are_those_of_the_dequantised_model(kind: str, form: BlockFormat, most: float) -> None:
    model = build_kind(kind, {"hidden_size": 64, "initializer_range": 0.1} | KINDS[kind])
    plain = dequantized(model, form)
    round_experts(model, form, form)
    found = {name: each for name, each in model.named_modules() if isinstance(each, BlockExperts)}
    assert found
    rows = inputs_of(TOKENS_A_STEP, 64)
    for name, experts in found.items():
        chosen, weights = choices(experts.num_experts), inputs_of(TOKENS_A_STEP, CHOICES).softmax(-1)
        out = experts(rows, chosen, weights)
        assert difference(out, plain.get_submodule(name)(rows, chosen, weights)) < most
        alone = [experts(rows[i : i + 1], chosen[i : i + 1], weights[i : i + 1]) for i in range(len(rows))]
        assert torch.equal(torch.cat(alone), out)
    assert not [
        name for name, _ in model.named_parameters() if "experts" in name and "proj" in name and "shared" not in name
    ]


@pytest.mark.parametrize(("method", "forms"), [(int4, {FOUR, FIVE}), (int8, {EIGHT})], ids=["int4", "int8"])
@torch.inference_mode()
def test_methods_round_experts(method: Any, forms: set[BlockFormat]) -> None:
    model = build_kind("qwen3_moe", KINDS["qwen3_moe"])
    before = model(input_ids=TOKENS).logits
    method.quantise(model, None)
    assert {each.format for each in model.modules() if isinstance(each, ExpertProduct)} == forms
    assert torch.cosine_similarity(model(input_ids=TOKENS).logits, before, dim=-1).mean() > 0.9


@torch.inference_mode()
def test_sums_over_ranks_are_kept() -> None:
    model, rows = build_kind("qwen3_moe", KINDS["qwen3_moe"]), inputs_of(TOKENS_A_STEP, 32)
    round_experts(summed := deepcopy(model), FOUR, FOUR)
    for _, experts in expert_modules(model):
        experts.register_forward_hook(lambda module, inputs, out: 2 * out)  # as parallel.sharding does
    round_experts(model, FOUR, FOUR)
    chosen, weights = choices(4), inputs_of(TOKENS_A_STEP, CHOICES).softmax(-1)
    own, expected = (each.model.layers[0].mlp.experts(rows, chosen, weights) for each in (model, summed))
    assert torch.equal(own, 2 * expected)


def weights_of(product: ExpertProduct) -> Tensor:
    codes, scales = product.codes, product.scales
    weights = PackedExperts(codes, scales, product.outputs, product.inputs, product.format, product.factor)
    return torch.stack([weights[index].dequantize() for index in range(len(codes))])


GGUF = {
    "one type": ((Kind.Q4_0,), [BlockFormat(4, zero=8)]),
    "K types": ((Kind.Q4_K,), [BlockFormat(4, minima=True)]),
    "gates and ups of two types": ((Kind.Q8_0, Kind.Q4_1), None),
}


@pytest.mark.parametrize("name", GGUF)
@torch.inference_mode()
def test_gguf_files_keep_their_experts(name: str, tmp_path: Path) -> None:
    kinds, formats = GGUF[name]
    file, expanded = written(tmp_path, "qwen3moe", kinds)
    model = packed(file)
    found = {path: each for path, each in model.named_modules() if isinstance(each, BlockExperts)}
    assert len(found) == model.config.num_hidden_layers
    for path, experts in found.items():
        assert formats is None or [each.format for each in experts.up] == formats
        reference = expanded.get_submodule(path)
        for weight, own in (
            (torch.cat([weights_of(each) for each in experts.up], 1), reference.gate_up_proj),
            (weights_of(experts.down), reference.down_proj),
        ):
            assert weight.shape == own.shape
            assert (weight - own).norm() <= 3e-4 * own.norm()  # scales of K types have 11 bits
    assert max(len(each.up) for each in found.values()) == (2 if formats is None else 1)
    logits, reference = model(input_ids=TOKENS).logits, expanded(input_ids=TOKENS).logits
    assert torch.cosine_similarity(logits, reference, dim=-1).min() > 0.999


def test_experts_without_a_kernel_are_expanded(tmp_path: Path) -> None:
    file, expanded = written(tmp_path, "qwen3moe", (Kind.F16, Kind.Q8_0))
    model = packed(file)
    states = expanded.state_dict()
    kept = [each for each in model.modules() if isinstance(each, BlockExperts)]
    experts = {name: each for name, each in model.named_parameters() if "experts" in name}
    assert len(kept) < model.config.num_hidden_layers
    assert experts
    for name, weight in experts.items():
        assert torch.equal(weight, states[name]), name


def test_mixtures_in_company_say_what_they_say_alone(tmp_path: Path) -> None:
    file, _ = written(tmp_path, "qwen3moe", (Kind.Q4_K, Kind.Q6_K))
    runner = build_runner(packed(file, "bfloat16"), num_slots=SLOTS, length=LENGTH, budget=2**30)
    for lengths in (dict.fromkeys(range(SLOTS), 1), {0: 1, 5: 1, 2: 7}):
        rows = read(runner, lengths)
        together = runner.run(rows)
        for row, logits in zip(rows, together.split([row.num_logits for row in rows]), strict=True):
            assert torch.equal(runner.run([row]), logits)


def test_compiled_steps_say_what_eager_ones_say(tmp_path: Path, folder: Path) -> None:
    file, _ = written(tmp_path, "qwen3moe", (Kind.Q8_0, Kind.Q4_1))
    source = Source(file, quantization=AS_STORED)
    runner = build_runner(load(source, "cpu", "float32").model, num_slots=SLOTS, length=LENGTH, budget=2**30)
    assert isinstance(runner, BatchedRunner)
    step = CompiledStep.load(step_file(runner.compilation(source, folder), runner.model), runner.model, runner.cache)
    for lengths in ({0: 1}, {0: 1, 5: 1, 2: 7, 1: 1}):
        scheduled = read(runner, lengths)
        close(step.run(scheduled), runner.run(scheduled))


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2moe"])  # transformers reads them as something else
@torch.inference_mode()
def test_mixtures_are_read_with_their_own_sizes(architecture: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, architecture, (Kind.Q8_0,))
    tensors = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}
    byte_level().save_pretrained(tmp_path)
    write_config(file)
    model, expanded = packed(str(file)), load(Source(str(file)), "cpu", "float32").model
    assert type(model.model.layers[0].mlp.experts) is BlockExperts
    for index, layer in enumerate(expanded.model.layers):
        gate, up, down = (torch.from_numpy(tensors[f"blk.{index}.ffn_{each}_exps.weight"]) for each in PARTS)
        assert torch.equal(layer.mlp.experts.gate_up_proj, torch.cat([gate, up], 1))
        assert torch.equal(layer.mlp.experts.down_proj, down)
        assert torch.equal(layer.mlp.gate.weight, torch.from_numpy(tensors[f"blk.{index}.ffn_gate_inp.weight"]))
    assert down.shape == (NUM_IN_FILE, HIDDEN, INNER if architecture == "mixtral" else EXPERT)
    assert expanded.config.num_experts_per_tok == NUM_USED
    logits, reference = model(input_ids=TOKENS).logits, expanded(input_ids=TOKENS).logits
    assert torch.cosine_similarity(logits, reference, dim=-1).min() > 0.999


def write_config(file: Path) -> None:
    """As transformers makes it of the file."""
    AutoConfig.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(file.parent)
