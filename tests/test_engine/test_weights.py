"""A model gets all its weights, or is refused by the names of its tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from services.engine.embedding.embedder import LocalEmbedder
from services.engine.embedding.reranker import LocalReranker
from services.engine.loading.loader import Source, load
from services.engine.loading.unusable import UnusableModel
from tests.test_engine import tiny_encoders
from tests.test_engine.tiny_models import SHAPE, build
from tests.test_engine.tiny_tokenizers import byte_level

Tensors = dict[str, Tensor]
DOWN = "model.layers.1.mlp.down_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, tensors: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    save_file(tensors(load_file(file)), file, metadata={"format": "pt"})


def set_config(folder: Path, **values: Any) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.update(values)
    config.save_pretrained(folder)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lambda all: {name: all[name] for name in all if name != DOWN}, f"lacks the tensor {DOWN} of LlamaFor"),
        (lambda all: {name: all[name] for name in all if name != "lm_head.weight"}, "lacks the tensor lm_head.weight"),
        (
            lambda all: {f"other.{name}": all[name] for name in all},
            r"lacks tensors lm_head\.weight, .* and \d+ more of",
        ),
        (
            lambda all: {**all, f"{QUERY}.bias": all["model.norm.weight"].clone()},
            f"has the tensor {QUERY}.bias that LlamaFor",
        ),
        (
            lambda all: {**all, f"{QUERY}.weight_scale": all["model.norm.weight"].clone()},
            f"{QUERY}.weight_scale that Llama",
        ),
    ],
)
def test_no_weight_is_made_up_or_left_out(folder: Path, tensors: Callable[[Tensors], Tensors], said: str) -> None:
    change(folder, tensors)
    with pytest.raises(UnusableModel, match=said):
        load(Source(str(folder)), device="cpu")


@pytest.mark.parametrize(
    "extra", ["model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.weight", "mtp.0.proj.weight"]
)
def test_what_a_model_has_no_module_for_is_logged(folder: Path, extra: str, caplog: pytest.LogCaptureFixture) -> None:
    change(folder, lambda all: {**all, extra: all["model.norm.weight"].clone()})
    load(Source(str(folder)), device="cpu")
    assert (f"has the tensor {extra}" in caplog.text) is ("inv_freq" not in extra)


def test_tied_weights_may_be_absent(folder: Path) -> None:
    set_config(folder, tie_word_embeddings=True)
    change(folder, lambda all: {name: all[name] for name in all if name != "lm_head.weight"})
    model = load(Source(str(folder)), device="cpu").model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_reranker_without_its_head_is_refused(tmp_path: Path) -> None:
    tiny_encoders.save_reranker(tmp_path)
    change(tmp_path, lambda all: {name: all[name] for name in all if not name.startswith("classifier")})
    with pytest.raises(UnusableModel, match=r"lacks tensors classifier\.bias, classifier\.weight of BertFor"):
        LocalReranker.load(source=str(tmp_path), device="cpu")


def test_an_embedding_model_needs_no_pooler_but_all_its_layers(tmp_path: Path) -> None:
    tiny_encoders.save_embedder(tmp_path)
    assert LocalEmbedder.load(source=str(tmp_path), device="cpu").dimensions
    change(tmp_path, lambda all: {name: all[name] for name in all if "layer.1.output.dense" not in name})
    with pytest.raises(UnusableModel, match=r"lacks tensors encoder\.layer\.1\.output\.dense\.bias, .* of BertModel"):
        LocalEmbedder.load(source=str(tmp_path), device="cpu")


@pytest.mark.parametrize("method", ["modelopt", "exl2"])
def test_a_quantisation_that_nobody_reads_is_refused(folder: Path, method: str) -> None:
    set_config(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(UnusableModel, match=f"is quantised by {method}, which transformers does not read"):
        load(Source(str(folder)), device="cpu")


def test_an_encoder_decoder_is_refused(folder: Path) -> None:
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "bos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model("bart", **{**SHAPE, **small, **heads, "forced_eos_token_id": None})
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    with pytest.raises(UnusableModel, match=r"is an encoder-decoder \(bart\): a chat model is a decoder alone"):
        load(Source(str(folder)), device="cpu")
