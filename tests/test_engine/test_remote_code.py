"""Models that bring code along: refused without running any of it, served where the operator trusts it."""

import json
from pathlib import Path

import pytest

from services.engine.base import Job, SamplingParams
from services.engine.embedding.embedder import LocalEmbedder
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.loading.loader import Source, load
from services.engine.loading.unusable import UnusableModel
from services.engine.local import LocalEngine
from tests.test_engine.tiny_encoders import save_embedder
from tests.test_engine.tiny_models import build, generate
from tests.test_engine.tiny_tokenizers import byte_level

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).write_text("it ran")
class HouseConfig(LlamaConfig):
    model_type = "house_of_its_own"
class HouseModel(LlamaForCausalLM):
    config_class = HouseConfig
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exists once the model's code has run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "ran"


def with_code(folder: Path, mark: Path, kind: str | None, **classes: str) -> str:
    """Of a model that is there. `kind`: what it calls itself; None: a kind that transformers has."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {name: f"code.{value}" for name, value in classes.items()}}
    config |= {"model_type": kind} if kind else {}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    return str(folder)


def house(tmp_path: Path, mark: Path, kind: str | None = "house_of_its_own") -> str:
    model = build("llama")
    model.save_pretrained(tmp_path / "house")
    byte_level().save_pretrained(tmp_path / "house")
    return with_code(tmp_path / "house", mark, kind, AutoConfig="HouseConfig", AutoModelForCausalLM="HouseModel")


def has_run(mark: Path) -> bool:
    return mark.exists()


def test_code_is_refused_by_the_settings_name(tmp_path: Path, mark: Path) -> None:
    folder = house(tmp_path, mark)
    with pytest.raises(UnusableModel, match="TRUST_REMOTE_CODE=true"):
        load(Source(folder), "cpu", "float32")
    with pytest.raises(UnusableModel, match="TRUST_REMOTE_CODE=true"):
        LocalEmbedder.load(source=folder, dtype="float32")
    assert not mark.exists()


async def test_trusted_code_is_served_like_any_other(tmp_path: Path, mark: Path) -> None:
    source = house(tmp_path, mark)
    engine = LocalEngine.load(source=source, device="cpu", dtype="float32", max_num_seqs=2, trust_remote_code=True)
    assert has_run(mark)
    assert isinstance(engine.executor.runner, BatchedRunner)  # type: ignore[attr-defined]
    engine.start()
    prompt = (5, 6, 7, 8)
    pieces = await engine.submit(Job("job", prompt, SamplingParams(max_tokens=6, ignore_eos=True, temperature=0)))
    tokens = [token async for piece in pieces for token in piece.token_ids]
    await engine.stop()
    assert tokens == generate(build("llama"), prompt, 6)[0]


@pytest.mark.parametrize("trusted", [True, False])
def test_code_of_a_kind_that_transformers_has_does_not_run(trusted: bool, tmp_path: Path, mark: Path) -> None:
    load(Source(house(tmp_path, mark, None), trust_remote_code=trusted), "cpu", "float32")
    assert not mark.exists()


def test_an_embedder_of_its_own_code(tmp_path: Path, mark: Path) -> None:
    expected = save_embedder(tmp_path / "bert").config.hidden_size
    folder = with_code(tmp_path / "bert", mark, "house", AutoConfig="HouseConfig", AutoModel="HouseModel")
    code = CODE.format(mark=str(mark)).replace("LlamaConfig", "BertConfig").replace("LlamaForCausalLM", "BertModel")
    (tmp_path / "bert" / "code.py").write_text(code)
    assert LocalEmbedder.load(source=folder, dtype="float32", trust_remote_code=True).dimensions == expected
