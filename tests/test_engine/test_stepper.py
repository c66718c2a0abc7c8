"""When things are said, and that nobody waits for a GPU but for what was drawn."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from services.engine.base import Image, Job, PlacedImage, SamplingParams, ThinkingLimit
from services.engine.device.device_io import download, upload
from services.engine.execution import engine_core
from services.engine.execution.engine_core import EngineCore
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.output_processor import OutputProcessor
from services.engine.execution.piece_stream import Mailbox
from services.engine.execution.request import Request
from services.engine.sampling import logits_processors
from services.engine.sampling.logits_processors import fill_grammar_masks
from services.engine.sampling.sampler import sample_tokens
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import StepRow
from services.engine.streamer import RequestStreamer
from services.engine.token_texts import TokenTexts
from services.errors import EngineFailed
from tests.test_engine.fakes import END, Alphabet, Counting, GoingAhead, job


def request(job: Job) -> Request:
    sequence = Sequence(job, job.sampling.max_tokens or 1, job.sampling.ends(frozenset([END])))
    streamer = RequestStreamer(Alphabet(), job.prompt, job.sampling, frozenset([END]))
    return Request(sequence, streamer, Mailbox(), 0.0)


def stepper(runner: Counting, events: list[str]) -> EngineCore:
    def deliver(items: list[Any]) -> None:
        events.extend(item.text if not isinstance(item, Exception) else type(item).__name__ for _, item in items)

    scheduler = Scheduler(runner.num_slots, 16, min_reuse=None)
    return EngineCore(LocalExecutor(runner), scheduler, OutputProcessor(TokenTexts(Alphabet()), deliver))


@pytest.mark.parametrize(
    ("asynchronous", "expected"),
    [(False, ["run", "d", "run", "e", "run", "f"]), (True, ["run", "run", "d", "run", "e", "f"])],
)
def test_a_step_is_heard_of_at_once_or_while_the_next_one_runs(asynchronous: bool, expected: list[str]) -> None:
    events: list[str] = []
    steps = stepper(Counting(asynchronous=asynchronous, before=lambda _: events.append("run")), events)
    steps.add(request(job(max_tokens=3)))
    for _ in range(4):
        steps.step()

    assert events == expected
    assert not steps.has_requests


def test_a_step_is_sent_ahead_of_its_plan() -> None:
    """One reads and draws, two come by themselves: the last is known to be the last."""
    events: list[str] = []
    runner = GoingAhead(before=lambda _: events.append("run"))
    steps = stepper(runner, events)
    steps.add(request(job(max_tokens=3)))
    for _ in range(4):
        steps.step()

    assert events == ["run", "d", "e", "f"]
    assert runner.num_ahead == 2
    assert not steps.has_requests


def test_who_comes_in_meanwhile_runs_beside() -> None:
    events: list[str] = []
    runner = GoingAhead(num_slots=3)
    steps = stepper(runner, events)
    steps.add(request(job("abc", max_tokens=5)))
    steps.step()
    steps.step()
    steps.add(request(job("lmn", name="late", max_tokens=2)))
    for _ in range(5):
        steps.step()

    assert runner.steps == [["job"], ["late"]]
    assert sorted(events) == ["d", "e", "f", "g", "h", "o", "p"]


def test_who_loses_its_place_loses_what_was_done_ahead() -> None:
    events: list[str] = []
    runner = GoingAhead()
    steps = stepper(runner, events)
    for name in ("first", "last"):
        steps.add(request(job(name=name, max_tokens=4)))
    steps.step()
    steps.scheduler.preempt()
    for _ in range(8):
        steps.step()

    assert sorted(events) == sorted("defg" * 2)
    assert runner.steps[1] == ["first", "last"]


def test_a_token_that_was_replaced_is_not_gone_on_from() -> None:
    events: list[str] = []
    runner = GoingAhead()
    steps = stepper(runner, events)
    steps.add(request(job("a", max_tokens=4, thinking=ThinkingLimit(1, end=10))))
    for _ in range(6):
        steps.step()

    assert "".join(events) == "bklm"


def test_where_there_is_no_memory_to_go_ahead_a_step_is_planned() -> None:
    class Cramped(GoingAhead):
        def run_lookahead(self, rows: list[StepRow], tokens: torch.Tensor) -> torch.Tensor | None:
            raise torch.OutOfMemoryError

    events: list[str] = []
    runner = Cramped()
    steps = stepper(runner, events)
    steps.add(request(job(max_tokens=3)))
    for _ in range(4):
        steps.step()

    assert events == ["d", "e", "f"]
    assert len(runner.steps) == 3


def test_whose_logprobs_are_wanted_is_not_sent_ahead() -> None:
    events: list[str] = []
    runner = GoingAhead()
    steps = stepper(runner, events)
    steps.add(request(job(max_tokens=3, logprobs=2)))
    for _ in range(4):
        steps.step()

    assert (events, runner.num_ahead) == (["d", "e", "f"], 0)


def test_what_ends_in_its_text_has_a_step_more_that_nobody_hears_of() -> None:
    events: list[str] = []
    runner = Counting(asynchronous=True)
    steps = stepper(runner, events)
    steps.add(ending := request(job(max_tokens=9, stop=("e",))))
    for _ in range(4):
        steps.step()

    assert events == ["d", ""]
    assert len(runner.steps) == 3
    assert ending.sequence.tokens[-1] == ord("e") - ord("a")
    assert not steps.has_requests


def test_what_was_drawn_is_said_before_a_failure_is() -> None:
    """One comes to its end, and in the step behind it the other fails."""
    events: list[str] = []

    def breaks(batch: list[Any]) -> None:
        if len(runner.steps) == 2:
            raise RuntimeError

    runner = Counting(asynchronous=True, before=breaks)
    steps = stepper(runner, events)
    for each in (job(max_tokens=1), job(max_tokens=9)):
        steps.add(request(each))
    steps.step()
    with pytest.raises(RuntimeError):
        steps.step()
    steps.fail_step()

    assert events == ["d", "d", EngineFailed.__name__]
    assert not steps.has_requests


def test_what_was_drawn_is_said_before_its_image_fails() -> None:
    class Blinded:
        reader = None

        def encode(self, row: StepRow) -> None:
            if row.start == blinded_from:
                raise RuntimeError

    events: list[str] = []
    runner = Counting(asynchronous=True, vision=Blinded())
    steps = stepper(runner, events)
    blinded_from = 3  # one of the two, once it has said something
    images = (PlacedImage(Image(b"digest", "", 1, {}), (0,)),)
    for each in (job("abc", max_tokens=3), job("lmnop", max_tokens=1)):
        steps.add(request(replace(each, images=images)))
    for _ in range(3):
        steps.step()

    assert events == ["d", "q", EngineFailed.__name__]
    assert not steps.has_requests


@pytest.mark.parametrize("function", ["SampleResult", "compute_logprobs"])
@pytest.mark.parametrize("runner", [Counting, GoingAhead])
def test_what_there_was_no_memory_to_draw_is_drawn_in_a_smaller_step(
    runner: type[Counting], function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is what it would have been: by its seed, by its limit of thinking."""
    kinds: list[dict[str, Any]] = [{}, {"logprobs": 0}, {"thinking": ThinkingLimit(2, end=10)}]

    def answers() -> list[list[int]]:
        steps = stepper(runner(num_slots=3), [])
        asked = [request(job(max_tokens=7, temperature=2.0, seed=i, **kind)) for i, kind in enumerate(kinds)]
        for each in asked:
            steps.add(each)
        for _ in range(40):
            steps.step()
        assert not steps.has_requests
        return [each.sequence.tokens for each in asked]

    expected = answers()
    original, calls = getattr(engine_core, function), count()

    def fails(*args: Any) -> Any:
        if next(calls) in (0, 2):
            raise torch.OutOfMemoryError
        return original(*args)

    monkeypatch.setattr(engine_core, function, fails)
    assert answers() == expected


# --- waiting ---


class Elsewhere(TorchDispatchMode):
    """On the device "meta" numbers are never known: whoever asks for one fails, as whoever waits would wait.

    A copy there must not wait either, and nothing there may be mixed with what is here: that would be copied too.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("meta"):
            assert kwargs.get("non_blocking") or devices == {"meta"}
        else:
            assert len(devices) <= 1, func
        return func(*args, **(kwargs or {}))


class Bits:
    """A grammar that allows all."""

    ends = np.zeros(0, np.int64)

    def allowed(self) -> Any:
        return np.full(13, 255, np.uint8)


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7},
    {"temperature": 1.3, "min_p": 0.1},
    {"top_p": 0.9},
    {"top_k": 7, "top_p": 0.9},
    {"top_k": 80},
    {"temperature": 0, "logit_bias": {3: 1.0}, "min_tokens": 4},
    {"frequency_penalty": 1.0, "presence_penalty": 0.5, "repetition_penalty": 1.2},
]


def row(params: dict[str, Any]) -> Sequence:
    return Sequence(Job("job", (1, 2, 3), SamplingParams(**params)), 9, frozenset([5]))


@pytest.mark.parametrize("rows", [[each] for each in SAMPLING] + [SAMPLING], ids=lambda rows: str(len(rows)))
def test_drawing_does_not_wait(rows: list[dict[str, Any]]) -> None:
    logits = torch.empty(len(rows), 100, device="meta", dtype=torch.bfloat16)
    sequences = [row(params) for params in rows]
    sequences[0].matcher = Bits()
    assert fill_grammar_masks(sequences) == []
    logits_processors.mask_table(logits.device)  # goes there once and for all
    with Elsewhere():
        tokens = sample_tokens(logits, sequences)

    assert (tokens.shape, tokens.dtype) == ((len(rows),), torch.int64)


@pytest.mark.parametrize(
    "waits",
    [
        lambda logits: logits.argmax(-1).tolist(),
        lambda logits: bool(logits.any()),
        lambda logits: logits[logits > 0],
        lambda logits: logits / torch.ones(3, 1).to("meta"),
    ],
)
def test_waiting_would_be_noticed(waits: Callable[[torch.Tensor], Any]) -> None:
    with Elsewhere(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        waits(torch.empty(3, 100, device="meta"))


def test_there_and_back() -> None:
    there = upload(np.array([[1, 2], [3, 4]]), torch.device("cpu"))
    assert download(there[0], there.float().mean()) == [[1, 2], 2.5]
