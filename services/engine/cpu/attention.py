"""Attention over the slot cache, called back by unmodified `transformers` models.

`AttentionInterface` hands every layer's queries, keys and values to `attend`. A step packs the tokens of all its
sequences into one row, so each projection is one product; here the row is taken apart again, written into the slots
and attended sequence by sequence (prompts) or all at once (one new token each).

The query heads that share a key/value head are laid out as query rows of that head: on the CPU this is several times
faster than `enable_gqa` for single tokens, and it gives the same numbers.
"""

import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from services.engine.execution.kv_cache import LayerCache, LayerShape, SlotCache

ATTENTION = "parley_slots"
# without a mask function: building a mask would make the model wait for the GPU. For models that were probed before
ATTENTION_UNMASKED = "parley_pages"


class UnsupportedAttention(Exception):
    """The layer wants something the slot cache cannot give."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer turns products of queries and keys into weights."""

    scale: float | None = None
    window: int | None = None  # tokens
    softcap: float | None = None  # the scores' limit, approached by tanh
    sinks: Tensor | None = None  # [heads]: each head's score of nothing, which takes part in the softmax


class AttentionStep(Protocol):
    """What a model's layers are answered by. `queries` etc. are `[tokens, heads, dim]`."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor: ...


class TokenGroup(Protocol):
    """Some of a step's packed tokens. `queries` etc. are `[tokens, heads, dim]`, of these tokens alone."""

    tokens: slice

    def write(self, cache: LayerCache, keys: Tensor, values: Tensor) -> None: ...

    def attend(self, cache: LayerCache, queries: Tensor, scoring: Scoring) -> Tensor: ...


@dataclass(slots=True)
class DecodeGroup:
    """One new token for each of many sequences, attended in one call over the slots from the lowest to the highest."""

    tokens: slice
    rows: Tensor  # [tokens], rising, counted from the lowest slot: without gaps, the queries are in order as they are
    positions: Tensor  # [tokens]
    base: int  # the lowest slot
    height: int  # slots from there to the highest, both included
    length: int  # the highest position + 1
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def write(self, cache: LayerCache, keys: Tensor, values: Tensor) -> None:
        self._window(cache.keys)[self.rows, :, self.positions] = keys
        self._window(cache.values)[self.rows, :, self.positions] = values

    def attend(self, cache: LayerCache, queries: Tensor, scoring: Scoring) -> Tensor:
        keys, values = self._window(cache.keys), self._window(cache.values)
        dense = self.height == len(queries)
        rows = (
            queries if dense else queries.new_zeros(self.height, *queries.shape[1:]).index_copy(0, self.rows, queries)
        )
        grouped = rows.view(self.height, keys.shape[1], -1, queries.shape[-1])
        out = attend_grouped(grouped, keys, values, self._mask(scoring.window), scoring)
        out = out.reshape(self.height, queries.shape[1], -1)
        return out if dense else out[self.rows]

    def _window(self, cache: Tensor) -> Tensor:
        return cache[self.base : self.base + self.height, :, : self.length]

    def _mask(self, window: int | None) -> Tensor:
        if window not in self.masks:
            last = self.positions.new_zeros(self.height).index_copy(0, self.rows, self.positions)
            self.masks[window] = causal_mask(last[:, None], self.length, window)[:, None, None]
        return self.masks[window]


@dataclass(slots=True)
class PrefillChunk:
    """Consecutive tokens of one sequence: a prompt or a part of one."""

    tokens: slice
    slot: int
    start: int
    end: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def write(self, cache: LayerCache, keys: Tensor, values: Tensor) -> None:
        cache.keys[self.slot, :, self.start : self.end] = keys.transpose(0, 1)
        cache.values[self.slot, :, self.start : self.end] = values.transpose(0, 1)

    def attend(self, cache: LayerCache, queries: Tensor, scoring: Scoring) -> Tensor:
        keys, values = cache.keys[self.slot, :, : self.end], cache.values[self.slot, :, : self.end]
        grouped = queries.transpose(0, 1).reshape(1, keys.shape[0], -1, queries.shape[-1])
        mask = self._mask(scoring.window, queries.shape[1] // keys.shape[0], queries.device)
        out = attend_grouped(grouped, keys[None], values[None], mask, scoring)
        return out.reshape(queries.shape[1], queries.shape[0], -1).transpose(0, 1)  # no view: CUDA's is not contiguous

    def _mask(self, window: int | None, per_group: int, device: torch.device) -> Tensor:
        if window not in self.masks:
            positions = torch.arange(self.start, self.end, device=device)
            self.masks[window] = causal_mask(positions[:, None], self.end, window).repeat(per_group, 1)
        return self.masks[window]


def attend_grouped(grouped: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scoring: Scoring) -> Tensor:
    """`grouped` [slots, key/value heads, rows, dim]: the rows of each query head of the group one after another.

    torch's own knows no soft-capping and no sinks. What it does is written out for those, head by head: the scores of
    all heads of a prompt would be gigabytes.
    """
    if scoring.softcap is None and scoring.sinks is None:
        return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scoring.scale)
    num_heads = keys.shape[1]
    sinks = [None] * num_heads if scoring.sinks is None else scoring.sinks.float().view(num_heads, -1)
    masks = mask.expand(grouped.shape[0], 1, grouped.shape[2], keys.shape[2])[:, 0]
    heads = [
        _attend_head(grouped[:, head], keys[:, head], values[:, head], masks, scoring, sinks[head])
        for head in range(num_heads)
    ]
    return torch.stack(heads, dim=1)


def _attend_head(
    rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scoring: Scoring, sinks: Tensor | None
) -> Tensor:
    """`rows` [slots, rows, dim], `sinks` [query heads]"""
    scale = rows.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    scores = (rows @ keys.transpose(1, 2)).float() * scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        each = sinks.repeat_interleave(rows.shape[1] // len(sinks))
        scores = torch.cat([scores, each.expand(len(rows), -1)[..., None]], dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[1]]
    return weights.to(values.dtype) @ values


def causal_mask(positions: Tensor, length: int, window: int | None) -> Tensor:
    """`positions` [..., 1] -> bool [..., length]: the keys that a token at each position may see."""
    keys = torch.arange(length, device=positions.device)
    seen = keys <= positions
    return seen if window is None else seen & (keys > positions - window)


@dataclass(frozen=True, slots=True)
class SlotAttention:
    cache: SlotCache
    groups: list[TokenGroup]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        cache = self.cache.layers[layer]
        out = []
        for group in self.groups:
            group.write(cache, keys[group.tokens], values[group.tokens])
            out.append(group.attend(cache, queries[group.tokens], scoring))
        return torch.cat(out)


@dataclass(frozen=True, slots=True)
class AttentionProbe:
    """Stands in for a Step once, to learn what each layer keeps of a token; attends to nothing but itself."""

    shapes: dict[int, LayerShape] = field(default_factory=dict)
    windows: set[int | None] = field(default_factory=set)  # as the layers ask for them
    mask_widths: set[int] = field(default_factory=set)  # as they would be in the masks, which are not made
    marks_masks: bool = False  # each layer is given the width of its mask instead of a mask
    narrowed: set[int] = field(default_factory=set)  # layers whose mask has another width than they ask for

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        self.windows.add(scoring.window)
        self.shapes[layer] = LayerShape(keys.shape[1], keys.shape[2], values.shape[2], keys.dtype)
        return values.repeat_interleave(queries.shape[1] // values.shape[1], dim=1)

    def mark(self, width: int | None) -> Tensor | None:
        if width is not None:
            self.mask_widths.add(width)
        return torch.full((1, 1, 1, 1), width or 0) if self.marks_masks else None

    def compare(self, layer: int, window: int | None, mark: Tensor | None) -> None:
        if mark is not None and int(mark.flatten()[0]) != (window or 0):
            self.narrowed.add(layer)


# A model calls back with its module and its tensors, nothing of ours. Each engine runs its steps on a thread of its
# own, one at a time, so the step lies beside the thread.
_current = threading.local()


class attention_context:
    """`with running(step): model(...)`"""

    def __init__(self, step: AttentionStep) -> None:
        self._step = step

    def __enter__(self) -> None:
        _current.step = self._step

    def __exit__(self, *_: object) -> None:
        del _current.step


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What `AttentionInterface` calls: `query` [1, heads, tokens, dim] -> [1, tokens, heads, dim]."""
    if query.shape[0] != 1 or options.get("position_bias") is not None:
        raise UnsupportedAttention(type(module).__name__)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    window = options.get("sliding_window")
    if isinstance(_current.step, AttentionProbe):
        _current.step.compare(module.layer_idx, window, attention_mask)
    scoring = Scoring(scaling, window, options.get("softcap"), options.get("s_aux"))
    out = _current.step.attend(module.layer_idx, queries, keys, values, scoring)
    return out[None], None


def _mask(*_: Any, local_size: int | None = None, **__: Any) -> Tensor | None:
    """What `AttentionMaskInterface` calls: no mask, those are made per group, above."""
    return _current.step.mark(local_size) if isinstance(_current.step, AttentionProbe) else None


AttentionInterface.register(ATTENTION, _attend)
AttentionInterface.register(ATTENTION_UNMASKED, _attend)
AttentionMaskInterface.register(ATTENTION, _mask)
