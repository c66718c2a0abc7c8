"""A quantisation method is one module and one line: it is chosen by its name, and its kernels change every key."""

from pathlib import Path
from typing import Any

import pytest

from app.common.settings import EngineSettings
from services.engine import quantization
from services.engine.cpu import kernels
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source, load
from services.engine.local import LocalEngine
from services.errors import EngineFailed
from tests.test_engine import made_up_method
from tests.test_engine.tiny_models import build
from tests.test_engine.tiny_tokenizers import byte_level

KERNEL = '#include "numbers.h"\nTORCH_LIBRARY_FRAGMENT(parley, library) {}\n'


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quantization.METHODS, "made-up", made_up_method.__name__)
    monkeypatch.setattr(made_up_method, "quantised", [])


@pytest.fixture
def kernel(made_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = tmp_path / "made_up.cpp"
    source.write_text(KERNEL)
    monkeypatch.setattr(made_up_method, "KERNELS", (source,))
    return source


@pytest.fixture(scope="module")
def runner() -> BatchedRunner:
    runner = build_runner(build("llama"), num_slots=2, length=16, budget=2**30)
    assert isinstance(runner, BatchedRunner)
    return runner


def keys(runner: BatchedRunner) -> tuple[Path, Path]:
    """Of the library of kernels, and of the compiled step."""
    compilation = runner.compilation(Source("a"), Path())
    assert compilation is not None
    return kernels.library_path(Path()), compilation.file


def test_keys_depend_on_the_kernels_of_all_methods(runner: BatchedRunner, request: pytest.FixtureRequest) -> None:
    found = [keys(runner)]
    source: Path = request.getfixturevalue("kernel")
    found.append(keys(runner))
    source.write_text(KERNEL + "// another\n")
    found.append(keys(runner))
    source.with_name("numbers.h").write_text("constexpr int NUMBER = 1;\n")
    found.append(keys(runner))

    assert source in kernels.sources()
    libraries, steps = zip(*found, strict=True)
    assert len(set(libraries)) == len(set(steps)) == 4


def test_a_method_is_chosen_by_the_setting(made_up: None, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    settings = EngineSettings(quantization="made-up")

    LocalEngine.load(source=str(tmp_path), device="cpu", max_num_seqs=2, quantization=settings.quantization)

    assert [type(model).__name__ for model in made_up_method.quantised] == ["LlamaForCausalLM"]


def test_a_setting_that_names_no_method_is_refused() -> None:
    with pytest.raises(ValueError, match="the methods are: int8"):
        EngineSettings(quantization="made-up")


@pytest.mark.parametrize(
    ("devices", "refusal"),
    [
        (("cuda",), "made-up is for CUDA, this model is on cpu"),
        (("cuda", "xpu"), "made-up is for CUDA and xpu, this model is on cpu"),
    ],
)
def test_a_device_that_a_method_is_not_for(
    made_up: None, monkeypatch: pytest.MonkeyPatch, devices: Any, refusal: str
) -> None:
    monkeypatch.setattr(made_up_method, "DEVICES", devices)
    with pytest.raises(EngineFailed, match=f"'quantization': {refusal}"):
        load(Source("anything", quantization="made-up"), device="cpu")


@pytest.mark.parametrize("name", quantization.METHODS)
def test_each_method_has_its_kernels_beside_it(name: str) -> None:
    method = quantization.method(name, "cpu")
    assert method.KERNELS or name == "int4"  # which has those of the blocks of file formats
    assert all(source.parent == Path(method.__file__).parent for source in method.KERNELS)
