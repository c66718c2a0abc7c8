"""What requests ask to be changed in their logits before a token is drawn: a mask, bias, penalties, no early end.

In vLLM's order and definitions. All changes are sparse, a few hundred of a vocabulary: they are gathered for all rows,
made at once and scattered back. What a sequence has said is counted as it grows, never again from its beginning.
"""

from collections.abc import Iterable
from functools import cache
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from services.engine.device.device_io import upload
from services.engine.grammar.compiler import Bits
from services.engine.scheduling.sequence import Sequence

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


def needs_processing(row: Sequence) -> bool:
    return row.job.sampling.changes_logits or _is_short(row)


def _is_short(row: Sequence) -> bool:
    return row.num_sampled < row.job.sampling.min_tokens


def fill_grammar_masks(rows: list[Sequence]) -> list[int]:
    """Asks the grammars of those rows that have one; the rows whose grammar allows no token."""
    return [i for i, row in enumerate(rows) if row.matcher and not _processors_of(row).look_up(row)]


def shape(scores: Tensor, rows: list[Sequence]) -> None:
    """Changes `scores` [rows, vocabulary] in place; they are float32."""
    processors = [_processors_of(row) for row in rows]
    _mask(scores, processors)
    _bias(scores, processors)
    _penalise(scores, [(i, processors) for i, processors in enumerate(processors) if processors.params.penalises])
    _go_on(scores, [(i, processors.ends) for i, processors in enumerate(processors) if processors.forbids_end(rows[i])])


def _processors_of(row: Sequence) -> "LogitsProcessors":
    if row.processors is None:
        row.processors = LogitsProcessors(row)
    processors: LogitsProcessors = row.processors
    processors.catch_up(row.tokens)
    return processors


class LogitsProcessors:
    """The side of one sequence: its distinct tokens, and how often its answer has each."""

    def __init__(self, row: Sequence) -> None:
        self.params = row.job.sampling
        self.bias_ids = np.fromiter(self.params.logit_bias.keys(), np.int64)
        self.allowed: Bits | None = None
        self.ends = np.fromiter(row.ends, np.int64)
        self.bias = np.fromiter(self.params.logit_bias.values(), np.float32)
        self._num_read = len(row.job.prompt)
        # the repetition penalty alone looks at the prompt
        self._places = {token: i for i, token in enumerate(dict.fromkeys(self._prompt(row)))}
        self._ids = np.fromiter(self._places, np.int64)
        self._counts = np.zeros(len(self._places), np.float32)

    def _prompt(self, row: Sequence) -> Iterable[int]:
        return row.job.prompt if self.params.repetition_penalty != 1 else ()

    @property
    def ids(self) -> Ids:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> Floats:
        """How often the answer has each of the ids."""
        return self._counts[: len(self._places)]

    def catch_up(self, tokens: list[int]) -> None:
        if not self.params.penalises:
            return
        for token in islice(tokens, self._num_read, None):
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._ids):
                self._ids = np.resize(self._ids, max(2 * place, 64))
                self._counts = np.concatenate([self._counts, np.zeros_like(self._ids[place:], np.float32)])
            self._ids[place] = token
            self._counts[place] += 1
        self._num_read = len(tokens)

    def look_up(self, row: Sequence) -> bool:
        """Whether the grammar leaves anything."""
        self.allowed = row.matcher.allowed()
        if not len(self.allowed):  # it has broken
            return False
        held = self._held_back(row)
        if len(held) and (rest := _without(self.allowed, held)).any():  # what is complete may end all the same
            self.allowed = rest
        return bool(self.allowed.any())

    def _held_back(self, row: Sequence) -> Ids:
        """What the grammar would end with, but the request does not want yet."""
        if _is_short(row):
            return np.union1d(self.ends, row.matcher.ends)
        return row.matcher.ends if self.params.ignore_eos else self.ends[:0]

    def forbids_end(self, row: Sequence) -> bool:
        return self.allowed is None and _is_short(row)

    def subtracted(self) -> Floats:
        params, counts = self.params, self.counts
        less = counts * np.float32(params.frequency_penalty) + (counts > 0) * np.float32(params.presence_penalty)
        return less.astype(np.float32, copy=False)


def _without(bits: Bits, tokens: Ids) -> Bits:
    rest = bits.copy()
    np.bitwise_and.at(rest, tokens >> 3, ~(1 << (tokens & 7)).astype(np.uint8))
    return rest


def _mask(scores: Tensor, processors: list[LogitsProcessors]) -> None:
    """Adds 0 to what is allowed and minus infinity to the rest: eight tokens at a time, from a table of all bytes."""
    if all(processors.allowed is None for processors in processors):
        return
    size = next(len(processors.allowed) for processors in processors if processors.allowed is not None)
    bits = np.stack([np.full(size, 255, np.uint8) if s.allowed is None else s.allowed for s in processors])
    octets = upload(bits, scores.device).int()
    scores += embedding(octets, _weights(scores.device)).flatten(1)[:, : scores.shape[-1]]


@cache
def _weights(device: torch.device) -> Tensor:
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return torch.where(bits == 1, 0.0, -torch.inf).to(device)


def _bias(scores: Tensor, processors: list[LogitsProcessors]) -> None:
    biased = [(i, processors) for i, processors in enumerate(processors) if len(processors.bias_ids)]
    if biased:
        at = _places(((i, processors.bias_ids) for i, processors in biased), scores)
        scores.put_(at, _values([processors.bias for _, processors in biased], scores), accumulate=True)


def _penalise(scores: Tensor, penalised: list[tuple[int, LogitsProcessors]]) -> None:
    """Repetition first, over prompt and answer; then frequency and presence, over the answer."""
    if not penalised:
        return
    at = _places(((i, processors.ids) for i, processors in penalised), scores)
    found = scores.take(at)
    sizes = [len(processors.ids) for _, processors in penalised]
    repetition = _values([np.repeat([np.float32(s.params.repetition_penalty) for _, s in penalised], sizes)], scores)
    found = torch.where(found > 0, found / repetition, found * repetition)
    scores.put_(at, found - _values([processors.subtracted() for _, processors in penalised], scores))


def _go_on(scores: Tensor, ends: list[tuple[int, Ids]]) -> None:
    """Nothing that would end the answer."""
    if ends:
        scores.view(-1).index_fill_(0, _places(ends, scores), -torch.inf)


def _places(of_rows: Iterable[tuple[int, Ids]], scores: Tensor) -> Tensor:
    """Where in the flattened `scores` the ids of each row are."""
    width = scores.shape[-1]
    return upload(np.concatenate([ids + i * width for i, ids in of_rows]), scores.device)


def _values(parts: list[Floats], scores: Tensor) -> Tensor:
    return upload(np.concatenate(parts), scores.device)
