"""Logprobs of sampled tokens and of prompts, from the model's own logits: before temperature and penalties."""

from dataclasses import dataclass

from torch import Tensor

from services.engine.device.device_io import download
from services.engine.sampling.rows import index, likeliest, select_rows
from services.engine.scheduling.sequence import Sequence

MAX_TOP = 20  # always computed: equal logprobs keep their order in any batch
PORTION = 64  # tokens of a prompt at once


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The logprob of a token, and those of the likeliest."""

    logprob: float
    ids: list[int]
    logprobs: list[float]


def compute_logprobs(logits: Tensor, rows: list[Sequence], tokens: list[int]) -> dict[Sequence, TokenLogprobs]:
    """Of those rows that ask for them."""
    asking = [i for i, row in enumerate(rows) if row.job.sampling.logprobs is not None]
    if not asking:
        return {}
    logprobs = select_rows(logits, asking).float().log_softmax(-1)
    chosen = logprobs.gather(-1, index([tokens[i] for i in asking], logits)[:, None])[:, 0]
    most = max(rows[i].job.sampling.logprobs or 0 for i in asking)
    top = likeliest(logprobs, min(MAX_TOP, logits.shape[-1]) if most else 0)
    of_tokens, ids, values = download(chosen, top, logprobs.gather(-1, top))
    found = {}
    for at, i in enumerate(asking):
        number = rows[i].job.sampling.logprobs
        found[rows[i]] = TokenLogprobs(of_tokens[at], ids[at][:number], values[at][:number])
    return found


def compute_prompt_logprobs(logits: Tensor, tokens: list[int], number: int) -> list[TokenLogprobs]:
    """Of each token by its row, a few rows at a time: the logprobs of a whole prompt would take gigabytes."""
    found = []
    for start in range(0, len(tokens), PORTION):
        part = tokens[start : start + PORTION]
        logprobs = logits[start : start + len(part)].float().log_softmax(-1)
        chosen = logprobs.gather(-1, index(part, logits)[:, None])[:, 0]
        top = likeliest(logprobs, number)
        of_tokens, ids, values = download(chosen, top, logprobs.gather(-1, top))
        found += [TokenLogprobs(*each) for each in zip(of_tokens, ids, values, strict=True)]
    return found
