"""LongRoPE (Phi-3 and Phi-4 with 128k, MiniCPM3): a sequence is rotated by its short or by its long factors.

Transformers takes the long factors for a whole forward pass once any position in it is beyond
`original_max_position_embeddings`. In a step of several sequences that would give one sequence's choice to all, and the
chunks of one prompt would be read with different factors. Here each sequence has its own: the long ones from the token
on that makes it longer than the limit.

A sequence that crosses the limit while it is generated is computed again from its first token with the long factors, so
each token is what one forward pass over all tokens before it gives. `generate` does the same for Phi-3; for MiniCPM3 it
goes on with keys that were rotated by the short factors. vLLM chooses once by `max_model_len`: short sequences would
be read with long factors there.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from services.engine.scheduling.step import LONG_POSITIONS

LONGROPE = "longrope"
SHORT_SCALE, LONG_SCALE = "short_mscale", "long_mscale"  # Phi-3.5-MoE's


class LongRope(nn.Module):
    """In place of a rotary embedding: by the position id of each token, as `StepRow.position_ids` has them.

    Without any position from `LONG_POSITIONS` on, the largest decides for all, as before.
    """

    def __init__(self, rotary: Any, limit: int) -> None:
        super().__init__()
        self.limit = limit  # tokens of a sequence with short factors
        self.short = _fixed(rotary, limit, is_long=False)
        self.long = _fixed(rotary, limit, is_long=True)

    def forward(self, x: Tensor, position_ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """`position_ids` [rows, tokens] -> cosine and sine [rows, tokens, dim]"""
        marked = position_ids >= LONG_POSITIONS
        largest = position_ids.masked_fill(marked, 0).amax()
        is_long = (marked | (largest >= self.limit))[..., None]
        positions = position_ids % LONG_POSITIONS
        short = self.short(x, positions, **options)
        long = self.long(x, positions, **options)
        return torch.where(is_long, long[0], short[0]), torch.where(is_long, long[1], short[1])


def install_long_rope(model: nn.Module) -> None:
    """Replaces the rotary embeddings that choose between factors."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, LongRope) and (limit := _limit(child)):
                setattr(parent, name, LongRope(child, limit))


def short_length(model: Any) -> int | None:
    """Tokens of the longest sequence that is computed with short factors; None: the model has one kind of factors."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return min((limit for module in modules if (limit := _limit(module))), default=None)


def _limit(module: nn.Module) -> int | None:
    if isinstance(module, LongRope):
        return module.limit
    parameters = [_parameters(module, layer_type) for layer_type in _layer_types(module)]
    return min((int(each["original_max_position_embeddings"]) for each in parameters), default=None)


def _layer_types(module: nn.Module) -> list[str | None]:
    """Those with LongRoPE; None: the module has no types."""
    match getattr(module, "rope_type", None):
        case dict() as types:
            return [layer_type for layer_type, rope_type in types.items() if rope_type == LONGROPE]
        case rope_type:
            return [None] if rope_type == LONGROPE else []


def _parameters(module: Any, layer_type: str | None) -> dict[str, Any]:
    parameters: dict[str, Any] = module.config.rope_parameters
    return parameters if layer_type is None else parameters[layer_type]


def _fixed(rotary: Any, limit: int, *, is_long: bool) -> Any:
    """A copy that no longer chooses."""
    fixed = copy.deepcopy(rotary)
    for layer_type in _layer_types(rotary):
        prefix = "" if layer_type is None else f"{layer_type}_"
        buffer = getattr(fixed, f"{prefix}inv_freq")
        given = {} if layer_type is None else {"layer_type": layer_type}
        init = ROPE_INIT_FUNCTIONS[LONGROPE]
        frequencies, _ = init(rotary.config, buffer.device, seq_len=limit + 1 if is_long else None, **given)
        buffer.copy_(frequencies)
        own = _parameters(fixed, layer_type)
        scale = own.get(LONG_SCALE if is_long else SHORT_SCALE)
        own.update({SHORT_SCALE: scale, LONG_SCALE: scale})
    types = fixed.rope_type
    fixed.rope_type = dict.fromkeys(types, "default") if isinstance(types, dict) else "default"
    return fixed
