"""Which sizes a model can be split into, known before any weight is read.

transformers has a plan for many architectures: which layers are split by their outputs and which by their inputs
(`base_model_tp_plan`). Whether the sizes divide is seen here; its own code fails in the first step otherwise.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import nn

from services.errors import EngineFailed

SETTING = "'tensor_parallel_size'"
VOCABULARY = ("embedding_rowwise", "colwise_gather_output", "colwise_rep")  # the last rank may have a smaller part
BY_OUTPUTS = ("colwise", "packed_colwise")
BY_INPUTS = ("rowwise", "packed_rowwise", "rowwise_split_input", "rowwise_rep")


@dataclass(frozen=True, slots=True)
class Divided:
    """What must be a multiple of the number of ranks."""

    number: int
    name: str


def check_split(kind: Any, config: Any, size: int) -> None:
    """Raises EngineFailed, naming the sizes that would do. `kind`: the auto class that the model is built by."""
    with torch.device("meta"):
        model = kind.from_config(config)
    name = type(model).__name__
    if not config.get_text_config().base_model_tp_plan:
        raise EngineFailed(f"{SETTING}: transformers has no plan to split {name}")
    parts = sorted(set(_divided(model, config.get_text_config())), key=lambda part: part.number)
    if any(part.number % size for part in parts):
        common = gcd(*(part.number for part in parts))
        sizes = [str(each) for each in range(2, common + 1) if common % each == 0]
        wrong = ", ".join(f"{part.number} {part.name}" for part in parts if part.number % size)
        possible = f"possible sizes: {', '.join(sizes)}" if sizes else "it cannot be split"
        raise EngineFailed(f"{SETTING}: {name} has {wrong}, which is no multiple of {size}; {possible}")


@dataclass(frozen=True, slots=True)
class Part:
    """Which rows and columns of a matrix are one rank's; None: all."""

    rows: range | None = None
    columns: range | None = None


def part_of(name: str, shape: tuple[int, ...], plan: dict[str, str], rank: int, size: int) -> Part | None:
    """None: what is split in another way."""
    match style_of(name.rpartition(".")[0], plan) or style_of(name, plan):
        case None | "replicate":
            return Part()
        case "colwise" | "colwise_gather_output" | "colwise_rep" | "embedding_rowwise":
            return Part(rows=_share(shape[0], rank, size))
        case "rowwise" | "rowwise_split_input" | "rowwise_rep":
            return Part(columns=_share(shape[1], rank, size))
    return None


def _share(number: int, rank: int, size: int) -> range:
    """The last ones may be smaller."""
    each = -(-number // size)
    return range(number)[rank * each : (rank + 1) * each]


def style_of(name: str, plan: dict[str, str]) -> str | None:
    """Of a module or a parameter, by its path: the plans have `*` in place of numbers."""
    return plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))


def _divided(model: Any, config: Any) -> Iterator[Divided]:
    yield from _heads(model, config)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            style = style_of(f"{path}.{name}", model.tp_plan) or style_of(path, model.tp_plan)
            if style in BY_OUTPUTS and parameter.ndim > 1:
                factor = 2 if style == "packed_colwise" else 1
                yield Divided(parameter.shape[-2] // factor, f"outputs of {_short(path)}")
            elif style in BY_INPUTS and parameter.ndim > 1:
                yield Divided(parameter.shape[-1], f"inputs of {_short(path)}")


def _heads(model: Any, config: Any) -> Iterator[Divided]:
    """Of layers whose heads are split: each rank has whole ones."""
    for path, module in model.named_modules():
        if style_of(f"{path}.q_proj", model.tp_plan) == "colwise" and hasattr(module, "head_dim"):
            for part, name in (("q_proj", "attention heads"), ("k_proj", "key/value heads")):
                if isinstance(linear := getattr(module, part, None), nn.Linear):
                    yield Divided(linear.out_features // module.head_dim, name)
    if any(style == "colwise" and ".self_attn." in path for path, style in model.tp_plan.items()):
        for attribute, name in (("num_attention_heads", "attention heads"), ("num_key_value_heads", "key/value heads")):
            number = getattr(config, attribute, None)
            yield from (Divided(each, name) for each in (number if isinstance(number, list) else [number]) if each)


def _short(path: str) -> str:
    return ".".join(path.split(".")[-2:])
