"""Fifty prompts, alone and together, say what `generate` says, whatever is switched on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from services.engine.base import Job, SamplingParams
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner import Runner
from services.engine.execution.runner_factory import build_runner
from services.engine.local import LocalEngine
from services.engine.paged.runner import PagedRunner, PagingConfig
from services.engine.scheduling import ngram_proposer
from services.engine.scheduling.step import StepRow
from tests.test_engine.compilers import needs_compiler
from tests.test_engine.fakes import loaded, settled
from tests.test_engine.recorder import Recorder
from tests.test_engine.test_compiled import LENGTH, SLOTS, made
from tests.test_engine.test_runner import prompt
from tests.test_engine.tiny_models import build, generate

LONGROPE = "phi3 longrope"
SHAPES = ["llama", "qwen2", "qwen2 sliding", "qwen3", "gemma3", "gpt2", "mistral", LONGROPE]
ANSWER = 12  # tokens
Tokens = tuple[int, ...]


def fifty() -> list[Tokens]:
    """Of all lengths; many begin alike, and many go round in circles, as guesses like it."""
    alone = [prompt(1 + i % 30, seed=i) for i in range(20)]
    alike = [(*prompt(20), *prompt(1 + i % 9, seed=i)) for i in range(20)]
    circles = [prompt(3, seed=i) * 9 for i in range(10)]
    return [*chain.from_iterable(zip(alone[:10], alike[:10], circles, strict=True)), *alone[10:], *alike[10:]]


@cache
def expected(name: str) -> list[list[int]]:
    model = build(name)
    return [generate(model, each, ANSWER)[0] for each in fifty()]


@dataclass(frozen=True, slots=True)
class Switches:
    prefix_cache: bool = False
    chunks: bool = False
    preemption: bool = False
    speculation: bool = False


ALL_OFF = Switches()
ALL_ON = Switches(prefix_cache=True, chunks=True, preemption=True, speculation=True)
EACH_ON = [Switches(**{name: True}) for name in Switches.__slots__]
extended = pytest.mark.extended
# of one model everything in `make test`, of the others all switches at once: `make test-all` has the rest
FIRST, *OTHERS = SHAPES
EAGER = [
    *((FIRST, each) for each in (ALL_OFF, *EACH_ON)),
    *((name, ALL_ON) for name in SHAPES),
    *(pytest.param(name, each, marks=extended) for name in OTHERS for each in (ALL_OFF, *EACH_ON)),
]
ALL_OF_PAGES = replace(ALL_ON, speculation=False)
PAGED = [
    (FIRST, ALL_OFF),
    *((name, ALL_OF_PAGES) for name in (FIRST, "qwen2 sliding", LONGROPE)),
    *(pytest.param(name, ALL_OFF, marks=extended) for name in OTHERS),
    *(pytest.param(name, ALL_OF_PAGES, marks=extended) for name in ("qwen2", "qwen3", "gemma3", "gpt2", "mistral")),
]
COMPILED = [
    FIRST,
    *(pytest.param(name, marks=extended) for name in (*OTHERS, "gemma2") if name != "qwen2 sliding"),
]


class Watched:
    """A runner, and what its steps were like."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.num_parts = 0  # of prompts that go on in another step

    def run(self, rows: list[StepRow]) -> torch.Tensor:
        self.num_parts += sum(not row.num_logits for row in rows)
        return self._runner.run(rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


PADDED = ["bloom", "llama4 chunked"]  # batched with the cache that they make themselves
OF_PADDED = Switches(prefix_cache=True, chunks=True)


def runner_of(name: str, switches: Switches) -> BatchedRunner:
    room = 100 if switches.preemption else None
    runner = build_runner(build(name), num_slots=SLOTS, length=LENGTH, budget=2**30, cache_tokens=room)
    assert isinstance(runner, BatchedRunner)
    return runner


@asynccontextmanager
async def serving(runner: Runner, switches: Switches) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(
        loaded(build("llama"), eos=10**6),
        LocalExecutor(runner),
        max_num_batched_tokens=7 if switches.chunks else 512,
        max_queue=100,
        prefix_cache=switches.prefix_cache,
        speculation=switches.speculation,
    )
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine: LocalEngine, tokens: Tokens) -> list[int]:
    job = Job("job", tokens, SamplingParams(max_tokens=ANSWER, temperature=0))
    return [token async for piece in await engine.submit(job) for token in piece.token_ids]


async def check(name: str, runner: Runner, switches: Switches) -> None:
    """Together first: alone, nobody is in anybody's way."""
    watched = Watched(runner)
    async with serving(watched, switches) as engine:  # type: ignore[arg-type]
        assert await asyncio.gather(*(answer(engine, each) for each in fifty())) == expected(name)
        await settled(engine)
        stats = engine.stats()
        assert (stats.preemptions > 0) is (switches.preemption or name == LONGROPE)  # outgrows its short factors
        assert [await answer(engine, each) for each in fifty()] == expected(name)
        await settled(engine)
        stats = engine.stats()
    assert (stats.prefix_reused > 0) is switches.prefix_cache
    assert (stats.accepted > 0) is switches.speculation
    assert (watched.num_parts > 0) is switches.chunks


@pytest.fixture(autouse=True)
def rash(no_headroom: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses after every single token, and prompts let in though there is no room for their answers."""
    monkeypatch.setattr(ngram_proposer, "NGRAM_SIZE", 1)
    monkeypatch.setattr(ngram_proposer, "MAX_BACKOFF", 0)


@pytest.mark.parametrize(("name", "switches"), EAGER, ids=str)
async def test_eager_steps(name: str, switches: Switches) -> None:
    await check(name, runner_of(name, switches), switches)


@pytest.mark.parametrize("name", PADDED)
async def test_steps_with_the_models_own_cache(name: str) -> None:
    await check(name, build_runner(build(name), num_slots=SLOTS, length=LENGTH, budget=2**30), OF_PADDED)


@pytest.mark.parametrize(("name", "switches"), PAGED, ids=str)
async def test_pages_as_on_a_gpu(name: str, switches: Switches) -> None:
    """Recorded, and sent ahead of what was drawn."""
    room = 100 if switches.preemption else None
    size: dict[str, Any] = {"num_slots": SLOTS, "length": LENGTH, "budget": 2**30, "cache_tokens": room}
    runner = build_runner(build(name), paging=PagingConfig(4, recorder := Recorder()), **size)
    assert isinstance(runner, PagedRunner)
    runner.asynchronous = True
    await check(name, runner, switches)
    assert recorder.replayed


@pytest.fixture(scope="session")
def adopted(folder: Path, native_kernel: None) -> Callable[[BatchedRunner], BatchedRunner]:
    """A runner whose steps are compiled; each shape is compiled once."""

    def adopt(runner: BatchedRunner) -> BatchedRunner:
        runner.adopt(made(runner, folder))
        return runner

    return adopt


@needs_compiler
@pytest.mark.parametrize("name", COMPILED)  # without "qwen2 sliding": mistral's window is enough
async def test_compiled_steps(name: str, adopted: Callable[[BatchedRunner], BatchedRunner]) -> None:
    for switches in (ALL_OFF, ALL_ON):
        await check(name, adopted(runner_of(name, switches)), switches)
