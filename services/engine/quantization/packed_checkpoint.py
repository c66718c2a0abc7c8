"""Models from quantised checkpoints in safetensors: on the CPU linear layers and experts keep their codes, in blocks;
elsewhere, and where a dtype is asked for, they are expanded.

Weights of other parts that the model has under other names are expanded, too: `transformers` renames and joins them as
those of any checkpoint.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from services.engine.loading.weights import read_weights
from services.engine.quantization import weight_format
from services.engine.quantization.block_experts import replace_experts
from services.engine.quantization.block_layers import can_replace, replace_layers
from services.engine.quantization.quantized_blocks import BlockSource
from services.engine.quantization.safetensors_files import SafetensorsFiles
from services.engine.quantization.stored_experts import StoredExperts, stored_experts
from services.engine.quantization.stored_weights import StoredWeight

logger = logging.getLogger(__name__)

CONFIG = "quantization_config"


def weight_format_name(config: Any) -> str | None:
    """None: it is not quantised, or not read here."""
    given = _quantization(config)
    return str(given["quant_method"]) if weight_format(given) else None


def read_packed(source: str, kind: Any, config: Any, dtype: torch.dtype, *, keep: bool, **options: Any) -> Any:
    """`kind`: an auto class; `keep`: codes, for which the kernel of `block_layers` is needed. Raises UnusableModel for
    a variant that is not read."""
    given = _quantization(config)
    form = weight_format(given)
    assert form is not None  # weight_format_name
    files = SafetensorsFiles(source)
    stored = form.stored_weights(files, given)
    for each in (config, config.get_text_config()):
        if hasattr(each, CONFIG):
            delattr(each, CONFIG)
    with torch.device("meta"):
        empty = kind.from_config(config, **options)
    kept = _kept(empty, stored) if keep else {}
    experts = stored_experts(empty, stored) if keep else {}
    rest = _without(stored, experts)
    state = _state(files, stored, rest, kept, dtype) | _placeholders(experts, dtype)
    model = read_weights(type(empty), None, config=config, state_dict=state, dtype=dtype, label=source)
    replace_layers(model, kept, dtype)
    replace_experts(model, {path: each.sources for path, each in experts.items()})
    if (files.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(files.folder)
    if keep:
        num_kept = len(kept) + len(stored) - len(rest)
        logger.info("%d of %d quantised weights are kept in blocks", num_kept, len(stored))
    return model


def _quantization(config: Any) -> dict[str, Any]:
    """Its own, or that of its language part."""
    given = getattr(config, CONFIG, None)
    if given is None and hasattr(config, "get_text_config"):
        given = getattr(config.get_text_config(), CONFIG, None)
    return given if isinstance(given, dict) else {}


def _kept(empty: Any, stored: dict[str, StoredWeight]) -> dict[str, BlockSource]:
    modules = dict(empty.named_modules())
    head = empty.get_output_embeddings()
    kept: dict[str, BlockSource] = {}
    for path, weight in stored.items():
        module = modules.get(path)
        if not isinstance(module, nn.Module) or not can_replace(module) or module.weight.shape != weight.shape:
            continue
        if (source := weight.blocks()) is None or (module is head and source.input_order is not None):
            continue
        kept[f"{path}.weight"] = source
    return kept


def _without(stored: dict[str, StoredWeight], experts: dict[str, StoredExperts]) -> dict[str, StoredWeight]:
    names = {name for each in experts.values() for name in each.names}
    return {path: weight for path, weight in stored.items() if path not in names}


def _placeholders(experts: dict[str, StoredExperts], dtype: torch.dtype) -> dict[str, Tensor]:
    shapes = {name: shape for each in experts.values() for name, shape in each.shapes.items()}
    return {name: torch.zeros((), dtype=dtype).expand(shape) for name, shape in shapes.items()}


def _state(
    files: SafetensorsFiles,
    stored: dict[str, StoredWeight],
    rest: dict[str, StoredWeight],
    kept: dict[str, BlockSource],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Numbers of the `rest`, and placeholders where layers are to keep blocks."""
    used = {name for weight in stored.values() for name in weight.tensors}
    state = {name: files[name] for name in files if name not in used}
    for path, weight in rest.items():
        name = f"{path}.weight"
        state[name] = torch.zeros((), dtype=dtype).expand(weight.shape) if name in kept else weight.expanded(dtype)
    return state
