"""The linear layers of a model that an adapter may change, by their paths, as they are after packing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from services.engine.cpu.merged_linear import PACKED, Float32Head, LinearSlice, MergedLinear
from services.engine.execution.model_structure import language_modules
from services.engine.quantization.block_layers import BlockLinear
from services.engine.quantization.int8 import QuantizedLinear

LINEAR = nn.Linear | PACKED | MergedLinear | LinearSlice | QuantizedLinear | BlockLinear | Float32Head | Conv1D
AROUND = MergedLinear | Float32Head  # these have a layer of their own inside


@dataclass(frozen=True, slots=True)
class Site:
    index: int
    module: nn.Module
    inputs: int
    outputs: int
    is_head: bool  # it is given the tokens whose logits are wanted


def find_sites(model: Any) -> dict[str, Site]:
    """Those that a text goes through."""
    head = model.get_output_embeddings()
    sites: dict[str, Site] = {}
    for path, module in _linear_modules(model):
        inputs, outputs = _sizes(module)
        sites[path] = Site(len(sites), module, inputs, outputs, module is head)
    return sites


def _linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Without the layers inside of others: the product that a merged one computes for its neighbours, too."""
    speaking = {id(child) for module in language_modules(model) for child in module.children()}
    for path, module in model.named_modules():
        parent = model.get_submodule(path.rpartition(".")[0])
        if isinstance(module, LINEAR) and id(module) in speaking and not isinstance(parent, AROUND):
            yield path, module


def _sizes(module: Any) -> tuple[int, int]:
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)
