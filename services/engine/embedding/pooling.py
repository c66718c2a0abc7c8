"""How token vectors become one vector: the sentence-transformers configuration in a model's folder.

It is read by hand (modules.json and what it names): the sentence-transformers package would bring scikit-learn and
scipy (209 MB), and computes batch after batch for one caller, where these are shared by many.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from services.engine.base import TextPrompts
from services.engine.embedding.modules import KINDS, Normalize, read_json, read_module
from services.engine.embedding.sentence_config import text_prompts
from services.errors import EngineFailed

STATIC = "StaticEmbedding"

# Hidden states (rows, width, size) in float32 and their mask (rows, width, 1) to vectors (rows, size). Rows are padded
# on the right. In the order in which sentence-transformers joins several.
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -torch.inf).amax(1),
    "mean": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1),
    "mean_sqrt_len_tokens": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1).sqrt(),
    "weightedmean": lambda hidden, mask: POOLINGS["mean"](hidden, mask * mask.cumsum(1)),  # later tokens count more
    "lasttoken": lambda hidden, mask: hidden.take_along_dim(mask.sum(1, keepdim=True).long() - 1, 1)[:, 0],
}
FLAGS = {  # their names in older configurations, which list all of them as true or false
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """How one model's token vectors become one vector. The defaults hold for a folder that says nothing."""

    poolings: tuple[str, ...] = ("mean",)  # several are joined end to end
    normalise: bool = True
    max_length: int | None = None  # None: whatever the model takes
    lower_case: bool = False
    subfolder: str = ""  # where the transformer lies
    modules: tuple[tuple[str, str], ...] = ()  # kind and folder of each between pooling and normalisation, in order
    prompts: TextPrompts = field(default_factory=TextPrompts)
    is_static: bool = False  # no model: vectors of tokens, and their mean


def read_pooling_config(source: str) -> PoolingConfig:
    """Raises EngineFailed for a model with modules or poolings that would be left out here."""
    modules = read_json(source, "modules.json")
    if modules is None:
        return PoolingConfig()
    first, *others = [(module["type"].rpartition(".")[2], module["path"]) for module in modules]
    pooled = [others.pop(0)] if others and others[0][0] == "Pooling" else []
    is_static = first[0] == STATIC and not pooled
    unknown = [kind for kind, _ in others if kind not in KINDS]
    if unknown or not (is_static or first[0] == "Transformer"):
        raise EngineFailed(f"the embedding model has a {[*unknown, first[0]][0]} module, which is not supported")
    normalise = bool(others) and others[-1][0] == "Normalize"
    subfolder = first[1]
    sentence = read_json(source, str(Path(subfolder, "sentence_bert_config.json"))) or {}
    pooling = read_json(source, str(Path(pooled[0][1] if pooled else "1_Pooling", "config.json"))) or {}
    return PoolingConfig(
        poolings=_poolings(pooling),
        normalise=normalise,
        max_length=sentence.get("max_seq_length"),
        lower_case=sentence.get("do_lower_case", False),
        subfolder=subfolder,
        modules=tuple(others[:-1] if normalise else others),
        prompts=text_prompts(read_json(source, "config_sentence_transformers.json") or {}, pooling),
        is_static=is_static,
    )


def read_modules(source: str, pooling: PoolingConfig) -> nn.Sequential:
    """Those behind the pooling."""
    modules = [read_module(source, kind, folder) for kind, folder in pooling.modules]
    return nn.Sequential(*modules, *([Normalize()] if pooling.normalise else []))


def _poolings(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode") or [name for name, flag in FLAGS.items() if config.get(flag)] or ["mean"]
    names = (named,) if isinstance(named, str) else tuple(named)
    if unknown := [name for name in names if name not in POOLINGS]:
        raise EngineFailed(f"the embedding model wants {unknown[0]!r} pooling, which is not supported")
    return names
