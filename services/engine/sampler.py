"""The next token of every row, each by its own parameters and its own random numbers.

No row's arithmetic depends on what else is in the batch, not even in its rounding: a seed gives the same token in any
company.
"""

import torch
from torch import Tensor

from services.engine.base import SamplingParams
from services.engine.sequence import Sequence

NUCLEUS = 1024  # wider than most nuclei, and finding the 1,024 largest costs a tenth of sorting a vocabulary
GREEDY = 1e-5  # a temperature below it leaves one token, and dividing by it would overflow


def sample(logits: Tensor, rows: list[Sequence]) -> list[int]:
    """`logits` [rows, vocabulary] -> a token id for each row."""
    tokens: list[int] = logits.argmax(-1).tolist()
    for truncated in (False, True):
        drawn = [i for i, row in enumerate(rows) if _is_drawn(row) and _is_truncated(row) is truncated]
        if drawn:
            draw = _draw_truncated if truncated else _draw
            for i, token in zip(drawn, draw(logits[drawn], [rows[i] for i in drawn]), strict=True):
                tokens[i] = token
    return tokens


def _is_drawn(row: Sequence) -> bool:
    return row.job.sampling.temperature >= GREEDY


def _is_truncated(row: Sequence) -> bool:
    return row.job.sampling.top_p < 1 or row.job.sampling.top_k is not None


def _draw(logits: Tensor, rows: list[Sequence]) -> list[int]:
    return _pick(_probabilities(logits, rows), rows).tolist()


def _draw_truncated(logits: Tensor, rows: list[Sequence]) -> list[int]:
    probs = _probabilities(logits, rows)
    values, ids = probs.topk(min(NUCLEUS, probs.shape[-1]))
    wide = _wider(values, probs.shape[-1], rows)
    tokens = [0] * len(rows)
    for sorts in (False, True):  # apart: sorting puts equal probabilities in another order than topk
        group = [i for i, each in enumerate(wide) if each is sorts]
        if group:
            falling = probs[group].sort(descending=True) if sorts else (values[group], ids[group])
            for i, token in zip(group, _draw_sorted(*falling, [rows[i] for i in group]), strict=True):
                tokens[i] = token
    return tokens


def _wider(values: Tensor, vocabulary: int, rows: list[Sequence]) -> list[bool]:
    """Whether a row may draw a token that is not among its `values`, the largest probabilities."""
    size = values.shape[-1]
    return [
        size < vocabulary and (mass < p.top_p if p.top_k is None else p.top_k > size)
        for mass, p in zip(values.sum(-1).tolist(), _params(rows), strict=True)
    ]


def _draw_sorted(values: Tensor, ids: Tensor, rows: list[Sequence]) -> list[int]:
    """top_k first, then top_p of what is left, as `transformers` orders them. `values` in falling order."""
    params = _params(rows)
    size = values.shape[-1]
    ranks = torch.arange(size, device=values.device)
    values = values * (ranks < _column([min(p.top_k or size, size) for p in params], values))
    cumulative = values.cumsum(-1)
    limited = torch.tensor([[p.top_k is not None] for p in params], device=values.device)
    mass = torch.where(limited, cumulative[:, -1:], 1.0)
    inside = cumulative - values < _column([p.top_p for p in params], values) * mass
    values = values * (inside | (ranks == 0))  # the likeliest always, also where top_p is as good as 0
    return ids.gather(-1, _pick(values, rows)[:, None])[:, 0].tolist()


def _params(rows: list[Sequence]) -> list[SamplingParams]:
    return [row.job.sampling for row in rows]


def _probabilities(logits: Tensor, rows: list[Sequence]) -> Tensor:
    return (logits.float() / _column([p.temperature for p in _params(rows)], logits)).softmax(-1)


def _pick(weights: Tensor, rows: list[Sequence]) -> Tensor:
    """An index for each row, by the inverse of the cumulative distribution at one uniform number of the row's own.

    A seeded row needs no other source of chance, so its text does not depend on what else is in the batch.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:] * (1 - torch.finfo(torch.float32).eps)  # strictly below the end: no index past it
    uniform = _column([row.random.random() for row in rows], weights)
    return torch.searchsorted(cumulative, uniform * total, right=True)[:, 0]


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
