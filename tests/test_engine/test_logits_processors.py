"""Bias and penalties against their definitions, written out token by token."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.base import GrammarSpec, Job, SamplingParams
from services.engine.sampling.logits_processors import apply_logits_processors, fill_grammar_masks
from services.engine.sampling.sampler import sample
from services.engine.scheduling.sequence import Sequence

VOCABULARY = 30
PENALTY = st.sampled_from([-2.0, -0.5, 0.0, 0.7, 2.0])
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.just(1),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3]),
    frequency_penalty=PENALTY,
    presence_penalty=PENALTY,
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, -1.5, 0.0, 3.0]), max_size=4),
)
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)


def row(params: SamplingParams, prompt: list[int], answer: list[int]) -> Sequence:
    sequence = Sequence(Job("job", tuple(prompt), params), max_tokens=99)
    sequence.tokens += answer
    return sequence


def expected(scores: torch.Tensor, params: SamplingParams, prompt: list[int], answer: list[int]) -> list[float]:
    shaped = scores.tolist()
    for token in range(VOCABULARY):
        shaped[token] += params.logit_bias.get(token, 0)
        if token in prompt + answer:
            factor = params.repetition_penalty
            shaped[token] = shaped[token] / factor if shaped[token] > 0 else shaped[token] * factor
        shaped[token] -= params.frequency_penalty * answer.count(token)
        shaped[token] -= params.presence_penalty * (token in answer)
    return shaped


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


@given(rows=st.lists(st.tuples(PARAMS, TOKENS, TOKENS), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_each_row_is_shaped_by_its_own_parameters(rows: list[tuple[SamplingParams, list[int], list[int]]]) -> None:
    scores = logits(len(rows))
    before = scores.clone()

    apply_logits_processors(scores, [row(*each) for each in rows])

    for shaped, plain, (params, prompt, answer) in zip(scores, before, rows, strict=True):
        assert shaped.tolist() == pytest.approx(expected(plain, params, prompt, answer), abs=1e-4)


@given(params=PARAMS, prompt=TOKENS, answer=st.lists(st.integers(0, VOCABULARY - 1), max_size=200))
@settings(max_examples=50, deadline=None)
def test_counting_on_is_counting_from_the_beginning(
    params: SamplingParams, prompt: list[int], answer: list[int]
) -> None:
    growing = row(params, prompt, [])
    for at in range(0, len(answer), 7):
        growing.tokens[len(prompt) :] = answer[:at]
        apply_logits_processors(logits(1), [growing])
    growing.tokens[len(prompt) :] = answer
    one, other = logits(1), logits(1)

    apply_logits_processors(one, [growing])
    apply_logits_processors(other, [row(params, prompt, answer)])

    assert one.tolist() == other.tolist()


@given(mine=PARAMS, others=st.lists(PARAMS, max_size=4), place=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_company_changes_nothing(mine: SamplingParams, others: list[SamplingParams], place: int) -> None:
    alone, rows = row(mine, [1, 2, 3], []), [row(each, [4, 5], []) for each in others]
    rows.insert(place, together := row(mine, [1, 2, 3], []))
    index = rows.index(together)

    for step in range(20):
        scores = logits(len(rows), seed=step)
        (token,) = sample(scores[index : index + 1], [alone])
        tokens = sample(scores, rows)
        assert tokens[index] == token
        for each, sampled in zip([alone, *rows], [token, *tokens], strict=True):
            each.tokens.append(sampled)


def test_logits_stay_as_they_are() -> None:
    scores = logits(2)
    before = scores.clone()

    sample(scores, [row(SamplingParams(temperature=0, logit_bias={3: 5.0}), [1], []) for _ in range(2)])

    assert scores.equal(before)


class Only:
    """A grammar that allows the same tokens each time, and ends with the last of them."""

    def __init__(self, *tokens: int) -> None:
        self._tokens = list(tokens)
        self.ends = np.array(tokens[-1:], np.int64)

    def allowed(self) -> Any:
        bits = np.zeros(32, np.bool_)
        bits[self._tokens] = True
        return np.packbits(bits, bitorder="little")


def held(matcher: Only, **params: Any) -> Sequence:
    return Sequence(Job("job", (1,), SamplingParams(grammar=ANY, **params)), 9, frozenset([5]), matcher)


ANY = GrammarSpec("regex", ".*")


def test_a_grammar_comes_before_everything_else() -> None:
    masked = held(Only(3, 5), seed=1, logit_bias={7: 100, 5: 1})
    free = row(SamplingParams(temperature=0, logit_bias={7: 1}), [1], [])
    scores = logits(2)

    assert fill_grammar_masks([masked, free]) == []
    assert {sample(scores, [masked, free])[0] for _ in range(50)} == {3, 5}
    apply_logits_processors(shaped := scores.clone(), [masked, free])

    assert [token for token in range(VOCABULARY) if shaped[0, token] > -torch.inf] == [3, 5]
    assert shaped[0, 5] == scores[0, 5] + 1
    assert shaped[1, :7].equal(scores[1, :7])


@pytest.mark.parametrize(("tokens", "drawn"), [((3, 5), 3), ((5,), 5)])
@pytest.mark.parametrize("params", [{"min_tokens": 4}, {"ignore_eos": True}])
def test_only_a_grammar_that_leaves_nothing_else_ends_an_answer_before_its_time(
    tokens: list[int], drawn: int, params: dict[str, Any]
) -> None:
    short = held(Only(*tokens), temperature=0, logit_bias={5: 100}, **params)

    assert fill_grammar_masks([short]) == []
    assert sample(logits(1), [short]) == [drawn]


def test_grammars_that_allow_nothing_are_told() -> None:
    rows = [held(Only()), row(SamplingParams(), [1], []), held(Only(1)), held(Only())]

    assert fill_grammar_masks(rows) == [0, 3]


class Broken(Only):
    """A grammar that has come to its limits: it has no bits at all."""

    def allowed(self) -> Any:
        return super().allowed()[:0]


@pytest.mark.parametrize("params", [{}, {"min_tokens": 4}, {"ignore_eos": True}])
def test_a_grammar_that_broke_allows_nothing_also_where_its_end_is_held_back(params: dict[str, Any]) -> None:
    assert fill_grammar_masks([held(Only(3)), held(Broken(3, 5), **params)]) == [1]
