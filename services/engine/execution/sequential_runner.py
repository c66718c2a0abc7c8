"""SequentialRunner: one sequence at a time, for models that cannot be batched."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.loading.loader import Source
from services.engine.loading.long_rope import short_length
from services.engine.scheduling.step import CacheChange, ClearSlot, CopySlot, StepRow, SwapSlots
from services.engine.vision.vision import Vision

RECOMPUTE_TOKENS = 128  # at once, where a cache is computed again
CACHES = ("past_key_values", "cache_params", "state")  # as forward passes take them and return them


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How a model goes on from the cache that it has returned."""

    whole_prompts: bool = False  # by one token only: whatever is longer is computed from the first token in one pass
    position_ids: bool = False  # it does not know by itself how far the cache reaches


CACHE_USES = (
    CacheUse(),
    CacheUse(position_ids=True),
    CacheUse(whole_prompts=True),
    CacheUse(whole_prompts=True, position_ids=True),
)


@dataclass(frozen=True, slots=True)
class SequenceState:
    cache: Any
    length: int  # tokens in it


class SequentialRunner:
    """Any architecture that `generate` can run, each sequence with the cache that the model makes itself.

    Such a cache may hold states or windows, so the content of a slot cannot serve another sequence.
    """

    reuses = False
    supports_drafts = False
    page_size = 1
    cache_tokens: int | None = None
    vision: Vision | None = None

    def __init__(self, model: Any, num_slots: int, length: int, use: CacheUse = CACHE_USES[0]) -> None:
        self._model = model
        self._use = use
        self._cache_name = cache_name(model)
        self._states: dict[int, SequenceState] = {}  # by slot
        self._tokens: dict[int, list[int]] = {}  # by slot, to compute a cache again
        self.num_slots = num_slots
        self.length = length
        self.short_length = short_length(model)
        self.asynchronous = model.device.type != "cpu"
        self.batch_sizes = [num_slots]

    def apply(self, changes: list[CacheChange]) -> None:
        for change in changes:
            match change:
                case SwapSlots(one, other):
                    swapped = {one: other, other: one}
                    self._states = {swapped.get(slot, slot): state for slot, state in self._states.items()}
                    self._tokens = {swapped.get(slot, slot): tokens for slot, tokens in self._tokens.items()}
                case ClearSlot(slot):
                    self._states.pop(slot, None)
                    self._tokens.pop(slot, None)
                case CopySlot():
                    raise NotImplementedError

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> None:
        return None

    def compilation(self, source: Source, folder: Path) -> None:
        return None

    @torch.inference_mode()
    def run(self, rows: list[StepRow]) -> Tensor:
        computed = [self._forward(row) for row in rows]
        logits = [each for row, each in zip(rows, computed, strict=True) if each is not None and row.num_logits]
        return torch.cat(logits) if logits else torch.empty(0)

    def _forward(self, row: StepRow) -> Tensor | None:
        """A cache cannot be cut back: after a step without memory, what was computed of it is computed again."""
        tokens = self._tokens.setdefault(row.slot, [])
        tokens[row.start :] = row.token_ids
        state = self._states.pop(row.slot, None)  # a step that fails may leave it half written
        is_current = state is not None and state.length == row.start
        if self._use.whole_prompts and (row.num_tokens > 1 or not is_current):
            return self._read(row, SequenceState(None, 0), row.end) if row.num_logits else None
        if state is None or not is_current:
            state = self._recompute(row)
        return self._read(row, state, row.end)

    def _recompute(self, row: StepRow) -> SequenceState:
        state = SequenceState(None, 0)
        while state.length < row.start:
            self._read(row, state, min(state.length + RECOMPUTE_TOKENS, row.start))
            state = self._states.pop(row.slot)
        return state

    def _read(self, row: StepRow, state: SequenceState, end: int) -> Tensor:
        part = row._replace(start=state.length, num_tokens=end - state.length)
        given = {"input_ids": self._tensor(self._tokens[row.slot][part.start : part.end])}
        if self._use.position_ids or row.is_long:
            given["position_ids"] = self._tensor(list(part.position_ids))
        out = self._model(**given, **{self._cache_name: state.cache}, use_cache=True)
        self._states[row.slot] = SequenceState(getattr(out, self._cache_name), end)
        return out.logits[0, -max(1, row.num_logits) :]  # type: ignore[no-any-return]

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor([values], device=self._model.device)


def cache_name(model: Any) -> str:
    known = inspect.signature(model.forward).parameters
    return next((name for name in CACHES if name in known), CACHES[0])
