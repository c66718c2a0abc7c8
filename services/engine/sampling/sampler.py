"""The next token of every row, each by its own parameters and its own random numbers.

No row's arithmetic depends on what else is in the batch, not even in its rounding: a seed gives the same token in any
company. Rows that ask for the same kind of draw share it, and none pays for what only others ask.

On a GPU all is asked for without waiting, and what was drawn comes back at once.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from services.engine.base import SamplingParams
from services.engine.device.device_io import Download, download, upload
from services.engine.sampling.logits_processors import needs_processing, shape
from services.engine.scheduling.sequence import Sequence

NUCLEUS = 1024
# How many of the likeliest tokens are looked at: nearly all nuclei lie within the first of these, and sorting a
# whole vocabulary takes fifty times as long.
WIDTHS = (64, NUCLEUS, 8 * NUCLEUS)
TOP = 20  # the most alternatives that may be asked for, always looked for: equals keep their order in any company
NARROW, BLOCK = 64, 512  # tokens of whose largest the likeliest is: fewer are no gain, GPT-2's 29 a loss
PORTION = 64  # tokens of a prompt that are weighed at once
GREEDY = 1e-5  # a temperature below it leaves one token, and dividing by it would overflow

Draw = Callable[[Tensor, list[Sequence]], Tensor]


class SampleResult:
    """A token for each row of `logits` [rows, vocabulary], which stay as they are."""

    def __init__(self, logits: Tensor, rows: list[Sequence]) -> None:
        self.tokens = sample_tokens(logits, rows)  # where the logits are
        self._download = Download(self.tokens, logits.amax(-1).isfinite())

    def token_ids(self) -> list[int | None]:
        """None where nothing can be drawn, from what is no number."""
        tokens, drawable = self._download.result()
        return [token if able else None for token, able in zip(tokens, drawable, strict=True)]


def sample(logits: Tensor, rows: list[Sequence]) -> list[int | None]:
    return SampleResult(logits, rows).token_ids()


def sample_tokens(logits: Tensor, rows: list[Sequence]) -> Tensor:
    scores = logits.float()  # exact, and the largest is found in less than half the time
    tokens = scores.new_zeros(len(rows), dtype=torch.int64)
    for (pick, shaped), members in _kinds(rows).items():
        mine = [rows[i] for i in members]
        part = select_rows(scores, members)
        if shaped:
            shape(part := part.clone() if part is logits else part, mine)
        _put(tokens, members, pick(part, mine))
    return tokens


def select_rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """These of its rows, without a copy if that is all, as it is."""
    return tensor if rows == list(range(len(tensor))) else tensor[_index(rows, tensor)]


def _put(tensor: Tensor, rows: list[int], values: Tensor) -> None:
    tensor.index_copy_(0, _index(rows, tensor), values)


def _index(rows: list[int], like: Tensor) -> Tensor:
    return upload(np.array(rows, np.int64), like.device)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability that the model itself gave a token, and those of the likeliest."""

    logprob: float
    ids: list[int]
    logprobs: list[float]


def compute_logprobs(logits: Tensor, rows: list[Sequence], tokens: list[int]) -> dict[Sequence, TokenLogprobs]:
    """For those rows that ask for it."""
    asking = [i for i, row in enumerate(rows) if row.job.sampling.logprobs is not None]
    if not asking:
        return {}
    logprobs = select_rows(logits, asking).float().log_softmax(-1)
    chosen = logprobs.gather(-1, _index([tokens[i] for i in asking], logits)[:, None])[:, 0]
    most = max(rows[i].job.sampling.logprobs or 0 for i in asking)
    top = logprobs.topk(min(TOP, logits.shape[-1]) if most else 0)
    chances, ids, values = download(chosen, top.indices, top.values)
    weighed = {}
    for at, i in enumerate(asking):
        number = rows[i].job.sampling.logprobs
        weighed[rows[i]] = TokenLogprobs(chances[at], ids[at][:number], values[at][:number])
    return weighed


def compute_prompt_logprobs(logits: Tensor, tokens: list[int], number: int) -> list[TokenLogprobs]:
    """Each token by its row, a few rows at a time: a whole prompt's log-probabilities would take gigabytes."""
    weighed = []
    for start in range(0, len(tokens), PORTION):
        part = tokens[start : start + PORTION]
        logprobs = logits[start : start + len(part)].float().log_softmax(-1)
        chosen = logprobs.gather(-1, _index(part, logits)[:, None])[:, 0]
        top = logprobs.topk(number)
        chances, ids, values = download(chosen, top.indices, top.values)
        weighed += [TokenLogprobs(*each) for each in zip(chances, ids, values, strict=True)]
    return weighed


def _kinds(rows: list[Sequence]) -> dict[tuple[Draw, bool], list[int]]:
    kinds = defaultdict(list)
    for i, row in enumerate(rows):
        kinds[_draw_of(row.job.sampling), needs_processing(row)].append(i)
    return kinds


def _draw_of(params: SamplingParams) -> Draw:
    if params.temperature < GREEDY:
        return _take_likeliest
    return _draw if params.top_p >= 1 and params.top_k is None else _draw_truncated


def _take_likeliest(logits: Tensor, rows: list[Sequence]) -> Tensor:
    """The first of equals. To find what the largest is takes the CPU a sixth of the time of finding where it is."""
    width = _width(logits.shape[-1])
    if width < NARROW:
        return logits.argmax(-1)
    blocks = logits.view(len(logits), -1, width)
    block = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(len(logits), device=logits.device), block].argmax(-1)
    return block * width + inside


@cache
def _width(size: int) -> int:
    """Of blocks that a row of this size falls into."""
    return next(width for width in range(BLOCK, 0, -1) if size % width == 0)


def _draw(logits: Tensor, rows: list[Sequence]) -> Tensor:
    return _pick(_probabilities(logits, rows), rows)


def _draw_truncated(logits: Tensor, rows: list[Sequence]) -> Tensor:
    probs = _probabilities(logits, rows)
    size = probs.shape[-1]
    tokens = probs.new_zeros(len(rows), dtype=torch.int64)
    left = list(range(len(rows)))
    for width in [*(width for width in WIDTHS if width < size), size]:
        trying = [i for i in left if _may_fit(rows[i], width, probs)]
        if not trying:
            continue
        mine = select_rows(probs, trying)
        values, ids = mine.topk(width) if width < size else mine.sort(descending=True)
        wider = _wider(values, size, [rows[i] for i in trying])
        if fitting := [i for i, each in enumerate(wider) if not each]:
            members = [trying[i] for i in fitting]
            drawn = _draw_sorted(select_rows(values, fitting), select_rows(ids, fitting), [rows[i] for i in members])
            _put(tokens, members, drawn)
            left = sorted({*left} - {*members})
    return tokens


def _may_fit(row: Sequence, width: int, probs: Tensor) -> bool:
    """Whether it is worth looking. On a GPU to look is to wait for it, which costs more than to sort everything."""
    top_k = row.job.sampling.top_k
    return probs.device.type == "cpu" or width == probs.shape[-1] or (top_k is not None and top_k <= width)


def _wider(values: Tensor, vocabulary: int, rows: list[Sequence]) -> list[bool]:
    """Whether a row may draw a token that is not among its `values`, the largest probabilities."""
    size = values.shape[-1]
    params = _params(rows)
    if size == vocabulary:
        return [False] * len(params)
    if all(p.top_k is not None for p in params):  # there is no need to look
        return [p.top_k > size for p in params if p.top_k is not None]
    return [
        mass < p.top_p if p.top_k is None else p.top_k > size
        for mass, p in zip(values.sum(-1).tolist(), params, strict=True)
    ]


def _draw_sorted(values: Tensor, ids: Tensor, rows: list[Sequence]) -> Tensor:
    """top_k first, then top_p of what is left, as `transformers` orders them. `values` in falling order."""
    params = _params(rows)
    size = values.shape[-1]
    ranks = torch.arange(size, device=values.device)
    values = values * (ranks < _column([min(p.top_k or size, size) for p in params], values))
    cumulative = values.cumsum(-1)
    limited = upload(np.array([[p.top_k is not None] for p in params]), values.device)
    mass = torch.where(limited, cumulative[:, -1:], 1.0)
    inside = cumulative - values < _column([p.top_p for p in params], values) * mass
    values = values * (inside | (ranks == 0))  # the likeliest always, also where top_p is as good as 0
    return ids.gather(-1, _pick(values, rows)[:, None])[:, 0]


def _params(rows: list[Sequence]) -> list[SamplingParams]:
    return [row.job.sampling for row in rows]


def _probabilities(logits: Tensor, rows: list[Sequence]) -> Tensor:
    """Of all tokens, by temperature; without those below min_p, which comes before top_k and top_p."""
    params = _params(rows)
    if any(p.temperature != 1 for p in params):
        logits = logits / _column([p.temperature for p in params], logits)
    probs = logits.softmax(-1)
    if not any(p.min_p for p in params):
        return probs
    least = _column([p.min_p for p in params], logits)
    probs = probs * (probs >= least * probs.amax(-1, keepdim=True))
    return probs / torch.where(least > 0, probs.sum(-1, keepdim=True), 1.0)  # by 1: as it is in other company


def _pick(weights: Tensor, rows: list[Sequence]) -> Tensor:
    """An index for each row, by the inverse of the cumulative distribution at one uniform number of the row's own.

    A seeded row needs no other source of chance, so its text does not depend on what else is in the batch.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:] * (1 - torch.finfo(torch.float32).eps)  # strictly below the end: no index past it
    uniform = _column([row.random.random() for row in rows], weights)
    found = torch.searchsorted(cumulative, uniform * total, right=True)[:, 0]
    return found.clamp_(max=weights.shape[-1] - 1)  # of a row that is NaN, or where everything was forbidden


def _column(values: list[float], like: Tensor) -> Tensor:
    return upload(np.array(values, np.float32), like.device)[:, None]
