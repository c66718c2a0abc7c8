"""Reads an adapter's weights, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from services.engine.loading.unusable import UnusableModel
from services.engine.lora.adapter_config import WEIGHTS, AdapterConfig, read_adapter_config

PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a layer's outputs: `inputs @ down.T @ up`."""

    down: Tensor  # [rank, inputs]
    up: Tensor  # [rank, outputs], scaled

    @property
    def rank(self) -> int:
        return len(self.down)


@dataclass(frozen=True, slots=True)
class Adapter:
    config: AdapterConfig
    layers: Mapping[str, LowRank]  # by the paths of a model's modules


def read_adapter(folder: Path, dtype: torch.dtype) -> Adapter:
    """Raises UnusableModel for an adapter that is not supported, or not whole. Blocking."""
    config = read_adapter_config(folder)
    try:
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise UnusableModel(f"{folder / WEIGHTS} cannot be read: {error}") from None
    layers = {name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)}
    if unknown := sorted(tensors.keys() - {layer + part for layer in layers for part in (DOWN, UP)}):
        raise UnusableModel(f"{folder} has the tensor {unknown[0]}, which is not supported")
    if not layers:
        raise UnusableModel(f"{folder} has no weights of LoRA layers")
    return Adapter(config, {layer: _low_rank(folder, config, layer, tensors, dtype) for layer in sorted(layers)})


def _low_rank(
    folder: Path, config: AdapterConfig, layer: str, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> LowRank:
    down, up = tensors[layer + DOWN], tensors.get(layer + UP)
    if up is None:
        raise UnusableModel(f"{folder} lacks the tensor {layer}{UP}")
    rank = config.rank_of(layer)
    if down.ndim != 2 or up.ndim != 2 or not len(down) == up.shape[1] == rank:
        raise UnusableModel(f"{folder}: the weights of {layer} are not of rank {rank}, as 'r' says")
    scaled = up.float().T * config.scale_of(layer)
    low_rank = LowRank(down.to(dtype).contiguous(), scaled.to(dtype).contiguous())
    if not (low_rank.down.isfinite().all() and low_rank.up.isfinite().all()):
        raise UnusableModel(f"{folder}: the weights of {layer} are not numbers in {dtype}")
    return low_rank
