"""Pages say what the model's own `generate` says; recorded steps too, in buffers of fixed sizes."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.engine.base import Job, SamplingParams
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_check import summarize
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.warm_up import warm_up
from services.engine.local import LocalEngine
from services.engine.paged.graphs import NUM_PAGES, Capture, Replay, batch_sizes
from services.engine.paged.runner import PagedRunner, PagingConfig
from services.engine.paged.step import BatchShape, write
from services.engine.scheduling.pages import Pages
from services.engine.scheduling.step import CopySlot, StepRow
from tests.test_engine import fakes
from tests.test_engine.recorder import Recorder
from tests.test_engine.test_runner import BEGINNING, Answer, alike, prompt, run
from tests.test_engine.tiny_models import build, generate
from tests.test_engine.tiny_tokenizers import byte_level

PAGE = 4
SLOTS = 5
LENGTH = 70  # 18 pages: the second form of recorded steps is cut short


@dataclass(frozen=True, slots=True)
class Tiny:
    name: str
    runner: PagedRunner
    recorder: Recorder | None
    expected: Mapping[tuple[int, ...], tuple[list[int], Tensor]]

    def answer(self, length: int, tokens: int, **when: Any) -> Answer:
        ids, logits = self.expected[prompt(length)]
        return Answer(prompt(length), ids[:tokens], logits[:tokens], **when)


def paged(name: str, recorder: Capture | None = None, **size: Any) -> PagedRunner:
    size = {"num_slots": SLOTS, "length": LENGTH, "budget": 2**30, **size}
    runner = build_runner(build(name), paging=PagingConfig(PAGE, recorder), **size)
    assert isinstance(runner, PagedRunner)
    return runner


@pytest.fixture(scope="module", params=["llama", "qwen2 sliding", "gemma3", "gpt2", "mistral"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["recorded", "eager"])
def tiny(name: str, request: pytest.FixtureRequest) -> Tiny:
    recorder = Recorder() if request.param else None
    model = build(name)
    expected = {prompt(length): generate(model, prompt(length), 14) for length in (1, 3, 6, 11, 17)}
    return Tiny(name, paged(name, recorder), recorder, expected)


@pytest.mark.parametrize("max_tokens", [512, 5], ids="{} tokens a step".format)
def test_joining_and_leaving(tiny: Tiny, max_tokens: int) -> None:
    answers = [
        tiny.answer(6, 4),
        tiny.answer(17, 14),
        tiny.answer(1, 9, joins=1),
        tiny.answer(11, 6, joins=2, cancelled_at=4),
        tiny.answer(3, 12, joins=3, cancelled_at=9),
        tiny.answer(17, 5, joins=20),
        tiny.answer(11, 8, joins=20),
    ]

    run(tiny.runner, answers, max_tokens)

    for answer in answers:
        if answer.said or answer.cancelled_at is None:
            answer.check()
    assert tiny.recorder is None or tiny.recorder.replayed


@pytest.fixture(scope="module")
def crowd(name: str) -> list[Answer]:
    return alike(build(name))


@pytest.mark.usefixtures("no_headroom")
@pytest.mark.parametrize("max_tokens", [512, 7], ids="{} tokens a step".format)
@pytest.mark.parametrize("pages", [None, 24], ids="{} pages".format)
@pytest.mark.parametrize("min_reuse", [None, 1], ids="{} reused".format)
def test_beginnings_in_common(
    tiny: Tiny,
    crowd: list[Answer],
    max_tokens: int,
    pages: int | None,
    min_reuse: int | None,
) -> None:
    """Taken over, shared, waited for, preempted and read in chunks, all of it mixed."""
    answers = [
        replace(answer, joins=joins, said=[]) for answer, joins in zip(crowd, (0, 0, 2, 5, 5, 9, 40), strict=True)
    ]

    scheduler = run(tiny.runner, answers, max_tokens, min_reuse=min_reuse, cache_tokens=pages and pages * PAGE)

    for answer in answers:
        answer.check()
    assert (scheduler.num_reused > BEGINNING) is (min_reuse is not None)
    assert (scheduler.num_preemptions > 0) is (pages is not None)


@pytest.fixture(scope="module")
def llama() -> tuple[Any, PagedRunner, Recorder]:
    recorder = Recorder()
    return build("llama"), paged("llama", recorder), recorder


@given(data=st.data(), max_tokens=st.sampled_from([5, 7, 40]))
@settings(max_examples=15, deadline=None)
def test_any_coming_and_going(llama: tuple[Any, PagedRunner, Recorder], data: st.DataObject, max_tokens: int) -> None:
    model, runner, _ = llama
    answers = []
    for seed in range(data.draw(st.integers(1, 7), label="requests")):
        ids = prompt(data.draw(st.integers(1, 20), label="prompt"), seed)
        tokens, logits = generate(model, ids, data.draw(st.integers(1, 8), label="answer"))
        answers.append(Answer(ids, tokens, logits, joins=data.draw(st.integers(0, 6), label="joins")))

    run(runner, answers, max_tokens)

    for answer in answers:
        answer.check()


def test_a_failed_step_leaves_nothing_behind(llama: tuple[Any, PagedRunner, Recorder]) -> None:
    model, runner, _ = llama
    with pytest.raises(IndexError):
        run(runner, [Answer((10**6, 2), [0], torch.empty(1, 1))], max_tokens=64)

    answer = Answer(prompt(6), *generate(model, prompt(6), 5))
    run(runner, [answer], max_tokens=64)

    answer.check()


# --- recording ---


def reading(runner: PagedRunner, lengths: dict[int, int]) -> list[StepRow]:
    """After a prompt of each length was computed in its slot: the step that follows."""
    rows = [StepRow("job", slot, 0, length, 1, prompt(length, slot)) for slot, length in lengths.items()]
    sampled = runner.run(rows).argmax(-1).tolist()
    return [StepRow("job", row.slot, row.end, 1, 1, (token,)) for row, token in zip(rows, sampled, strict=True)]


def test_rows_that_fill_up_a_batch_touch_nothing() -> None:
    recorder = Recorder()
    runner = paged("llama", recorder, num_slots=9)
    scheduled = reading(runner, {0: 5, 1: 3, 6: 9, 3: 2, 4: 2})
    layers, pages = runner.cache.layers.values(), runner.cache.pages
    before = [layer.keys.clone() for layer in layers]

    runner.run(scheduled)

    assert recorder.replayed[-1] == 8
    own = sorted([pages.of(entry.slot)[entry.start // PAGE], entry.start % PAGE] for entry in scheduled)
    for old, layer in zip(before, layers, strict=True):
        changed = (old != layer.keys).any(-1).any(-1).nonzero().tolist()
        assert [place for place in changed if place[0] != runner.cache.spare] == own


def test_a_step_may_begin_before_its_tokens_are_known() -> None:
    runner = paged("llama", Recorder())
    rows = reading(runner, {0: 5, 1: 2, 3: 9})
    sampled = runner.run(rows).argmax(-1)
    following = [StepRow("job", row.slot, row.end, 1, 1, ()) for row in rows]
    ahead = runner.run_lookahead(following, sampled)
    assert ahead is not None
    ahead = ahead.clone()
    known = [row._replace(token_ids=(token,)) for row, token in zip(following, sampled.tolist(), strict=True)]

    torch.testing.assert_close(ahead, runner.run(known))


def test_but_not_where_a_page_must_be_claimed() -> None:
    runner = paged("llama", Recorder())
    scheduled = reading(runner, {0: 2 * PAGE, 1: PAGE + 1})
    full, room = scheduled

    assert runner.run_lookahead([room], torch.tensor([1])) is not None
    assert runner.run_lookahead([room, full], torch.tensor([1, 1])) is None
    runner.apply([CopySlot(1, 2, PAGE + 1)])
    assert runner.run_lookahead([room], torch.tensor([1])) is None


def test_a_token_of_a_prompt_that_goes_on_draws_nothing() -> None:
    runner = paged("llama", Recorder())
    reads = StepRow("job", 4, 0, 1, 0, prompt(3)[:1])
    assert len(runner.run([reads])) == 0
    assert len(runner.run([*reading(runner, {0: 2}), reads])) == 1


def test_steps_of_one_form_are_recorded_once() -> None:
    recorder = Recorder()
    runner = paged("llama", recorder)
    recorder.recordings.clear()  # of the trial
    scheduled = reading(runner, {0: 5, 1: 3, 2: 2})
    for size in (1, 2, 3, 3, 1, 2):
        runner.run(scheduled[:size])

    assert recorder.recordings == [1, 2, 4]
    assert recorder.replayed[-6:] == [1, 2, 4, 4, 1, 2]


def test_a_batch_goes_into_the_smallest_form_that_it_fits_in() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(30) == [1, 2, 4, 8, 16, 24, 30]
    runner = paged("llama", Recorder())
    assert runner.graphs

    def form(size: int, length: int) -> BatchShape:
        rows = [StepRow("job", slot, length - 1, 1, 1, (1,)) for slot in range(size)]
        return runner.graphs.shape(rows)  # type: ignore[union-attr]

    short, long = NUM_PAGES * PAGE, runner.cache.pages.needed(LENGTH) * PAGE
    assert form(1, short) == BatchShape(1, 1, 1, NUM_PAGES, 1, short)
    assert form(3, short) == BatchShape(4, 4, 4, NUM_PAGES, 1, short)
    assert form(5, LENGTH).num_tokens == 5
    assert (form(1, short + 1).max_length, form(1, LENGTH).max_length) == (4 * short, long)


def test_a_model_that_cannot_be_recorded_is_not(caplog: pytest.LogCaptureFixture) -> None:
    def fails(forward: Callable[[], Tensor]) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = build("llama")
    runner = build_runner(build("llama"), num_slots=2, length=LENGTH, budget=2**30, paging=PagingConfig(PAGE, fails))
    assert isinstance(runner, PagedRunner)
    assert "steps of LlamaForCausalLM are not recorded: RuntimeError: operation not permitted" in caplog.text

    answer = Answer(prompt(6), *generate(model, prompt(6), 5))
    run(runner, [answer], max_tokens=64)
    answer.check()


@dataclass
class Failing:
    """Records until it is told not to."""

    error: Exception | None = None
    num_failed: int = 0
    recorder: Recorder = field(default_factory=Recorder)

    def __call__(self, forward: Callable[[], Tensor]) -> Replay:
        if self.error is None:
            return self.recorder(forward)
        self.num_failed += 1
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("cannot be captured"), torch.OutOfMemoryError("no memory")])
def test_a_form_that_cannot_be_recorded_while_serving_is_computed_anew(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    model, capture = build("llama"), Failing()
    runner = paged("llama", capture)
    assert runner.records
    capture.error = error
    answers = [Answer(prompt(length), *generate(model, prompt(length), 5)) for length in (6, 2)]

    run(runner, answers, max_tokens=64)

    for answer in answers:
        answer.check()
    assert capture.num_failed == 1  # it is not tried again
    told = [record.getMessage() for record in caplog.records if "recorded" in record.getMessage()]
    assert told == [
        f"steps of {BatchShape(2, 2, 2, NUM_PAGES, 1, NUM_PAGES * PAGE)} are not recorded: {summarize(error)}"
    ]
    assert not runner.records
    capture.error = None
    run(runner, [replace(answers[0], said=[])], max_tokens=64)
    assert capture.recorder.replayed[-1] == 1  # others are


def test_a_step_that_fails_in_itself_is_recorded_the_next_time() -> None:
    recorder = Recorder()
    runner = paged("llama", recorder)
    entry = StepRow("job", 0, 0, 1, 1, (10**6,))
    with pytest.raises(IndexError):
        runner.run([entry])
    runner.run([StepRow("job", 0, 0, 1, 1, (1,))])

    assert runner.records
    assert recorder.replayed[-1] == 1


def test_all_batch_sizes_are_recorded_before_anybody_waits() -> None:
    recorder = Recorder()
    runner = paged("llama", recorder)
    recorder.recordings.clear()

    warm_up(runner, 512)

    assert recorder.recordings == [5, 4, 2, 1]
    assert runner.cache.pages.num_free == runner.cache.pages.num_pages


# --- sizes ---


@pytest.mark.parametrize(
    ("budget", "given", "pages", "tokens"),
    [
        (2**30, None, 15, None),  # each slot full: five of three pages
        (9, None, 8, 32),  # one page is nobody's
        (2**30, 30, 7, 28),
        (1, 60, 15, None),
    ],
)
def test_pages_are_bounded_by_memory_or_as_given(
    budget: int, given: int | None, pages: int, tokens: int | None
) -> None:
    page = PAGE * 2 * 2 * (8 + 8) * 4  # layers x heads x (key + value) x bytes
    runner = paged("llama", length=10, budget=min(budget * page, 2**30), cache_tokens=given)

    assert (runner.cache.pages.num_pages, runner.cache_tokens) == (pages, tokens)
    assert len(runner.cache.layers[0].keys) == pages + 1


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_what_pages_do_not_have_runs_over_slots(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Soft-capped scores, and sinks."""
    model = build(name)
    answer = Answer(prompt(11), *generate(model, prompt(11), 5))
    runner = build_runner(model, num_slots=2, length=LENGTH, budget=2**30, paging=PagingConfig(4, None))

    run(runner, [answer], max_tokens=64)

    answer.check()
    assert isinstance(runner, BatchedRunner)
    assert "runs without pages: UnsupportedAttention" in caplog.text


def test_too_little_memory_is_an_error_and_no_fallback() -> None:
    with pytest.raises(ValueError, match="max_model_len"):
        paged("llama", budget=1000)


# --- what is said of a step ---


def test_a_step_is_written_down() -> None:
    pages = Pages(num_pages=9, page_size=4, num_slots=3, length=12)
    pages.claim(2, 0, 5)
    pages.claim(0, 0, 5)
    rows = [StepRow("first", 2, 0, 3, 0, (10, 11, 12)), StepRow("second", 0, 3, 2, 1, (13, 14))]

    form = BatchShape.of(rows, pages)
    ids, positions, writes, asked, query_starts, key_starts, lengths, table = (
        part.tolist() for part in form.parts(write(rows, form, pages, spare=9))
    )

    assert form == BatchShape(5, 1, 2, 2, 3, 5)
    assert (ids, positions) == ([10, 11, 12, 13, 14], [0, 1, 2, 3, 4])
    assert writes == [0, 1, 2, 11, 12]  # slot 2 has pages 0 and 1, slot 0 has 2 and 3
    assert asked == [4]
    assert (query_starts, key_starts, lengths) == ([0, 3, 5], [0, 3, 8], [3, 5])
    assert table == [0, 1, 2, 3]


def test_where_the_form_is_larger_the_rest_is_nobodys() -> None:
    pages = Pages(num_pages=9, page_size=4, num_slots=3, length=12)
    pages.claim(1, 0, 2)

    form = BatchShape(3, 3, 3, 2, 1, 8)
    parts = form.parts(write([StepRow("job", 1, 1, 1, 1, (11,))], form, pages, spare=9))
    ids, positions, writes, asked, query_starts, key_starts, lengths, table = (part.tolist() for part in parts)

    assert (ids, positions, asked) == ([11, 0, 0], [1, 0, 0], [0, 1, 2])
    assert writes == [1, 36, 36]
    assert (query_starts, key_starts, lengths) == ([0, 1, 2, 3], [0, 2, 3, 4], [2, 1, 1])
    assert np.reshape(table, (3, 2))[1:].tolist() == [[9, 9], [9, 9]]


# --- in an engine ---


@pytest.mark.usefixtures("no_headroom")
async def test_clients_that_share_beginnings_and_lose_their_places_get_what_each_would_get_alone() -> None:
    """Everything at once: sent ahead, preempted, shared, padded, left."""
    model, tokenizer, recorder = build("llama"), byte_level(), Recorder()
    beginning = prompt(20)
    prompts = [(*beginning[: 20 - 3 * i], *prompt(1 + i, seed=i)) for i in range(5)] + [
        beginning,
        prompt(30),
        prompt(2),
    ]
    expected = [generate(model, ids, 14)[0] for ids in prompts]
    runner = paged("llama", recorder, cache_tokens=24 * PAGE)
    runner.asynchronous = True
    engine = LocalEngine(
        fakes.loaded(model, tokenizer, eos=len(tokenizer)),
        LocalExecutor(runner),
        max_num_batched_tokens=16,
        max_queue=20,
    )
    engine.start()

    async def ask(ids: tuple[int, ...]) -> list[int]:
        pieces = await engine.submit(Job("job", ids, SamplingParams(max_tokens=14, temperature=0)))
        return [token async for piece in pieces for token in piece.token_ids]

    async def leave(ids: tuple[int, ...]) -> None:
        async with aclosing(await engine.submit(Job("leaves", ids))) as pieces:
            await anext(pieces)

    try:
        for _ in range(2):
            answers = await asyncio.gather(*map(ask, prompts), *map(leave, prompts[:3]))
            assert answers[: len(prompts)] == expected
        await fakes.settled(engine)
        assert engine.stats().preemptions
    finally:
        await engine.stop()
