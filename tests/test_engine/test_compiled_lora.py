"""The kernel of adapters, and compiled steps with it: what eager ones compute."""

from pathlib import Path

import pytest
import torch

from services.engine.cpu.compiled_step import CompiledStep, compile_to
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.runner_check import LogitsDiffer
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source
from services.engine.lora.adapted_step import AdaptedStep
from services.engine.lora.adapter import Adapter, LowRank
from services.engine.lora.adapters import Adapters
from services.engine.lora.low_rank import LowRankBank, hook_kernel
from services.engine.lora.sites import Site
from services.engine.lora.step_adapters import StepAdapters
from services.engine.scheduling.step import StepRow
from tests.test_engine.compilers import compiled_once, needs_compiler
from tests.test_engine.test_compiled import LENGTH, SLOTS, close, read
from tests.test_engine.tiny_adapters import write_adapter
from tests.test_engine.tiny_models import build

INPUTS, OUTPUTS = 70, 200  # no multiples of what registers hold
IDS = (7, None, 3, 7, 7, 3, 7, 7, None, 3, 7)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def low_rank(rank: int, dtype: torch.dtype) -> LowRank:
    return LowRank(random(rank, INPUTS, dtype=dtype), random(rank, OUTPUTS, dtype=dtype))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wide_out", [False, True])
def test_each_token_gets_what_its_adapter_adds(dtype: torch.dtype, wide_out: bool, native_kernel: None) -> None:
    sites = [Site(index, torch.nn.Identity(), INPUTS, OUTPUTS, is_head=False) for index in range(2)]
    layers = {7: {0: low_rank(5, dtype), 1: low_rank(64, dtype)}, 3: {1: low_rank(16, dtype)}}
    bank = LowRankBank.empty(torch.device("cpu"), dtype)
    for id, own in layers.items():
        adapter = Adapter(None, {str(index): each for index, each in own.items()})  # type: ignore[arg-type]
        bank = bank.with_adapter(id, adapter, {str(site.index): site for site in sites})
    out = random(1, len(IDS), 2 * OUTPUTS, dtype=torch.float32 if wide_out else dtype)[
        ..., :OUTPUTS
    ]  # part of a product
    inputs = random(1, len(IDS), INPUTS, dtype=dtype)
    for site in sites:
        expected = out.double()
        for token, id in enumerate(IDS):
            if id is not None and site.index in layers[id]:
                layer = layers[id][site.index]
                expected[0, token] += inputs[0, token].double() @ layer.down.double().T @ layer.up.double()
        added = bank.added(out, inputs, site, StepAdapters(IDS, IDS))
        assert added is not None
        assert added.dtype == out.dtype
        torch.testing.assert_close(
            added, expected.to(out.dtype), atol=1e-3, rtol=1e-5 if out.dtype == torch.float32 else 0.008
        )
        alone = [
            bank.added(out[:, [token]], inputs[:, [token]], site, StepAdapters((id,), (id,)))
            for token, id in enumerate(IDS)
        ]
        for token, each in enumerate(alone):  # no bit of a token depends on its company
            assert torch.equal(added[:, [token]], out[:, [token]] if each is None else each)


def adapted(runner: BatchedRunner, adapters: Adapters, folder: Path) -> Path:
    compilation = runner.compilation(Source("nowhere"), folder, adapters)
    assert compilation is not None

    def make() -> None:
        own = runner_of("llama")
        model = own.model
        hook_kernel(model)
        compile_to(compilation.file, model, compilation.plan)

    return compiled_once(compilation.file, make)


def runner_of(name: str) -> BatchedRunner:
    runner = build_runner(build(name), num_slots=SLOTS, length=LENGTH, budget=2**30)
    assert isinstance(runner, BatchedRunner)
    return runner


def rows_of(runner: BatchedRunner) -> list[StepRow]:
    given = {0: 1, 5: 1, 2: 7, 1: 1}
    return [row._replace(adapter=each) for row, each in zip(read(runner, given), (4, None, 9, 9), strict=True)]


@needs_compiler
def test_a_compiled_step_of_several_adapters_and_none(tmp_path: Path, folder: Path, native_kernel: None) -> None:
    runner = runner_of("llama")
    adapters = Adapters(runner.model)
    for id, rank in ((4, 4), (9, 64)):
        targets = ("q_proj", "k_proj", "up_proj", "down_proj", "lm_head")
        adapters.add(id, str(write_adapter(tmp_path / str(id), build("llama"), rank=rank, seed=id, targets=targets)))
    file = adapted(runner, adapters, folder)
    step = AdaptedStep(CompiledStep.load(file, runner.model, runner.cache), adapters, keeps=True)
    rows = rows_of(runner)
    for some in (rows, rows[:1], rows[1:2], rows[2:3]):
        close(step.run(some), runner.run(some))

    runner.adopt_adapted(file, adapters)
    before = runner.run(rows)
    runner.model = None  # whoever is called now is compiled
    assert torch.equal(runner.run(rows), before)
    adapters.remove(9)
    close(runner.run(rows[:1]), before[:1])


@needs_compiler
def test_one_that_adds_something_else_is_not_used(tmp_path: Path, folder: Path, native_kernel: None) -> None:
    runner = runner_of("llama")
    adapters = Adapters(runner.model)
    adapters.add(4, str(write_adapter(tmp_path / "one", build("llama"))))
    file = adapted(runner, adapters, folder)
    others = Adapters(build("llama"))
    others.add(4, str(write_adapter(tmp_path / "other", build("llama"), seed=2)))
    with pytest.raises(LogitsDiffer):
        runner.adopt_adapted(file, others)
