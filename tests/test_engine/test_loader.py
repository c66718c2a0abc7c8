"""What a source is, and what a model says of itself."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf.constants import GGMLQuantizationType

from services.engine.loading import loader, remote_code
from services.engine.loading.loader import Loaded, Source, load
from services.engine.quantization import gguf
from tests.test_engine.gguf_files import write_gguf
from tests.test_engine.tiny_models import build
from tests.test_engine.tiny_tokenizers import EOS, byte_level


@dataclass
class FakeModel:
    eos: int | list[int] | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 99

    @property
    def generation_config(self) -> SimpleNamespace:
        return SimpleNamespace(eos_token_id=self.eos)

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=self.vocabulary, **self.limits))

    def named_modules(self) -> list[tuple[str, Any]]:
        return []

    def to(self, device: torch.device) -> "FakeModel":
        return self

    def eval(self) -> "FakeModel":
        return self


@dataclass
class FakeTokenizer:
    eos_token_id: int | None = None
    model_max_length: float = 1000


@dataclass
class Hub:
    """In place of transformers' readers; notes what those of tokenizer and model were asked for."""

    model: FakeModel = field(default_factory=FakeModel)
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def read_tokenizer(self, name: str, **options: Any) -> FakeTokenizer:
        self.asked.append((name, dict(options)))
        return self.tokenizer

    def read_model(self, name: str, output_loading_info: bool, **options: Any) -> tuple[FakeModel, dict[str, Any]]:
        self.asked.append((name, dict(options)))
        return self.model, {"missing_keys": set(), "unexpected_keys": set()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(loader, "AutoConfig", SimpleNamespace(from_pretrained=lambda name, **_: SimpleNamespace()))
    monkeypatch.setattr(loader, "runs_own_code", lambda source, trusted: False)
    for module in (remote_code, gguf):
        monkeypatch.setattr(module, "AutoTokenizer", SimpleNamespace(from_pretrained=hub.read_tokenizer))
    for module in (loader, gguf):
        monkeypatch.setattr(module, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=hub.read_model))
    return hub


def test_a_gguf_file_that_transformers_reads_is_read_from_its_folder_and_unpacked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.Q4_1.gguf"
    write_gguf(file, "llama", (GGMLQuantizationType.Q4_1,))
    monkeypatch.setattr(gguf, "is_gguf_arch_supported", lambda architecture: architecture == "llama")

    load(Source(str(file)))

    (folder, model_options), (same_folder, tokenizer_options) = hub.asked
    assert folder == same_folder == str(tmp_path)
    assert tokenizer_options == {"gguf_file": "tiny.Q4_1.gguf"}
    assert model_options["gguf_file"] == "tiny.Q4_1.gguf"
    assert model_options["quantization_config"].dequantize


@pytest.mark.parametrize("source", ["owner/model", "owner/model.gguf", "folder.gguf"])
def test_what_is_no_file_is_a_folder_or_a_name(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.gguf").mkdir()

    load(Source(source), dtype="float32")

    assert hub.asked == [
        (source, {"dtype": torch.float32, "trust_remote_code": False}),
        (source, {"trust_remote_code": False}),
    ]


@pytest.mark.parametrize(
    ("model", "tokenizer", "eos"),
    [
        (None, None, set()),
        (2, None, {2}),
        (None, 3, {3}),
        ([2, 3, 4], 3, {2, 3, 4}),
        ([2], 7, {2, 7}),
        (0, 0, {0}),
        ([], 5, {5}),
    ],
)
def test_all_that_end_an_answer(hub: Hub, model: Any, tokenizer: int | None, eos: set[int]) -> None:
    hub.model.eos, hub.tokenizer.eos_token_id = model, tokenizer

    assert load(Source("name")).eos == eos


@pytest.mark.parametrize(
    ("limits", "tokenizer", "length"),
    [
        ({"max_position_embeddings": 2048}, 512, 2048),
        ({"max_position_embeddings": None}, 512, 512),
        ({}, 512, 512),
        ({}, 1e30, loader.UNLIMITED),  # what tokenizers say that know no limit
    ],
)
def test_how_long_a_text_may_be(hub: Hub, limits: dict[str, Any], tokenizer: float, length: int) -> None:
    hub.model.limits, hub.tokenizer.model_max_length = limits, tokenizer

    assert load(Source("name")).max_length == length


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_folder_is_loaded_in_the_numbers_asked_for(tmp_path: Path, name: str) -> None:
    build("llama").save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)

    loaded = load(Source(str(tmp_path)), device="cpu", dtype=name)

    assert isinstance(loaded, Loaded)
    assert loaded.model.dtype == loaded.dtype == getattr(torch, name)
    assert not loaded.model.training
    assert loaded.device == torch.device("cpu")
    assert loaded.max_length == 128
    assert loaded.eos == {loaded.tokenizer.convert_tokens_to_ids(EOS)}


@pytest.mark.parametrize("name", ["float33", "nn"])
def test_what_is_no_number_format_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        load(Source("name"), dtype=name)
