"""Adapters with random weights, in folders as PEFT writes them, and models with such an adapter merged into them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")


def write_adapter(
    folder: Path,
    model: Any,
    *,
    targets: tuple[str, ...] = TARGETS,
    rank: int = 4,
    ranks: Mapping[str, int] | None = None,
    seed: int = 1,
    **config: Any,
) -> Path:
    """Of the layers whose paths end in one of `targets`. `ranks`: by the end of a path, where they differ."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if not any(path == name or path.endswith(f".{name}") for name in targets):
            continue
        own = next((each for name, each in (ranks or {}).items() if path.endswith(name)), rank)
        outputs, inputs = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
        for part, shape in (("A", (own, inputs)), ("B", (outputs, own))):
            tensors[f"base_model.model.{path}.lora_{part}.weight"] = torch.randn(shape, generator=generator) * 0.3
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**stated, **config}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@torch.no_grad()
def merge(model: Any, folder: Path, alphas: Mapping[str, float] | None = None) -> Any:
    """`alphas`: by the end of a path, where they differ."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        alpha = next((each for end, each in (alphas or {}).items() if path.endswith(end)), config["lora_alpha"])
        scale = alpha / (math.sqrt(len(down)) if config.get("use_rslora") else len(down))
        module = model.get_submodule(path)
        delta = scale * tensors[name.replace("lora_A", "lora_B")] @ down
        whole = module.weight + (delta.T if isinstance(module, Conv1D) else delta)
        module.weight = torch.nn.Parameter(whole)  # of a head that shares its weights with the embeddings only the head
    return model
