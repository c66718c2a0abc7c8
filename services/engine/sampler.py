"""The next token of every row, each by its own parameters and its own random numbers."""

import torch
from torch import Tensor

from services.engine.base import SamplingParams
from services.engine.sequence import Sequence

NUCLEUS = 1024  # wider than most nuclei, and finding the 1,024 largest costs a tenth of sorting a vocabulary


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
    return row.job.sampling.temperature > 0


def _is_truncated(row: Sequence) -> bool:
    return row.job.sampling.top_p < 1 or row.job.sampling.top_k is not None


def _draw(logits: Tensor, rows: list[Sequence]) -> list[int]:
    return _pick(_probabilities(logits, rows), rows).tolist()


def _draw_truncated(logits: Tensor, rows: list[Sequence]) -> list[int]:
    """top_k first, then top_p of what is left, as `transformers` orders them."""
    params = [row.job.sampling for row in rows]
    values, ids = _largest(_probabilities(logits, rows), params)
    ranks = torch.arange(values.shape[-1], device=values.device)
    values = values * (ranks < _column([p.top_k or values.shape[-1] for p in params], values))
    before = values.cumsum(-1) - values
    values = values * (before < _column([p.top_p for p in params], values) * values.sum(-1, keepdim=True))
    return ids.gather(-1, _pick(values, rows)[:, None])[:, 0].tolist()


def _largest(probs: Tensor, params: list[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Probabilities in falling order, with their ids: at least as many as any row may draw from."""
    size = min(max(NUCLEUS, *(p.top_k or 0 for p in params)), probs.shape[-1])
    values, ids = probs.topk(size)
    open_rows = [i for i, p in enumerate(params) if p.top_k is None]
    wanted = _column([params[i].top_p for i in open_rows], probs)[:, 0]
    if bool((values[open_rows].sum(-1) < wanted).any()):
        values, ids = probs.sort(descending=True)
    return values, ids


def _probabilities(logits: Tensor, rows: list[Sequence]) -> Tensor:
    return (logits.float() / _column([row.job.sampling.temperature for row in rows], logits)).softmax(-1)


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
