"""A step over pages: the tokens of any mix of prompts and answers in one row, and one copy of all that is said of them.

All of it is written into one array on the host, is copied to the device in one go and taken apart there, so that a step
neither waits for the device nor makes it wait.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.engine.cpu.attention import attention_context
from services.engine.cpu.compiled_step import logits_indices, supports_logits_to_keep
from services.engine.execution.kv_cache import LayerCache
from services.engine.paged.attention import PagedRows, attend
from services.engine.scheduling.pages import Pages
from services.engine.scheduling.scheduler import ScheduledSequence

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The sizes of a step. Steps of the same form differ in nothing but numbers."""

    num_tokens: int
    num_logits: int
    num_sequences: int
    num_pages: int  # of each sequence
    max_queries: int
    max_length: int

    @classmethod
    def of(cls, works: list[ScheduledSequence], pages: Pages) -> "BatchShape":
        most = max(work.end for work in works)
        return cls(
            num_tokens=sum(work.num_tokens for work in works),
            num_logits=max(1, sum(work.num_logits for work in works)),  # no product likes to be empty
            num_sequences=len(works),
            num_pages=pages.needed(most),
            max_queries=max(work.num_tokens for work in works),
            max_length=most,
        )

    @property
    def sizes(self) -> list[int]:
        """Of what lies in the array, part by part."""
        rows = self.num_sequences
        return [*[self.num_tokens] * 3, self.num_logits, rows + 1, rows + 1, rows, rows * self.num_pages]

    def parts(self, array: Ints) -> list[Ints]:
        return [array[start:end] for start, end in pairwise(np.cumsum([0, *self.sizes]).tolist())]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A step as the device sees it: `writes` are the places of its keys and values among those of all pages."""

    ids: Tensor
    positions: Tensor
    writes: Tensor
    asked: Tensor
    rows: PagedRows

    @classmethod
    def split(cls, array: Tensor, form: BatchShape) -> "Inputs":
        ids, positions, writes, asked, query_starts, key_starts, lengths, table = torch.split(array, form.sizes)
        rows = PagedRows(
            query_starts, key_starts, lengths, table.view(-1, form.num_pages), form.max_queries, form.max_length
        )
        return cls(ids.long(), positions.long(), writes.long(), asked.long(), rows)


def write(works: list[ScheduledSequence], form: BatchShape, pages: Pages, spare: int) -> Ints:
    """The step as one array, which begins with the tokens as far as they are known.

    Where the form is larger than the step, the rest are rows of one token each that read and write the spare page.
    """
    array = np.zeros(sum(form.sizes), np.int32)
    ids, positions, writes, asked, query_starts, key_starts, lengths, table = form.parts(array)
    counts = np.array([work.num_tokens for work in works])
    num_tokens = int(counts.sum())
    slots = np.array([work.slot for work in works])
    known = [token for work in works for token in work.tokens]
    ids[: len(known)] = known
    positions[:num_tokens] = [position for work in works for position in range(work.start, work.end)]
    of_tokens, inside = np.repeat(slots, counts), positions[:num_tokens]
    writes[:num_tokens] = pages.table[of_tokens, inside // pages.page_size] * pages.page_size + inside % pages.page_size
    writes[num_tokens:] = spare * pages.page_size
    wanted = logits_indices(works) if form.num_logits < form.num_tokens else range(form.num_tokens)
    asked[: len(wanted)] = wanted
    lengths[:] = 1
    lengths[: len(works)] = [work.end for work in works]
    query_starts[1:] = np.arange(1, form.num_sequences + 1) + num_tokens - len(works)
    query_starts[1 : len(works) + 1] = counts.cumsum()
    key_starts[1:] = lengths.cumsum()
    table = table.reshape(-1, form.num_pages)
    table[:] = spare
    table[: len(works)] = pages.table[slots, : form.num_pages]
    return array


@dataclass(frozen=True, slots=True)
class Paged:
    """Attention of such a step."""

    inputs: Inputs
    layers: Mapping[int, LayerCache]

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None, window: int | None
    ) -> Tensor:
        cache = self.layers[layer]
        cache.keys.flatten(0, 1).index_copy_(0, self.inputs.writes, keys)
        cache.values.flatten(0, 1).index_copy_(0, self.inputs.writes, values)
        return attend(queries, cache.keys, cache.values, self.inputs.rows, scale, window)


class PagedStep:
    """Calls the model."""

    def __init__(self, model: Any, layers: Mapping[int, LayerCache]) -> None:
        self._model = model
        self._layers = layers
        self._keeps = supports_logits_to_keep(model)

    def __call__(self, inputs: Inputs, given: dict[str, Any] | None = None) -> Tensor:
        """Logits of what is asked; `given` instead of the ids and positions, where a model sees."""
        given = given or {"input_ids": inputs.ids[None], "position_ids": inputs.positions[None]}
        kept = {"logits_to_keep": inputs.asked} if self._keeps else {}
        with attention_context(Paged(inputs, self._layers)):
            logits: Tensor = self._model(**given, **kept, use_cache=False).logits[0]
        return logits if self._keeps else logits[inputs.asked]
