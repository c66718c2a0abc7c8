"""Linear layers with weights of 4 bits, in blocks of 32 with a scale and a minimum, by the kernel of `block_layers`: a
third of the memory of bfloat16. What suffers most from 4 bits has 5 or 8.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from services.engine.execution.model_structure import language_modules, trial_tokens
from services.engine.quantization.block_layers import block_formats, ensure_kernel, replace_layers
from services.engine.quantization.quantized_blocks import BlockFormat
from services.engine.quantization.rounded_weights import EIGHT, FIVE, FOUR, RoundedWeight, round_experts
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

DEVICES = ("cpu",)
KERNELS: tuple[Path, ...] = ()  # those of block_layers

# What suffers most from 4 bits for its bytes, by what was measured (docs/engine.md). Keys have the format of values, so
# that both are one product
WIDER = {"k_proj": EIGHT, "v_proj": EIGHT, "down_proj": FIVE}
HEAD = FIVE

ALIKE = 0.8  # what says less like the model is another one
TRIAL = 8  # tokens


@torch.inference_mode()
def quantise(model: Any, folder: Path | None) -> None:
    """All linear layers and experts that speak. `folder`: where the kernels are, or are put."""
    if not ensure_kernel(folder):
        raise EngineFailed("'quantization': int4 needs a C++ compiler, to build its kernels; int8 needs none")
    before = _logits(model)
    dtype = next(model.parameters()).dtype
    replace_layers(model, {name: RoundedWeight(weight, form) for name, weight, form in _weights(model)}, dtype)
    round_experts(model, FOUR, WIDER["down_proj"])
    if not block_formats(model):
        raise _refused(model, "it has no layers that could be")
    try:
        alike = cosine_similarity(_logits(model).float(), before.float(), dim=-1).min()
    except Exception as error:  # some reach for a layer's weight themselves
        raise _refused(model, f"its layers are used as something else ({type(error).__name__})") from error
    if not alike > ALIKE:
        raise _refused(model, f"its logits differ (cosine {alike:.3f})")


def format_of(name: str) -> BlockFormat:
    """Of a linear layer's weight."""
    return WIDER.get(name.removesuffix(".weight").rpartition(".")[2], FOUR)


def register_fakes() -> None:
    """`block_layers` describes them."""


def _weights(model: Any) -> Iterator[tuple[str, Tensor, BlockFormat]]:
    """By their names in the model, with the formats that they are to have."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    head = model.get_output_embeddings()
    for module in language_modules(model):
        for layer in module.children():
            if type(layer) is nn.Linear:
                name = names[id(layer.weight)]
                yield name, layer.weight, HEAD if layer is head else format_of(name)


def _logits(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([trial_tokens(model, TRIAL)]), use_cache=False).logits[0]
    return logits


def _refused(model: Any, reason: str) -> EngineFailed:
    return EngineFailed(f"'quantization': {type(model).__name__} cannot be served in int4: {reason}")
