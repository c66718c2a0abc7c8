"""Layers of 8 bits say nearly what the plain ones say, alone or in company, and models made of them go everywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.engine.base import Job
from services.engine.cpu import kernels
from services.engine.cpu.compiled_step import CompiledStep
from services.engine.cpu.merged_linear import LinearSlice
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source, load
from services.engine.local import LocalEngine
from services.engine.quantization import int8
from services.engine.quantization.int8 import BLOCK, Int8Linear, TorchInt8Linear, quantise, quantise_blocks
from services.errors import EngineFailed
from tests.test_engine.compilers import needs_compiler, step_file
from tests.test_engine.test_compiled import LENGTH, SLOTS, close, prompt_of, read
from tests.test_engine.tiny_models import VOCABULARY, build
from tests.test_engine.tiny_tokenizers import byte_level


@pytest.fixture
def native_int8(native_kernel: None) -> None:
    if not int8.is_available():
        pytest.skip("a processor without AVX512-VNNI")


DTYPES = {torch.float32: 1e-6, torch.bfloat16: 1e-4, torch.float16: 1e-4}  # few are written down as a neighbour
SHAPES = [(1, 1), (64, 16), (70, 33), (31, 100), (576, 130), (1536, 48), (2100, 17)]  # inputs, outputs
ROWS = [1, 2, 3, 4, 5, 8, 31, 64]


def layer(inputs: int, outputs: int, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(inputs + outputs)
        return nn.Linear(inputs, outputs, bias=bias).to(dtype)


def numbers(rows: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(rows)).to(dtype)


def exact(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """In float64: of the weights as they were rounded, and of the inputs as they are to be, block by block."""
    blocks = nn.functional.pad(inputs.float(), (0, -inputs.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    rows = (blocks * (torch.tensor(127.0) / largest)).nan_to_num().round().double() * (largest / 127).double()
    said = rows.flatten(1)[:, : inputs.shape[1]] @ restored(*quantise_blocks(linear.weight.detach()), BLOCK).T
    return said if linear.bias is None else said + linear.bias.double()


def restored(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    return codes.double() * scales.double().repeat_interleave(block, dim=1)[:, : codes.shape[1]]


def off(said: Tensor, expected: Tensor) -> float:
    return float((said.double() - expected.double()).norm() / expected.double().norm())


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@torch.inference_mode()
def test_products_of_rounded_numbers(
    native_int8: None, inputs: int, outputs: int, bias: bool, dtype: torch.dtype
) -> None:
    linear = layer(inputs, outputs, bias, dtype)
    quantised = Int8Linear(linear)
    for rows in ROWS:
        given = numbers(rows, inputs, dtype)
        said = quantised(given)
        assert said.dtype == dtype
        assert off(said, exact(linear, given).to(dtype)) < DTYPES[dtype]


@needs_compiler
@torch.inference_mode()
def test_rounding_costs_little(native_int8: None) -> None:
    linear, given = layer(576, 130, bias=False), numbers(64, 576)
    assert off(Int8Linear(linear)(given), linear(given)) < 0.008


@needs_compiler
@torch.inference_mode()
def test_large_weights_cost_their_own_blocks_only(native_int8: None) -> None:
    linear, given = layer(576, 130, bias=False), numbers(64, 576)
    linear.weight[:, 3] *= 50
    given[:, 3] = 0
    assert off(Int8Linear(linear)(given), linear(given)) < 0.03  # with one scale for each output: 0.11


@pytest.mark.parametrize("largest", [1e-30, 1e-6, 1.0, 1e30])
def test_scales_are_as_right_at_any_size(largest: float) -> None:
    weight = largest * numbers(48, 96).clamp(-1, 1)
    assert off(restored(*quantise_blocks(weight), BLOCK), weight) < 0.005


@needs_compiler
@torch.inference_mode()
def test_no_bit_of_a_product_depends_on_the_company(native_int8: None) -> None:
    quantised, given = Int8Linear(layer(2100, 130, bias=True)), numbers(64, 2100)
    together = quantised(given)
    for rows in (1, 2, 3, 7):
        for first in range(0, 64 - rows, rows):
            assert torch.equal(quantised(given[first : first + rows]), together[first : first + rows])


@needs_compiler
@torch.inference_mode()
def test_inputs_of_any_shape(native_int8: None) -> None:
    quantised, given = Int8Linear(layer(64, 16, bias=True)), numbers(6, 64)
    assert torch.equal(quantised(given.view(2, 3, 64)), quantised(given).view(2, 3, 16))
    assert torch.equal(quantised(given.T.contiguous().T), quantised(given))
    assert quantised(given[:0]).shape == (0, 16)


@needs_compiler
@torch.inference_mode()
def test_zeros_stay_zeros_and_what_is_no_number_shows(native_int8: None) -> None:
    plain = layer(70, 33, bias=False)
    plain.weight[5] = 0
    quantised, given = Int8Linear(plain), numbers(4, 70)
    given[0], given[1, 3], given[2, 69] = 0, torch.nan, torch.inf
    said = quantised(given)
    assert said[0].eq(0).all()
    assert said[1:3].isnan().all()
    assert said[3].isfinite().all()
    assert said[3, 5] == 0


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@torch.inference_mode()
def test_without_a_compiler(inputs: int, outputs: int, bias: bool) -> None:
    linear = layer(inputs, outputs, bias)
    for rows in ROWS:
        given = numbers(rows, inputs)
        expected = given.double() @ restored(*quantise_blocks(linear.weight, inputs, torch.float32), inputs).T
        expected = expected if linear.bias is None else expected + linear.bias.double()
        assert off(TorchInt8Linear(linear)(given), expected) < 1e-5


def quantised(name: str) -> Any:
    model = build(name)
    quantise(model, None)
    return model


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_loaded", lambda: False)
    monkeypatch.setattr(int8, "is_available", lambda: False)


def runner_of(model: Any) -> BatchedRunner:
    runner = build_runner(model, num_slots=SLOTS, length=LENGTH, budget=2**30)
    assert isinstance(runner, BatchedRunner)
    return runner


@needs_compiler
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_steps_in_company_say_what_the_model_says(native_int8: None, name: str) -> None:
    runner = runner_of(quantised(name))
    lengths = {0: 1, 5: 1, 1: 4}
    for (slot, left), said in zip(lengths.items(), runner.run(read(runner, lengths)), strict=True):
        close(said, model_says(name, [*prompt_of(slot, left)]))


def model_says(name: str, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = quantised(name)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return logits


@needs_compiler
@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.extended), "qwen2"])  # qwen2 has biases
def test_compiled_steps_say_what_eager_ones_say(name: str, folder: Path, native_int8: None) -> None:
    runner = runner_of(quantised(name))
    file = step_file(runner.compilation(Source("nowhere", quantization="int8"), folder), runner.model)
    step = CompiledStep.load(file, runner.model, runner.cache)
    for lengths in ({0: 1}, {0: 1, 5: 1, 2: 7, 1: 1}):
        scheduled = read(runner, lengths)
        close(step.run(scheduled), runner.run(scheduled))


@needs_compiler
def test_plain_and_quantised_steps_have_files_of_their_own(native_int8: None, tmp_path: Path) -> None:
    runner = runner_of(build("llama"))
    plain, other = (runner.compilation(Source("a", quantization=each), tmp_path) for each in (None, "int8"))
    assert plain is not None
    assert other is not None
    assert plain.file != other.file


def check_size(make: type[nn.Module], room: int) -> list[Any]:
    model = build("llama").bfloat16()
    before = sum(module.weight.nbytes for module in model.modules() if type(module) is nn.Linear)
    quantise(model, None)
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert isinstance(model.model.layers[0].self_attn.k_proj, LinearSlice)
    made: list[Any] = [module for module in model.modules() if isinstance(module, make)]
    assert sum(module.weight.nbytes for module in made) == before // 2 + room
    return made


@needs_compiler
def test_weights_are_half_as_large(native_int8: None) -> None:
    made = check_size(Int8Linear, room=(208 - VOCABULARY) * 32)  # outputs come in sixteens
    assert all(16 * module.scales.nbytes == module.weight.nbytes for module in made)


def test_weights_are_half_as_large_without_a_compiler(no_kernel: None) -> None:
    check_size(TorchInt8Linear, room=0)


def test_a_tied_embedding_stays_what_it_is(no_kernel: None) -> None:
    model = build("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    before = model.model.embed_tokens.weight.clone()
    quantise(model, None)
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert isinstance(model.lm_head, TorchInt8Linear)


def test_models_that_reach_for_their_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")

    def forward(self: Any, x: Tensor) -> Tensor:
        gate = self.act_fn(nn.functional.linear(x, self.gate_proj.weight))
        return self.down_proj(gate * self.up_proj(x))  # type: ignore[no-any-return]

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", forward)
    with pytest.raises(EngineFailed, match="'quantization': LlamaForCausalLM cannot be served in int8"):
        quantise(model, None)


def test_models_that_bear_no_rounding_are_refused(monkeypatch: pytest.MonkeyPatch, no_kernel: None) -> None:
    def coarse(*given: Any) -> tuple[Tensor, Tensor]:
        codes, scales = quantise_blocks(*given)
        return (codes / 100).round().to(torch.int8), 100 * scales

    monkeypatch.setattr(int8, "quantise_blocks", coarse)
    with pytest.raises(EngineFailed, match="its logits differ"):
        quantise(build("llama"), None)


def test_models_without_linear_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "replace_linears", lambda model, make: None)
    with pytest.raises(EngineFailed, match="no layers"):
        quantise(build("llama"), None)


def test_gpus_are_refused_by_name() -> None:
    with pytest.raises(EngineFailed, match="'quantization': int8 is for the CPU"):
        load(Source("anything", quantization="int8"), device="cuda", dtype="float32")


def test_without_a_compiler_it_is_torch_that_multiplies(
    tmp_path: Path, no_kernel: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def build_nothing(target: Path) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels, "build", build_nothing)
    model = build("llama")
    quantise(model, tmp_path)
    assert isinstance(model.lm_head, TorchInt8Linear)
    assert "no kernel can be compiled here: ['no compiler']" in caplog.text
    runner_of(model)


async def test_an_engine_answers_in_int8(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    engine = LocalEngine.load(source=str(tmp_path), device="cpu", max_num_seqs=2, quantization="int8")
    engine.start()
    try:
        pieces = [piece async for piece in await engine.submit(Job("job", (5, 6, 7)))]
    finally:
        await engine.stop()
    assert pieces[-1].finish
