"""A step over pages: the tokens of any mix of prompts and answers in one row, and one transfer for their indices.

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

from services.engine.cpu.attention import Scoring, UnsupportedAttention, attention_context
from services.engine.cpu.compiled_step import logits_indices, supports_logits_to_keep
from services.engine.execution.kv_cache import LayerCache
from services.engine.paged.attention import PagedRows, attend
from services.engine.scheduling.pages import Pages
from services.engine.scheduling.step import LONG_POSITIONS, StepRow

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The sizes of a step. Steps of the same shape differ in nothing but numbers."""

    num_tokens: int
    num_logits: int
    num_sequences: int
    num_pages: int  # of each sequence
    max_queries: int
    max_length: int

    @classmethod
    def of(cls, step_rows: list[StepRow], pages: Pages) -> "BatchShape":
        most = max(row.end for row in step_rows)
        return cls(
            num_tokens=sum(row.num_tokens for row in step_rows),
            num_logits=max(1, sum(row.num_logits for row in step_rows)),  # no product likes to be empty
            num_sequences=len(step_rows),
            num_pages=pages.needed(most),
            max_queries=max(row.num_tokens for row in step_rows),
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
    logits_indices: Tensor  # the tokens whose logits are wanted
    rows: PagedRows

    @classmethod
    def split(cls, array: Tensor, shape: BatchShape) -> "Inputs":
        ids, positions, writes, indices, query_starts, key_starts, lengths, table = torch.split(array, shape.sizes)
        rows = PagedRows(
            query_starts, key_starts, lengths, table.view(-1, shape.num_pages), shape.max_queries, shape.max_length
        )
        return cls(ids.long(), positions.long(), writes.long(), indices.long(), rows)


def write(step_rows: list[StepRow], shape: BatchShape, pages: Pages, spare: int) -> Ints:
    """The step as one array, which begins with the tokens as far as they are known.

    Where the shape is larger than the step, the rest are rows of one token each that read and write the spare page.
    """
    array = np.zeros(sum(shape.sizes), np.int32)
    ids, positions, writes, indices, query_starts, key_starts, lengths, table = shape.parts(array)
    counts = np.array([row.num_tokens for row in step_rows])
    num_tokens = int(counts.sum())
    slots = np.array([row.slot for row in step_rows])
    known = [token for row in step_rows for token in row.token_ids]
    ids[: len(known)] = known
    positions[:num_tokens] = [position for row in step_rows for position in row.position_ids]
    of_tokens, inside = np.repeat(slots, counts), positions[:num_tokens] % LONG_POSITIONS
    writes[:num_tokens] = pages.table[of_tokens, inside // pages.page_size] * pages.page_size + inside % pages.page_size
    writes[num_tokens:] = spare * pages.page_size
    wanted = logits_indices(step_rows) if shape.num_logits < shape.num_tokens else range(shape.num_tokens)
    indices[: len(wanted)] = wanted
    lengths[:] = 1
    lengths[: len(step_rows)] = [row.end for row in step_rows]
    query_starts[1:] = np.arange(1, shape.num_sequences + 1) + num_tokens - len(step_rows)
    query_starts[1 : len(step_rows) + 1] = counts.cumsum()
    key_starts[1:] = lengths.cumsum()
    table = table.reshape(-1, shape.num_pages)
    table[:] = spare
    table[: len(step_rows)] = pages.table[slots, : shape.num_pages]
    return array


@dataclass(frozen=True, slots=True)
class Paged:
    """Attention of such a step."""

    inputs: Inputs
    layers: Mapping[int, LayerCache]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        if scoring.softcap is not None or scoring.sinks is not None:
            raise UnsupportedAttention("soft-capping or sinks over pages")
        cache = self.layers[layer]
        cache.keys.flatten(0, 1).index_copy_(0, self.inputs.writes, keys)
        cache.values.flatten(0, 1).index_copy_(0, self.inputs.writes, values)
        return attend(queries, cache.keys, cache.values, self.inputs.rows, scoring.scale, scoring.window)


class PagedStep:
    """Calls the model."""

    def __init__(self, model: Any, layers: Mapping[int, LayerCache]) -> None:
        self._model = model
        self._layers = layers
        self._keeps = supports_logits_to_keep(model)

    def kept(self, step_rows: list[StepRow]) -> list[int] | None:
        """The tokens that the language head is given; None: all."""
        return (logits_indices(step_rows) or [0]) if self._keeps else None

    def __call__(self, inputs: Inputs, given: dict[str, Any] | None = None) -> Tensor:
        """Logits of what is asked; `given` instead of the ids and positions, where a model sees."""
        given = given or {"input_ids": inputs.ids[None], "position_ids": inputs.positions[None]}
        kept = {"logits_to_keep": inputs.logits_indices} if self._keeps else {}
        with attention_context(Paged(inputs, self._layers)):
            logits: Tensor = self._model(**given, **kept, use_cache=False).logits[0]
        return logits if self._keeps else logits[inputs.logits_indices]
