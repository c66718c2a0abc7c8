"""Requests of every kind come, leave and break at random; who stays is told what it would be told alone."""

import asyncio
import os
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch

from services.engine.base import GrammarSpec, Job, Piece, SamplingParams
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner import Runner
from services.engine.execution.runner_factory import build_runner
from services.engine.local import LocalEngine
from services.engine.scheduling import ngram_proposer
from services.engine.scheduling.step import StepRow
from services.errors import EngineFailed, GrammarStuck, Overloaded, PromptTooLong
from tests.test_engine.fakes import loaded, settled
from tests.test_engine.tiny_models import VOCABULARY, build
from tests.test_engine.tiny_tokenizers import byte_level

SEEDS = range(int(os.environ.get("FUZZ_SEEDS", 4)))
REQUESTS = 60
LENGTH = 64
ROOM = 90  # tokens of the cache: two or three of them at once
PATTERNS = ["[a-z]{1,30}", "(yes|no|perhaps),[a-f]+\\.", "[0-9]{2,8}", "<(a|bb|ccc)+>", "no space"]  # which they lack


@dataclass(frozen=True, slots=True)
class Request:
    job: Job
    delay: int  # turns of the event loop before it is submitted
    patience: int | None  # pieces after which its reader leaves; None: it stays to the end


def params(random: Random) -> SamplingParams:
    def some(value: Any, otherwise: Any, chance: float = 0.25) -> Any:
        return value if random.random() < chance else otherwise

    temperature = random.choice([0.0, 0.0, 0.7, 1.3])
    return SamplingParams(
        max_tokens=random.randint(1, 25),
        temperature=temperature,
        seed=random.randint(0, 2**40),
        top_p=some(random.choice([0.3, 0.9]), 1.0),
        top_k=some(random.choice([1, 5, 500]), None),
        min_p=some(0.05, 0.0),
        repetition_penalty=some(1.2, 1.0),
        frequency_penalty=some(random.choice([-1.0, 0.5, 2.0]), 0.0),
        presence_penalty=some(random.choice([-1.0, 0.5]), 0.0),
        logit_bias=some({random.randrange(VOCABULARY): random.choice([-100.0, 5.0]) for _ in range(3)}, {}),
        min_tokens=some(random.randint(1, 12), 0),
        stop=some(tuple(random.choices(["a", "e ", "th", "\ufffd", "o"], k=2)), ()),
        stop_token_ids=some(tuple(random.choices(range(VOCABULARY), k=5)), ()),
        include_stop=some(True, False),
        ignore_eos=some(True, False),
        logprobs=some(random.randint(0, 5), None),
        grammar=some(GrammarSpec("regex", random.choice(PATTERNS)), None),
    )


def requests(random: Random) -> list[Request]:
    beginning = tuple(random.choices(range(VOCABULARY), k=24))
    made: list[Request] = []
    for i in range(REQUESTS):
        own = tuple(random.choices(range(VOCABULARY), k=random.randint(1, 15)))
        again = made[-1].job.prompt[:30] if made else own
        prompt = random.choice([own, own * 2, (*beginning, *own), (*again, *own)])
        patience = random.choice([None, None, None, 0, 1, random.randint(0, 10)])
        job = Job(f"{i}", prompt[: LENGTH - 1], params(random), priority=random.choice([0, 0, 0, 1, -1]))
        made.append(Request(job, random.randint(0, 60), patience))
    return made


class Breaking:
    """A runner whose steps fail now and then, each in its own way."""

    def __init__(self, runner: Runner, random: Random, chance: float) -> None:
        self._runner = runner
        self._random = random
        self._chance = chance

    def run(self, rows: list[StepRow]) -> torch.Tensor:
        chance = self._random.random() / self._chance if self._chance else 4
        if chance < 1:
            raise RuntimeError("a step failed")
        if chance < 3 and sum(row.num_tokens for row in rows) > 2:
            raise torch.OutOfMemoryError
        logits = self._runner.run(rows)
        if chance < 4 and len(logits) and self._chance:
            logits = logits.clone()
            logits[self._random.randrange(len(logits))] = torch.nan
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def engine_of(name: str, runner: Any, **options: Any) -> LocalEngine:
    found = loaded(build(name), byte_level(), eos=3)
    return LocalEngine(found, LocalExecutor(runner), max_queue=options.pop("max_queue", 5), **options)


async def told(engine: LocalEngine, request: Request) -> list[Piece] | None:
    """All that it is told; None where it did not stay, or was failed."""
    for _ in range(request.delay):
        await asyncio.sleep(0.001)
    while True:
        try:
            stream = await engine.submit(request.job)
            break
        except Overloaded:
            await asyncio.sleep(0.001)
    pieces = []
    try:
        while request.patience is None or len(pieces) < request.patience:
            pieces.append(await anext(stream))
            if pieces[-1].finish:
                return pieces
    except (EngineFailed, GrammarStuck):
        return None
    finally:
        await stream.aclose()
    return None


def same(answer: list[Piece], expected: list[Piece]) -> bool:
    return said(answer) == said(expected) and weights(answer) == pytest.approx(weights(expected), abs=1e-3)


def said(pieces: list[Piece]) -> tuple[object, ...]:
    tokens = [token for piece in pieces for token in piece.token_ids]
    return "".join(piece.text for piece in pieces), tokens, pieces[-1].finish, pieces[-1].stop


def weights(pieces: list[Piece]) -> list[float]:
    told = [each for piece in pieces for each in piece.logprobs]
    return [each.logprob for one in told for each in (one, *one.top)]


@pytest.mark.usefixtures("no_headroom")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", SEEDS)
async def test_everybody_who_stays_is_told_what_it_would_be_told_alone(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngram_proposer, "NGRAM_SIZE", 1)
    random = Random(seed)
    name = ["llama", "gemma3", "gpt2", "bloom"][seed % 4]
    asked = requests(random)
    chance = random.choice([0, 0.01])
    room = None if name == "bloom" else ROOM
    runner = build_runner(build(name), num_slots=random.randint(2, 6), length=LENGTH, budget=2**30, cache_tokens=room)
    engine = engine_of(name, Breaking(runner, random, chance), max_num_batched_tokens=random.choice([8, 40]))
    engine.start()
    try:
        with pytest.raises(PromptTooLong):
            await engine.submit(Job("long", (1,) * LENGTH))
        answers = await asyncio.gather(*(told(engine, each) for each in asked))
        await settled(engine)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.cache_used) == (0, 0, 0)
        assert not engine.thread.core.has_requests
    finally:
        await engine.stop()
    await compare(name, asked, answers, whole=not chance)


async def compare(name: str, asked: list[Request], answers: list[list[Piece] | None], *, whole: bool) -> None:
    """`whole`: nobody was failed who would not be failed alone."""
    plain = build_runner(build(name), num_slots=1, length=LENGTH, budget=2**30)
    alone = engine_of(name, plain, max_num_batched_tokens=512, prefix_cache=False, speculation=False)
    alone.start()
    try:
        for request, answer in zip(asked, answers, strict=True):
            if answer or (whole and request.patience is None):
                expected = await told(alone, Request(request.job, 0, None))
                assert expected == answer or (answer and expected and same(answer, expected)), request
    finally:
        await alone.stop()
