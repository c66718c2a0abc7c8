"""SequentialRunner: one sequence at a time, for models that cannot be batched."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.execution.cache_layout import SequenceState
from services.engine.execution.snapshot_store import SnapshotStore
from services.engine.loading.loader import Source
from services.engine.loading.long_rope import short_length
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


class SequentialRunner:
    """Any architecture that `generate` can run, each sequence with the cache that the model makes itself.

    Such a cache may hold states or windows, so the content of a slot cannot serve another sequence. Snapshots can.
    """

    reuses = False
    supports_drafts = False
    page_size = 1
    cache_tokens: int | None = None
    snapshots: SnapshotRoom | None = None
    vision: Vision | None = None

    def __init__(
        self,
        model: Any,
        num_slots: int,
        length: int,
        use: CacheUse = CACHE_USES[0],
        make_cache: Callable[[], Any] = lambda: None,
        chunk: int | None = None,
        store: SnapshotStore | None = None,
    ) -> None:
        """`make_cache`: what a sequence begins with; None: the model makes a cache. `chunk`: prompts are read so many
        tokens at a time, however many a step has; None: as they come. `store`: for snapshots at ends of chunks."""
        self._model = model
        self.make_cache = make_cache
        self.chunk = chunk
        self.store = store
        self.use = use
        self.cache_name = cache_name(model)
        self.states: dict[int, SequenceState] = {}  # by slot
        self._tokens: dict[int, list[int]] = {}  # by slot, to compute a cache again
        self._reading: set[int] = set()  # slots with a part of a prompt, which is read on in chunks
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
                    self.states = {swapped.get(slot, slot): state for slot, state in self.states.items()}
                    self._tokens = {swapped.get(slot, slot): tokens for slot, tokens in self._tokens.items()}
                    self._reading = {swapped.get(slot, slot) for slot in self._reading}
                case ClearSlot(slot):
                    self.states.pop(slot, None)
                    self._tokens.pop(slot, None)
                    self._reading.discard(slot)
                case RestoreSnapshot(id, slot):
                    self._restore(id, slot)
                case DropSnapshot() if self.store:
                    self.store.drop(change)
                case CopySlot():
                    raise NotImplementedError

    def _restore(self, id: int, slot: int) -> None:
        assert self.store
        restored = self.store.restore(id)
        self.states[slot], self._tokens[slot] = restored.state, restored.tokens
        self._reading.add(slot)

    def is_reading(self, slot: int) -> bool:
        """Whether its next tokens are a prompt's, however few a step has of them."""
        return slot in self._reading

    def another(self, num_slots: int, length: int) -> "SequentialRunner":
        """With the same model and no past, to try something."""
        return SequentialRunner(self._model, num_slots, length, self.use, self.make_cache, self.chunk)

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> None:
        return None

    def compilation(self, source: Source, folder: Path, adapters: Adapters | None = None) -> None:
        return None

    @torch.inference_mode()
    def run(self, rows: list[StepRow]) -> Tensor:
        computed = [self.forward(row) for row in rows]
        logits = [each for row, each in zip(rows, computed, strict=True) if each is not None and row.num_logits]
        return torch.cat(logits) if logits else torch.empty(0)

    def copy_tokens(self, source: int, target: int, length: int) -> None:
        """Without a cache, which is computed again if nobody gives one."""
        self._tokens[target] = self._tokens.get(source, [])[:length]
        self.states.pop(target, None)

    def record(self, row: StepRow) -> None:
        """Its tokens, to compute them again."""
        self._tokens.setdefault(row.slot, [])[row.start :] = row.token_ids
        if self.chunk and not row.num_logits:
            self._reading.add(row.slot)
        else:
            self._reading.discard(row.slot)

    def forward(self, row: StepRow) -> Tensor | None:
        """A cache cannot be cut back: after a step without memory, what was computed of it is computed again."""
        self.record(row)
        state = self.states.pop(row.slot, None)  # a step that fails may leave it half written
        is_current = state is not None and state.length == row.start
        if self.use.whole_prompts and (row.num_tokens > 1 or not is_current):
            return self._read(row, SequenceState(self.make_cache(), 0), row.end) if row.num_logits else None
        if state is None or state.length > row.start:
            state = SequenceState(self.make_cache(), 0) if self.chunk else self._recompute(row)
        logits = []
        for end in self._ends(state.length, row):
            logits.append(self._read(row, state, end))
            state = self.states.pop(row.slot)
            self._save(row, state)
        self.states[row.slot] = state
        return torch.cat(logits)[-max(1, row.num_logits) :] if logits else None

    def _save(self, row: StepRow, state: SequenceState) -> None:
        for save in row.saves:
            if self.store and save.length == state.length:
                self.store.save(save, state, self._tokens[row.slot])

    def _ends(self, start: int, row: StepRow) -> Iterator[int]:
        """Of forward passes. What is left of a chunk is read with the next one, unless logits are wanted now."""
        if self.chunk is None:
            yield row.end
            return
        yield from range((start // self.chunk + 1) * self.chunk, row.end + 1, self.chunk)
        if row.num_logits and row.end % self.chunk:
            yield row.end

    def _recompute(self, row: StepRow) -> SequenceState:
        state = SequenceState(self.make_cache(), 0)
        while state.length < row.start:
            self._read(row, state, min(state.length + RECOMPUTE_TOKENS, row.start))
            state = self.states.pop(row.slot)
        return state

    def _read(self, row: StepRow, state: SequenceState, end: int) -> Tensor:
        part = row._replace(start=state.length, num_tokens=end - state.length)
        given = {"input_ids": self._tensor(self._tokens[row.slot][part.start : part.end])}
        if self.use.position_ids or row.is_long:
            given["position_ids"] = self._tensor(list(part.position_ids))
        with adapter_context(StepAdapters.of([part])):
            out = self._model(**given, **{self.cache_name: state.cache}, use_cache=True)
        self.states[row.slot] = SequenceState(getattr(out, self.cache_name), end)
        return out.logits[0, -max(1, row.num_logits) :]  # type: ignore[no-any-return]

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor([values], device=self._model.device)


def cache_name(model: Any) -> str:
    known = inspect.signature(model.forward).parameters
    return next((name for name in CACHES if name in known), CACHES[0])
