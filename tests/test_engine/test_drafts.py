"""Guessing ahead changes how many steps an answer takes, and nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.base import Job, SamplingParams
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_factory import build_runner
from services.engine.local import LocalEngine
from services.engine.scheduling import ngram_proposer
from services.engine.scheduling.ngram_proposer import (
    MAX_BACKOFF,
    MAX_DRAFT_TOKENS,
    MAX_STEP_TOKENS,
    NGRAM_SIZE,
    NgramProposer,
)
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from tests.test_engine.fakes import Counting, job, loaded, running, said, settled
from tests.test_engine.test_runner import prompt
from tests.test_engine.tiny_models import build, generate

TOKENS = st.lists(st.integers(0, 3), max_size=40)


@given(TOKENS, st.integers(0, 6), st.integers(0, 40))
def test_a_guess_is_how_it_went_on_the_last_time(tokens: list[int], most: int, known: int) -> None:
    proposer = NgramProposer()
    proposer.draft(tokens[:known], most)  # as it grows
    draft = proposer.draft(tokens, most)
    earlier = [end for end in range(NGRAM_SIZE, len(tokens)) if tokens[end - NGRAM_SIZE : end] == tokens[-NGRAM_SIZE:]]
    assert list(draft) == ((tokens[earlier[-1] :] * most)[:most] if earlier else [])


def test_who_is_often_wrong_is_asked_seldom() -> None:
    proposer, tokens, guesses = NgramProposer(), [1] * 4, 0
    for _ in range(1000):
        if proposer.draft(tokens, MAX_DRAFT_TOKENS):
            proposer.record_acceptance(0, len(tokens))
            guesses += 1
        tokens.append(1)
    assert guesses <= 1000 / MAX_BACKOFF + 10
    proposer.record_acceptance(1, len(tokens))
    assert proposer.draft(tokens, MAX_DRAFT_TOKENS)


def writing(scheduler: Scheduler, num: int, max_tokens: int = 50) -> None:
    for _ in range(num):
        scheduler.add(Sequence(Job("job", (7,) * 9), max_tokens))
    for entry in scheduler.schedule().scheduled:
        entry.sequence.num_computed += entry.num_tokens
        entry.sequence.tokens.append(7)


@pytest.mark.parametrize(("num", "draft"), [(1, 4), (3, 4), (4, 3), (8, 1), (9, 0), (20, 0)])
def test_steps_stay_small(num: int, draft: int) -> None:
    scheduler = Scheduler(32, 512, speculative=True)
    writing(scheduler, num)
    scheduled = scheduler.schedule().scheduled
    assert [len(entry.draft) for entry in scheduled] == [draft] * num
    assert sum(entry.num_tokens for entry in scheduled) <= max(MAX_STEP_TOKENS, num)


def test_none_while_a_prompt_is_read_none_beyond_the_end_and_none_unasked() -> None:
    scheduler = Scheduler(4, 512, speculative=True)
    writing(scheduler, 1, max_tokens=3)
    assert [entry.draft for entry in scheduler.schedule().scheduled] == [(7,)]  # and with the step's own token three
    scheduler.add(Sequence(Job("job", (1, 2, 3)), 9))
    assert [entry.draft for entry in scheduler.schedule().scheduled] == [(), ()]
    scheduler = Scheduler(4, 512)
    writing(scheduler, 1)
    assert [entry.draft for entry in scheduler.schedule().scheduled] == [()]


ALPHABET = "abcdefghijklmnopqrstuvwxyz"


async def test_right_guesses_save_steps() -> None:
    runner = Counting(length=256, supports_drafts=True)
    async with running(runner) as engine:
        text = await said(await engine.submit(job("y", ignore_eos=True, max_tokens=100)))
        stats = engine.stats()
    assert len(runner.steps) < 60
    assert 0 < stats.accepted <= stats.drafted
    plain = Counting(length=256)
    async with running(plain) as engine:
        assert text == await said(await engine.submit(job("y", ignore_eos=True, max_tokens=100)))
    assert len(plain.steps) == 100


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 31},
        {"stop": ("pqr",), "max_tokens": 200},
        {"stop": ("pqr",), "min_tokens": 60, "max_tokens": 200},
        {"stop_token_ids": (4,), "min_tokens": 70},
        {"logprobs": 2, "max_tokens": 90},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "max_tokens": 90},
        {"temperature": 0.15, "seed": 5, "max_tokens": 90},
        {"temperature": 0.2, "top_p": 0.9, "seed": 5, "max_tokens": 90},
    ],
    ids=str,
)
async def test_the_same_pieces_as_without(params: dict[str, Any]) -> None:
    answers = []
    for speculates in (True, False):
        async with running(Counting(length=256, supports_drafts=speculates)) as engine:
            pieces = [
                piece async for piece in await engine.submit(job(ALPHABET + "abc", **{"ignore_eos": True, **params}))
            ]
            answers.append([(piece.text, piece.token_ids, piece.finish, piece.logprobs) for piece in pieces])
            assert (engine.stats().drafted > 0) is speculates
            await settled(engine)
    assert answers[0] == answers[1]


@asynccontextmanager
async def serving(name: str, **options: Any) -> AsyncIterator[LocalEngine]:
    model = build(name)
    runner = build_runner(model, num_slots=3, length=100, budget=2**30)
    engine = LocalEngine(loaded(model), LocalExecutor(runner), max_num_batched_tokens=16, max_queue=8, **options)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def ids(engine: LocalEngine, tokens: tuple[int, ...], **params: Any) -> list[int]:
    sampling = SamplingParams(**{"max_tokens": 60, "ignore_eos": True, "temperature": 0, **params})
    pieces = [piece async for piece in await engine.submit(Job("job", tokens, sampling))]
    return [token for piece in pieces for token in piece.token_ids]


@pytest.fixture
def rash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses after every single token, however wrong they were."""
    monkeypatch.setattr(ngram_proposer, "NGRAM_SIZE", 1)
    monkeypatch.setattr(ngram_proposer, "MAX_BACKOFF", 0)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mistral", "gpt2"])
async def test_real_models_say_what_they_say_alone(name: str, rash: None) -> None:
    tokens = prompt(40)
    async with serving(name) as engine:
        assert await ids(engine, tokens) == generate(build(name), tokens, 60)[0]
        assert engine.stats().drafted > 0


async def test_a_seed_says_the_same_with_guesses_and_without(rash: None) -> None:
    answers = []
    for speculation in (True, False):
        async with serving("llama", speculation=speculation) as engine:
            answers.append(await ids(engine, prompt(40), temperature=0.7, seed=3))
            assert (engine.stats().drafted > 0) is speculation
    assert answers[0] == answers[1]
