"""What `transformers` leaves unread of the GGUF files of mixtures: the sizes of experts, and Mixtral, whose files name
their architecture `llama` and have experts all the same."""

from typing import Any

from transformers import MixtralConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    LlamaTensorProcessor,
    Qwen2MoeTensorProcessor,
    TensorProcessor,
)

from services.engine.quantization.gguf_experts import STACKED
from services.engine.quantization.gguf_header import Head

SIZES = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
LLAMA, MIXTRAL = "llama", "mixtral"
SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def complete_config(config: Any, head: Head) -> Any:
    """`config`: as `transformers` makes it of the file."""
    facts, architecture = head.facts, head.architecture
    for name, fact in SIZES.items():
        if hasattr(config, name) and (size := facts.get(f"{architecture}.{fact}")):
            setattr(config, name, size)
    count = facts.get(f"{LLAMA}.expert_count")
    if not count or config.model_type == MIXTRAL:
        return config
    own = {name: each for name, each in config.to_dict().items() if name in SHARED}
    used = facts.get(f"{LLAMA}.expert_used_count")
    return MixtralConfig(**own, num_local_experts=count, num_experts_per_tok=used)


def processor_of(architecture: str, config: Any) -> TensorProcessor:
    kind = (
        MixtralTensorProcessor if config.model_type == MIXTRAL else TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    )
    return kind(config=config.to_dict())


def named_like(config: Any) -> str:
    """The kind of model whose tensors have the names of this one's in a file."""
    return LLAMA if config.model_type == MIXTRAL else str(config.model_type)


class MixtralTensorProcessor(Qwen2MoeTensorProcessor):  # type: ignore[misc]
    """Queries and keys are Llama's, experts are laid out like Qwen's."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config=config)
        self._llama = LlamaTensorProcessor(config=config)

    def process(self, weights: Any, name: str, **kwargs: Any) -> Any:
        if STACKED.fullmatch(name):
            return super().process(weights, name, **kwargs)
        return self._llama.process(weights, name, **kwargs)
