"""A text encoder as one native function over all tokens of a batch in one row, nothing padded.

Made, kept and given its weights as the steps of a chat model are (compiled.py). It is for models whose tokens all see
each other, text by text; whether a model is one of these is found out by comparing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from services.engine.cpu import kernels
from services.engine.cpu.attention import ATTENTION, Scoring, UnsupportedAttention, attention_context
from services.engine.cpu.compiled_step import MAX_ROWS, MIN_ROWS, TRIED_TOKENS, digest, open_package, package
from services.engine.cpu.merged_linear import pack_linears, unpack_linears
from services.engine.quantization import int8

ALIKE = 0.99  # halves round
TRIAL = ((5, 6, 7, 8, 9, 10, 11), (12,), (13, 14, 15))

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    source: str
    subfolder: str
    dtype: str
    coded: bool = False  # whether bf16 layers are those of our kernel
    quantization: str | None = None  # a method

    maker = __name__

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def file(self, folder: Path, model: Any) -> Path:
        facts = {"dtype": self.dtype, "coded": self.coded, "quantization": self.quantization}
        return folder / f"{model.config.model_type}-{digest(model, facts, __file__)}.pt2"


class EncodeStep(nn.Module):
    """What is exported. Token i sees the tokens begins[i] .. ends[i]; its place in its text is positions[i]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, positions: Tensor, begins: Tensor, ends: Tensor) -> Tensor:
        with attention_context(_Texts(begins, ends)):
            out = self.model(input_ids=ids[None], position_ids=positions[None])
        return out.last_hidden_state[0]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Texts:
    """Attention of an EncodeStep: all tokens lie in one slot."""

    begins: Tensor
    ends: Tensor

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        if scoring.window is not None:
            raise UnsupportedAttention("texts seen through a window")
        keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        slots = torch.zeros_like(self.begins)
        return kernels.attend(queries, keys, values, slots, self.begins, self.ends, scoring)


class CompiledEncoder:
    def __init__(self, package: Any) -> None:
        self._package = package

    @classmethod
    def load(cls, file: Path, model: nn.Module) -> "CompiledEncoder":
        return cls(open_package(file, model))

    @torch.inference_mode()
    def __call__(self, rows: Rows) -> Tensor:
        """What the model makes of each token `[tokens, size]`, text after text."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        used = int(lengths.sum())
        alone = np.ones(max(0, MIN_ROWS - used), np.int64)  # tokens that see themselves only
        lengths = np.concatenate([lengths, alone])
        ends = lengths.cumsum()
        begins = np.repeat(ends - lengths, lengths)
        ids = np.zeros(len(begins), np.int64)
        ids[:used] = np.fromiter(chain.from_iterable(rows), np.int64, used)
        positions = np.arange(len(begins)) - begins
        inputs = (ids, positions, begins, np.repeat(ends, lengths))
        hidden: Tensor = self._package(*map(torch.from_numpy, inputs))
        return hidden[:used]


@torch.inference_mode()
def pack_where_it_agrees(model: Any, folder: Path | None = None, *, coded: bool | None = None) -> None:
    """Some models reach for a layer's weight themselves. `folder` and `coded`: as of `pack_linears`."""
    expected = token_vectors(model)
    pack_linears(model, folder, coded=coded)
    try:
        same = similarity(token_vectors(model), expected) > ALIKE
    except Exception:  # whatever they do with it
        same = False
    if not same:
        unpack_linears(model)


@torch.inference_mode()
def agrees(encoder: CompiledEncoder, model: Any) -> bool:
    """Whether it makes of each text what the model makes of it alone."""
    return similarity(encoder(TRIAL), token_vectors(model)) > ALIKE


def token_vectors(model: Any) -> Tensor:
    """Of a few texts, each alone."""
    rows = (torch.tensor([row], device=model.device) for row in TRIAL)
    return torch.cat([model(input_ids=row).last_hidden_state[0] for row in rows])


def similarity(one: Tensor, other: Tensor) -> float:
    """The least of all tokens."""
    return float(cosine_similarity(one.float(), other.float(), dim=-1).min())


def make(file: Path, text: str) -> None:
    """In a process of its own: reads the model again and compiles it."""
    from transformers import AutoModel

    plan = EncoderPlan(**json.loads(text))
    dtype = getattr(torch, plan.dtype)
    model = AutoModel.from_pretrained(plan.source, subfolder=plan.subfolder, dtype=dtype).eval()
    kernels.ensure_loaded(file.parent)
    if plan.quantization:
        int8.replace_layers(model, file.parent)
    pack_where_it_agrees(model, file.parent, coded=plan.coded)
    model.set_attn_implementation(ATTENTION)
    compile_to(file, model)


def compile_to(file: Path, model: Any) -> None:
    kernels.ensure_loaded(file.parent)
    example = (
        torch.arange(6) + 5,
        *(torch.tensor(each) for each in ([0, 1, 2, 3, 0, 1], [0] * 4 + [4] * 2, [4] * 4 + [6] * 2)),
    )
    tokens = torch.export.Dim("tokens", min=MIN_ROWS, max=MAX_ROWS)
    package(
        EncodeStep(model).eval(),
        example,
        ({0: tokens},) * 4,
        file,
        try_out=lambda made: try_encoder(CompiledEncoder(open_package(made, model, file.parent))),
    )


def try_encoder(encoder: CompiledEncoder) -> None:
    """The corners: one token, and many texts."""
    for rows in (((5,),), TRIAL, ((5,),) * TRIED_TOKENS):
        if not encoder(rows).isfinite().all():
            raise ValueError("the compiled encoder does not compute numbers")
