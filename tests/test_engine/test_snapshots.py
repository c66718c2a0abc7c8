"""Models with states: an answer has the same bits behind a snapshot of its prompt's beginning as without."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from services.engine.base import Job, SamplingParams
from services.engine.execution import padding
from services.engine.execution.cache_division import divided
from services.engine.execution.cache_layout import CacheLayout
from services.engine.execution.runner import Runner
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.snapshot_store import SnapshotStore
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import CacheKey, SnapshotRoom
from tests.test_engine.fakes import LETTERS, running
from tests.test_engine.test_runner import prompt
from tests.test_engine.tiny_models import RECURRENT, build_kind
from tools.architectures import tiny

CHUNK = 8
LENGTH = 128
BEGINNING = prompt(45)
KINDS = ["qwen3_next", "falcon_h1", "lfm2", "bamba", "xlstm", "mamba2"]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "CHUNK", CHUNK)


def runner_of(kind: str, dtype: torch.dtype = torch.float32, budget: int = 2**30) -> Runner:
    model = build_kind(kind, RECURRENT[kind]) if kind in RECURRENT else tiny.build(kind)
    return build_runner(model.to(dtype), num_slots=4, length=LENGTH, budget=budget)


class Engine:
    """The engine's loop, step by step on this thread."""

    def __init__(self, runner: Runner, max_tokens: int = 30, *, caches: bool = True) -> None:
        self.runner = runner
        self.scheduler = Scheduler(
            runner.num_slots, max_tokens, min_reuse=None, snapshots=runner.snapshots if caches else None
        )
        self.logits: dict[Sequence, list[Tensor]] = {}
        self._names = count()

    def add(
        self, tokens: tuple[int, ...], max_tokens: int = 4, key: CacheKey | None = None, **options: Any
    ) -> Sequence:
        job = Job(f"{next(self._names)}", tokens, **options)
        sequence = Sequence(job, max_tokens, cache_key=key)
        self.logits[sequence] = []
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        batch = self.scheduler.schedule()
        self.runner.apply(batch.changes)
        if not batch.scheduled:
            return
        rows = iter(self.runner.run([entry.row() for entry in batch.scheduled]))
        for entry in batch.scheduled:
            samples, found = entry.samples, [next(rows).clone() for _ in range(entry.num_logits)]
            entry.sequence.num_computed += entry.num_tokens
            if samples:
                self.logits[entry.sequence].append(found[-1])
                entry.sequence.append(int(found[-1].argmax()))

    def finish(self) -> None:
        while not self.scheduler.is_idle:
            self.step()

    def answer(self, tokens: tuple[int, ...], max_tokens: int = 4, **options: Any) -> Sequence:
        sequence = self.add(tokens, max_tokens, **options)
        self.finish()
        return sequence

    def bits(self, sequence: Sequence) -> Tensor:
        return torch.stack(self.logits[sequence])


@pytest.fixture(scope="module")
def lfm2() -> Iterator[Runner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padding, "CHUNK", CHUNK)
        yield runner_of("lfm2")


@pytest.fixture
def engine(lfm2: Runner) -> Iterator[Engine]:
    made = Engine(lfm2)
    yield made
    made.scheduler.slots.invalidate_all()
    lfm2.apply(made.scheduler.slots.changes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_has_the_same_bits_with_snapshots_and_without(kind: str, dtype: torch.dtype) -> None:
    if (kind, dtype) == ("xlstm", torch.bfloat16):
        pytest.skip("transformers computes it in float32 only")
    runner = runner_of(kind, dtype)
    kept, fresh = Engine(runner), Engine(runner, caches=False)
    text = BEGINNING
    for turn in range(3):
        one, other = kept.answer(text), fresh.answer(text)
        assert torch.equal(kept.bits(one), fresh.bits(other))
        assert other.num_reused == 0
        if turn:
            assert one.num_reused is not None
            assert one.num_reused > len(text) - 7 - 4 - 2 * CHUNK
        text = (*one.tokens, *prompt(7, seed=turn))  # what was sampled is read again, in chunks


@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1"])
def test_prompts_that_begin_alike_in_company(kind: str) -> None:
    runner = runner_of(kind, torch.bfloat16)
    texts = [(*BEGINNING[:length], *prompt(20, seed=length)) for length in (45, 33, 40, 24, 45)]
    alone = Engine(runner, caches=False)
    expected = [alone.bits(alone.answer(text, 1)) for text in texts]
    engine = Engine(runner, 13)
    for text in (*texts, *texts):
        engine.add(text, 1)
        engine.step()
    engine.finish()
    found = [engine.bits(sequence) for sequence in engine.logits]
    for one, other in zip(found, expected * 2, strict=True):
        assert torch.equal(one, other)
    reused = [sequence.num_reused for sequence in engine.logits]
    assert reused[5:] == [8 * ((len(text) - 1) // 8) for text in texts]
    assert engine.scheduler.num_reused == sum(each or 0 for each in reused)
    assert engine.scheduler.num_queried == 2 * sum(map(len, texts))


def test_the_same_prompt_at_once_is_read_once(engine: Engine) -> None:
    sequences = [engine.add(BEGINNING) for _ in range(3)]
    engine.finish()
    assert [sequence.num_reused for sequence in sequences] == [0, 40, 40]
    for sequence in sequences:
        assert torch.equal(engine.bits(sequence)[0], engine.bits(sequences[0])[0])


def test_the_last_token_of_a_prompt_is_computed(engine: Engine) -> None:
    first, again, longer = engine.answer(BEGINNING[:41]), engine.answer(BEGINNING[:41]), engine.answer(BEGINNING)
    assert (again.num_reused, longer.num_reused) == (40, 40)
    assert torch.equal(engine.bits(again)[0], engine.bits(first)[0])


def test_a_snapshot_is_found_by_its_owner_salt_and_adapter_only(engine: Engine) -> None:
    key = CacheKey("one", "salt", adapter=None)
    engine.answer(BEGINNING, key=key)
    others = [CacheKey("two", "salt"), CacheKey("one"), CacheKey("one", "salt", adapter=3), CacheKey(None, "salt")]
    for other in [*others[:2], others[3]]:
        assert engine.answer(BEGINNING, key=other).num_reused == 0
    scheduler = engine.scheduler
    adapted = Sequence(Job("adapted", BEGINNING), 1, cache_key=others[2])
    assert not list(scheduler.slots.find_prefixes(adapted))
    assert engine.answer(BEGINNING, key=key).num_reused == 40


def test_every_owner_finds_the_servers_own_text(engine: Engine) -> None:
    engine.answer((*BEGINNING, *prompt(9, seed=1)), key=CacheKey("one"), num_public=30)
    other = engine.answer((*BEGINNING, *prompt(9, seed=2)), key=CacheKey("two"), num_public=30)
    assert other.num_reused == 24
    assert engine.answer((*BEGINNING, *prompt(9, seed=2)), key=CacheKey("three")).num_reused == 0


def test_a_prompt_that_is_cancelled_leaves_what_was_read(engine: Engine) -> None:
    sequence = engine.add(BEGINNING)
    waiting = engine.add((*BEGINNING, 1))
    engine.step()
    sequence.cancelled = True
    engine.finish()
    assert engine.logits[sequence] == []
    assert waiting.num_reused == 24  # of 30 tokens in the first step
    assert engine.answer((*BEGINNING, 2)).num_reused == 40
    fresh = Engine(engine.runner, caches=False)
    assert torch.equal(engine.bits(waiting), fresh.bits(fresh.answer((*BEGINNING, 1))))


def test_a_scored_prompt_is_read_whole_and_leaves_no_snapshots(engine: Engine) -> None:
    """Its logits are wanted in each step, so that chunks end wherever steps do."""
    engine.answer(BEGINNING)
    scored = engine.answer(BEGINNING, sampling=SamplingParams(prompt_logprobs=1))
    assert scored.num_reused == 0
    other = prompt(50, seed=5)
    engine.answer(other, sampling=SamplingParams(prompt_logprobs=1))
    assert engine.answer(other).num_reused == 0


def test_a_preempted_answer_goes_on_behind_a_snapshot(engine: Engine) -> None:
    sequence = engine.add(BEGINNING, 9)
    for _ in range(5):
        engine.step()
    engine.scheduler.preempt(sequence)
    engine.finish()
    assert sequence.num_found == 40
    fresh = Engine(engine.runner, caches=False)
    other = fresh.add(BEGINNING, 9)
    for _ in range(5):
        fresh.step()
    fresh.scheduler.preempt(other)
    fresh.finish()
    assert torch.equal(engine.bits(sequence), fresh.bits(other))


def test_what_may_be_invalid_serves_nobody(engine: Engine) -> None:
    sequence = engine.add(BEGINNING)
    engine.step()
    engine.step()
    engine.scheduler.fail(sequence)
    assert engine.answer(BEGINNING).num_reused == 0
    engine.add((*BEGINNING, 1))
    engine.step()
    engine.scheduler.drop_running()
    assert engine.answer(BEGINNING).num_reused == 0


def test_a_step_without_memory_drops_the_snapshots_first(engine: Engine) -> None:
    engine.answer(BEGINNING)
    assert engine.scheduler.shrink()
    assert engine.answer(BEGINNING).num_reused == 0


class Counted:
    """What a store holds beside what is planned."""

    def __init__(self, engine: Engine, store: SnapshotStore) -> None:
        self.engine = engine
        self.store = store
        self.most = 0

    def check(self) -> None:
        snapshots, room = self.engine.scheduler.slots.snapshots, self.engine.runner.snapshots
        assert snapshots
        assert room
        self.most = max(self.most, snapshots.num_bytes)
        assert snapshots.num_bytes <= room.budget
        assert self.store.num_bytes <= snapshots.num_bytes


@pytest.mark.parametrize("kind", ["lfm2", "qwen3_next", "mamba2"])
@pytest.mark.parametrize("rooms", [1, 2, 5])
def test_snapshots_take_no_more_than_their_room(kind: str, rooms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stores: list[SnapshotStore] = []
    monkeypatch.setattr(padding, "SnapshotStore", lambda layout: stores.append(SnapshotStore(layout)) or stores[-1])
    runner = runner_of(kind, budget=2**22)
    assert runner.snapshots
    of_a_prompt = runner.snapshots.state_bytes + 48 * runner.snapshots.token_bytes
    runner.snapshots = SnapshotRoom(
        CHUNK, runner.snapshots.token_bytes, runner.snapshots.state_bytes, rooms * of_a_prompt
    )
    engine = Engine(runner, 21)
    counted = Counted(engine, stores[-1])
    texts = [(*BEGINNING[:length], *prompt(20, seed=seed)) for seed in range(4) for length in (0, 33, 17, 41, 24)]
    fresh = Engine(runner, caches=False)
    for text in (*texts, *texts[::-2]):
        sequence = engine.add(text, 2)
        while not engine.scheduler.is_idle:
            engine.step()
            counted.check()
        assert torch.equal(engine.bits(sequence), fresh.bits(fresh.answer(text, 2)))
    assert counted.most > of_a_prompt / 2
    assert engine.scheduler.num_reused > 0
    engine.scheduler.slots.invalidate_all()
    runner.apply(engine.scheduler.slots.changes())
    assert counted.store.num_held == 0
    assert engine.scheduler.slots.snapshots
    assert engine.scheduler.slots.snapshots.num_bytes == 0


def test_the_least_recently_used_gives_way() -> None:
    runner = runner_of("mamba2")
    assert runner.snapshots
    runner.snapshots = SnapshotRoom(CHUNK, 0, runner.snapshots.state_bytes, 2 * runner.snapshots.state_bytes)
    engine = Engine(runner)
    texts = [prompt(20, seed=seed) for seed in range(3)]
    engine.answer(texts[0])
    engine.answer(texts[1])
    assert engine.answer((*texts[0][:17], 1)).num_reused == 16
    engine.answer(texts[2])
    assert [len(list(engine.scheduler.slots.find_prefixes(Sequence(Job("", text), 1)))) for text in texts] == [1, 0, 1]


@pytest.mark.parametrize(("prefix_cache", "cached"), [(True, 40), (False, 0)])
async def test_cached_tokens_are_counted(prefix_cache: bool, cached: int) -> None:
    tokens = tuple(token % (LETTERS - 1) for token in BEGINNING)
    job = Job("job", tokens, SamplingParams(temperature=0, max_tokens=2))
    async with running(runner_of("lfm2"), prefix_cache=prefix_cache) as engine:
        first, again = [[piece async for piece in await engine.submit(job)] for _ in range(2)]
        stats = engine.stats()
    assert (first[-1].cached_tokens, again[-1].cached_tokens) == (0, cached)
    assert stats.prefix_reused == cached
    assert [piece.token_ids for piece in again] == [piece.token_ids for piece in first]


def test_the_memory_is_divided() -> None:
    layout = CacheLayout({}, frozenset(), token_bytes=10, state_bytes=1000)
    much, less, little = (divided(budget, layout, 4, 100, CHUNK) for budget in (100_000, 10_000, 6000))
    assert much.cache_tokens is None
    assert much.snapshots == SnapshotRoom(CHUNK, 10, 1000, 100_000 - 8000)  # all that may run
    assert less.snapshots == SnapshotRoom(CHUNK, 10, 1000, 5000)
    assert less.cache_tokens == 100  # one full sequence
    assert little.snapshots is None
    assert little.cache_tokens is None
    assert divided(100_000, layout, 4, 100, None).snapshots is None


@pytest.mark.parametrize(("token_bytes", "distance"), [(1000, 1), (10, 5), (1, 8), (0, 8)])
def test_states_are_kept_as_often_as_keys_and_values_are_as_large(token_bytes: int, distance: int) -> None:
    assert SnapshotRoom(256, token_bytes, 15_000, 10**9).distance == distance
