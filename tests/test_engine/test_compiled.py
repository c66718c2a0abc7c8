"""The step made ahead of time: the same logits as eager ones, and nothing lost where it cannot be made."""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from services.engine.cpu import compiled_step, kernels
from services.engine.cpu.compilation import Compilation
from services.engine.cpu.compiled_step import CompiledStep, StepPlan, open_package, try_step
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.kv_cache import SlotCache
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source
from services.engine.scheduling.step import StepRow
from tests.test_engine.compilers import needs_compiler, step_file
from tests.test_engine.tiny_models import build

SLOTS, LENGTH = 6, 48


def runner_of(name: str, num_slots: int = SLOTS) -> BatchedRunner:
    runner = build_runner(build(name), num_slots=num_slots, length=LENGTH, budget=2**30)
    assert isinstance(runner, BatchedRunner)
    return runner


def read(runner: BatchedRunner, lengths: dict[int, int]) -> list[StepRow]:
    """Prompts in these slots, of which the cache has all but the last so many tokens; and the step that reads these."""
    rows = []
    for slot, left in lengths.items():
        tokens = prompt_of(slot, left)
        start = len(tokens) - left
        runner.run([StepRow("job", slot, 0, start, 0, tokens[:start])])
        rows.append(StepRow("job", slot, start, left, 1, tokens[start:]))
    return rows


def prompt_of(slot: int, left: int) -> tuple[int, ...]:
    return tuple(range(5, 10 + left + 3 * slot))


def made(runner: BatchedRunner, folder: Path) -> Path:
    return step_file(runner.compilation(Source("nowhere"), folder), runner.model)


def close(said: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(said, expected, atol=1e-4, rtol=1e-4)


@needs_compiler
# with a window, with biases, and with layers that are used in another order than they are made in
@pytest.mark.parametrize(
    "name",
    ["llama", "phi3", *(pytest.param(name, marks=pytest.mark.extended) for name in ("mistral", "qwen2"))],
)
def test_compiled_steps_say_what_eager_ones_say(name: str, folder: Path, native_kernel: None) -> None:
    runner = runner_of(name)
    step = CompiledStep.load(made(runner, folder), runner.model, runner.cache)
    for lengths in ({0: 1}, {5: 1}, {0: 1, 1: 1}, {3: 1, 2: 1}, {4: 9}, {0: 1, 5: 1, 2: 7, 1: 1}, {1: 12, 3: 3, 0: 5}):
        scheduled = read(runner, lengths)
        close(step.run(scheduled), runner.run(scheduled))


@needs_compiler
def test_no_logits_of_prompts_that_go_on(folder: Path, native_kernel: None) -> None:
    runner = runner_of("llama")
    step = CompiledStep.load(made(runner, folder), runner.model, runner.cache)
    reading, writing = read(runner, {0: 9, 1: 1})
    part = reading._replace(num_tokens=4, num_logits=0, token_ids=reading.token_ids[:4])
    assert step.run([part]).shape[0] == runner.run([part]).shape[0] == 0
    close(step.run([part, writing]), runner.run([part, writing]))


@needs_compiler
def test_a_step_touches_nothing_but_its_own_tokens(folder: Path, native_kernel: None) -> None:
    runner = runner_of("llama")
    step = CompiledStep.load(made(runner, folder), runner.model, runner.cache)
    scheduled = read(runner, {0: 1, 1: 1, 2: 1})
    layers = runner.cache.layers.values()
    before = [layer.keys[:, :, :LENGTH].clone() for layer in layers]
    step.run(scheduled[1:2])
    for old, layer in zip(before, layers, strict=True):
        changed = (old != layer.keys[:, :, :LENGTH]).any(-1).any(1).nonzero().tolist()
        assert changed == [[1, scheduled[1].start]]


@needs_compiler
def test_the_runner_goes_on_with_it_once_it_is_there(
    folder: Path, native_kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of("llama")
    eager = runner.run(read(runner, {0: 1, 1: 4}))
    opened: list[Path] = []

    def open_once(file: Path, model: nn.Module) -> Callable[..., Tensor]:
        opened.append(file)
        return open_package(file, model)

    file = made(runner, folder)
    monkeypatch.setattr(compiled_step, "open_package", open_once)
    runner.adopt(file)
    assert opened == [file]  # for the trial and for good
    assert runner.is_compiled
    close(runner.run(read(runner, {0: 1, 1: 4})), eager)


@needs_compiler
@pytest.mark.parametrize("num_slots", [1, 2])  # one file for both
def test_it_is_taken_over_whatever_the_number_of_slots(num_slots: int, folder: Path, native_kernel: None) -> None:
    """The trial has two slots: with a step made for one, native code ended the whole process."""
    runner = runner_of("llama", num_slots)
    last = num_slots - 1
    expected = [runner.run(read(runner, lengths)) for lengths in ({0: 1}, {last: 9})]
    runner.adopt(made(runner, folder))
    assert runner.is_compiled
    for lengths, eager in zip(({0: 1}, {last: 9}), expected, strict=True):
        close(runner.run(read(runner, lengths)), eager)


class Step:
    """A compiled step that notes what it was tried with."""

    def __init__(self, logits: float = 0.0) -> None:
        self.tried: list[list[tuple[int, int, int]]] = []
        self._logits = logits

    def run(self, rows: list[StepRow]) -> Tensor:
        self.tried.append([(row.slot, row.start, row.num_tokens) for row in rows])
        return torch.full((sum(row.num_logits for row in rows), 4), self._logits)


@pytest.mark.parametrize("num_slots", [1, 2, SLOTS])
def test_it_is_tried_at_its_corners_where_it_is_made(num_slots: int) -> None:
    cache = SlotCache(runner_of("llama").cache.shapes, num_slots, LENGTH, torch.device("cpu"))
    step = Step()
    try_step(step, cache)  # type: ignore[arg-type]
    assert [(0, 0, 1)] in step.tried
    assert [(num_slots - 1, LENGTH - 1, 1)] in step.tried
    assert [(num_slots - 1, 0, LENGTH)] in step.tried
    assert max(len(scheduled) for scheduled in step.tried) == num_slots
    with pytest.raises(ValueError, match="does not compute numbers"):
        try_step(Step(float("nan")), cache)  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.extended
def test_what_fails_its_trial_does_not_appear(tmp_path: Path, native_kernel: None) -> None:
    def fail(made: Path) -> None:
        assert made.exists()
        raise RuntimeError("out of bounds")

    doubling = nn.Linear(2, 2).eval()
    file = tmp_path / "double.pt2"
    with pytest.raises(RuntimeError, match="out of bounds"):
        compiled_step.package(doubling, (torch.ones(2, 2),), ({0: None},), file, fail)
    assert list(tmp_path.iterdir()) == []


def test_the_file_changes_with_what_the_step_depends_on(tmp_path: Path) -> None:
    runner = runner_of("llama")
    shapes = runner.cache.shapes
    plan = StepPlan(Source("a"), "float32", SLOTS, LENGTH, shapes)
    file = plan.file(tmp_path, runner.model)
    assert StepPlan(Source("b"), "float32", SLOTS, LENGTH, shapes).file(tmp_path, runner.model) == file
    assert StepPlan(Source("a"), "float32", SLOTS, LENGTH + 1, shapes).file(tmp_path, runner.model) != file
    assert plan.file(tmp_path, runner_of("mistral").model) != file
    assert StepPlan.from_json(plan.to_json()) == plan


@pytest.mark.extended  # compiled anew each time
@pytest.mark.parametrize("source", [Source("a", enable_mm=True), Source("a", quantization="int8")])
def test_the_compiling_process_reads_the_model_as_the_server_does(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Source] = []

    def load(source: Source, *_: object) -> SimpleNamespace:
        read.append(source)
        return SimpleNamespace(model=build("llama"))

    monkeypatch.setattr(compiled_step, "load", load)
    monkeypatch.setattr(compiled_step, "compile_to", lambda *_: None)
    compiled_step.make(tmp_path / "step.pt2", StepPlan(source, "float32", SLOTS, LENGTH, {}).to_json())
    assert read == [source]


def test_another_processor_gets_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are shared by machines that cannot run each other's code."""
    runner = runner_of("llama")
    plan = StepPlan(Source("a"), "float32", SLOTS, LENGTH, runner.cache.shapes)
    here = plan.file(tmp_path, runner.model), kernels.library_path(tmp_path)
    monkeypatch.setattr(kernels, "machine", lambda: "x86_64 sse2")
    there = plan.file(tmp_path, runner.model), kernels.library_path(tmp_path)
    assert not {*here} & {*there}


MAKER = """
import json, os
def make(file, plan):
    file.write_text(json.dumps([os.getsid(0), os.getpgid(0), os.nice(0)]))
"""


@dataclass
class Facts:
    """A plan whose maker writes down what it is to the kernel."""

    maker: str = "maker_of_facts"

    def to_json(self) -> str:
        return "{}"


def test_the_worker_takes_no_time_from_who_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another session Linux would let it have a processor, whatever its priority; of our group it would be stopped
    by a Ctrl-C that is for the server."""
    (tmp_path / "maker_of_facts.py").write_text(MAKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    compilation = Compilation(tmp_path / "facts.json", Facts(), lambda _: None)
    compilation.start()
    compilation.wait()

    session, group, niceness = json.loads((tmp_path / "facts.json").read_text())
    assert session == os.getsid(0)
    assert group != os.getpgid(0)
    assert niceness > os.nice(0)


def test_steps_stay_eager_where_the_worker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    handed = threading.Event()
    runner = runner_of("llama")
    plan = StepPlan(Source("nowhere"), "float32", SLOTS, LENGTH, runner.cache.shapes)
    compilation = Compilation(tmp_path / "step.pt2", plan, lambda _: handed.set())
    compilation.start()
    assert not compilation.wait()
    assert not handed.is_set()
    assert "stay eager" in caplog.text


@pytest.mark.parametrize("compiled", [True, False])
def test_what_another_process_compiles_is_waited_for(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And compiled here, if that process ended without it."""
    caplog.set_level("INFO")
    monkeypatch.setattr("services.engine.cpu.compilation.POLL_S", 0.01)
    (tmp_path / "maker_of_facts.py").write_text(MAKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    kernels.library_path(tmp_path).touch()
    file = tmp_path / "facts.json"
    taken: list[str] = []
    compilation = Compilation(file, Facts(), lambda made: taken.append(made.read_text()))
    with FileLock(f"{file}.lock"):
        compilation.start()
        while "another process is compiling" not in caplog.text:
            pass
        if compiled:
            file.write_text("theirs")
    assert compilation.wait()
    assert (taken == ["theirs"]) is compiled
    assert len(taken) == 1


CRASHING = """
import os
def make(file, plan):
    file.with_name("tries").open("a").write("x")
    os.abort()
"""


@dataclass
class Crash:
    maker: str = "maker_of_crashes"

    def to_json(self) -> str:
        return "{}"


def run(file: Path, plan: Facts | Crash, ready: Callable[[Path], None]) -> None:
    compilation = Compilation(file, plan, ready)
    compilation.start()
    compilation.wait()


def test_what_crashed_where_it_was_made_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "maker_of_crashes.py").write_text(CRASHING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    handed: list[Path] = []
    for _ in range(2):
        caplog.clear()
        run(tmp_path / "step.pt2", Crash(), handed.append)
        assert "steps stay eager" in caplog.text
    assert handed == []
    assert (tmp_path / "tries").read_text() == "x"
    assert "step.crashed" in caplog.text
