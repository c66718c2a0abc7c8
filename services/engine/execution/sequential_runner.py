"""One sequence at a time, for whatever cannot be batched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.loading.loader import Source
from services.engine.scheduling.scheduler import Work
from services.engine.scheduling.slots import Change, Copy, Forget, Swap
from services.engine.vision.vision import Vision

AGAIN = 128  # tokens at once, where a past is read again


@dataclass(frozen=True, slots=True)
class Past:
    cache: Any
    length: int  # tokens it has read


class SoloRunner:
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
        self._pasts: dict[int, Past] = {}
        self.num_slots = num_slots
        self.length = length
        self.overlaps = model.device.type != "cpu"
        self.batch_sizes = [num_slots]

    def change(self, changes: list[Change]) -> None:
        for change in changes:
            match change:
                case Swap(one, other):
                    places = {one: other, other: one}
                    self._pasts = {places.get(slot, slot): past for slot, past in self._pasts.items()}
                case Forget(slot):
                    self._pasts.pop(slot, None)
                case Copy():
                    raise NotImplementedError

    def run_ahead(self, works: list[Work], tokens: Tensor) -> None:
        return None

    def compilation(self, source: Source, folder: Path) -> None:
        return None

    @torch.inference_mode()
    def run(self, batch: list[Work]) -> Tensor:
        rows = [(work, self._forward(work)) for work in batch]
        drawn = [row for work, row in rows if work.num_logits]
        return torch.cat(drawn) if drawn else torch.empty(0)

    def _forward(self, work: Work) -> Tensor:
        """A past cannot be taken back: after a step that found no memory, whoever was read in it is read again."""
        past = self._pasts.pop(work.slot, None)  # half of a step may be in it, if this fails
        if past is None or past.length != work.start:
            past = self._again(work)
        return self._read(work, past, work.end)

    def _again(self, work: Work) -> Past:
        past = Past(None, 0)
        while past.length < work.start:
            self._read(work, past, min(past.length + AGAIN, work.start))
            past = self._pasts.pop(work.slot)
        return past

    def _read(self, work: Work, past: Past, end: int) -> Tensor:
        ids = torch.tensor([work.sequence.tokens[past.length : end]], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=past.cache, use_cache=True)
        self._pasts[work.slot] = Past(out.past_key_values, end)
        return out.logits[0, -max(1, work.num_logits) :]  # type: ignore[no-any-return]
