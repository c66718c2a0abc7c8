"""Models of every shape that matters, small and with random weights; sharp ones, so that a wrong key shows."""

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 199
WINDOW = 5  # shorter than every test's sequences
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SHORT = 16  # tokens of the longest sequence with short factors
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0, 1.5, 2.0],
    "long_factor": [1.0, 3.0, 9.0, 20.0],
    "original_max_position_embeddings": SHORT,
    "factor": 8.0,
}
LATENT = {  # multi-head latent attention
    "num_key_value_heads": 4,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MIXED = ["sliding_attention", "full_attention"]
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 20, "sliding_window": WINDOW}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2 sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": MIXED}),
    "gpt_oss": (
        "gpt_oss",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "layer_types": MIXED,
        },
    ),
    "gpt2": ("gpt2", GPT2),
    "mistral": ("mistral", {"head_dim": 8, "sliding_window": WINDOW}),
    "phi3": ("phi3", {}),
    "phi3 longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": SHORT}),
    "minicpm3 longrope": ("minicpm3", {**LATENT, "rope_parameters": LONGROPE}),
    "phimoe longrope": (
        "phimoe",
        {"num_local_experts": 2, "rope_parameters": {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.6}},
    ),
    "qwen2_moe": ("qwen2_moe", EXPERTS),  # makes a mask of no width, which no layer is given
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    # in these the window is in the masks alone; 12 is more than the few tokens a model is tried with
    "llama4 chunked": ("llama4_text", {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 12}),
    "phimoe sliding": ("phimoe", {"num_local_experts": 2, "sliding_window": 12}),
}
INDEXED = {
    **LATENT,
    "index_topk": 8,  # keys that a token sees
    "index_head_dim": 16,
    "index_n_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
SCANS = {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1}
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "falcon_mamba": {"state_size": 8},
    "rwkv": {"context_length": 128, "attention_hidden_size": 32},
    "xlstm": {"hidden_size": 64, "num_heads": 4, "num_blocks": 2, "chunk_size": 4, "qk_dim_factor": 1.0},
    "jamba": {**SCANS, "num_experts": 2},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "qwen3_next": {
        **EXPERTS,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_n_groups": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "zamba": {
        **SCANS,
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_key_value_heads": 4,
        "mamba_d_state": 8,
        "mamba_n_heads": 2,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
}


def build(name: str) -> Any:
    return build_kind(*MODELS[name])


def build_kind(kind: str, options: dict[str, Any]) -> Any:
    """The same weights each time it is called."""
    config = AutoConfig.for_model(kind, **copy.deepcopy({**SHAPE, **options}))  # some write into what they are given
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def generate(model: Any, prompt: tuple[int, ...], max_tokens: int) -> tuple[list[int], torch.Tensor]:
    """The model's own greedy answer, and the logits it was taken from."""
    if model.config.model_type == "minicpm3":  # beyond SHORT, its `generate` mixes keys of short and long factors
        return forward_each(model, prompt, max_tokens)
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


@torch.no_grad()
def forward_each(model: Any, prompt: tuple[int, ...], max_tokens: int) -> tuple[list[int], torch.Tensor]:
    """The same, each token by a forward pass over all before it."""
    tokens, logits = list(prompt), []
    for _ in range(max_tokens):
        logits.append(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :], torch.stack(logits)
