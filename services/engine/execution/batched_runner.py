"""All sequences of a step in one forward pass over slots."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.cpu.attention import DecodeGroup, PrefillChunk, SlotAttention, TokenGroup, attention_context
from services.engine.cpu.compilation import Compilation
from services.engine.cpu.compiled_step import CompiledStep, StepPlan, logits_indices, supports_logits_to_keep
from services.engine.execution.kv_cache import SlotCache
from services.engine.execution.runner_check import LogitsCheck, verify_logits
from services.engine.loading.loader import Source
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.slots import CacheChange
from services.engine.vision.vision import Vision, vision_for

logger = logging.getLogger(__name__)


class BatchedRunner:
    """All sequences of a step in one forward pass, for models whose attention goes through `AttentionInterface`."""

    reuses = True
    speculates = True
    page_size = 1

    def __init__(
        self,
        model: Any,
        cache: SlotCache,
        check: LogitsCheck,
        cache_tokens: int | None = None,
        vision: Vision | None = None,
    ) -> None:
        self.check = check
        self.vision = vision
        self.cache_tokens = cache_tokens
        self._model = model
        self._cache = cache
        self._compiled: CompiledStep | None = None
        self._keeps = supports_logits_to_keep(model)
        self.num_slots = cache.num_slots
        self.length = cache.length
        self.asynchronous = model.device.type != "cpu"
        self.batch_sizes = [cache.num_slots]

    def change(self, changes: list[CacheChange]) -> None:
        self._cache.change(changes)

    @torch.inference_mode()
    def run(self, batch: list[ScheduledSequence]) -> Tensor:
        if self._compiled and not vision_for(self.vision, batch):
            return self._compiled.run(batch)
        decodes = sorted((work for work in batch if work.num_tokens == 1), key=lambda work: work.slot)
        chunks = [work for work in batch if work.num_tokens > 1]
        works = [*decodes, *chunks]
        groups: list[TokenGroup] = [*self._decodes(decodes), *self._chunks(chunks, start=len(decodes))]
        with attention_context(SlotAttention(self._cache, groups)):
            logits = self._forward(works)
        return _in_order(logits, works, batch)

    def run_lookahead(self, works: list[ScheduledSequence], tokens: Tensor) -> None:
        return None

    def compilation(self, source: Source, folder: Path) -> Compilation | None:
        if self._model.device.type != "cpu":
            return None
        if hasattr(self._model.base_model, "get_rope_index"):
            return None  # its positions bring tensors of their own into the step, which nobody could give it
        dtype = str(self._model.dtype).removeprefix("torch.")
        plan = StepPlan(source, dtype, self.num_slots, self.length, self._cache.shapes)
        return Compilation(plan.file(folder, self._model), plan, self.adopt)

    def adopt(self, file: Path) -> None:
        """Takes a compiled step over, if it agrees with the model by itself; from any thread, between two steps."""
        trial = self.another(self.length)
        trial._compiled = CompiledStep.load(file, self._model, trial._cache)
        verify_logits(trial, self.check)
        self._compiled = trial._compiled.over(self._cache)
        logger.info("steps are compiled from now on")

    def another(self, length: int, vision: Vision | None = None) -> "BatchedRunner":
        """With the same model and a small memory of its own, to try something."""
        cache = SlotCache(self._cache.shapes, 2, length, self._model.device)
        return BatchedRunner(self._model, cache, self.check, vision=vision)

    def _forward(self, works: list[ScheduledSequence]) -> Tensor:
        """Logits of the tokens that are asked for."""
        ids = self._row([token for work in works for token in work.tokens])
        positions = self._row([position for work in works for position in range(work.start, work.end)])
        asked = self._row(logits_indices(works) or [0])[0]  # no product likes to be empty
        given = {"input_ids": ids, "position_ids": positions}
        if vision := vision_for(self.vision, works):
            given = vision.inputs(works, ids, positions)
        if self._keeps:
            return self._model(**given, use_cache=False, logits_to_keep=asked).logits[0]  # type: ignore[no-any-return]
        return self._model(**given, use_cache=False).logits[0, asked]  # type: ignore[no-any-return]

    def _decodes(self, works: list[ScheduledSequence]) -> list[DecodeGroup]:
        if not works:
            return []
        slots = [work.slot for work in works]
        base = min(slots)
        return [
            DecodeGroup(
                tokens=slice(0, len(works)),
                rows=self._row([slot - base for slot in slots])[0],
                positions=self._row([work.start for work in works])[0],
                base=base,
                height=max(slots) + 1 - base,
                length=max(work.end for work in works),
            )
        ]

    def _chunks(self, works: list[ScheduledSequence], start: int) -> list[PrefillChunk]:
        chunks = []
        for work in works:
            chunks.append(PrefillChunk(slice(start, start + work.num_tokens), work.slot, work.start, work.end))
            start += work.num_tokens
        return chunks

    def _row(self, values: list[int]) -> Tensor:
        return torch.tensor([values], device=self._model.device)


def _in_order(logits: Tensor, works: list[ScheduledSequence], batch: list[ScheduledSequence]) -> Tensor:
    """From the order in which they were computed to that of the batch."""
    rows: dict[int, range] = {}
    start = 0
    for work in works:
        rows[id(work)] = range(start, start := start + work.num_logits)
    order = [row for work in batch for row in rows[id(work)]]
    return (
        logits[: len(order)] if order == list(range(len(order))) else logits[order]
    )  # a copy is megabytes in every step
