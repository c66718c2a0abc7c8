"""`adapter_config.json`, as PEFT writes it: which layers an adapter changes, and by how much. No torch.

What this server does not apply is refused by its name in that file: an adapter that is applied in part answers with
noise.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from services.engine.loading.unusable import UnusableModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
MAX_RANK = 64
ALL_LINEAR = "all-linear"
# initialisations that subtract the adapter from the base model, which is then another model than the one served here
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")

Number = TypeVar("Number", int, float)
Layers = str | tuple[str, ...] | None

REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "use_dora": (bool, "DoRA is not supported"),
    "bias": (lambda value: value not in (None, "none"), "trained biases are not supported"),
    "lora_bias": (bool, "biases of adapters are not supported"),
    "modules_to_save": (bool, "whole layers in an adapter are not supported"),
    "trainable_token_indices": (bool, "trained embeddings are not supported"),
    "target_parameters": (bool, "parameters that are no linear layers are not supported"),
    "layer_replication": (bool, "repeated layers are not supported"),
    "alora_invocation_tokens": (bool, "activated LoRA is not supported"),
    "init_lora_weights": (
        lambda value: isinstance(value, str) and value.startswith(CHANGES_BASE),
        "the adapter was not converted: it goes with a changed base model",
    ),
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]  # regular expression of a layer's path -> its own
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool  # rsLoRA: divided by the root of the rank
    targets: Layers
    excluded: Layers
    selects_layers: bool  # by number, besides `targets`

    def rank_of(self, layer: str) -> int:
        return _matching(self.rank_pattern, layer, self.rank)

    def scale_of(self, layer: str) -> float:
        rank, alpha = self.rank_of(layer), _matching(self.alpha_pattern, layer, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def must_have(self, layer: str) -> bool:
        """Whether the file would lack the layer's weights if it had none. Of "all-linear" and of layers by number no
        more is known than what the file has."""
        if self.targets == ALL_LINEAR or self.selects_layers or _names(self.excluded, layer):
            return False
        return _names(self.targets, layer)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Raises UnusableModel for a folder without an adapter of PEFT's, and for an adapter that is not supported."""
    if not folder.is_dir():
        raise UnusableModel(f"there is no folder {folder}")
    if not (folder / CONFIG).is_file():
        raise UnusableModel(f"{folder} is no adapter of PEFT's: it has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        pickled = f"; {PICKLED} is not read, save it as safetensors" if (folder / PICKLED).exists() else ""
        raise UnusableModel(f"{folder} has no {WEIGHTS}{pickled}")
    stated = _stated(folder / CONFIG)
    for name, (is_refused, reason) in REFUSED.items():
        if is_refused(stated.get(name)):
            raise UnusableModel(f"{folder}: '{name}': {reason}")
    try:
        config = _config(stated)
        ranks = [config.rank, *config.rank_pattern.values()]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnusableModel(f"{folder / CONFIG} cannot be read: {type(error).__name__} {error}") from None
    if not all(1 <= rank <= MAX_RANK for rank in ranks):
        raise UnusableModel(f"{folder}: 'r' is {max(ranks)}, ranks from 1 to {MAX_RANK} are supported")
    return config


def _stated(path: Path) -> dict[str, Any]:
    try:
        stated = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnusableModel(f"{path} is no JSON: {error}") from None
    if not isinstance(stated, dict):
        raise UnusableModel(f"{path} is no JSON object")
    if stated.get("peft_type") != "LORA":
        raise UnusableModel(f"{path}: 'peft_type' is {str(stated.get('peft_type'))[:40]}, only LORA is supported")
    return stated


def _config(stated: Mapping[str, Any]) -> AdapterConfig:
    return AdapterConfig(
        rank=int(stated["r"]),
        alpha=float(stated["lora_alpha"]),
        rank_pattern={_expression(key): int(rank) for key, rank in (stated.get("rank_pattern") or {}).items()},
        alpha_pattern={_expression(key): float(alpha) for key, alpha in (stated.get("alpha_pattern") or {}).items()},
        rank_stabilised=bool(stated.get("use_rslora")),
        targets=_layers(stated.get("target_modules")),
        excluded=_layers(stated.get("exclude_modules")),
        selects_layers=stated.get("layers_to_transform") is not None,
    )


def _layers(stated: Any) -> Layers:
    """A string is a regular expression of whole paths, except "all-linear"; a list has the ends of paths."""
    match stated:
        case None:
            return None
        case str():
            return stated if stated == ALL_LINEAR else _expression(stated)
        case _:
            return tuple(map(str, stated))


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is no regular expression: {error}") from None
    return text


def _names(layers: Layers, layer: str) -> bool:
    match layers:
        case None:
            return False
        case str():
            return re.fullmatch(layers, layer) is not None
        case _:
            return any(layer == each or layer.endswith(f".{each}") for each in layers)


def _matching(pattern: Mapping[str, Number], layer: str, otherwise: Number) -> Number:
    found = (value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", layer))
    return next(found, otherwise)
