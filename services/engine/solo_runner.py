"""One sequence at a time, for whatever cannot be batched."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.loader import Source
from services.engine.scheduler import Work
from services.engine.slots import Change, Copy, Forget, Swap
from services.engine.vision import Vision


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
        self._caches: dict[int, Any] = {}
        self.num_slots = num_slots
        self.length = length
        self.overlaps = model.device.type != "cpu"
        self.batch_sizes = [num_slots]

    def change(self, changes: list[Change]) -> None:
        for change in changes:
            match change:
                case Swap(one, other):
                    places = {one: other, other: one}
                    self._caches = {places.get(slot, slot): cache for slot, cache in self._caches.items()}
                case Forget(slot):
                    self._caches.pop(slot, None)
                case Copy():
                    raise NotImplementedError

    def run_ahead(self, works: list[Work], tokens: Tensor) -> None:
        return None

    def compilation(self, source: Source, folder: Path) -> None:
        return None

    @torch.inference_mode()
    def run(self, batch: list[Work]) -> Tensor:
        rows = [(work, self._forward(work)) for work in batch]
        drawn = [row for work, row in rows if work.samples]
        return torch.stack(drawn) if drawn else torch.empty(0)

    def _forward(self, work: Work) -> Tensor:
        cache = self._caches.get(work.slot) if work.start else None
        ids = torch.tensor([work.sequence.tokens[work.start : work.end]], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
        self._caches[work.slot] = out.past_key_values
        return out.logits[0, -1]  # type: ignore[no-any-return]
