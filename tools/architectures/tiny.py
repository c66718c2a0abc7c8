"""A tiny random model of any kind: hidden size 64, every layer type, a window of 16 tokens, a context of 256."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

VOCABULARY = 512
SHARPNESS = 0.2  # standard deviation of weights: answers vary, and every layer matters

# by every name that configurations have for it
SIZES: dict[int, tuple[str, ...]] = {
    VOCABULARY: ("vocab_size",),
    256: ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "context_length"),
    128: ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "n_inner"),
    64: (
        "hidden_size",
        "n_embd",
        "d_model",
        "lru_width",
        "embedding_size",
        "attention_hidden_size",
        "word_embed_proj_dim",
    ),
    32: ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "index_head_dim"),
    16: (
        *("head_dim", "v_head_dim", "global_head_dim", "sliding_window", "attention_window_size", "window_size"),
        *("attention_chunk_size", "q_lora_rank", "kv_lora_rank", "linear_key_head_dim", "linear_value_head_dim"),
        *("mamba_d_head", "mamba_head_dim", "rotary_dim", "swa_head_dim", "swa_v_head_dim", "o_lora_rank"),
    ),
    8: (
        *("qk_rope_head_dim", "qk_nope_head_dim", "mamba_d_state", "state_size", "ssm_state_size", "mamba_n_heads"),
        *("index_topk", "chunk_size", "mamba_chunk_size", "mamba_num_heads"),
    ),
    4: (
        *("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers", "num_blocks"),
        *(
            "num_attention_heads",
            "n_head",
            "num_heads",
            "n_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
        ),
        *("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "linear_num_value_heads"),
    ),
    2: (
        *("num_key_value_heads", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"),
        *("linear_num_key_heads", "num_global_key_value_heads", "index_n_heads", "swa_num_key_value_heads"),
    ),
    1: ("n_group", "topk_group", "mamba_n_groups", "n_groups", "first_k_dense_replace", "n_shared_experts"),
}
SIZE_OF = {name: size for size, names in SIZES.items() for name in names}
SCANS = {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1}
TWO_TYPES = {"layer_types": ["sliding_attention", "full_attention"] * 2}
LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
ONE_KEY_A_HEAD = {"num_key_value_heads": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "axk2": ONE_KEY_A_HEAD,
    "bailing_hybrid": {**LINEAR, **ONE_KEY_A_HEAD},
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 64},
    },
    "deepseek_v32": ONE_KEY_A_HEAD,
    "dots3_note_text": ONE_KEY_A_HEAD,
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128},
    "gemma3n_text": {
        **TWO_TYPES,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 8,
    },
    "glm_moe_dsa": ONE_KEY_A_HEAD,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": LINEAR,
    "jamba": SCANS,
    "kimi_linear": LINEAR,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": ONE_KEY_A_HEAD,
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "mpt": {"max_seq_len": 256},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xlstm": {"qk_dim_factor": 1.0},
    "zamba": {
        **SCANS,
        **ONE_KEY_A_HEAD,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
        "mamba_n_heads": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 8, "mamba_headdim": 16},
}


def build(kind: str) -> Any:
    """The same weights each time. Raises whatever a configuration raises that cannot be made small."""
    config = _config(kind)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        _sharpen(model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _config(kind: str) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = config_class(
        **{**_options(config_class), **_text(config_class), **SPECIAL.get(kind, {})}
    )
    return config


def _text(config_class: Any) -> dict[str, Any]:
    """Of a kind that also sees, hears or draws: its text part."""
    parts = getattr(config_class, "sub_configs", {})
    return {"text_config": _options(part)} if (part := parts.get("text_config")) and part is not config_class else {}


def _options(config_class: Any) -> dict[str, Any]:
    known = set(inspect.signature(config_class.__init__).parameters) | set(dir(config_class))
    sizes = {name: size for name, size in SIZE_OF.items() if name in known and not _is_derived(config_class, name)}
    tokens = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    return {**sizes, **tokens, "is_decoder": True} if "is_decoder" in known else {**sizes, **tokens}


def _is_derived(config_class: Any, name: str) -> bool:
    found = getattr(config_class, name, None)
    return isinstance(found, property) and found.fset is None


def _sharpen(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            nn.init.normal_(module.weight, std=SHARPNESS)
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 3 and "onv" not in type(module).__name__:  # experts
                nn.init.normal_(parameter, std=SHARPNESS)
