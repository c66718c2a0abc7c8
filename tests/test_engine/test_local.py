"""The engine thread: whoever leaves, whatever breaks, everything comes home and everyone is told."""

import asyncio
import logging
import re
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.base import EngineStats, GrammarSpec, Job, SamplingParams, ThinkingLimit
from services.engine.execution.executor import ExecutorLost
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_factory import build_runner
from services.engine.local import LocalEngine
from services.engine.paged.runner import PagingConfig
from services.engine.scheduling.scheduler import Batch, Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import ClearSlot, StepRow
from services.errors import EngineFailed, GrammarStuck, InvalidRequest, Overloaded, PromptTooLong, Unavailable
from tests.generated import examples
from tests.test_engine import fakes
from tests.test_engine.fakes import END, PATIENCE, Counting, Gate, GoingAhead, job, running, said, settled
from tests.test_engine.recorder import Recorder
from tests.test_engine.tiny_models import build, generate
from tests.test_engine.tiny_tokenizers import byte_level

Kind = Callable[..., Counting]
KINDS: dict[str, Kind] = {
    "said at once": Counting,
    "said while the next runs": partial(Counting, asynchronous=True),
    "ahead of the plan": GoingAhead,
}
OF_EACH_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[LocalEngine]:
    async with running(request.param()) as engine:
        yield engine


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def gated(gate: Gate) -> AsyncIterator[LocalEngine]:
    """One slot, and each step waits for the gate."""
    async with running(Counting(num_slots=1, before=gate), max_num_batched_tokens=4) as engine:
        yield engine
        gate.open()


# --- what it says ---


async def test_pieces_carry_text_and_tokens(engine: LocalEngine) -> None:
    pieces = [piece async for piece in await engine.submit(job("abc", max_tokens=2))]

    assert [(piece.text, piece.token_ids, piece.finish) for piece in pieces] == [
        ("d", (3,), None),
        ("e", (4,), "length"),
    ]


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 6},
        {"max_tokens": 6, "stop": ("hi",)},
        {"grammar": GrammarSpec("regex", "defg[a-z]{2}")},
        {"max_tokens": 6, "temperature": 1.0, "seed": 3, "frequency_penalty": 2.0},
        {"max_tokens": 6, "thinking": ThinkingLimit(3, end=10)},
    ],
    ids=["plain", "stop", "grammar", "seed", "thinking"],
)
async def test_an_answer_goes_on_behind_sampled_tokens(engine: LocalEngine, params: dict[str, Any]) -> None:
    whole = job(**params)
    pieces = [piece async for piece in await engine.submit(whole)]
    for size in range(1, len(pieces)):
        tokens = tuple(token for piece in pieces[:size] for token in piece.token_ids)
        rest = [piece async for piece in await engine.submit(replace(whole, sampled=tokens))]
        assert [(each.text, each.token_ids, each.finish) for each in rest] == [
            (each.text, each.token_ids, each.finish) for each in pieces[size:]
        ]


@pytest.mark.parametrize(("tokens", "expected"), [(0, "klm"), (2, "bck"), (3, "bcd")])
async def test_thinking_that_takes_too_long_is_ended(engine: LocalEngine, tokens: int, expected: str) -> None:
    params = SamplingParams(max_tokens=3, temperature=0, thinking=ThinkingLimit(tokens, end=10))
    pieces = [piece async for piece in await engine.submit(Job("id", (0,), params))]
    assert "".join(piece.text for piece in pieces) == expected


@pytest.mark.parametrize(("begin", "expected"), [(1, "bck"), (2, "bcd")])
async def test_answer_that_does_not_begin_with_thinking_has_no_limit(
    engine: LocalEngine, begin: int, expected: str
) -> None:
    params = SamplingParams(max_tokens=3, temperature=0, thinking=ThinkingLimit(1, end=10, begin=begin))
    pieces = [piece async for piece in await engine.submit(Job("id", (0,), params))]
    assert "".join(piece.text for piece in pieces) == expected


async def test_thinking_that_ended_by_itself_is_not_ended_again(engine: LocalEngine) -> None:
    params = SamplingParams(max_tokens=5, temperature=0, thinking=ThinkingLimit(2, end=2))
    pieces = [piece async for piece in await engine.submit(Job("id", (0,), params))]
    assert "".join(piece.text for piece in pieces) == "bcdef"


async def test_the_first_piece_says_what_was_cached(engine: LocalEngine) -> None:
    pieces = [[piece async for piece in await engine.submit(job("a" * length, max_tokens=3))] for length in (20, 30)]
    assert [each.cached_tokens for each in pieces[1]] == [20, 0, 20]


async def test_the_last_piece_says_what_was_cached_and_how_long_it_took(engine: LocalEngine) -> None:
    first, second = [
        [piece async for piece in await engine.submit(job("a" * length, max_tokens=3))][-1] for length in (20, 30)
    ]

    assert (first.cached_tokens, second.cached_tokens) == (0, 20)
    assert first.times
    assert min(first.times.queued, first.times.prefill, first.times.decode) >= 0
    stats = engine.stats()
    assert (stats.prefix_queried, stats.prefix_reused) == (50, 20)


async def test_nothing_is_reused_where_that_is_switched_off() -> None:
    async with running(Counting(), prefix_cache=False) as engine:
        for _ in range(2):
            pieces = [piece async for piece in await engine.submit(job("a" * 30, max_tokens=1))]
            assert pieces[-1].cached_tokens == 0


@pytest.mark.parametrize(
    ("prompt", "params", "text", "finish"),
    [
        ("abc", {"max_tokens": 3}, "def", "length"),
        ("w", {}, "xy", "stop"),  # z is the end
        ("abc", {"stop": ("gh",)}, "def", "stop"),
        ("abc", {"stop": ("f",), "max_tokens": 3}, "de", "stop"),
        ("a" * 61, {}, "bcd", "length"),  # the model's length
        ("a" * 61, {"max_tokens": 100}, "bcd", "length"),
        ("abc", {"temperature": 1.0, "top_k": 1, "max_tokens": 3}, "def", "length"),
    ],
)
async def test_why_it_ends(engine: LocalEngine, prompt: str, params: dict[str, Any], text: str, finish: str) -> None:
    pieces = [piece async for piece in await engine.submit(job(prompt, **params))]

    assert "".join(piece.text for piece in pieces) == text
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + [finish]


async def test_a_finished_stream_stays_finished(engine: LocalEngine) -> None:
    pieces = await engine.submit(job(max_tokens=1))
    await anext(pieces)

    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)


async def test_many_at_once_are_all_answered() -> None:
    async with running(Counting(num_slots=3), max_num_batched_tokens=4, max_queue=100) as engine:
        streams = [await engine.submit(job("abcdefgh"[: 1 + i % 8], max_tokens=1 + i % 5)) for i in range(40)]

        texts = await asyncio.gather(*map(said, streams))
        await settled(engine)

    assert texts == ["abcdefghijklm"[1 + i % 8 : 2 + i % 8 + i % 5] for i in range(40)]


async def test_a_step_serves_all_who_run() -> None:
    gate = Gate()
    runner = Counting(before=gate)
    async with running(runner) as engine:
        first = await engine.submit(job(name="first", max_tokens=3))
        await gate.arrival()
        second = await engine.submit(job(name="second", max_tokens=1))
        gate.open()
        await asyncio.gather(said(first), said(second))

    assert runner.steps == [["first"], ["first", "second"], ["first"]]


# --- what it refuses ---


async def test_a_prompt_that_is_too_long_is_refused_with_both_counts(engine: LocalEngine) -> None:
    with pytest.raises(PromptTooLong, match=r"64 tokens.* 70 tokens") as refusal:
        await engine.submit(job("a" * 70))

    assert refusal.value.param == "messages"
    assert await said(await engine.submit(job("a" * 63))) == "b"


async def test_an_empty_prompt_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(InvalidRequest):
        await engine.submit(job(""))


async def test_a_full_queue_is_refused_until_there_is_room(gate: Gate) -> None:
    async with running(Counting(num_slots=1, before=gate), max_queue=1) as engine:
        first = await engine.submit(job(max_tokens=1))
        second = await engine.submit(job(max_tokens=1))
        with pytest.raises(Overloaded):
            await engine.submit(job())
        gate.open()
        await asyncio.gather(said(first), said(second))
        await settled(engine)

        assert await said(await engine.submit(job(max_tokens=1))) == "d"


async def test_a_stopped_engine_is_unavailable(engine: LocalEngine) -> None:
    await engine.stop()

    with pytest.raises(Unavailable):
        await engine.submit(job())


# --- who leaves ---


async def leave_by_closing(pieces: Any) -> None:
    await pieces.aclose()


async def leave_by_cancelling(pieces: Any) -> None:
    reader = asyncio.ensure_future(said(pieces))
    await asyncio.sleep(0)  # let it begin to read
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def leave_by_throwing(pieces: Any) -> None:
    with pytest.raises(LookupError):
        await pieces.athrow(LookupError)


LEAVE = pytest.mark.parametrize("leave", [leave_by_closing, leave_by_cancelling, leave_by_throwing])
Leave = Callable[[Any], Any]


async def the_slot_is_free(engine: LocalEngine) -> None:
    assert await said(await engine.submit(job("w"))) == "xy"  # where there is but one
    await settled(engine)
    assert engine.stats().cache_used == 0
    assert not engine.thread.core.has_requests  # nothing is kept of anyone


@LEAVE
async def test_leaving_while_queued(gated: LocalEngine, gate: Gate, leave: Leave) -> None:
    running = await gated.submit(job(max_tokens=2))
    await gate.arrival()
    queued = await gated.submit(job())
    await leave(queued)
    gate.open()

    assert await said(running) == "de"
    await the_slot_is_free(gated)


@LEAVE
async def test_leaving_while_the_prompt_is_read(gated: LocalEngine, gate: Gate, leave: Leave) -> None:
    reading = await gated.submit(job("a" * 60))  # 15 steps of four tokens
    await gate.arrival()
    await leave(reading)
    gate.open()

    await the_slot_is_free(gated)
    assert len(gated.executor.runner.steps) < 15


@LEAVE
async def test_leaving_while_it_is_written(gated: LocalEngine, gate: Gate, leave: Leave) -> None:
    writing = await gated.submit(job("abc"))
    gate.open(1)
    assert (await anext(writing)).text == "d"
    await leave(writing)
    gate.open()

    await the_slot_is_free(gated)


async def test_leaving_without_ever_reading(gated: LocalEngine, gate: Gate) -> None:
    async with aclosing(await gated.submit(job())):
        await gate.arrival()
    gate.open()

    await the_slot_is_free(gated)


async def test_a_stream_that_nobody_holds_any_more_is_over(gated: LocalEngine, gate: Gate) -> None:
    dropped = await gated.submit(job("abc"))
    gate.open(1)
    assert (await anext(dropped)).text == "d"
    del dropped
    gate.open()

    await the_slot_is_free(gated)


async def test_closing_ends_the_reader_in_another_task(gated: LocalEngine, gate: Gate) -> None:
    pieces = await gated.submit(job())
    await gate.arrival()
    reader = asyncio.ensure_future(said(pieces))
    await asyncio.sleep(0)
    await pieces.aclose()

    async with asyncio.timeout(PATIENCE):
        assert await reader == ""
    gate.open()


async def test_nothing_is_said_to_who_has_left(engine: LocalEngine) -> None:
    pieces = await engine.submit(job())
    await anext(pieces)
    await pieces.aclose()

    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_leaving_during_a_step_takes_effect_with_the_next_one() -> None:
    gate = Gate()
    runner = Counting(before=gate)
    async with running(runner) as engine:
        stays = await engine.submit(job(name="stays", max_tokens=3))
        leaves = await engine.submit(job(name="leaves"))
        gate.open(1)
        await gate.arrival()
        await gate.arrival()
        await leaves.aclose()
        gate.open()

        assert await said(stays) == "def"
        await settled(engine)
        assert runner.steps[1:] == [["stays", "leaves"], ["stays"]]
        assert not engine.thread.core.has_requests


# --- what breaks ---


def once(broken: Callable[[list[StepRow]], None]) -> Callable[[list[StepRow]], None]:
    left = [broken]
    return lambda batch: left.pop()(batch) if left else None


def fail(_: list[StepRow]) -> None:
    raise RuntimeError("out of memory")


async def test_a_failed_step_fails_who_runs_and_the_engine_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Counting(num_slots=1, before=once(fail))) as engine:
        with pytest.raises(EngineFailed) as failure:
            await said(await engine.submit(job()))

        await the_slot_is_free(engine)
    assert "out of memory" in caplog.text  # for the operator
    assert "out of memory" not in failure.value.message  # who is not the caller


async def test_a_lost_executor_ends_all_requests_and_later_ones(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    def lost(rows: list[StepRow]) -> None:
        gate(rows)
        raise ExecutorLost("rank 1 has ended")

    async with running(Counting(before=lost, num_slots=1)) as engine:
        streams = [await engine.submit(job(name=name)) for name in ("running", "waiting")]
        gate.open()
        for stream in streams:
            with pytest.raises(Unavailable, match="loaded again"):
                await said(stream)
        with pytest.raises(Unavailable, match="loaded again"):
            await said(await engine.submit(job()))
        await settled(engine)
    assert "rank 1 has ended" in caplog.text


async def test_a_runner_that_always_fails_fails_each_and_stays_idle_between() -> None:
    runner = Counting(before=fail)
    async with running(runner) as engine:
        for _ in range(3):
            with pytest.raises(EngineFailed):
                await said(await engine.submit(job()))
        await settled(engine)

    assert len(runner.steps) == 3


async def test_who_waits_goes_on_waiting_when_a_step_fails() -> None:
    gate = Gate()
    breaks = once(fail)

    def before(batch: list[StepRow]) -> None:
        gate(batch)
        breaks(batch)

    async with running(Counting(num_slots=1, before=before)) as engine:
        runs = await engine.submit(job())
        await gate.arrival()
        waits = await engine.submit(job(max_tokens=2))
        gate.open()

        with pytest.raises(EngineFailed):
            await said(runs)
        assert await said(waits) == "de"


async def test_after_a_failed_step_nothing_in_the_cache_is_trusted() -> None:
    runner = Counting(num_slots=2)
    async with running(runner, max_num_batched_tokens=64) as engine:
        await said(await engine.submit(job("a" * 20, max_tokens=1)))
        runner.before = once(fail)
        with pytest.raises(EngineFailed):
            await said(await engine.submit(job("b" * 30)))
        last = [piece async for piece in await engine.submit(job("a" * 20, max_tokens=1))]

    assert runner.changes == [ClearSlot(0, 0, 20), ClearSlot(1, 0, 30)]
    assert last[-1].cached_tokens == 0


@OF_EACH_KIND
async def test_a_request_that_has_no_text_fails_alone(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    def decode(self: fakes.Alphabet, ids: list[int], skip_special_tokens: bool = False) -> str:
        if END_OF_WORLD in ids:
            raise ValueError("no such token")
        return "x" * len(ids)

    END_OF_WORLD = 23
    monkeypatch.setattr(fakes.Alphabet, "decode", decode)
    gate = Gate()
    async with running(kind(num_slots=3, before=gate)) as engine:
        holds = await engine.submit(job("a", max_tokens=1))
        await gate.arrival()  # so that the next two come into one step
        done = await engine.submit(job("a", max_tokens=2))
        broken = await engine.submit(job("w"))
        gate.open()
        await said(holds)

        async with asyncio.timeout(PATIENCE):
            with pytest.raises(EngineFailed):
                await said(broken)
            assert await said(done) == "xx"
        await settled(engine)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_logits_that_are_no_numbers_fail_alone_and_are_wiped_out(asynchronous: bool) -> None:
    class Breaking(Counting):
        def run(self, rows: list[StepRow]) -> torch.Tensor:
            logits = super().run(rows)
            for index, row in enumerate(row for row in rows if row.num_logits):
                if row.request_id == "broken" and row.start == len("abc"):  # its second token
                    logits[index, 3] = torch.nan
            return logits

    gate = Gate()
    runner = Breaking(num_slots=3, before=gate, asynchronous=asynchronous)
    async with running(runner) as engine:
        first = await engine.submit(job(max_tokens=4))
        await gate.arrival()
        broken = await engine.submit(job(name="broken"))
        last = await engine.submit(job(max_tokens=4))
        gate.open()

        assert await said(first) == await said(last) == "defg"
        with pytest.raises(EngineFailed):
            await said(broken)
        await settled(engine)
        assert runner.changes == [ClearSlot(1, 0, 4)]


def regex(pattern: str) -> GrammarSpec:
    return GrammarSpec("regex", pattern, "guided_regex")


@pytest.mark.parametrize(
    ("pattern", "params", "text", "finish", "tokens"),
    [
        ("def|deh", {}, "def", "stop", 3),  # and no token more, not even the one that says so
        ("defghij", {"max_tokens": 3}, "def", "length", 3),
        ("def", {"max_tokens": 3}, "def", "stop", 3),
        ("xyb?", {"logit_bias": {END: 100}}, "xy", "stop", 3),
        ("xyb?", {"logit_bias": {END: 100}, "ignore_eos": True}, "xyb", "stop", 3),
        ("[d-h]*", {"logit_bias": {END: 100}, "min_tokens": 4}, "defg", "stop", 5),
        ("d|de", {"min_tokens": 3}, "de", "stop", 2),
        ("defg", {"stop": ("f",)}, "de", "stop", 3),
        ("defg", {"stop_token_ids": (5,)}, "de", "stop", 3),
    ],
)
async def test_an_answer_ends_with_its_grammar(
    engine: LocalEngine, pattern: str, params: dict[str, Any], text: str, finish: str, tokens: int
) -> None:
    pieces = [piece async for piece in await engine.submit(job(grammar=regex(pattern), **params))]

    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].finish == finish
    assert sum(len(piece.token_ids) for piece in pieces) == tokens
    await settled(engine)


@OF_EACH_KIND
async def test_a_grammar_that_cannot_go_on_fails_its_request_alone(kind: Kind) -> None:
    async with running(kind(num_slots=3)) as engine:
        whole = await engine.submit(job(grammar=regex("defghi")))
        failing = await engine.submit(job(grammar=regex("de!|de\\?")))
        free = await engine.submit(job(max_tokens=6))

        assert await said(whole) == await said(free) == "defghi"
        with pytest.raises(GrammarStuck, match="'guided_regex': after 2 tokens") as failure:
            await said(failing)
        assert failure.value.param == "guided_regex"
        assert await said(await engine.submit(job(max_tokens=2))) == "de"
        await settled(engine)


MANY = range(1500)
EXPLODING = {
    "with the token it reads": (
        f'start: "de" ({" | ".join(f"r{i}" for i in MANY)})\n'
        + "\n".join(f'r{i}: "f" s{i}\ns{i}: "g" | "h{i}"' for i in MANY)
    ),
    "while it looks for the next": r"""start: "de" A
        A: /([a-y]*[d-x][a-y]{1,300}){1,200}/ & ~/[a-y]*e[a-y]{25,400}f[a-y]*/""",
}


@OF_EACH_KIND
@pytest.mark.parametrize("grammar", EXPLODING.values(), ids=EXPLODING.keys())
async def test_a_grammar_that_explodes_in_use_ends_its_request_alone(
    kind: Kind, grammar: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It compiles, and the matcher comes to its limits in the middle of an answer."""
    async with running(kind()) as engine:
        failing = await engine.submit(job(grammar=GrammarSpec("lark", grammar, "guided_grammar"), ignore_eos=True))
        free = await engine.submit(job("a", max_tokens=63, ignore_eos=True))

        with pytest.raises(GrammarStuck, match="'guided_grammar'"):
            await said(failing)
        assert len(await said(free)) == 63 - 2  # without both of its ends
        await settled(engine)
    assert not [each for each in caplog.records if each.levelno > logging.INFO]  # no fault of the engine's


@given(
    lives=st.lists(st.tuples(st.sampled_from(["[a-y]{24}", "[d-g]{5}(x|y)"]), st.integers(0, 30)), max_size=8),
    room=st.sampled_from([56, 200]),
    kind=st.sampled_from(list(KINDS.values())),
)
@settings(max_examples=examples(10, 100))
async def test_a_grammar_is_held_to_whoever_comes_or_leaves(
    lives: list[tuple[str, int]], room: int, kind: Kind
) -> None:
    """A life: a grammar, and the tokens after which its reader leaves."""

    async def read(pattern: str, patience: int) -> None:
        said = ""
        async with aclosing(await engine.submit(job(grammar=regex(pattern), max_tokens=30, temperature=1))) as answer:
            async for piece in answer:
                said += piece.text
                if piece.finish == "stop":
                    assert re.fullmatch(pattern, said)
                if len(said) >= patience:
                    return

    runner = kind(num_slots=3, cache_tokens=room)
    async with running(runner, max_num_batched_tokens=4) as engine:
        await asyncio.gather(*(read(*life) for life in lives))
        await settled(engine)


@OF_EACH_KIND
async def test_a_preempted_answer_goes_on_in_its_grammar(gate: Gate, kind: Kind) -> None:
    async with running(kind(cache_tokens=56, before=gate)) as engine:
        answers = [await engine.submit(job("a" * 10, grammar=regex("[b-p]{15}x[a-c]{14}y"))) for _ in range(2)]
        gate.open()

        assert [await said(answer) for answer in answers] == ["bcdefghijklmnopx" + "abcabcabcabcab" + "y"] * 2
        assert engine.stats().preemptions
        await settled(engine)


async def test_a_grammar_that_cannot_be_compiled_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(InvalidRequest, match="look-around") as refusal:
        await engine.submit(job(grammar=regex("(?=a)b")))

    assert refusal.value.param == "guided_regex"
    await settled(engine)


async def test_a_step_that_finds_no_memory_is_tried_again_in_smaller_ones(caplog: pytest.LogCaptureFixture) -> None:
    def narrow(batch: list[StepRow]) -> None:
        if sum(entry.num_tokens for entry in batch) > 5:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")

    async with running(Counting(num_slots=4, before=narrow), max_num_batched_tokens=64) as engine:
        streams = [await engine.submit(job("a" * length, max_tokens=3)) for length in (40, 3, 7, 11)]
        texts = await asyncio.gather(*map(said, streams))
        await settled(engine)

    assert texts == ["bcd"] * 4
    assert "trying smaller ones" in caplog.text


async def test_a_token_for_which_there_is_no_memory_fails() -> None:
    def none_at_all(batch: list[StepRow]) -> None:
        raise torch.OutOfMemoryError

    async with running(Counting(before=none_at_all)) as engine:
        with pytest.raises(EngineFailed):
            await said(await engine.submit(job()))


async def test_a_cache_too_small_for_all_serves_them_one_after_another(gate: Gate) -> None:
    async with running(Counting(num_slots=3, cache_tokens=56, before=gate), max_num_batched_tokens=64) as engine:
        with pytest.raises(PromptTooLong, match="56 tokens"):
            await engine.submit(job("a" * 60))
        streams = [await engine.submit(job("a" * 10, max_tokens=20)) for _ in range(3)]
        gate.open()

        assert await asyncio.gather(*map(said, streams)) == ["bcdefghijklmnopqrstu"] * 3
        await settled(engine)
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize("breaks", [SystemExit, KeyboardInterrupt])
async def test_a_dead_thread_is_replaced(breaks: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def die(_: list[StepRow]) -> None:
        raise breaks

    async with running(Counting(num_slots=1, before=once(die))) as engine:
        with pytest.raises(EngineFailed):
            await said(await engine.submit(job()))

        await the_slot_is_free(engine)
    assert "another takes over" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_thread_for_which_there_is_none_to_take_over_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(_: list[StepRow]) -> None:
        raise SystemExit

    def no_thread() -> None:
        raise RuntimeError("can't start new thread")

    async with running(Counting(num_slots=1, before=once(die))) as engine:
        first = engine.thread.thread
        with monkeypatch.context() as patch:
            patch.setattr(engine.thread, "new_thread", no_thread)
            with pytest.raises(EngineFailed):
                await said(await engine.submit(job()))
            await asyncio.to_thread(first.join)
            assert engine.stats().stalled
            with pytest.raises(RuntimeError):
                await engine.submit(job())
            assert engine.stats().waiting == 0

        await the_slot_is_free(engine)
        assert not engine.stats().stalled


async def test_a_slot_that_has_not_come_home_is_noticed_at_rest(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Counting(num_slots=2)) as engine:
        engine.scheduler.slots.slots[1].holder = Sequence(job(), 1)
        assert await said(await engine.submit(job("w"))) == "xy"
        await settled(engine)

        assert engine.scheduler.slots.num_free == 2
        await the_slot_is_free(engine)
    assert "another takes over" in caplog.text


async def test_an_engine_that_cannot_get_on_says_so(
    gated: LocalEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = await gated.submit(job(max_tokens=1))
    await gate.arrival()
    assert not gated.stats().stalled
    monkeypatch.setattr("services.engine.execution.engine_thread.STALLED", 0)
    assert gated.stats().stalled
    gate.open()
    await said(pieces)
    await settled(gated)
    assert not gated.stats().stalled


async def test_a_scheduler_that_fails_does_not_end_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Scheduler):
        schedules = 0

        def schedule(self) -> Batch:
            self.schedules += 1
            if self.schedules == 1:
                raise AssertionError
            return super().schedule()

    monkeypatch.setattr("services.engine.local.Scheduler", Broken)
    async with running(Counting(num_slots=1)) as engine:
        with pytest.raises(EngineFailed):
            await said(await engine.submit(job()))
        await the_slot_is_free(engine)


def test_readers_whose_loop_is_gone_do_not_harm_later_ones() -> None:
    gate = Gate()
    engine = LocalEngine(fakes.loaded(), LocalExecutor(Counting(before=gate)), max_num_batched_tokens=16, max_queue=8)
    engine.start()

    abandoned = []

    async def abandon() -> None:
        abandoned.append(await engine.submit(job("abc", max_tokens=3)))
        await gate.arrival()

    async def come_later() -> str:
        gate.open()
        text = await said(await engine.submit(job("abc", max_tokens=3)))
        await engine.stop()
        return text

    asyncio.run(abandon())
    gate.open(1)
    assert asyncio.run(come_later()) == "def"


# --- how it ends ---


async def test_stopping_tells_who_runs_and_who_waits(gate: Gate) -> None:
    async with running(Counting(num_slots=1, before=gate)) as engine:
        streams = [await engine.submit(job()) for _ in range(3)]
        await gate.arrival()
        stopping = asyncio.ensure_future(engine.stop())
        await asyncio.sleep(0)  # it has begun: nobody is let in any more
        with pytest.raises(Unavailable):
            await engine.submit(job())
        gate.open()
        await stopping

        for stream in streams:
            with pytest.raises(Unavailable):
                await said(stream)
        assert engine.stats() == EngineStats(cache_size=64, prefix_queried=3)


async def test_stopping_frees_the_thread_and_the_model() -> None:
    model = build("llama")
    alive = weakref.ref(model)
    engine = LocalEngine(
        fakes.loaded(model),
        LocalExecutor(build_runner(model, num_slots=1, length=32, budget=2**30)),
        max_num_batched_tokens=8,
        max_queue=1,
    )
    del model
    engine.start()
    await said(await engine.submit(job(max_tokens=3)))
    await engine.stop()

    assert alive() is None
    assert not engine.thread.thread.is_alive()


async def test_stopping_twice_waits_twice(gate: Gate) -> None:
    async with running(Counting(before=gate)) as engine:
        pieces = await engine.submit(job())
        await gate.arrival()
        stops = [asyncio.ensure_future(engine.stop()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(stop.done() for stop in stops)
        gate.open()
        await asyncio.gather(*stops)

        assert not engine.thread.thread.is_alive()
        await pieces.aclose()


async def test_stopping_does_not_wait_for_a_dead_thread(gate: Gate) -> None:
    def die(batch: list[StepRow]) -> None:
        gate(batch)
        raise SystemExit

    async with running(Counting(before=die)) as engine:
        pieces = await engine.submit(job())
        await gate.arrival()
        stopping = asyncio.ensure_future(engine.stop())
        await asyncio.sleep(0)
        gate.open()

        async with asyncio.timeout(PATIENCE):
            await stopping
        with pytest.raises(EngineFailed):
            await said(pieces)


async def test_stopping_what_never_started() -> None:
    engine = LocalEngine(fakes.loaded(), LocalExecutor(Counting()), max_num_batched_tokens=16, max_queue=8)
    await engine.stop()

    with pytest.raises(Unavailable):
        await engine.submit(job())


# --- at rest ---


async def test_an_idle_engine_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    schedules = []

    class Counted(Scheduler):
        def schedule(self) -> Batch:
            batch = super().schedule()
            schedules.append(len(batch.scheduled))
            return batch

    monkeypatch.setattr("services.engine.local.Scheduler", Counted)
    async with running(Counting()) as engine:
        await said(await engine.submit(job(max_tokens=3)))
        await settled(engine)
        pieces = await engine.submit(job("a"))
        await anext(pieces)
        await pieces.aclose()
        await settled(engine)
        await asyncio.sleep(0)

    assert schedules[:4] == [1, 1, 1, 0]  # three tokens, then nobody is left
    assert schedules.count(0) == 2


async def test_stats_count_what_runs_waits_and_is_cached(gated: LocalEngine, gate: Gate) -> None:
    streams = [await gated.submit(job("abcdef")) for _ in range(3)]
    await gate.arrival()
    gate.open(1)
    await gate.arrival()

    assert gated.stats() == EngineStats(running=1, waiting=2, cache_used=4, cache_size=64, prefix_queried=6)
    for stream in streams:
        await stream.aclose()


# --- with a model ---


@pytest.mark.parametrize(
    ("name", "paging"), [("llama", None), ("gemma3", None), ("bloom", None), ("llama", PagingConfig(4, Recorder()))]
)
async def test_clients_together_get_what_each_would_get_alone(name: str, paging: PagingConfig | None) -> None:
    model, tokenizer = build(name), byte_level()
    prompts = [tuple(range(3 + i, 3 + i + length)) for i, length in enumerate([5, 1, 17, 9, 2, 30])]
    expected = [generate(model, prompt, 12)[0] for prompt in prompts]
    runner = build_runner(model, num_slots=3, length=64, budget=2**30, paging=paging)
    runner.asynchronous = paging is not None  # as on a GPU
    engine = LocalEngine(
        fakes.loaded(model, tokenizer, eos=len(tokenizer)), LocalExecutor(runner), max_num_batched_tokens=8, max_queue=8
    )
    engine.start()

    async def ask(prompt: tuple[int, ...]) -> list[int]:
        pieces = await engine.submit(Job("job", prompt, SamplingParams(max_tokens=12, temperature=0)))
        return [token async for piece in pieces for token in piece.token_ids]

    try:
        assert await asyncio.gather(*map(ask, prompts)) == expected
        leaving = await engine.submit(Job("leaves", prompts[2]))
        await leaving.aclose()
        assert await asyncio.gather(*map(ask, reversed(prompts))) == expected[::-1]
    finally:
        await engine.stop()


async def test_a_seed_gives_the_same_text_alone_and_in_company() -> None:
    tokenizer = byte_level()
    engine = LocalEngine(
        fakes.loaded(tokenizer=tokenizer, eos=len(tokenizer)),
        LocalExecutor(build_runner(build("llama"), num_slots=4, length=64, budget=2**30)),
        max_num_batched_tokens=8,
        max_queue=8,
    )
    engine.start()

    async def ask(seed: int | None) -> str:
        return await said(await engine.submit(Job("job", (5, 6, 7), SamplingParams(max_tokens=20, seed=seed))))

    try:
        alone = await ask(7)
        together = await asyncio.gather(*map(ask, [None, 7, 8, None, 7]))
    finally:
        await engine.stop()

    assert together[1] == together[4] == alone
    assert len({*together}) == 4
