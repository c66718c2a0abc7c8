"""What sentence-transformers has behind the pooling: modules that make one vector of another, in float32."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.utils import cached_file

from services.errors import EngineFailed

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
VECTOR = "sentence_embedding"  # what a module is given, where it does not say otherwise


class Normalize(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=-1)


def read_module(source: str, kind: str, folder: str) -> nn.Module:
    """Raises EngineFailed for a module that is not supported, or not whole."""
    if kind == "Normalize":
        return Normalize()
    config = read_json(source, str(Path(folder, "config.json"))) or {}
    module = MODULES[kind](config)
    weights = {name.rpartition(".")[2]: tensor.float() for name, tensor in _weights(source, folder).items()}
    own = module[0] if isinstance(module, nn.Sequential) else module
    try:
        own.load_state_dict(weights)
    except RuntimeError as error:
        raise EngineFailed(f"the embedding model's {kind} module cannot be read: {error}") from error
    return module.eval().requires_grad_(False)


def _dense(config: Mapping[str, Any]) -> nn.Module:
    if config.get("module_input_name", VECTOR) != VECTOR:
        raise EngineFailed("the embedding model has a Dense module for token vectors, which is not supported")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    return nn.Sequential(linear, _activation(config.get("activation_function", "torch.nn.modules.activation.Tanh")))


def _activation(name: str) -> nn.Module:
    """By the path of a class of torch's: nothing else is imported."""
    found = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise EngineFailed(f"the embedding model's activation {name[:80]} is not supported")
    module: nn.Module = found()
    return module


MODULES: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "Dense": _dense,
    "LayerNorm": lambda config: nn.LayerNorm(config["dimension"]),
}
KINDS = {*MODULES, "Normalize"}


def _weights(source: str, folder: str) -> dict[str, Tensor]:
    for name in WEIGHTS:
        path = cached_file(source, str(Path(folder, name)), _raise_exceptions_for_missing_entries=False)
        if path and name.endswith(".safetensors"):
            return load_file(path)
        if path:
            tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            return tensors
    raise EngineFailed(f"the embedding model has no weights in {folder}")


def read_json(source: str, name: str) -> Any:
    """None: there is no such file."""
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text("utf-8")) if path else None
