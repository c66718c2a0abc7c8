"""All sampling parameters together, against a reference that does one thing after another with plain numbers."""

from collections import Counter
from dataclasses import replace
from itertools import product
from math import exp, inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.base import Job, SamplingParams
from services.engine.sampling.sampler import sample
from services.engine.scheduling.sequence import Sequence

VOCABULARY = 24
END = 5
GRID = 400  # places of chance, evenly spread: each token must have its share of them
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)
PENALTY = st.sampled_from([-1.5, 0.0, 0.8, 2.0])
SHAPING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.4]),
    frequency_penalty=PENALTY,
    presence_penalty=PENALTY,
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, -1.0, 2.5]), max_size=3),
    min_tokens=st.integers(0, 7),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (3,), (3, 9)]),
)
TEMPERATURES, TOP_PS, TOP_KS, MIN_PS = (0.5, 1.0, 1.7), (0.3, 0.8, 1.0), (None, 1, 3, 9, 1000), (0.0, 0.03, 0.3)


def reference(logits: list[float], params: SamplingParams, prompt: list[int], answer: list[int]) -> list[float]:
    """The probability of each token."""
    scores = penalised(logits, params, prompt, answer)
    if len(answer) < params.min_tokens:
        for end in {*params.stop_token_ids, *(() if params.ignore_eos else (END,))}:
            scores[end] = -inf
    if params.temperature == 0:
        return [float(score == max(scores)) for score in scores]
    weights = normal([exp((score - max(scores)) / params.temperature) for score in scores])
    weights = normal([weight if weight >= params.min_p * max(weights) else 0.0 for weight in weights])
    falling = sorted(range(VOCABULARY), key=lambda token: -weights[token])[: params.top_k]
    weights = normal([weight if token in falling else 0.0 for token, weight in enumerate(weights)])
    nucleus: list[int] = []
    while sum(weights[token] for token in nucleus) < params.top_p and len(nucleus) < len(falling):
        nucleus.append(falling[len(nucleus)])
    return normal([weight if token in nucleus else 0.0 for token, weight in enumerate(weights)])


def penalised(logits: list[float], params: SamplingParams, prompt: list[int], answer: list[int]) -> list[float]:
    """OpenAI's: mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, c counted over the answer."""
    scores = [logit + params.logit_bias.get(token, 0.0) for token, logit in enumerate(logits)]
    for token in {*prompt, *answer}:
        scores[token] *= 1 / params.repetition_penalty if scores[token] > 0 else params.repetition_penalty
    for token, count in Counter(answer).items():
        scores[token] -= params.frequency_penalty * count + params.presence_penalty
    return scores


def normal(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


class Chance:
    """In place of a row's random numbers."""

    def __init__(self, place: int) -> None:
        self._place = place

    def random(self) -> float:
        return (self._place + 0.5) / GRID


def rows(params: SamplingParams, prompt: list[int], answer: list[int]) -> list[Sequence]:
    made = []
    for place in range(GRID):
        row = Sequence(Job("job", tuple(prompt), params), 99, params.ends(frozenset([END])))
        row.tokens += answer
        row.random = Chance(place)  # type: ignore[assignment]
        made.append(row)
    return made


def check(params: SamplingParams, prompt: list[int], answer: list[int], seed: int) -> None:
    """Each token has the share that it should have."""
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
    drawn = Counter(sample(logits.repeat(GRID, 1), rows(params, prompt, answer)))
    for token, share in enumerate(reference(logits.tolist(), params, prompt, answer)):
        assert abs(drawn[token] - GRID * share) < 1.5


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_truncation(temperature: float) -> None:
    for seed, (top_p, top_k, min_p) in enumerate(product(TOP_PS, TOP_KS, MIN_PS)):
        check(SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p), [], [], seed)


@given(params=SHAPING, prompt=TOKENS, answer=TOKENS)
@settings(max_examples=60)
def test_penalties_bias_and_no_early_end(params: SamplingParams, prompt: list[int], answer: list[int]) -> None:
    check(params, prompt, answer, seed=0)


def test_both_at_once() -> None:
    shaping = SamplingParams(presence_penalty=1, logit_bias={4: 2}, repetition_penalty=1.2, min_tokens=3)
    check(replace(shaping, temperature=1.4, top_p=0.8, top_k=12, min_p=0.02), [1, 2, 8], [8, 9], seed=1)
