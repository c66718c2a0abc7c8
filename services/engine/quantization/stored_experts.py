"""The experts of a quantised checkpoint in safetensors, which has a weight for each of them, where they can stay in
blocks: `transformers` joins them in one tensor for a layer's first product and one for its second."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.engine.quantization.block_experts import DOWN, GATE_UP, ExpertSources, Sources, expert_modules
from services.engine.quantization.stored_weights import StoredWeight

ONE = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")
PARTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
RENAMED = ("block_sparse_moe", "mlp")  # Mixtral's, in checkpoints and in models

Weights = dict[int, StoredWeight]  # by the expert's number


@dataclass(frozen=True, slots=True)
class StoredExperts:
    """Of one layer. `names`: of its weights in the checkpoint; `shapes` of the model's parameters by their names."""

    sources: ExpertSources
    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]


def stored_experts(model: Any, stored: Mapping[str, StoredWeight]) -> dict[str, StoredExperts]:
    """By the paths of their modules."""
    parts: dict[str, dict[str, Weights]] = defaultdict(lambda: defaultdict(dict))
    names: dict[str, list[str]] = defaultdict(list)
    for name, weight in stored.items():
        if (match := ONE.fullmatch(name)) and match[3] in PARTS:
            path = match[1].replace(*RENAMED)
            parts[path][PARTS[match[3]]][int(match[2])] = weight
            names[path].append(name)
    found = {path: _sources(experts, parts[path]) for path, experts in expert_modules(model) if path in parts}
    modules = dict(model.named_modules())
    return {
        path: StoredExperts(sources, tuple(names[path]), _shapes(path, modules[path]))
        for path, sources in found.items()
        if sources is not None
    }


def _shapes(path: str, experts: Any) -> dict[str, tuple[int, ...]]:
    return {f"{path}.{name}": tuple(getattr(experts, name).shape) for name in (GATE_UP, DOWN)}


def _sources(experts: Any, parts: Mapping[str, Weights]) -> ExpertSources | None:
    """None for what must be expanded."""
    if not experts.has_gate or experts.is_transposed or not experts.is_concatenated or experts.has_bias:
        return None
    count, rows, inputs = experts.gate_up_proj.shape
    _, outputs, inner = experts.down_proj.shape
    gate, up = (_in_blocks(parts.get(part, {}), count, (rows // 2, inputs)) for part in ("gate", "up"))
    down = _in_blocks(parts.get("down", {}), count, (outputs, inner))
    return None if gate is None or up is None or down is None else ExpertSources([gate, up], down)


def _in_blocks(weights: Weights, count: int, shape: tuple[int, int]) -> Sources | None:
    """Of one format, with inputs in their order."""
    if set(weights) != set(range(count)) or any(each.shape != shape for each in weights.values()):
        return None
    sources = [source for index in range(count) if (source := weights[index].blocks()) is not None]
    if len(sources) < count or any(each.input_order is not None for each in sources):
        return None
    return sources if len({each.format for each in sources}) == 1 else None
