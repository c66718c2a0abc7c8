"""The sampler against the distribution written out by hand, token by token."""

from collections import Counter
from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.engine.base import Job, SamplingParams
from services.engine.sampling.logprobs import TokenLogprobs, compute_logprobs
from services.engine.sampling.rows import select_rows
from services.engine.sampling.sampler import NUCLEUS, sample
from services.engine.scheduling.sequence import Sequence

ROWS = 2000  # draws for one empirical distribution


def row(**params: float) -> Sequence:
    return Sequence(Job("job", (1,), SamplingParams(**params)), max_tokens=9)  # type: ignore[arg-type]


def logits(vocabulary: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def distribution(scores: Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None) -> list[float]:
    """The probability of each token: top_k of them, then the smallest set of these that holds top_p."""
    weights = [exp((score - scores.max().item()) / temperature) for score in scores.tolist()]
    falling = sorted(range(len(weights)), key=lambda token: -weights[token])[:top_k]
    total = sum(weights[token] for token in falling)
    kept: set[int] = set()
    mass = 0.0
    for token in falling:
        if kept and mass >= top_p * total:
            break
        kept.add(token)
        mass += weights[token]
    return [weight / mass if token in kept else 0.0 for token, weight in enumerate(weights)]


def draws(scores: Tensor, **params: float) -> Counter[int]:
    """Many tokens, drawn with seeds that never change."""
    rows = [row(seed=seed, **params) for seed in range(ROWS)]
    return Counter(sample(scores.repeat(ROWS, 1), rows))


def chi_square(counts: Counter[int], expected: list[float]) -> float:
    """In standard deviations from what chance gives; rare tokens counted together."""
    common = [token for token, p in enumerate(expected) if p * ROWS >= 5]
    seen = [counts[token] for token in common]
    wanted = [expected[token] * ROWS for token in common]
    rest = ROWS - sum(wanted)
    if rest > 5:
        seen.append(ROWS - sum(seen))
        wanted.append(rest)
    freedom = len(wanted) - 1
    return (sum((s - w) ** 2 / w for s, w in zip(seen, wanted, strict=True)) - freedom) / max(2 * freedom, 1) ** 0.5


TRUNCATIONS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.1},
    {"top_p": 0.7},
    {"top_p": 0.95, "temperature": 1.5},
    {"top_k": 8, "top_p": 0.6},
    {"top_k": 5000, "top_p": 0.5},
]


@pytest.mark.parametrize("params", TRUNCATIONS, ids=str)
def test_draws_follow_the_truncated_softmax(params: dict[str, float]) -> None:
    scores = logits(40)
    expected = distribution(scores, **params)  # type: ignore[arg-type]

    counts = draws(scores, **params)

    assert all(expected[token] > 0 for token in counts)
    assert chi_square(counts, expected) < 4


@pytest.mark.parametrize(
    "params",
    [{"top_p": 0.9}, {"top_p": 0.3}, {"top_k": NUCLEUS + 300}, {"top_k": NUCLEUS + 300, "top_p": 0.9}, {"top_k": 50}],
    ids=str,
)
def test_nuclei_of_a_large_vocabulary_are_exact(params: dict[str, float]) -> None:
    """Nearly flat, so that the nucleus is wider than what is looked at first: drawn are all of it and nothing else."""
    scores = logits(3 * NUCLEUS, spread=0.3)
    expected = distribution(scores, **params)  # type: ignore[arg-type]
    allowed = {token for token, p in enumerate(expected) if p > 0}

    counts = draws(scores, **params)

    unexpected = set(counts) - allowed
    assert len(unexpected) <= 1  # the token at the edge, which float32 and float64 may see on different sides
    edge = sum(counts[token] for token in unexpected)
    assert edge <= 5
    quarter = sorted(allowed, key=lambda token: scores[token].item())[: len(allowed) // 4]
    share = sum(expected[token] for token in quarter)
    assert sum(counts[token] for token in quarter) / ROWS == pytest.approx(share, abs=0.03)


def test_a_nucleus_holds_its_share_of_all_tokens_not_of_the_likeliest_ones() -> None:
    """One token of 0.5 and a flat rest: the 1,024 likeliest hold 0.75, and 0.7 of all is more than 0.7 of these."""
    others = 2 * (NUCLEUS - 1)
    scores = torch.zeros(1 + others)
    scores[0] = torch.tensor(float(others)).log()

    assert draws(scores, top_p=0.7)[0] / ROWS == pytest.approx(0.5 / 0.7, abs=0.04)  # and not 0.5 / (0.7 * 0.75)


@pytest.mark.parametrize("vocabulary", [1, 97, 768, 1000])
def test_of_equally_likely_tokens_the_first_is_taken(vocabulary: int) -> None:
    scores = torch.randint(0, 3, (20, vocabulary), generator=torch.Generator().manual_seed(0)).float()

    assert sample(scores, [row(temperature=0) for _ in scores]) == scores.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-46, 1e-30, 1e-6])
def test_temperature_zero_and_nearly_zero_take_the_likeliest(temperature: float) -> None:
    scores = torch.stack([logits(50, seed) for seed in range(20)])
    rows = [row(temperature=temperature, top_p=0.5) for _ in scores]

    assert sample(scores, rows) == scores.argmax(-1).tolist()


@pytest.mark.parametrize("params", [{"top_p": 1e-300}, {"top_p": 1e-9, "top_k": 4}, {"top_k": 1}], ids=str)
def test_the_smallest_nucleus_is_the_likeliest_token(params: dict[str, float]) -> None:
    scores = torch.stack([logits(50, seed) for seed in range(20)])

    assert sample(scores, [row(**params) for _ in scores]) == scores.argmax(-1).tolist()


@pytest.mark.parametrize("vocabulary", [5, 97, 3 * NUCLEUS])  # more of them are equal than are looked at first
@pytest.mark.parametrize(
    "params", [{"top_p": 1e-9}, {"top_p": 1e-9, "top_k": 7}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 0}], ids=str
)
def test_of_equally_likely_tokens_every_way_takes_the_first(vocabulary: int, params: dict[str, float]) -> None:
    scores = torch.randint(0, 3, (20, vocabulary), generator=torch.Generator().manual_seed(0)).float()

    assert sample(scores, [row(seed=seed, **params) for seed in range(20)]) == scores.argmax(-1).tolist()


def test_what_differs_in_the_last_bit_is_no_tie() -> None:
    """Divided by a temperature, or as probabilities, they would be equal."""
    scores = torch.full((1, 100), -1.0)
    scores[0, 7], scores[0, 3] = 0.5, 0.5 - 2**-25

    assert sample(scores, [row(top_p=1e-9, temperature=1.9)]) == [7]


def test_a_top_k_beyond_all_bounds_is_no_limit() -> None:
    scores = logits(40)
    rows = [row(seed=seed, top_k=10**40) for seed in range(50)]
    plain = [row(seed=seed, top_k=40) for seed in range(50)]

    assert sample(scores.repeat(50, 1), rows) == sample(scores.repeat(50, 1), plain)


def test_impossible_tokens_are_never_drawn() -> None:
    scores = logits(64)
    scores[::3] = -torch.inf
    scores[-5:] = -torch.inf

    for params in ({}, {"top_p": 0.99}, {"top_k": 60}):
        assert all(scores[token] > -torch.inf for token in draws(scores, **params))


class AtTheEdge:
    """In place of a row's random numbers: the smallest and the largest that it can give."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("chance", [0.0, 1 - 2**-53, 0.5])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 7}], ids=str)
def test_the_ends_of_chance_stay_inside(chance: float, params: dict[str, float]) -> None:
    scores = torch.stack([logits(2000, seed) for seed in range(8)])
    scores[:, 0] = scores[:, -1] = -torch.inf
    rows = [row(**params) for _ in scores]
    for each in rows:
        each.random = AtTheEdge(chance)  # type: ignore[assignment]

    tokens = sample(scores, rows)

    assert all(score[token] > -torch.inf for score, token in zip(scores, tokens, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_number_formats_are_drawn_from(dtype: torch.dtype) -> None:
    scores = logits(40).to(dtype)

    counts = draws(scores, temperature=0.8, top_p=0.9)

    assert chi_square(counts, distribution(scores.float(), temperature=0.8, top_p=0.9)) < 4


PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 1.7]),
        "top_p": st.sampled_from([0.2, 0.9, 0.999]),
        "top_k": st.sampled_from([1, 20, NUCLEUS + 100]),
    },
)


@given(mine=PARAMS, others=st.lists(PARAMS, max_size=4), seed=st.integers(0, 2**32), place=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_a_seed_gives_the_same_tokens_in_any_company(
    mine: dict[str, float], others: list[dict[str, float]], seed: int, place: int
) -> None:
    scores = logits(2 * NUCLEUS, seed % 7).bfloat16()  # coarse numbers: many equal ones, in no order of their own
    alone = row(seed=seed, **mine)
    rows = [row(**each) for each in others]
    rows.insert(place, accompanied := row(seed=seed, **mine))
    index = rows.index(accompanied)
    flat = logits(2 * NUCLEUS, spread=0.1).bfloat16()
    batch = torch.stack([scores if each is accompanied else flat for each in rows])

    for _ in range(20):
        assert sample(scores[None], [alone]) == [sample(batch, rows)[index]]


def test_seeds_differ_and_without_one_so_do_answers() -> None:
    scores = logits(NUCLEUS, spread=0.1)

    assert len(set(draws(scores))) > NUCLEUS / 2
    assert len(set(sample(scores.repeat(50, 1), [row() for _ in range(50)]))) > 25


def test_logprobs_are_the_models_own() -> None:
    """Whatever the row asks to be changed, and only for who asks."""
    scores = torch.stack([logits(40, seed) for seed in range(3)]).bfloat16()
    asked = {"temperature": 0.3, "top_k": 2, "frequency_penalty": 1.0, "logit_bias": {7: 50}}
    rows = [row(logprobs=3, **asked), row(), row(logprobs=0)]  # type: ignore[arg-type]
    expected = [[log(p) for p in distribution(each.float())] for each in scores]

    tokens = sample(scores, rows)
    weighed = compute_logprobs(scores, rows, tokens)

    assert set(weighed) == {rows[0], rows[2]}
    assert weighed[rows[0]].logprob == pytest.approx(expected[0][tokens[0]], abs=1e-4)
    likeliest = sorted(range(40), key=lambda token: -expected[0][token])[:3]
    assert [expected[0][token] for token in weighed[rows[0]].ids] == [expected[0][token] for token in likeliest]
    assert weighed[rows[0]].logprobs == pytest.approx([expected[0][token] for token in likeliest], abs=1e-4)
    assert weighed[rows[2]] == TokenLogprobs(pytest.approx(expected[2][tokens[2]], abs=1e-4), [], [])  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [1], []])
def test_rows_are_taken_in_the_order_given(rows: list[int]) -> None:
    assert select_rows(torch.arange(3), rows).tolist() == rows
