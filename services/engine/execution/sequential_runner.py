"""One sequence at a time, for whatever cannot be batched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.loading.loader import Source
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.slots import CacheChange, ClearSlot, CopySlot, SwapSlots
from services.engine.vision.vision import Vision

RECOMPUTE_TOKENS = 128  # tokens at once, where a past is read again


@dataclass(frozen=True, slots=True)
class SequenceState:
    cache: Any
    length: int  # tokens it has read


class SequentialRunner:
    """Any architecture that `generate` can run: one sequence at a time, each with the cache its model makes itself.

    What such a cache holds is its model's own affair (states, windows), so a slot's content serves nobody else.
    """

    reuses = False
    speculates = False
    page_size = 1
    cache_tokens: int | None = None
    vision: Vision | None = None

    def __init__(self, model: Any, num_slots: int, length: int) -> None:
        self._model = model
        self._states: dict[int, SequenceState] = {}
        self.num_slots = num_slots
        self.length = length
        self.asynchronous = model.device.type != "cpu"
        self.batch_sizes = [num_slots]

    def change(self, changes: list[CacheChange]) -> None:
        for change in changes:
            match change:
                case SwapSlots(one, other):
                    places = {one: other, other: one}
                    self._states = {places.get(slot, slot): state for slot, state in self._states.items()}
                case ClearSlot(slot):
                    self._states.pop(slot, None)
                case CopySlot():
                    raise NotImplementedError

    def run_lookahead(self, works: list[ScheduledSequence], tokens: Tensor) -> None:
        return None

    def compilation(self, source: Source, folder: Path) -> None:
        return None

    @torch.inference_mode()
    def run(self, batch: list[ScheduledSequence]) -> Tensor:
        rows = [(work, self._forward(work)) for work in batch]
        drawn = [row for work, row in rows if work.num_logits]
        return torch.cat(drawn) if drawn else torch.empty(0)

    def _forward(self, work: ScheduledSequence) -> Tensor:
        """A past cannot be taken back: after a step that found no memory, whoever was read in it is read again."""
        state = self._states.pop(work.slot, None)  # half of a step may be in it, if this fails
        if state is None or state.length != work.start:
            state = self._recompute(work)
        return self._read(work, state, work.end)

    def _recompute(self, work: ScheduledSequence) -> SequenceState:
        state = SequenceState(None, 0)
        while state.length < work.start:
            self._read(work, state, min(state.length + RECOMPUTE_TOKENS, work.start))
            state = self._states.pop(work.slot)
        return state

    def _read(self, work: ScheduledSequence, state: SequenceState, end: int) -> Tensor:
        ids = torch.tensor([work.sequence.tokens[state.length : end]], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=state.cache, use_cache=True)
        self._states[work.slot] = SequenceState(out.past_key_values, end)
        return out.logits[0, -max(1, work.num_logits) :]  # type: ignore[no-any-return]
