"""A model gets all its weights, or is refused by the names of its tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, LlamaForCausalLM

from schemas.status_schema import LoadingProgress
from services.engine.embedding.embedder import LocalEmbedder
from services.engine.embedding.reranker import LocalReranker
from services.engine.loading import loader, progress
from services.engine.loading.loader import Source, load
from services.engine.loading.model_files import check
from services.engine.loading.unusable import UnusableModel
from services.engine.local import LocalEngine
from services.engine.quantization import needed_packages
from tests.test_engine import tiny_encoders
from tests.test_engine.packed_files import set_quantization
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


@pytest.mark.parametrize("method", ["exl2", "exl3"])
def test_a_quantisation_that_nobody_reads_is_refused(folder: Path, method: str) -> None:
    set_config(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(UnusableModel, match=f"is quantised by {method}, which transformers does not read. GPTQ, AWQ"):
        load(Source(str(folder)), device="cpu")


LACKING = {
    "hqq": {"nbits": 4},
    "torchao": {"quant_type": "int8wo"},
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "auto-round": {"bits": 4, "packing_format": "auto_round:auto_gptq"},
    "quanto": {"weights": "int8"},
    "aqlm": {"in_group_size": 8},
    "vptq": {},
}


@pytest.mark.parametrize("method", LACKING)
def test_a_quantisation_whose_package_is_not_installed_is_refused(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needed_packages, "find_spec", lambda name: None)
    set_quantization(folder, {"quant_method": method} | LACKING[method])
    said = f"is quantised by {method}, which is read where .+ is installed. GPTQ, AWQ, compressed-tensors and GGUF"
    for refused in (lambda: check(str(folder), "chat"), lambda: load(Source(str(folder)), device="cpu")):
        with pytest.raises(UnusableModel, match=said):
            refused()


def test_an_old_configuration_of_bitsandbytes_is_refused_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needed_packages, "find_spec", lambda name: None)
    set_quantization(folder, {"load_in_8bit": True})
    with pytest.raises(UnusableModel, match="is quantised by bitsandbytes, which is read where bitsandbytes is"):
        check(str(folder), "chat")


def test_a_quantisation_without_a_name_is_refused(folder: Path) -> None:
    set_quantization(folder, {"bits": 4})
    with pytest.raises(UnusableModel, match="its quantization_config has no quant_method"):
        load(Source(str(folder)), device="cpu")


def test_a_quantisation_for_gpus_is_refused_with_the_reason(folder: Path) -> None:
    set_quantization(folder, {"quant_method": "fbgemm_fp8"})
    with pytest.raises(UnusableModel, match=r"is quantised, and cannot be read here: Using fbgemm fp8 .* a GPU"):
        load(Source(str(folder)), device="cpu")


class Coded(Tensor):
    """As torchao has weights."""

    def dequantize(self) -> Tensor:
        return 2 * self.as_subclass(Tensor)


def test_weights_of_other_classes_are_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(Source(str(folder)), device="cpu", dtype="float32").model
    read = LlamaForCausalLM.from_pretrained

    def coded(*given: Any, **options: Any) -> Any:
        model, report = read(*given, **options)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().as_subclass(Coded), requires_grad=False)
        model.config.quantization_config = {"quant_method": "torchao"}
        return model, report

    monkeypatch.setattr(loader.AutoModelForCausalLM, "from_pretrained", coded)
    model = load(Source(str(folder)), device="cpu", dtype="float32").model
    assert type(model.lm_head.weight) is nn.Parameter
    assert torch.equal(model.lm_head.weight, 2 * plain.lm_head.weight)


def test_an_encoder_decoder_is_refused(folder: Path) -> None:
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "bos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model("bart", **{**SHAPE, **small, **heads, "forced_eos_token_id": None})
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    with pytest.raises(UnusableModel, match=r"is an encoder-decoder \(bart\): a chat model is a decoder alone"):
        load(Source(str(folder)), device="cpu")


def test_progress_is_reported_stage_by_stage_and_tensor_by_tensor(folder: Path) -> None:
    found: list[progress.LoadProgress] = []
    with progress.reported_to(found.append):
        LocalEngine.load(source=str(folder), device="cpu", max_num_seqs=2, use_warmup=True)
    stages = list(dict.fromkeys(each.stage for each in found))
    assert stages == ["waiting", "reading", "packing", "checking", "warming_up"]
    read = [each for each in found if each.stage == "reading" and each.total]
    total = len(load_file(folder / "model.safetensors"))
    assert [(each.done, each.total) for each in read] == [(done, total) for done in range(total + 1)]
    assert set(get_args(progress.Stage)) == set(get_args(LoadingProgress.model_fields["stage"].annotation))
