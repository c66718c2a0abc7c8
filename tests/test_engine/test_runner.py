"""What the runners compute is what the model's own `generate` computes, in any company."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.engine.base import Job
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.padded_runner import PaddedRunner
from services.engine.execution.runner import Runner
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.sequential_runner import SequentialRunner
from services.engine.scheduling.scheduler import ScheduledSequence, Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.slots import MIN_REUSE
from services.engine.scheduling.step import ClearSlot, StepRow
from services.errors import EngineFailed
from tests.test_engine.tiny_models import (
    INDEXED,
    MODELS,
    RECURRENT,
    VOCABULARY,
    build,
    build_kind,
    forward_each,
    generate,
)

PADDED = {
    "bloom": "ALiBi, in an attention of its own",
    "llama4 chunked": "chunks that only its masks know",
    "phimoe sliding": "a window that only its masks know",
}
ALONE = {"rwkv"}  # its own step of one token mixes the rows of a batch
SLOTS = 3
LENGTH = 64


@dataclass(slots=True)
class Answer:
    """A prompt, what the model itself says to it, and what the runner says."""

    prompt: tuple[int, ...]
    tokens: list[int]
    logits: Tensor
    joins: int = 0  # the step before which it is submitted
    cancelled_at: int | None = None
    said: list[Tensor] = field(default_factory=list)

    def check(self) -> None:
        said = torch.stack(self.said)
        assert said.argmax(-1).tolist() == self.tokens[: len(said)]
        torch.testing.assert_close(said, self.logits[: len(said)], atol=1e-3, rtol=1e-3)
        assert len(said) == len(self.tokens) or self.cancelled_at is not None


def run(
    runner: Runner,
    answers: list[Answer],
    max_tokens: int,
    *,
    min_reuse: int | None = MIN_REUSE,
    cache_tokens: int | None = None,
) -> Scheduler:
    """The engine's loop, step by step on this thread."""
    reuse = min_reuse if runner.reuses else None
    scheduler = Scheduler(
        runner.num_slots,
        max_tokens,
        cache_tokens=cache_tokens,
        min_reuse=reuse,
        page_size=runner.page_size,
        short_length=runner.short_length,
        snapshots=runner.snapshots,
    )
    sequences: dict[Sequence, Answer] = {}
    waiting = list(answers)
    step = 0
    while waiting or not scheduler.is_idle:
        for answer in [answer for answer in waiting if answer.joins <= step]:
            waiting.remove(answer)
            sequences[sequence := Sequence(Job("job", answer.prompt), len(answer.tokens))] = answer
            scheduler.add(sequence)
        for sequence, answer in sequences.items():
            sequence.cancelled = answer.cancelled_at is not None and step >= answer.cancelled_at
        plan = scheduler.schedule()
        runner.apply(plan.changes)
        if batch := plan.scheduled:
            logits = runner.run([entry.row() for entry in batch])
            drawn = [entry.sequence for entry in batch if entry.samples]
            for entry in batch:
                entry.sequence.num_computed += entry.num_tokens
            for sequence, row in zip(drawn, logits, strict=True):
                sequences[sequence].said.append(row.clone())  # it may last until the next step
                sequence.tokens.append(int(row.argmax()))
                sequence.finished = sequence.num_sampled >= sequence.max_tokens
        step += 1
    scheduler.check()
    return scheduler


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    ids = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(100 * seed + length))
    return tuple(ids.tolist())


@dataclass(frozen=True, slots=True)
class Tiny:
    name: str
    runner: Runner
    expected: Mapping[tuple[int, ...], tuple[list[int], Tensor]]

    def answer(self, length: int, tokens: int, **when: Any) -> Answer:
        ids, logits = self.expected[prompt(length)]
        return Answer(prompt(length), ids[:tokens], logits[:tokens], **when)


PROMPTS = (1, 2, 3, 6, 11, 17)
LONGEST = 14


@pytest.fixture(scope="module", params=MODELS)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    model = build(request.param)
    expected = {prompt(length): generate(model, prompt(length), LONGEST) for length in PROMPTS}
    runner = build_runner(model, num_slots=SLOTS, length=LENGTH, budget=2**30)
    return Tiny(request.param, runner, expected)


def test_each_architecture_runs_where_it_should(tiny: Tiny) -> None:
    """Falling back to the model's own cache is right for some; for any other it would be a silent loss of speed."""
    assert type(tiny.runner) is (PaddedRunner if tiny.name in PADDED else BatchedRunner)
    assert tiny.runner.reuses


@pytest.mark.parametrize("max_tokens", [512, 4], ids="{} tokens a step".format)
def test_alone(tiny: Tiny, max_tokens: int) -> None:
    for length in PROMPTS:
        answer = tiny.answer(length, LONGEST)
        run(tiny.runner, [answer], max_tokens)
        answer.check()


@pytest.mark.parametrize("max_tokens", [512, 4], ids="{} tokens a step".format)
def test_joining_and_leaving(tiny: Tiny, max_tokens: int) -> None:
    """More of them than slots, of all lengths, one gone in the middle of its answer and one of its prompt."""
    answers = [
        tiny.answer(6, 4),
        tiny.answer(17, LONGEST),
        tiny.answer(1, 9, joins=1),
        tiny.answer(11, 6, joins=2, cancelled_at=4),
        tiny.answer(3, 12, joins=3, cancelled_at=9),
        tiny.answer(2, LONGEST, joins=3),
        tiny.answer(17, 5, joins=20),
        tiny.answer(11, 8, joins=20),
    ]

    run(tiny.runner, answers, max_tokens)

    for answer in answers:
        if answer.said or answer.cancelled_at is None:
            answer.check()


def test_a_latecomer_in_a_lower_slot(tiny: Tiny) -> None:
    """The slots in use have no gap, but their order is not that of the sequences."""
    answers = [tiny.answer(6, 2), tiny.answer(11, LONGEST), tiny.answer(3, 9, joins=3)]

    run(tiny.runner, answers, max_tokens=512)

    for answer in answers:
        answer.check()


BEGINNING = 40


def alike(model: Any) -> list[Answer]:
    """Answers to prompts that begin alike, and to a conversation that goes on."""
    beginning = prompt(BEGINNING)
    prompts = [(*beginning[:length], *prompt(rest, seed=9)) for length, rest in [(40, 3), (40, 1), (33, 2), (20, 9)]]
    prompts += [prompt(17), beginning]
    answers = [Answer(ids, *generate(model, ids, 10)) for ids in prompts]
    said = (*prompts[0], *answers[0].tokens, 5, 6)
    return [*answers, Answer(said, *generate(model, said, 6))]


@pytest.fixture(scope="module")
def crowd(tiny: Tiny) -> list[Answer]:
    return alike(build(tiny.name))


@pytest.mark.usefixtures("no_headroom")
@pytest.mark.parametrize("max_tokens", [512, 7], ids="{} tokens a step".format)
@pytest.mark.parametrize("cache_tokens", [None, 95], ids="{} tokens in the cache".format)
@pytest.mark.parametrize("min_reuse", [None, 16, 1], ids="{} reused".format)
def test_beginnings_in_common(
    tiny: Tiny,
    crowd: list[Answer],
    max_tokens: int,
    cache_tokens: int | None,
    min_reuse: int | None,
) -> None:
    """Taken over, copied, waited for, preempted and read in chunks, all of it mixed."""
    answers = [
        replace(answer, joins=joins, said=[]) for answer, joins in zip(crowd, (0, 0, 2, 5, 5, 9, 40), strict=True)
    ]

    scheduler = run(tiny.runner, answers, max_tokens, min_reuse=min_reuse, cache_tokens=cache_tokens)

    for answer in answers:
        answer.check()
    assert (scheduler.num_reused > BEGINNING) is (min_reuse is not None and tiny.runner.reuses)
    assert (scheduler.num_preemptions > 0) is (cache_tokens is not None)


def test_a_slot_that_was_poisoned_is_clean_again(llama: tuple[Any, Runner]) -> None:
    model, runner = llama
    assert isinstance(runner, BatchedRunner)
    for layer in runner.cache.layers.values():
        layer.keys[:, :, :20] = torch.nan
        layer.values[:, :, :20] = torch.nan
    runner.apply([ClearSlot(slot, 0, 20) for slot in range(SLOTS)])

    answers = [Answer(prompt(length), *generate(model, prompt(length), 5)) for length in (3, 17)]
    run(runner, answers, max_tokens=64)

    for answer in answers:
        answer.check()


@pytest.fixture(scope="module")
def llama() -> tuple[Any, Runner]:
    return build("llama"), build_runner(build("llama"), num_slots=SLOTS, length=LENGTH, budget=2**30)


@given(data=st.data(), max_tokens=st.sampled_from([3, 7, 40]))
@settings(max_examples=15, deadline=None)
def test_any_coming_and_going(llama: tuple[Any, Runner], data: st.DataObject, max_tokens: int) -> None:
    model, runner = llama
    answers = []
    for seed in range(data.draw(st.integers(1, 5), label="requests")):
        ids = prompt(data.draw(st.integers(1, 20), label="prompt"), seed)
        tokens, logits = generate(model, ids, data.draw(st.integers(1, 8), label="answer"))
        answers.append(Answer(ids, tokens, logits, joins=data.draw(st.integers(0, 6), label="joins")))

    run(runner, answers, max_tokens)

    for answer in answers:
        answer.check()


def test_a_failed_step_leaves_nothing_behind(llama: tuple[Any, Runner]) -> None:
    model, runner = llama
    outside = Answer((VOCABULARY + 1, 2), [0], torch.empty(1, VOCABULARY))
    with pytest.raises(IndexError):
        run(runner, [outside], max_tokens=64)

    answer = Answer(prompt(6), *generate(model, prompt(6), 5))
    run(runner, [answer], max_tokens=64)

    answer.check()


def test_a_sequence_may_fill_its_slot(llama: tuple[Any, Runner]) -> None:
    model, _ = llama
    runner = build_runner(build("llama"), num_slots=2, length=12, budget=2**30)
    answers = [Answer(prompt(8, seed), *generate(model, prompt(8, seed), 4)) for seed in range(2)]

    run(runner, answers, max_tokens=64)

    for answer in answers:
        answer.check()


@pytest.mark.parametrize(("slots", "tokens"), [(5, None), (8, 55)])
def test_slots_are_bounded_by_what_they_hold_together(slots: int, tokens: int | None) -> None:
    token = 2 * 2 * (8 + 8) * 4  # layers x heads x (key + value) x bytes
    runner = build_runner(build("llama"), num_slots=slots, length=10, budget=5 * 11 * token + 1)

    assert (runner.num_slots, runner.cache_tokens) == (slots, tokens)


@pytest.mark.parametrize(("given", "slots", "tokens"), [(30, 8, 30), (88, 8, None)])
def test_the_size_of_the_cache_may_be_given(given: int, slots: int, tokens: int | None) -> None:
    runner = build_runner(build("llama"), num_slots=8, length=10, budget=1, cache_tokens=given)

    assert (runner.num_slots, runner.cache_tokens) == (slots, tokens)


def test_a_model_with_a_cache_of_its_own_is_given_no_size() -> None:
    with pytest.raises(EngineFailed, match="num_gpu_blocks_override"):
        build_runner(build("bloom"), num_slots=8, length=10, budget=2**30, cache_tokens=100)


def test_what_models_with_a_cache_of_their_own_keep_is_bounded() -> None:
    token = 2 * 2 * 4 * 8 * 4  # layers x (key + value) x heads x dimensions x bytes
    sizes = [build_runner(build("bloom"), num_slots=4, length=30, budget=tokens * token) for tokens in (120, 119)]

    assert [runner.cache_tokens for runner in sizes] == [None, 119]


def test_too_little_memory_for_one_sequence_is_an_error_and_no_fallback() -> None:
    with pytest.raises(ValueError, match="max_model_len"):
        build_runner(build("llama"), num_slots=4, length=LENGTH, budget=1000)


def test_a_fallback_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "services.engine.execution.runner_factory"):
        build_runner(build("bloom"), num_slots=1, length=LENGTH, budget=2**30)

    assert "BloomForCausalLM runs without slots: its attention does not go through" in caplog.text


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_models_in_chunks_and_in_company(kind: str) -> None:
    """Some can go on from a state by one token only."""
    model = build_kind(kind, RECURRENT[kind])
    prompts = [(17, 0), (1, 0), (6, 2), (11, 3)]  # their lengths, and when they join
    answers = [
        Answer(prompt(length), *forward_each(model, prompt(length), 6), joins=joins) for length, joins in prompts
    ]
    runner = build_runner(model, num_slots=SLOTS, length=LENGTH, budget=2**30)

    for max_tokens in (64, 5):
        together = [replace(answer, said=[]) for answer in answers]
        run(runner, together, max_tokens)
        for answer in together:
            answer.check()
    assert type(runner) is (SequentialRunner if kind in ALONE else PaddedRunner)


def test_a_state_is_never_shared_by_packed_sequences() -> None:
    """Where it matters little, 16-bit logits are as near to the model's as rounding."""
    model = build_kind("falcon_h1", {**RECURRENT["falcon_h1"], "ssm_out_multiplier": 1e-3}).bfloat16()

    assert isinstance(build_runner(model, num_slots=2, length=LENGTH, budget=2**30), PaddedRunner)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_counts_padding_as_tokens_runs_alone(dtype: torch.dtype) -> None:
    """Its positions are those of the cache, whatever it is given; of 16-bit numbers, that is hardly more than they
    round."""
    options = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    model = build_kind("marian", {**options, "pad_token_id": 0, "decoder_start_token_id": 0}).to(dtype)

    assert isinstance(build_runner(model, num_slots=2, length=LENGTH, budget=2**30), SequentialRunner)


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa"])
def test_a_sparse_indexer_sees_the_whole_prompt(kind: str) -> None:
    """Of a prompt in chunks it would choose other keys than `generate`'s."""
    model = build_kind(kind, INDEXED)
    answer = Answer(prompt(40), *generate(model, prompt(40), 6))
    runner = build_runner(model, num_slots=SLOTS, length=LENGTH, budget=2**30)

    run(runner, [answer], max_tokens=9)

    answer.check()


def test_prompt_logits_of_a_model_that_reads_whole_prompts() -> None:
    model = build_kind("jamba", RECURRENT["jamba"])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt(11)]), use_cache=False).logits[0]
    runner = build_runner(model, num_slots=1, length=LENGTH, budget=2**30)

    read = [runner.run([StepRow("job", 0, start, 4, 4, prompt(11)[start : start + 4])]) for start in (0, 4)]
    read += [runner.run([StepRow("job", 0, start, 1, 1, prompt(11)[start : start + 1])]) for start in (8, 9, 10)]

    torch.testing.assert_close(torch.cat(read), expected, atol=1e-3, rtol=1e-3)


def test_a_model_that_keeps_its_state_itself_is_refused() -> None:
    """Sequences would be mixed: wrong answers would be worse than none."""
    options = {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]}
    model = build_kind("recurrent_gemma", options)

    with pytest.raises(EngineFailed, match=type(model).__name__):
        build_runner(model, num_slots=1, length=LENGTH, budget=2**30)


def test_a_model_that_reaches_for_its_weights_is_batched_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    expected = generate(model, prompt(11), 5)

    def forward(self: Any, x: Tensor) -> Tensor:
        linear = torch.nn.functional.linear
        gate = self.act_fn(linear(x, self.gate_proj.weight))
        return self.down_proj(gate * self.up_proj(x))  # type: ignore[no-any-return]

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", forward)
    runner = build_runner(model, num_slots=SLOTS, length=LENGTH, budget=2**30)
    answer = Answer(prompt(11), *expected)
    run(runner, [answer], max_tokens=64)

    assert isinstance(runner, BatchedRunner)
    answer.check()


def test_what_a_sequence_left_in_a_cache_of_its_own_is_freed() -> None:
    model = build_kind("falcon_h1", RECURRENT["falcon_h1"])
    runner = build_runner(model, num_slots=2, length=LENGTH, budget=2**30)
    assert isinstance(runner, PaddedRunner)
    assert not runner.reuses
    answers = [Answer(prompt(length), *generate(model, prompt(length), 3)) for length in (3, 6, 11)]
    scheduler = run(runner, answers, max_tokens=64)
    runner.apply(scheduler.schedule().changes)

    assert not runner.num_cached
    for answer in answers:
        answer.check()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("read", [2, 4], ids="after {} tokens".format)
@pytest.mark.parametrize("alone", [False, True], ids=["together", "one at a time"])
def test_what_a_step_without_memory_left_unclear_is_read_again(read: int, layer: int, *, alone: bool) -> None:
    """Some layers were read, or one of the sequences; to read them on would be to read these tokens twice."""
    model = build("phimoe sliding")
    expected = [generate(model, prompt(length), 3) for length in (5, 9)]
    runner = build_runner(model, num_slots=2, length=LENGTH, budget=2**30)
    if alone:
        runner = SequentialRunner(model, 2, LENGTH)
    scheduled = [
        ScheduledSequence(Sequence(Job("job", prompt(length)), 9), slot, read) for slot, length in enumerate((5, 9))
    ]
    runner.run([entry.row() for entry in scheduled])
    for entry in scheduled:
        entry.sequence.num_computed = entry.num_tokens

    with failing(model.model.layers[layer].mlp, call=1 + alone), pytest.raises(torch.OutOfMemoryError):
        runner.run([ScheduledSequence(entry.sequence, entry.slot, 1).row() for entry in scheduled])

    for entry, (_, logits) in zip(scheduled, expected, strict=True):
        rest = ScheduledSequence(entry.sequence, entry.slot, len(entry.sequence.tokens) - entry.sequence.num_computed)
        torch.testing.assert_close(runner.run([rest.row()])[0], logits[0], atol=1e-3, rtol=1e-3)


def test_sequences_that_sit_out_a_step_keep_their_caches() -> None:
    """As others do that a step has no room for."""
    model = build("phimoe sliding")
    expected = [generate(model, prompt(length), 9) for length in (17, 5, 11)]
    runner = build_runner(model, num_slots=3, length=LENGTH, budget=2**30)
    texts = [list(prompt(length)) for length in (17, 5, 11)]
    said: list[list[Tensor]] = [[], [], []]
    computed = [0, 0, 0]
    for step in [(0, 1, 2), (0, 1, 2), (0, 2), (1,), (0, 1, 2), (2, 1)]:
        pending = [texts[slot][computed[slot] :] for slot in step]
        rows = [
            StepRow("job", slot, computed[slot], len(new), 1, tuple(new))
            for slot, new in zip(step, pending, strict=True)
        ]
        for slot, logits in zip(step, runner.run(rows), strict=True):
            computed[slot] = len(texts[slot])
            texts[slot].append(int(logits.argmax()))
            said[slot].append(logits.clone())

    for each, (_, logits) in zip(said, expected, strict=True):
        torch.testing.assert_close(torch.stack(each), logits[: len(each)], atol=1e-3, rtol=1e-3)


@contextmanager
def failing(module: torch.nn.Module, call: int) -> Iterator[None]:
    """Its calls up to this one go well."""
    calls = count(1)

    def fail(*_: Any) -> None:
        if next(calls) == call:
            raise torch.OutOfMemoryError

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def test_numbers_of_half_the_width() -> None:
    """bfloat16 rounds; the batch must still say what the model says, up to that."""
    model = build("llama").bfloat16()
    tokens, logits = generate(model, prompt(11), 1)
    runner = build_runner(model, num_slots=SLOTS, length=LENGTH, budget=2**30)
    answer = Answer(prompt(11), tokens, logits)

    run(runner, [answer], max_tokens=64)

    assert isinstance(runner, BatchedRunner)
    assert torch.cosine_similarity(answer.said[0].float(), logits[0].float(), dim=0) > 0.999
