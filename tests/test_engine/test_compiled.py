"""The decode step made ahead of time: the same logits as eager ones, and nothing lost where it cannot be made."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest
import torch

from services.engine import compiled
from services.engine.base import Job
from services.engine.compiled import Compilation, CompiledDecode, Plan
from services.engine.runner import BatchRunner, build_runner
from services.engine.scheduler import Work
from services.engine.sequence import Sequence
from tests.test_engine.tiny_models import build

SLOTS, LENGTH = 6, 48


# what torch's own compiler does while it is imported and run is not ours to mend
def needs_compiler(test: Callable[..., None]) -> Callable[..., None]:
    quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
    return pytest.mark.skipif(which("g++") is None, reason="no C++ compiler")(quiet(test))


def runner_of(name: str) -> BatchRunner:
    runner = build_runner(build(name), num_slots=SLOTS, length=LENGTH, budget=2**30)
    assert isinstance(runner, BatchRunner)
    return runner


def read(runner: BatchRunner, slots: list[int]) -> list[Work]:
    """Prompts of different lengths in these slots, up to their last token, and the step that decodes it."""
    works = []
    for slot in slots:
        sequence = Sequence(Job(f"{slot}", tuple(range(5, 10 + 3 * slot))), 9)
        runner.run([Work(sequence, slot, len(sequence.tokens) - 1)])
        sequence.num_computed = len(sequence.tokens) - 1
        works.append(Work(sequence, slot, 1))
    return works


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def made(runner: BatchRunner, folder: Path) -> Path:
    compilation = runner.compilation("nowhere", folder)
    assert compilation is not None
    if not compilation.file.exists():
        compiled.compile_to(compilation.file, runner._model, compilation.plan)
    return compilation.file


@needs_compiler
@pytest.mark.parametrize("name", ["llama", "mistral"])  # with a window, too
def test_compiled_steps_say_what_eager_ones_say(name: str, folder: Path) -> None:
    runner = runner_of(name)
    file = made(runner, folder)
    for slots in ([0], [SLOTS - 1], [0, 1], [2, 4], [0, 1, 2, 3, 4, 5], [3, 2]):
        works = read(runner, slots)
        eager = runner.run(works)
        step = CompiledDecode.load(file, runner._model, runner._cache)
        assert step.suits(sorted(works, key=lambda work: work.slot))
        torch.testing.assert_close(step.run(works), eager, atol=1e-4, rtol=1e-4)


@needs_compiler
def test_a_row_that_takes_no_part_keeps_what_it_holds(folder: Path) -> None:
    runner = runner_of("llama")
    step = CompiledDecode.load(made(runner, folder), runner._model, runner._cache)
    works = read(runner, [0, 1, 2])
    layers = runner._cache.layers.values()
    before = [layer.keys[1, :, :LENGTH].clone() for layer in layers]
    step.run([works[0], works[2]])
    assert all(torch.equal(old, layer.keys[1, :, :LENGTH]) for old, layer in zip(before, layers, strict=True))


@needs_compiler
def test_the_runner_goes_on_with_it_once_it_is_there(folder: Path) -> None:
    runner = runner_of("llama")
    eager = runner.run(read(runner, [0, 1]))
    runner.adopt(made(runner, folder))
    assert runner._compiled is not None
    torch.testing.assert_close(runner.run(read(runner, [0, 1])), eager, atol=1e-4, rtol=1e-4)


def test_slots_far_apart_are_no_window() -> None:
    runner = runner_of("llama")
    step = CompiledDecode(None, runner._cache)
    assert not step.suits([Work(Sequence(Job("a", (1,)), 1), slot, 1) for slot in (0, 5)])


def test_the_file_changes_with_what_the_step_depends_on(tmp_path: Path) -> None:
    runner = runner_of("llama")
    shapes = runner._cache.shapes
    plan = Plan("a", "float32", SLOTS, LENGTH, shapes)
    file = plan.file(tmp_path, runner._model)
    assert Plan("b", "float32", SLOTS, LENGTH, shapes).file(tmp_path, runner._model) == file
    assert Plan("a", "float32", SLOTS, LENGTH + 1, shapes).file(tmp_path, runner._model) != file
    assert plan.file(tmp_path, runner_of("mistral")._model) != file
    assert Plan.from_json(plan.to_json()) == plan


def test_steps_stay_eager_where_the_worker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    handed = threading.Event()
    runner = runner_of("llama")
    plan = Plan("nowhere", "float32", SLOTS, LENGTH, runner._cache.shapes)
    compilation = Compilation(tmp_path / "step.pt2", plan, lambda _: handed.set())
    compilation.start()
    compilation.join()
    assert not handed.is_set()
    assert "stay eager" in caplog.text
