"""A cache of 8-bit keys and values: half the memory, the same answers in any company, and refused by name elsewhere."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.engine.cpu import kernels
from services.engine.cpu.compiled_step import CompiledStep
from services.engine.execution import runner_factory
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.kv_cache import LayerShape
from services.engine.execution.rounded_cache import in_8_bits, require_kernel
from services.engine.execution.runner_check import LogitsDiffer, require_similar
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source
from services.engine.local import LocalEngine
from services.engine.scheduling import ngram_proposer
from services.engine.scheduling.step import CopySlot, StepRow
from services.errors import EngineFailed
from tests.test_engine.compilers import needs_compiler
from tests.test_engine.fakes import settled
from tests.test_engine.test_compiled import LENGTH, SLOTS, made, prompt_of, read
from tests.test_engine.test_int4 import quantised
from tests.test_engine.test_right import ALL_OFF, ALL_ON, Switches, answer, fifty, serving
from tests.test_engine.tiny_models import build

NAMES = ["llama", "qwen2 sliding"]
BUDGET = 2**18  # bytes: less than all slots take


def runner_of(
    name: str, kv_cache_dtype: str = "int8", room: int | None = None, build: Callable[[str], Any] = build
) -> BatchedRunner:
    runner = build_runner(
        build(name),
        num_slots=SLOTS,
        length=LENGTH,
        budget=2**30,
        cache_tokens=room,
        kv_cache_dtype=kv_cache_dtype,
    )
    assert isinstance(runner, BatchedRunner)
    return runner


def test_a_row_takes_its_numbers_and_its_scale() -> None:
    shape = LayerShape(num_heads=3, key_dim=64, value_dim=32, dtype=torch.bfloat16)
    assert (shape.num_bytes, shape.in_8_bits().num_bytes) == (3 * (64 + 32) * 2, 3 * (64 + 4 + 32 + 4))


@needs_compiler
def test_the_same_memory_holds_more_tokens(native_kernel: None) -> None:
    def room(kv_cache_dtype: str) -> int:
        model = build("llama").bfloat16()
        runner = build_runner(model, num_slots=50, length=512, budget=BUDGET, kv_cache_dtype=kv_cache_dtype)
        assert isinstance(runner, BatchedRunner)
        token = sum(shape.num_bytes for shape in runner.cache.shapes.values())
        assert runner.cache_tokens == BUDGET // token
        assert {layer.keys.dtype for layer in runner.cache.layers.values()} == {runner.cache.shapes[0].dtype}
        return runner.cache_tokens

    assert room("int8") > 1.3 * room("auto")  # heads are small here, a quarter of a row is its scale


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_near_and_rounded(name: str, native_kernel: None) -> None:
    plain, rounded = (runner_of(name, dtype) for dtype in ("auto", "int8"))
    wanted, found = (runner.run(read(runner, {0: 1, 3: 9, 2: 1})) for runner in (plain, rounded))
    assert not torch.equal(wanted, found)
    for one, other in zip(found, wanted, strict=True):
        require_similar(one, other, 0.999)


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("switches", [ALL_OFF, ALL_ON])
async def test_answers_do_not_depend_on_their_company(
    name: str, switches: Switches, native_kernel: None, no_headroom: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reused prefixes, chunks, preemption and drafts included. With products whose bits do not depend on it either: of
    a number between two steps, either may come out."""
    monkeypatch.setattr(ngram_proposer, "NGRAM_SIZE", 1)
    monkeypatch.setattr(ngram_proposer, "MAX_BACKOFF", 0)
    prompts = fifty()
    async with serving(runner_of(name, build=quantised), ALL_OFF) as engine:
        alone = [await answer(engine, each) for each in prompts]
    room = 100 if switches.preemption else None
    async with serving(runner_of(name, room=room, build=quantised), switches) as engine:
        assert list(await asyncio.gather(*(answer(engine, each) for each in prompts))) == alone
        assert (engine.stats().prefix_reused > 0) is switches.prefix_cache
        assert (engine.stats().preemptions > 0) is switches.preemption
        assert (engine.stats().accepted > 0) is switches.speculation
        await settled(engine)


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_in_chunks_is_kept_in_the_same_bits(name: str, native_kernel: None) -> None:
    whole, parts = runner_of(name, build=quantised), runner_of(name, build=quantised)
    tokens = prompt_of(2, 20)
    (logits,) = whole.run([StepRow("job", 0, 0, len(tokens), 1, tokens)])
    for start in range(0, len(tokens), 7):
        part = tokens[start : start + 7]
        (last,) = parts.run([StepRow("job", 0, start, len(part), 1, part)])
    assert torch.equal(last, logits)
    for one, other in zip(whole.cache.layers.values(), parts.cache.layers.values(), strict=True):
        assert torch.equal(one.keys[0], other.keys[0])
        assert torch.equal(one.values[0], other.values[0])


@needs_compiler
def test_a_copied_slot_goes_on_alike(native_kernel: None) -> None:
    runner = runner_of("llama")
    (row,) = read(runner, {1: 1})
    runner.apply([CopySlot(1, 4, row.start)])
    one, other = runner.run([row, row._replace(slot=4)])
    assert torch.equal(one, other)


@needs_compiler
def test_compiled_steps_say_what_eager_ones_say(folder: Path, native_kernel: None) -> None:
    runner = runner_of("llama")
    file = made(runner, folder)
    other = runner_of("llama", "auto").compilation(Source("nowhere"), folder)
    assert other is not None
    assert other.file != file
    step = CompiledStep.load(file, runner.model, runner.cache)
    for lengths in ({0: 1}, {4: 9}, {0: 1, 5: 1, 2: 7, 1: 1}):
        scheduled = read(runner, lengths)
        # a number that is rounded the other way is a whole step off
        torch.testing.assert_close(step.run(scheduled), runner.run(scheduled), atol=2e-2, rtol=2e-2)
    runner.adopt(file)
    assert runner.is_compiled
    rows = read(runner, {0: 1, 5: 1, 2: 7})
    together = runner.run(rows)
    for logits, row in zip(together, rows, strict=True):
        require_similar(runner.run([row])[0], logits, 0.9999)


def test_other_names_are_refused() -> None:
    with pytest.raises(EngineFailed, match="'kv_cache_dtype': 'fp8' is neither of auto, int8"):
        require_kernel("fp8", "cpu", None)


def test_other_devices_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="'kv_cache_dtype': int8 is for the CPU, this model is on cuda; set auto"):
        require_kernel("int8", "cuda", tmp_path)


def test_a_machine_without_the_kernel_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "is_loaded", lambda: False)
    with pytest.raises(EngineFailed, match=r"'kv_cache_dtype': int8 needs the attention kernel.* leave 'compile' on"):
        LocalEngine.load(source=str(tmp_path / "nowhere"), device="cpu", kv_cache_dtype="int8")


@pytest.mark.parametrize("sizes", [(6, 8), (8, 260)])
def test_heads_without_a_path_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(EngineFailed, match=f"'kv_cache_dtype': int8 is not for heads of {sizes[0]} and {sizes[1]}"):
        in_8_bits({0: LayerShape(2, *sizes, torch.float32)})


@needs_compiler
def test_a_model_with_a_cache_of_its_own_is_refused(native_kernel: None) -> None:
    with pytest.raises(EngineFailed, match="'kv_cache_dtype': this model keeps its past itself"):
        runner_of("bloom")


@needs_compiler
def test_a_model_that_suffers_is_refused(native_kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = runner_factory.verify_logits

    def strict(runner: BatchedRunner, check: runner_factory.LogitsCheck) -> None:
        if check.in_8_bits:
            raise LogitsDiffer("its logits differ (cosine 0.5)")
        verify(runner, check)

    monkeypatch.setattr(runner_factory, "verify_logits", strict)
    with pytest.raises(EngineFailed, match=r"'kv_cache_dtype': int8 does not do for this model, its logits differ"):
        runner_of("llama")
