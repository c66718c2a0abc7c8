"""Small GGUF files, as llama.cpp's converters lay them out, of random numbers in any mix of types."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

from services.engine.quantization.gguf_mixtures import named_like, processor_of

Kind = GGMLQuantizationType

VOCABULARY, HIDDEN, INNER, HEADS, LAYERS, LENGTH = 320, 256, 512, 2, 2, 128  # heads of 128, as transformers has Qwen3's
SCALES = {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}  # where the halves of a block of a K type are
NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}  # as transformers has them
FILE_NAMES = {"mixtral": "llama"}  # of architectures
EXPERT = 768  # transformers does not read the size from the file
NUM_EXPERTS, NUM_USED = 4, 2
MOE = {"num_experts": NUM_EXPERTS, "num_experts_per_tok": NUM_USED}
MIXTURES: dict[str, dict[str, int]] = {
    "qwen2moe": MOE | {"moe_intermediate_size": EXPERT, "shared_expert_intermediate_size": INNER},
    "qwen3moe": MOE | {"moe_intermediate_size": EXPERT},
    "mixtral": {"num_local_experts": NUM_EXPERTS, "num_experts_per_tok": NUM_USED},
}


def vocabulary_of(architecture: str) -> int:
    return 32_064 if architecture == "phi3" else VOCABULARY  # whose padding token transformers takes for granted


def config_of(architecture: str, heads: int = HEADS) -> Any:
    config = AutoConfig.for_model(
        NAMES.get(architecture, architecture),
        vocab_size=vocabulary_of(architecture),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=HIDDEN // heads,
        max_position_embeddings=LENGTH,
        pad_token_id=None,
        **MIXTURES.get(architecture, {}),
    )
    config.tie_word_embeddings = False
    return config


def write_gguf(
    path: Path,
    architecture: str,
    kinds: tuple[Kind, ...],
    *,
    tied: bool = False,
    heads: int = HEADS,
    more: Mapping[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"] | None = None,
) -> None:
    """Matrices have the `kinds` in turns; the others, and `more`, are in float32."""
    writer = gguf.GGUFWriter(path, FILE_NAMES.get(architecture, architecture))
    _write_metadata(writer, architecture, heads)
    random, turns = np.random.default_rng(0), cycle(kinds)
    for name, shape in _shapes(architecture, heads).items():
        if tied and name == "output.weight":
            continue
        if len(shape) < 2 or "gate_inp" in name:
            writer.add_tensor(name, (1 + random.standard_normal(shape) / 20).astype(np.float32))
        else:
            _add(writer, name, random.standard_normal(shape).astype(np.float32) / 16, next(turns), random)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer: gguf.GGUFWriter, architecture: str, heads: int) -> None:
    writer.add_name("Tiny")
    writer.add_vocab_size(vocabulary_of(architecture))
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 2)
    writer.add_key_length(HIDDEN // heads)
    writer.add_value_length(HIDDEN // heads)
    writer.add_rope_dimension_count(HIDDEN // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    if architecture.startswith("gemma"):
        writer.add_sliding_window(16)
    if architecture in MIXTURES:
        writer.add_expert_count(NUM_EXPERTS)
        writer.add_expert_used_count(NUM_USED)
    if architecture.endswith("moe"):
        writer.add_expert_feed_forward_length(EXPERT)
        writer.add_expert_shared_feed_forward_length(INNER)


def _shapes(architecture: str, heads: int) -> dict[str, tuple[int, ...]]:
    """Of the tensors, by their names in the file."""
    config = config_of(architecture, heads)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = get_gguf_hf_weights_map(model, processor_of(architecture, config), named_like(config))
    state = model.state_dict()
    shapes = {name: tuple(state[key].shape) for name, key in sorted(names.items()) if key in state}
    return {_file_name(name): _single(name, shape) for name, shape in shapes.items()}


def _file_name(name: str) -> str:
    return f"{name}.weight" if name.endswith("_exps") else name  # parameters, not modules, in transformers


def _single(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """transformers has the gates and the ups of experts in one tensor, and a shared expert's gate as a matrix."""
    if "ffn_gate_inp_shexp" in name:
        return shape[1:]
    merged = "ffn_gate_exps" in name or "ffn_up_exps" in name
    return (shape[0], shape[1] // 2, *shape[2:]) if merged else shape


def _add(writer: gguf.GGUFWriter, name: str, values: Any, kind: Kind, random: Any) -> None:
    if kind in SCALES:
        writer.add_tensor(name, _random_blocks(values.shape, kind, random), raw_dtype=kind)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _random_blocks(shape: tuple[int, ...], kind: Kind, random: Any) -> Any:
    """The gguf package does not quantise to K types."""
    size, num_bytes = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // size, num_bytes), dtype=np.uint8)
    for at in SCALES[kind]:
        halves = (random.random((*blocks.shape[:-1], 1)) / 20_000).astype(np.float16)
        blocks[..., at : at + 2] = halves.view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)
