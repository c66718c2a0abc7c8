"""Logits processors: grammar masks, logit bias, penalties and min_tokens, in vLLM's order and definitions.

Apart from masks all changes are sparse, a few hundred of a vocabulary: they are gathered for all rows, computed at once
and scattered back. The tokens of a sequence are counted as it grows, never again from its beginning.
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
    """Computes the masks of the rows with a grammar. Returns the rows whose grammar allows no token."""
    return [i for i, row in enumerate(rows) if row.matcher and not _processors_of(row).fill_mask(row)]


def apply_logits_processors(scores: Tensor, rows: list[Sequence]) -> None:
    """Changes `scores` [rows, vocabulary] in place; they are float32."""
    processors = [_processors_of(row) for row in rows]
    _mask(scores, processors)
    _bias(scores, processors)
    _penalise(scores, [(i, each) for i, each in enumerate(processors) if each.params.penalises])
    _forbid_end(scores, [(i, each.ends) for i, each in enumerate(processors) if each.forbids_end(rows[i])])


def _processors_of(row: Sequence) -> "LogitsProcessors":
    if row.processors is None:
        row.processors = LogitsProcessors(row)
    processors: LogitsProcessors = row.processors
    processors.catch_up(row.tokens)
    return processors


class LogitsProcessors:
    """Of one sequence: its distinct tokens and their counts in the answer."""

    def __init__(self, row: Sequence) -> None:
        self.params = row.job.sampling
        self.bias_ids = np.fromiter(self.params.logit_bias.keys(), np.int64)
        self.allowed: Bits | None = None
        self.ends = np.fromiter(row.ends, np.int64)
        self.bias = np.fromiter(self.params.logit_bias.values(), np.float32)
        self._num_read = len(row.job.prompt)
        # only the repetition penalty counts the prompt
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
        """Of each id in the answer."""
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

    def fill_mask(self, row: Sequence) -> bool:
        """Whether the grammar allows a token."""
        self.allowed = row.matcher.allowed()
        if not len(self.allowed):  # it is broken
            return False
        withheld = self._withheld(row)
        if len(withheld) and (rest := _without(self.allowed, withheld)).any():  # a complete answer may still end
            self.allowed = rest
        return bool(self.allowed.any())

    def _withheld(self, row: Sequence) -> Ids:
        """The end tokens that the grammar allows and the request does not."""
        if _is_short(row):
            return np.union1d(self.ends, row.matcher.ends)
        return row.matcher.ends if self.params.ignore_eos else self.ends[:0]

    def forbids_end(self, row: Sequence) -> bool:
        return self.allowed is None and _is_short(row)

    def penalties(self) -> Floats:
        params, counts = self.params, self.counts
        less = counts * np.float32(params.frequency_penalty) + (counts > 0) * np.float32(params.presence_penalty)
        return less.astype(np.float32, copy=False)


def _without(bits: Bits, tokens: Ids) -> Bits:
    rest = bits.copy()
    np.bitwise_and.at(rest, tokens >> 3, ~(1 << (tokens & 7)).astype(np.uint8))
    return rest


def _mask(scores: Tensor, processors: list[LogitsProcessors]) -> None:
    """Adds 0 to allowed tokens and minus infinity to the others, eight at a time from a table of all bytes."""
    if all(each.allowed is None for each in processors):
        return
    size = next(len(each.allowed) for each in processors if each.allowed is not None)
    bits = np.stack([np.full(size, 255, np.uint8) if s.allowed is None else s.allowed for s in processors])
    octets = upload(bits, scores.device).int()
    scores += embedding(octets, mask_table(scores.device)).flatten(1)[:, : scores.shape[-1]]


@cache
def mask_table(device: torch.device) -> Tensor:
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return torch.where(bits == 1, 0.0, -torch.inf).to(device)


def _bias(scores: Tensor, processors: list[LogitsProcessors]) -> None:
    biased = [(i, each) for i, each in enumerate(processors) if len(each.bias_ids)]
    if biased:
        at = _places(((i, each.bias_ids) for i, each in biased), scores)
        scores.put_(at, _values([each.bias for _, each in biased], scores), accumulate=True)


def _penalise(scores: Tensor, penalised: list[tuple[int, LogitsProcessors]]) -> None:
    """Repetition first, over prompt and answer; then frequency and presence, over the answer."""
    if not penalised:
        return
    at = _places(((i, each.ids) for i, each in penalised), scores)
    found = scores.take(at)
    sizes = [len(each.ids) for _, each in penalised]
    repetition = _values([np.repeat([np.float32(s.params.repetition_penalty) for _, s in penalised], sizes)], scores)
    found = torch.where(found > 0, found / repetition, found * repetition)
    scores.put_(at, found - _values([each.penalties() for _, each in penalised], scores))


def _forbid_end(scores: Tensor, ends: list[tuple[int, Ids]]) -> None:
    """Forbids the tokens that would end the answer."""
    if ends:
        scores.view(-1).index_fill_(0, _places(ends, scores), -torch.inf)


def _places(of_rows: Iterable[tuple[int, Ids]], scores: Tensor) -> Tensor:
    """The indices of each row's ids in the flattened `scores`."""
    width = scores.shape[-1]
    return upload(np.concatenate([ids + i * width for i, ids in of_rows]), scores.device)


def _values(parts: list[Floats], scores: Tensor) -> Tensor:
    return upload(np.concatenate(parts), scores.device)
