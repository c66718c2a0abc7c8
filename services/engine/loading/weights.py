"""Reads the weights of a model, all of them or none.

`from_pretrained` fills tensors that a checkpoint lacks with random numbers, and leaves out those that the model has no
place for: such a model would answer with noise. What an architecture declares as ignorable, tied weights and buffers
are not among them.
"""

import logging
import re
from collections.abc import Collection
from typing import Any

from transformers.quantizers.auto import AutoHfQuantizer

from services.engine.loading.unusable import UnusableModel

logger = logging.getLogger(__name__)

SHOWN = 3  # names of tensors in a message


def read_weights(kind: Any, source: str, *, optional: str | None = None, **options: Any) -> Any:
    """`kind.from_pretrained(source, **options)`. Raises UnusableModel where a tensor is missing, or one is left out
    that belongs to a module of the model; of modules that the model does not have (heads for other uses, draft layers),
    the log tells. `optional`: a regular expression for what may be missing."""
    model, report = kind.from_pretrained(source, output_loading_info=True, **options)
    missing = [name for name in report["missing_keys"] if optional is None or not re.search(optional, name)]
    if missing:
        raise UnusableModel(f"{source} lacks {_listed(missing)} of {type(model).__name__}")
    modules = {name for name, _ in model.named_modules()}
    left_out = set(report["unexpected_keys"])
    inside = {name for name in left_out if name.rpartition(".")[0] in modules}
    if inside:
        raise UnusableModel(f"{source} has {_listed(inside)} that {type(model).__name__} does not read")
    if left_out:
        logger.warning("%s has %s that %s does not read", source, _listed(left_out), type(model).__name__)
    return model


def refuse_unread_config(config: Any, source: str) -> None:
    """Raises UnusableModel for what transformers reads as something else than it is."""
    if getattr(config, "is_encoder_decoder", False):
        raise UnusableModel(f"{source} is an encoder-decoder ({config.model_type}): a chat model is a decoder alone")
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict) and not AutoHfQuantizer.supports_quant_method(quantization):
        raise UnusableModel(
            f"{source} is quantised by {quantization['quant_method']}, which transformers does not read"
        )


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN])
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{'tensors' if len(names) > 1 else 'the tensor'} {shown}{rest}"
