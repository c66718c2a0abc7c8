"""All sequences of a step in one forward pass over slots."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.cpu import kernels
from services.engine.cpu.attention import (
    AttentionStep,
    DecodeGroup,
    PrefillChunk,
    SlotAttention,
    TokenGroup,
    attention_context,
)
from services.engine.cpu.compilation import Compilation
from services.engine.cpu.compiled_step import CompiledStep, StepPlan, logits_indices, supports_logits_to_keep
from services.engine.cpu.merged_linear import is_coded
from services.engine.cpu.packed_attention import PackedAttention, can_attend
from services.engine.execution.kv_cache import SlotCache
from services.engine.execution.runner_check import LogitsCheck, verify_adapted, verify_logits
from services.engine.loading.loader import Source
from services.engine.loading.long_rope import short_length
from services.engine.lora.adapted_step import AdaptedStep
from services.engine.lora.adapters import Adapters
from services.engine.lora.step_adapters import StepAdapters, adapter_context
from services.engine.scheduling.step import CacheChange, SnapshotRoom, StepRow
from services.engine.vision.vision import Vision, vision_for

logger = logging.getLogger(__name__)


class BatchedRunner:
    """All sequences of a step in one forward pass, for models whose attention goes through `AttentionInterface`."""

    reuses = True
    snapshots: SnapshotRoom | None = None
    supports_drafts = True
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
        self.model = model
        self.cache = cache
        self._compiled: CompiledStep | AdaptedStep | None = None
        self._adapted: AdaptedStep | None = None  # for rows that name adapters
        self._can_attend = can_attend(cache)
        self._keeps = supports_logits_to_keep(model)
        self.num_slots = cache.num_slots
        self.length = cache.length
        self.short_length = short_length(model)
        self.asynchronous = model.device.type != "cpu"
        self.batch_sizes = [cache.num_slots]

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    def apply(self, changes: list[CacheChange]) -> None:
        self.cache.apply(changes)

    @torch.inference_mode()
    def run(self, rows: list[StepRow]) -> Tensor:
        if (compiled := self._compiled_for(rows)) and not vision_for(self.vision, rows):
            return compiled.run(rows)
        decodes = sorted((row for row in rows if row.num_tokens == 1), key=lambda row: row.slot)
        chunks = [row for row in rows if row.num_tokens > 1]
        ordered = [*decodes, *chunks]
        with attention_context(self._attention(decodes, chunks)):
            logits = self._forward(ordered)
        return _in_order(logits, ordered, rows)

    def _attention(self, decodes: list[StepRow], chunks: list[StepRow]) -> AttentionStep:
        if self._can_attend and kernels.is_loaded():
            return PackedAttention.of([*decodes, *chunks], self.cache)
        groups: list[TokenGroup] = [*self._decode_groups(decodes), *self._prefill_chunks(chunks, start=len(decodes))]
        return SlotAttention(self.cache, groups)

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> None:
        return None

    def compilation(self, source: Source, folder: Path, adapters: Adapters | None = None) -> Compilation | None:
        if self.model.device.type != "cpu":
            return None
        if hasattr(self.model.base_model, "get_rope_index"):
            return None  # its positions bring tensors of their own into the step, which nobody could give it
        dtype = str(self.model.dtype).removeprefix("torch.")
        plan = StepPlan(
            source,
            dtype,
            self.num_slots,
            self.length,
            self.cache.shapes,
            is_coded(self.model),
            adapted=adapters is not None,
        )
        adopt = self.adopt if adapters is None else partial(self.adopt_adapted, adapters=adapters)
        return Compilation(plan.file(folder, self.model), plan, adopt)

    def adopt(self, file: Path) -> None:
        """Takes a compiled step over, if it agrees with the model by itself; from any thread, between two steps."""
        trial = self.another(self.length)
        trial._compiled = CompiledStep.load(file, self.model, trial.cache)
        verify_logits(trial, self.check)
        self._compiled = trial._compiled.over(self.cache)
        logger.info("steps are compiled from now on")

    def adopt_adapted(self, file: Path, adapters: Adapters) -> None:
        """The same for a step of rows with adapters, which also agrees with the eager one for one of them."""
        trial = self.another(self.length)
        plain = CompiledStep.load(file, self.model, trial.cache)
        step = AdaptedStep(plain, adapters, keeps=self._keeps)
        trial._compiled = step
        verify_logits(trial, self.check)
        trial._compiled = None
        verify_adapted(trial, step, self.check, adapters.ids)
        self._adapted = step.over(self.cache)
        logger.info("steps with adapters are compiled from now on")

    def another(self, length: int, vision: Vision | None = None) -> "BatchedRunner":
        """With the same model and a small memory of its own, to try something."""
        cache = SlotCache(self.cache.shapes, 2, length, self.model.device)
        return BatchedRunner(self.model, cache, self.check, vision=vision)

    def _compiled_for(self, rows: list[StepRow]) -> CompiledStep | AdaptedStep | None:
        return self._compiled if all(row.adapter is None for row in rows) else self._adapted

    def _forward(self, rows: list[StepRow]) -> Tensor:
        ids = self._tensor([token for row in rows for token in row.token_ids])[None]
        positions = self._tensor([position for row in rows for position in row.position_ids])[None]
        kept = logits_indices(rows) or [0]  # an empty product fails in some models
        indices = self._tensor(kept)
        given = {"input_ids": ids, "position_ids": positions}
        if vision := vision_for(self.vision, rows):
            given = vision.inputs(rows, ids, positions)
        with adapter_context(StepAdapters.of(rows, kept if self._keeps else None)):
            if self._keeps:
                return self.model(**given, use_cache=False, logits_to_keep=indices).logits[0]  # type: ignore[no-any-return]
            return self.model(**given, use_cache=False).logits[0, indices]  # type: ignore[no-any-return]

    def _decode_groups(self, rows: list[StepRow]) -> list[DecodeGroup]:
        if not rows:
            return []
        slots = [row.slot for row in rows]
        base = min(slots)
        return [
            DecodeGroup(
                tokens=slice(0, len(rows)),
                rows=self._tensor([slot - base for slot in slots]),
                positions=self._tensor([row.start for row in rows]),
                base=base,
                height=max(slots) + 1 - base,
                length=max(row.end for row in rows),
            )
        ]

    def _prefill_chunks(self, rows: list[StepRow], start: int) -> list[PrefillChunk]:
        chunks = []
        for row in rows:
            chunks.append(PrefillChunk(slice(start, start + row.num_tokens), row.slot, row.start, row.end))
            start += row.num_tokens
        return chunks

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.model.device)


def _in_order(logits: Tensor, computed: list[StepRow], wanted: list[StepRow]) -> Tensor:
    """From the order in which the rows were computed to that of the step."""
    places: dict[int, range] = {}
    start = 0
    for row in computed:
        places[id(row)] = range(start, start := start + row.num_logits)
    order = [place for row in wanted for place in places[id(row)]]
    if order == list(range(len(order))):
        return logits[: len(order)]  # without the copy, which would be megabytes in every step
    return logits[order]
