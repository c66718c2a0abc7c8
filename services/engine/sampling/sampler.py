"""The sampler: the next token of each row, by its own parameters and its own random numbers.

The arithmetic of a row does not depend on the rest of the batch, not even in its rounding: a seed gives the same token
in any batch. Rows with the same method are sampled together, and none pays for what only others ask for. Of equally
likely tokens the first is the likeliest, however a row is sampled.

On a GPU nothing is waited for until all tokens come back at once.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from services.engine.base import SamplingParams
from services.engine.device.device_io import Download, upload
from services.engine.sampling.logits_processors import apply_logits_processors, needs_processing
from services.engine.sampling.rows import column, likeliest, select_rows, set_rows
from services.engine.scheduling.sequence import Sequence

NUCLEUS = 1024
# Numbers of the likeliest tokens to be sorted: nearly all nuclei lie within the first, and sorting a whole vocabulary
# takes fifty times as long.
WIDTHS = (64, NUCLEUS, 8 * NUCLEUS)
NARROW, BLOCK = 64, 512  # tokens of a block in the two-step argmax: fewer are no gain, GPT-2's 29 a loss
GREEDY = 1e-5  # a temperature below it leaves one token, and dividing by it would overflow

Method = Callable[[Tensor, list[Sequence]], Tensor]


class SampleResult:
    """A token for each row of `logits` [rows, vocabulary], which are not changed."""

    def __init__(self, logits: Tensor, rows: list[Sequence]) -> None:
        self.tokens = sample_tokens(logits, rows)  # where the logits are
        self._download = Download(self.tokens, logits.amax(-1).isfinite())

    def token_ids(self) -> list[int | None]:
        """None where the logits are not finite."""
        tokens, finite = self._download.result()
        return [token if valid else None for token, valid in zip(tokens, finite, strict=True)]


def sample(logits: Tensor, rows: list[Sequence]) -> list[int | None]:
    return SampleResult(logits, rows).token_ids()


def sample_tokens(logits: Tensor, rows: list[Sequence]) -> Tensor:
    scores = logits.float()  # exact, and the largest is found in less than half the time
    tokens = scores.new_zeros(len(rows), dtype=torch.int64)
    for (method, processed), members in _groups(rows).items():
        mine = [rows[i] for i in members]
        part = select_rows(scores, members)
        if processed:
            apply_logits_processors(part := part.clone() if part is logits else part, mine)
        set_rows(tokens, members, method(part, mine))
    return tokens


def _groups(rows: list[Sequence]) -> dict[tuple[Method, bool], list[int]]:
    groups = defaultdict(list)
    for i, row in enumerate(rows):
        groups[_method(row.job.sampling), needs_processing(row)].append(i)
    return groups


def _method(params: SamplingParams) -> Method:
    if params.temperature < GREEDY or params.top_k == 1 or params.min_p >= 1:
        return _greedy
    return _sample_full if params.top_p >= 1 and params.top_k is None else _sample_truncated


def _greedy(logits: Tensor, rows: list[Sequence]) -> Tensor:
    """The first of equal ones. On the CPU a maximum takes a sixth of the time of an argmax."""
    width = _width(logits.shape[-1])
    if width < NARROW:
        return logits.argmax(-1)
    blocks = logits.view(len(logits), -1, width)
    block = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(len(logits), device=logits.device), block].argmax(-1)
    return block * width + inside


@cache
def _width(size: int) -> int:
    """Of the blocks that divide a row of this size."""
    return next(width for width in range(BLOCK, 0, -1) if size % width == 0)


def _sample_full(logits: Tensor, rows: list[Sequence]) -> Tensor:
    return _inverse_transform(_probabilities(logits, rows), rows)


def _sample_truncated(logits: Tensor, rows: list[Sequence]) -> Tensor:
    probs = _probabilities(logits, rows)
    size = probs.shape[-1]
    tokens = probs.new_zeros(len(rows), dtype=torch.int64)
    left = list(range(len(rows)))
    for width in [*(width for width in WIDTHS if width < size), size]:
        trying = [i for i in left if _may_fit(rows[i], width, probs)]
        if not trying:
            continue
        mine = select_rows(logits, trying)
        ids = likeliest(mine, width)
        values = select_rows(probs, trying).gather(-1, ids)
        level = mine.gather(-1, ids[:, :1]) == mine.gather(-1, ids[:, -1:])
        needs_more = _needs_more(values, level[:, 0], size, [rows[i] for i in trying])
        if fitting := [i for i, each in enumerate(needs_more) if not each]:
            members = [trying[i] for i in fitting]
            sampled = _sample_sorted(
                select_rows(values, fitting), select_rows(ids, fitting), [rows[i] for i in members]
            )
            set_rows(tokens, members, sampled)
            left = sorted({*left} - {*members})
    return tokens


def _may_fit(row: Sequence, width: int, probs: Tensor) -> bool:
    """Whether to check this width. On a GPU a check waits for the device, which costs more than sorting all tokens."""
    top_k = row.job.sampling.top_k
    return probs.device.type == "cpu" or width == probs.shape[-1] or (top_k is not None and top_k <= width)


def _needs_more(values: Tensor, level: Tensor, vocabulary: int, rows: list[Sequence]) -> list[bool]:
    """Whether a row needs tokens beyond its `values`, the largest probabilities. `level`: they are all equal, so the
    first of the tokens that are as likely may not be among them."""
    size = values.shape[-1]
    params = _params(rows)
    if size == vocabulary:
        return [False] * len(params)
    if values.device.type != "cpu" and all(p.top_k is not None for p in params):  # known without the probabilities
        return [p.top_k > size for p in params if p.top_k is not None]
    return [
        flat or (mass < p.top_p if p.top_k is None else p.top_k > size)
        for mass, flat, p in zip(values.sum(-1).tolist(), level.tolist(), params, strict=True)
    ]


def _sample_sorted(values: Tensor, ids: Tensor, rows: list[Sequence]) -> Tensor:
    """top_k, then top_p of what is left, in the order of `transformers`. `values` in descending order."""
    params = _params(rows)
    size = values.shape[-1]
    ranks = torch.arange(size, device=values.device)
    values = values * (ranks < column([min(p.top_k or size, size) for p in params], values))
    cumulative = values.cumsum(-1)
    limited = upload(np.array([[p.top_k is not None] for p in params]), values.device)
    mass = torch.where(limited, cumulative[:, -1:], 1.0)
    inside = cumulative - values < column([p.top_p for p in params], values) * mass
    values = values * (inside | (ranks == 0))  # always the likeliest, also where top_p is nearly 0
    return ids.gather(-1, _inverse_transform(values, rows)[:, None])[:, 0]


def _params(rows: list[Sequence]) -> list[SamplingParams]:
    return [row.job.sampling for row in rows]


def _probabilities(logits: Tensor, rows: list[Sequence]) -> Tensor:
    """Of all tokens, after temperature and min_p, which comes before top_k and top_p."""
    params = _params(rows)
    if any(p.temperature != 1 for p in params):
        logits = logits / column([p.temperature for p in params], logits)
    probs = logits.softmax(-1)
    if not any(p.min_p for p in params):
        return probs
    least = column([p.min_p for p in params], logits)
    probs = probs * (probs >= least * probs.amax(-1, keepdim=True))
    return probs / torch.where(least > 0, probs.sum(-1, keepdim=True), 1.0)  # by 1 where there is no min_p


def _inverse_transform(weights: Tensor, rows: list[Sequence]) -> Tensor:
    """An index for each row: the inverse of the cumulative distribution at one uniform number of the row's own, so
    that a seeded text does not depend on the rest of the batch."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:] * (1 - torch.finfo(torch.float32).eps)  # strictly below the end: no index past it
    uniform = column([row.random.random() for row in rows], weights)
    found = torch.searchsorted(cumulative, uniform * total, right=True)[:, 0]
    return found.clamp_(max=weights.shape[-1] - 1)  # where a row is NaN, or nothing is allowed
