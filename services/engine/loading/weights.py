"""Reads the weights of a model, all of them or none.

`from_pretrained` fills tensors that a checkpoint lacks with random numbers, and leaves out those that the model has no
place for: such a model would answer with noise. What an architecture declares as ignorable, tied weights and buffers
are not among them.
"""

import logging
import re
from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import logging as transformers_logging

from services.engine.loading import progress
from services.engine.loading.unusable import UnusableModel
from services.engine.quantization import weight_format
from services.engine.quantization.needed_packages import INSTEAD, quantization_method, refuse_without_packages

logger = logging.getLogger(__name__)

SHOWN = 3  # names of tensors in a message
WEIGHTS_BAR = "Loading weights"  # transformers' progress bar over the tensors of a model


def _bar(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return progress.counted("reading", args[0]) if options.get("desc") == WEIGHTS_BAR else make(*args, **options)


transformers_logging.set_tqdm_hook(_bar)


def read_weights(
    kind: Any, source: str | None, *, optional: str | None = None, label: str | None = None, **options: Any
) -> Any:
    """`kind.from_pretrained(source, **options)`. Raises UnusableModel where a tensor is missing, or one is left out
    that belongs to a module of the model; of modules that the model does not have (heads for other uses, draft layers),
    the log tells. `optional`: a regular expression for what may be missing; `label`: of the source, in
    messages."""
    label = label or source
    model, report = kind.from_pretrained(source, output_loading_info=True, **options)
    missing = [name for name in report["missing_keys"] if optional is None or not re.search(optional, name)]
    if missing:
        raise UnusableModel(f"{label} lacks {_listed(missing)} of {type(model).__name__}")
    _expand_subclasses(model)
    modules = {name for name, _ in model.named_modules()}
    left_out = set(report["unexpected_keys"])
    inside = {name for name in left_out if name.rpartition(".")[0] in modules}
    if inside:
        raise UnusableModel(f"{label} has {_listed(inside)} that {type(model).__name__} does not read")
    if left_out:
        logger.warning("%s has %s that %s does not read", label, _listed(left_out), type(model).__name__)
    return model


def _expand_subclasses(model: Any) -> None:
    """torchao's weights are tensors of classes of their own in plain layers, which no kernel of ours reads."""
    if getattr(model.config, "quantization_config", None) is None:  # as those of a rank's part
        return
    for module in model.modules():
        if type(module) is not nn.Linear or type(module.weight) is nn.Parameter or module.weight.device.type != "cpu":
            continue
        module.weight = nn.Parameter(module.weight.dequantize().to(model.dtype), requires_grad=False)


def refuse_unread_config(config: Any, source: str) -> None:
    """Raises UnusableModel for what transformers reads as something else than it is."""
    if getattr(config, "is_encoder_decoder", False):
        raise UnusableModel(f"{source} is an encoder-decoder ({config.model_type}): a chat model is a decoder alone")
    quantization = getattr(config, "quantization_config", None)
    if not isinstance(quantization, dict):
        return
    if (method := quantization_method(quantization)) is None:
        raise UnusableModel(f"{source} is quantised by nobody knows what: its quantization_config has no quant_method")
    if weight_format(quantization) is None and not AutoHfQuantizer.supports_quant_method(quantization):
        raise UnusableModel(f"{source} is quantised by {method}, which transformers does not read. {INSTEAD}")
    refuse_without_packages(quantization, source)


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN])
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{'tensors' if len(names) > 1 else 'the tensor'} {shown}{rest}"
