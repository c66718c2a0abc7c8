"""Embedding models with more than a transformer and a pooling, or without one, against their parts put together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoModel, T5Config, T5EncoderModel, T5Model

from services.engine.base import Embeddings, TextPrompts
from services.engine.embedding.embedder import LocalEmbedder
from services.engine.embedding.encoder import Encoder, Floats, read_encoder
from services.engine.embedding.pooling import PoolingConfig, read_pooling_config
from services.engine.loading import model_files
from services.engine.loading.long_rope import install_long_rope
from services.errors import EngineFailed
from tests.test_engine.tiny_encoders import WORDS, save_embedder, tokenizer
from tests.test_engine.tiny_models import SHORT, build

ROWS = [[1, 5, 6, 7, 2], [1, 8, 2], [1, 9, 10, 11, 12, 13, 14, 2]]


def save_modules(folder: Path, *modules: tuple[str, dict[str, Any], nn.Module | None]) -> None:
    """Behind a transformer and a pooling of the first token."""
    listed = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    listed.append({"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    for index, (kind, config, module) in enumerate(modules, 2):
        path = f"{index}_{kind}"
        listed.append({"type": f"sentence_transformers.models.{kind}", "path": path})
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
        if module:
            name = "norm" if kind == "LayerNorm" else "linear"
            save_file(
                {f"{name}.{key}": each for key, each in module.state_dict().items()},
                folder / path / "model.safetensors",
            )
    (folder / "modules.json").write_text(json.dumps(listed))


def dense(inputs: int, outputs: int, activation: str, bias: bool = True) -> dict[str, Any]:
    return {
        "in_features": inputs,
        "out_features": outputs,
        "bias": bias,
        "activation_function": f"torch.nn.modules.{activation}",
    }


async def embedded(folder: Path, rows: list[list[int]] = ROWS) -> Floats:
    embedder = LocalEmbedder.load(source=str(folder), dtype="float32")
    embedder.start()
    try:
        vectors: Embeddings = await embedder.embed(rows)
    finally:
        await embedder.stop()
    assert vectors.dimensions == embedder.dimensions
    return np.frombuffer(vectors.data, dtype="<f4").reshape(-1, vectors.dimensions)


async def test_dense_layers_and_a_norm_in_their_order(tmp_path: Path) -> None:
    """As EmbeddingGemma has two and LaBSE one, and wider than the model inside."""
    model = save_embedder(tmp_path)
    torch.manual_seed(1)
    wide, narrow, norm = nn.Linear(32, 48), nn.Linear(48, 40, bias=False), nn.LayerNorm(40)
    nn.init.normal_(norm.weight)
    save_modules(
        tmp_path,
        ("Dense", dense(32, 48, "activation.Tanh"), wide),
        ("Normalize", {}, None),
        ("Dense", dense(48, 40, "linear.Identity", bias=False), narrow),
        ("LayerNorm", {"dimension": 40}, norm),
        ("Normalize", {}, None),
    )
    with torch.inference_mode():
        first = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[:, 0] for row in ROWS])
        expected = normalize(norm(narrow(normalize(torch.tanh(wide(first)), dim=-1))), dim=-1)
    np.testing.assert_allclose(await embedded(tmp_path), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dense(32, 8, "activation.Nothing"), "activation torch.nn.modules.activation.Nothing"),
        ({**dense(32, 8, "x"), "activation_function": "os.system"}, "activation os.system"),
        ({**dense(32, 8, "activation.Tanh"), "module_input_name": "token_embeddings"}, "for token vectors"),
        (dense(32, 9, "activation.Tanh"), "Dense module cannot be read"),
    ],
)
def test_dense_layers_that_are_refused(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    save_embedder(tmp_path)
    save_modules(tmp_path, ("Dense", config, nn.Linear(32, 8)))
    with pytest.raises(EngineFailed, match=reason):
        LocalEmbedder.load(source=str(tmp_path), dtype="float32")


@pytest.mark.parametrize("kind", [T5Model, T5EncoderModel])
async def test_the_encoder_of_a_t5(kind: type, tmp_path: Path) -> None:
    config = T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0)
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    save_modules(tmp_path, ("Normalize", {}, None))
    model_files.check(str(tmp_path), "embedding")
    with torch.inference_mode():
        states = [model.encoder(input_ids=torch.tensor([row])).last_hidden_state[:, 0] for row in ROWS]
    np.testing.assert_allclose(await embedded(tmp_path), normalize(torch.cat(states), dim=-1).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["embedding.weight", "embeddings"])
async def test_vectors_of_tokens_without_a_model(name: str, tmp_path: Path) -> None:
    table = torch.randn(len(WORDS), 6, generator=torch.Generator().manual_seed(0))
    save_file({name: table}, tmp_path / "model.safetensors")
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    inner.enable_truncation(2)
    inner.save(str(tmp_path / "tokenizer.json"))
    module = {"type": "sentence_transformers.models.StaticEmbedding", "path": ""}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    model_files.check(str(tmp_path), "embedding")

    loaded = LocalEmbedder.load(source=str(tmp_path))
    assert loaded.tokenizer.encode("abcd") == [4, 5, 6, 7]
    expected = torch.stack([table[row].mean(0) for row in ROWS])
    np.testing.assert_allclose(await embedded(tmp_path), expected.numpy(), atol=1e-6)


def test_each_text_has_its_own_factors_of_long_rope() -> None:
    """A long text beside it changes nothing of a short one."""
    model = build("phi3 longrope").model
    install_long_rope(model)
    encoder = Encoder(model, PoolingConfig(poolings=("lasttoken",)))
    short, long = list(range(1, 8)), list(range(1, SHORT + 20))
    alone = [encoder([row])[0] for row in (short, long)]
    np.testing.assert_allclose(encoder([short, long]), np.stack(alone), atol=1e-5)
    with torch.inference_mode():
        plain = build("phi3 longrope").model(input_ids=torch.tensor([long])).last_hidden_state[0, -1]
    np.testing.assert_allclose(alone[1], normalize(plain, dim=0).numpy(), atol=1e-5)


def test_long_rope_is_installed_at_load(tmp_path: Path) -> None:
    AutoModel.from_config(build("phi3 longrope").config).save_pretrained(tmp_path)
    assert Encoder(read_encoder(str(tmp_path), "", torch.float32), PoolingConfig()).short_length == SHORT


def test_prompts_are_read(tmp_path: Path) -> None:
    save_embedder(tmp_path)
    save_modules(tmp_path)
    stated = {"prompts": {"query": "find: ", "document": None}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(stated))
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"include_prompt": False}))
    expected = TextPrompts({"query": "find: ", "document": ""}, "query", pools=False)
    assert read_pooling_config(str(tmp_path)).prompts == expected
    assert LocalEmbedder.load(source=str(tmp_path), dtype="float32").prompts == expected
