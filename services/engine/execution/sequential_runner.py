"""SequentialRunner: one sequence at a time, for models that cannot be batched."""

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

    def __init__(self, model: Any, num_slots: int, length: int) -> None:
        self._model = model
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
        computed = [(row, self._forward(row)) for row in rows]
        logits = [each for row, each in computed if row.num_logits]
        return torch.cat(logits) if logits else torch.empty(0)

    def _forward(self, row: StepRow) -> Tensor:
        """A cache cannot be cut back: after a step without memory, what was computed of it is computed again."""
        tokens = self._tokens.setdefault(row.slot, [])
        tokens[row.start :] = row.token_ids
        state = self._states.pop(row.slot, None)  # a step that fails may leave it half written
        if state is None or state.length != row.start:
            state = self._recompute(row)
        return self._read(row, state, row.end)

    def _recompute(self, row: StepRow) -> SequenceState:
        state = SequenceState(None, 0)
        while state.length < row.start:
            self._read(row, state, min(state.length + RECOMPUTE_TOKENS, row.start))
            state = self._states.pop(row.slot)
        return state

    def _read(self, row: StepRow, state: SequenceState, end: int) -> Tensor:
        ids = torch.tensor([self._tokens[row.slot][state.length : end]], device=self._model.device)
        given = {}
        if row.is_long:
            positions = row._replace(start=state.length, num_tokens=end - state.length).position_ids
            given["position_ids"] = torch.tensor([list(positions)], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=state.cache, use_cache=True, **given)
        self._states[row.slot] = SequenceState(out.past_key_values, end)
        return out.logits[0, -max(1, row.num_logits) :]  # type: ignore[no-any-return]
