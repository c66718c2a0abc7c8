"""Layers in 12 bits hold the same weights, and say what the plain ones say, alone or in company."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from services.engine.cpu import bf16_linear, merged_linear
from services.engine.cpu.bf16_linear import CodedLinear
from services.engine.cpu.compiled_step import CompiledStep
from services.engine.cpu.merged_linear import Float32Head, PackedLinear, pack_linears, unpack_linears
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source
from services.engine.lora.adapter import LowRank
from services.engine.lora.low_rank import LowRankBank
from services.engine.lora.sites import find_sites
from services.engine.lora.step_adapters import StepAdapters
from tests.test_engine.compilers import needs_compiler, step_file
from tests.test_engine.test_compiled import LENGTH, SLOTS, read
from tests.test_engine.tiny_models import build

SHAPES = [(1, 1), (64, 48), (70, 33), (31, 100), (576, 130), (1536, 48), (2100, 17)]  # inputs, outputs
ROWS = [1, 2, 3, 8, 9, 31, 64]


@pytest.fixture
def native_bf16(native_kernel: None) -> None:
    if not bf16_linear.is_available():
        pytest.skip("a processor without AVX512-BF16")


def layer(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(inputs + outputs)
        return nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)


def numbers(rows: int, size: int) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(rows)).bfloat16()


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int16), other.view(torch.int16))


@needs_compiler
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_no_weight_loses_a_bit(inputs: int, outputs: int, native_bf16: None) -> None:
    linear = layer(inputs, outputs)
    flat = linear.weight.view(-1)
    flat[:: len(flat) // 3 + 1] = torch.tensor([1e30, -1e-30, -0.0])[: len(flat[:: len(flat) // 3 + 1])].bfloat16()
    assert same_bits(CodedLinear(linear).unpacked()[0], linear.weight)


@needs_compiler
def test_weights_of_all_exponents_are_kept_as_they_are(native_bf16: None) -> None:
    linear = layer(256, 300)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    linear.weight.view(torch.int16).view(-1)[: len(every)] = every  # NaN and infinities among them
    coded = CodedLinear(linear)
    assert coded.get_buffer("table").numel() == 0
    assert same_bits(coded.unpacked()[0], linear.weight)


@needs_compiler
def test_a_trained_layer_s_spread_takes_three_quarters_of_the_bytes(native_bf16: None) -> None:
    linear = nn.Linear(576, 480).requires_grad_(False)
    linear.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    packed = list(CodedLinear(linear.bfloat16()).buffers())
    assert sum(part.nbytes for part in packed) < 0.76 * linear.weight.nbytes


@needs_compiler
@pytest.mark.parametrize("spread", [0.05, 1e9], ids=["coded", "as it is"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_the_product_is_that_of_the_numbers(
    inputs: int, outputs: int, bias: bool, spread: float, native_bf16: None
) -> None:
    linear = layer(inputs, outputs, bias)
    if spread > 1:  # too many exponents for a code
        linear.weight.copy_(linear.weight.float().pow(9) * spread)
    coded = CodedLinear(linear)
    for rows in ROWS:
        given = numbers(rows, inputs)
        exact = nn.functional.linear(
            given.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double()
        )
        said = coded(given.float())
        torch.testing.assert_close(said.double(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())
        assert same_bits(coded(given), said.bfloat16())


@needs_compiler
def test_no_bit_depends_on_the_company(native_bf16: None) -> None:
    coded, given = CodedLinear(layer(576, 100)), numbers(40, 576)
    together = coded(given)
    for start, end in ((0, 1), (39, 40), (3, 5), (7, 20)):
        assert same_bits(coded(given[start:end]), together[start:end])


@needs_compiler
def test_what_is_not_finite_shows(native_bf16: None) -> None:
    coded, given = CodedLinear(layer(70, 50)), numbers(3, 70)
    given[1, 69] = torch.inf
    finite = coded(given).isfinite()
    assert finite.all(-1).tolist() == [True, False, True]
    assert not finite[1].any()


def runner_of(name: str) -> BatchedRunner:
    runner = build_runner(build(name).bfloat16(), num_slots=SLOTS, length=LENGTH, budget=2**30)
    assert isinstance(runner, BatchedRunner)
    return runner


@needs_compiler
def test_logits_are_not_rounded(native_bf16: None) -> None:
    runner = runner_of("llama")
    assert isinstance(runner.model.lm_head, Float32Head)
    for logits in (runner.run(read(runner, {0: 1, 1: 1})), runner.run(read(runner, {2: 5}))):
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())


@needs_compiler
def test_models_in_company_say_what_they_say_alone(native_bf16: None) -> None:
    runner = runner_of("llama")
    for lengths in (dict.fromkeys(range(SLOTS), 1), {0: 1, 5: 1, 2: 7}):
        rows = read(runner, lengths)
        together = runner.run(rows)
        for row, logits in zip(rows, together.split([row.num_logits for row in rows]), strict=True):
            assert torch.equal(runner.run([row]), logits)


@needs_compiler
@pytest.mark.extended
def test_compiled_steps_say_what_eager_ones_say(folder: Path, native_bf16: None) -> None:
    runner = runner_of("llama")
    step = CompiledStep.load(
        step_file(runner.compilation(Source("nowhere"), folder), runner.model), runner.model, runner.cache
    )
    for lengths in ({0: 1}, {0: 1, 5: 1, 2: 7}):
        rows = read(runner, lengths)
        said = step.run(rows)
        assert said.dtype == torch.float32
        torch.testing.assert_close(said, runner.run(rows), atol=0.05, rtol=0.05)


@needs_compiler
def test_weights_come_back(native_bf16: None) -> None:
    model, expected = build("qwen2").bfloat16(), build("qwen2").bfloat16().state_dict()
    pack_linears(model)
    assert not isinstance(model.lm_head, nn.Linear)
    unpack_linears(model)
    for name, value in expected.items():
        assert same_bits(model.state_dict()[name], value)


@needs_compiler
def test_adapters_find_its_layers_and_add_to_logits_in_float32(native_bf16: None) -> None:
    plain, model = build("llama").bfloat16(), build("llama").bfloat16()
    pack_linears(model)
    sites = find_sites(model)
    assert {path: (site.inputs, site.outputs) for path, site in sites.items()} == {
        path: (site.inputs, site.outputs) for path, site in find_sites(plain).items()
    }
    head = sites["lm_head"]
    given, down, up = numbers(3, head.inputs), numbers(2, head.inputs), numbers(2, head.outputs)
    adapter = SimpleNamespace(layers={"lm_head": LowRank(down, up)})
    bank = LowRankBank.empty(torch.device("cpu"), torch.bfloat16).with_adapter(7, adapter, sites)  # type: ignore[arg-type]
    with torch.inference_mode():
        logits = head.module(given)
        added = bank.added(logits, given, head, StepAdapters((7,) * 3, (7, None, 7)))
    assert added is not None
    assert torch.equal(added[1], logits[1])
    torch.testing.assert_close(added[0], logits[0] + given[0].float() @ down.float().T @ up.float())


@needs_compiler
def test_without_the_kernel_onednn_does_it(native_bf16: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = build("llama").bfloat16(), build("llama").bfloat16()
    monkeypatch.setattr(merged_linear, "can_code", lambda: False)
    pack_linears(model)
    assert isinstance(model.lm_head, PackedLinear)
    ids = torch.tensor([[3, 1, 4]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=0.1, rtol=0.1)
