"""PaddedRunner: one token of each sequence in one forward pass, with the cache that the model makes itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.execution.cache_layout import CacheLayout, SequenceState
from services.engine.execution.growing_layer import make_room
from services.engine.execution.sequential_runner import SequentialRunner
from services.engine.loading.loader import Source
from services.engine.lora.adapters import Adapters
from services.engine.lora.step_adapters import StepAdapters, adapter_context
from services.engine.scheduling.step import (
    CacheChange,
    ClearSlot,
    CopySlot,
    DropSnapshot,
    RestoreSnapshot,
    SnapshotRoom,
    StepRow,
    SwapSlots,
)
from services.engine.vision.vision import Vision


@dataclass(frozen=True, slots=True)
class PaddingUse:
    """What a model needs to know where each sequence of a batch begins."""

    attention_mask: bool
    position_ids: bool
    first_position: int = 0


@dataclass(slots=True)
class PaddedBatch:
    """Sequences that stand in one cache, aligned at their last tokens."""

    cache: Any
    slots: list[int | None]  # of its rows; None: of a sequence that is gone
    lengths: list[int]  # tokens of each

    @property
    def length(self) -> int:
        return max(self.lengths)


class PaddedRunner:
    """Prompts one by one, as SequentialRunner; then one token each of all sequences at once.

    Their caches are joined when one comes or leaves, and stay so from step to step. A cache that has nothing but keys
    and values can be cut back to fewer tokens, and serves other sequences that begin alike.
    """

    supports_drafts = False
    page_size = 1
    vision: Vision | None = None

    def __init__(
        self,
        model: Any,
        alone: SequentialRunner,
        layout: CacheLayout,
        use: PaddingUse,
        *,
        reuses: bool = False,
        cache_tokens: int | None = None,
        snapshots: SnapshotRoom | None = None,
    ) -> None:
        self.reuses = reuses
        self.snapshots = snapshots
        self.cache_tokens = cache_tokens
        self._model = model
        self._alone = alone
        self._layout = layout
        self._use = use
        self._batch: PaddedBatch | None = None
        self.num_slots = alone.num_slots
        self.length = alone.length
        self.short_length = alone.short_length
        self.asynchronous = alone.asynchronous
        self.batch_sizes = alone.batch_sizes

    @property
    def num_cached(self) -> int:
        """Slots with a cache."""
        joined = self._batch.slots if self._batch else []
        return len(self._alone.states) + sum(slot is not None for slot in joined)

    def apply(self, changes: list[CacheChange]) -> None:
        for change in changes:
            self._apply(change)

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> None:
        return None

    def compilation(self, source: Source, folder: Path, adapters: Adapters | None = None) -> None:
        return None

    @torch.inference_mode()
    def run(self, rows: list[StepRow]) -> Tensor:
        for row in rows:
            self._cut(row.slot, row.start)
        decodes = [row for row in rows if self._is_decode(row)]
        decoding = {row.slot for row in decodes}
        self._take_out([row.slot for row in rows if row.slot not in decoding])
        logits = self._decode(decodes) if decodes else {}
        computed = [logits[row.slot] if row.slot in decoding else self._alone.forward(row) for row in rows]
        wanted = [each for row, each in zip(rows, computed, strict=True) if each is not None and row.num_logits]
        return torch.cat(wanted) if wanted else torch.empty(0)

    def _is_decode(self, row: StepRow) -> bool:
        """Not the last token of a prompt, which is read alone, as all of it."""
        is_next = row.num_tokens == 1 and self._length(row.slot) == row.start
        return is_next and not self._alone.is_reading(row.slot)

    def _length(self, slot: int) -> int | None:
        """Tokens that the slot's cache holds."""
        if self._batch and slot in self._batch.slots:
            return self._batch.lengths[self._batch.slots.index(slot)]
        state = self._alone.states.get(slot)
        return state.length if state else None

    def _decode(self, rows: list[StepRow]) -> dict[int, Tensor]:
        """The logits [1, vocabulary] of each slot. A step that fails leaves no cache, and tokens to compute it from."""
        by_slot = {row.slot: row for row in rows}
        for row in rows:
            self._alone.record(row)
        batch = self._gather(set(by_slot))
        ordered = [by_slot[slot] for slot in batch.slots if slot is not None]
        with adapter_context(StepAdapters.of(ordered)):
            out = self._model(**self._given(ordered, batch), use_cache=True)
        cache = getattr(out, self._alone.cache_name)
        self._batch = PaddedBatch(cache, batch.slots, [length + 1 for length in batch.lengths])
        return {row.slot: out.logits[index, -1:] for index, row in enumerate(ordered)}

    def _given(self, rows: list[StepRow], batch: PaddedBatch) -> dict[str, Any]:
        given = {"input_ids": self._tensor([list(row.token_ids) for row in rows]), self._alone.cache_name: batch.cache}
        if self._use.attention_mask:
            columns = torch.arange(batch.length + 1, device=self._model.device)
            padding = self._tensor([batch.length - length for length in batch.lengths])
            given["attention_mask"] = (columns >= padding[:, None]).long()
        if self._use.position_ids or any(row.is_long for row in rows):
            given["position_ids"] = self._tensor([list(row.position_ids) for row in rows]) + self._use.first_position
        return given

    def _gather(self, slots: set[int]) -> PaddedBatch:
        """The batch of these slots; those that were in another go to their own caches."""
        batch = self._batch
        if batch is None or set(batch.slots) != slots:
            self._take_out([slot for slot in batch.slots if slot not in slots] if batch else [])
            states = {slot: self._view(slot) for slot in sorted(slots)}
            lengths = [state.length for state in states.values()]
            batch = PaddedBatch(make_room(self._layout.join(list(states.values()))), list(states), lengths)
        self._batch = None
        for slot in slots:
            self._alone.states.pop(slot, None)
        return batch

    def _view(self, slot: int) -> SequenceState:
        batch = self._batch
        if batch and slot in batch.slots:
            row = batch.slots.index(slot)
            return self._layout.split(batch.cache, batch.length, row, batch.lengths[row])
        return self._alone.states[slot]

    def _take_out(self, slots: Iterable[int | None]) -> None:
        """Of the batch, to caches of their own."""
        for slot in slots:
            if self._batch and slot is not None and slot in self._batch.slots:
                self._alone.states[slot] = self._layout.copy(self._view(slot))
                self._forget(slot)

    def _forget(self, slot: int) -> None:
        """Its row stays until the next change of the batch, unless it was the last."""
        self._rename({slot: None})
        if self._batch and not any(each is not None for each in self._batch.slots):
            self._batch = None

    def _rename(self, names: dict[int, int | None]) -> None:
        if self._batch:
            self._batch.slots = [slot if slot is None else names.get(slot, slot) for slot in self._batch.slots]

    def _apply(self, change: CacheChange) -> None:
        match change:
            case SwapSlots(one, other):
                self._rename({one: other, other: one})
                self._alone.apply([change])
            case ClearSlot(slot, 0):
                self._forget(slot)
                self._alone.apply([change])
            case ClearSlot(slot, start):
                self._cut(slot, start)
            case RestoreSnapshot(_, slot):
                self._forget(slot)
                self._alone.apply([change])
            case DropSnapshot():
                self._alone.apply([change])
            case CopySlot(source, target, length):
                self._forget(target)
                self._alone.copy_tokens(source, target, length)
                if self._length(source) is not None:
                    self._keep(target, self._layout.crop(self._view(source), length))

    def _cut(self, slot: int, length: int) -> None:
        """To its first tokens: the rest is another sequence's, or to be freed."""
        if (self._length(slot) or 0) > length:
            cropped = self._layout.crop(self._view(slot), length)
            self._forget(slot)
            self._keep(slot, cropped)

    def _keep(self, slot: int, state: SequenceState | None) -> None:
        """None: there is none, and it is computed again."""
        self._alone.states.pop(slot, None)
        if state:
            self._alone.states[slot] = self._layout.copy(state)

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self._model.device)
