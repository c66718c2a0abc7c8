"""Steps are plain values: pickled, and played again on another executor, they give the same logits."""

from collections.abc import Callable, Iterator

import pytest

from services.engine.base import Job, SamplingParams
from services.engine.execution.engine_core import EngineCore
from services.engine.execution.executor import Executor
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.output_processor import OutputProcessor
from services.engine.execution.piece_stream import Mailbox
from services.engine.execution.request import Request
from services.engine.execution.runner_factory import build_runner
from services.engine.paged.runner import PagingConfig
from services.engine.scheduling.ngram_proposer import NgramProposer
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import ClearSlot, CopySlot, Step, StepRow
from services.engine.streamer import RequestStreamer
from services.engine.token_texts import TokenTexts
from tests.test_engine.fakes import Alphabet
from tests.test_engine.recorder import Recorder
from tests.test_engine.step_log import LoggedStep, LoggingExecutor, replay
from tests.test_engine.test_runner import prompt
from tests.test_engine.tiny_models import VOCABULARY, build, generate

LENGTH = 100
PROMPTS = [
    prompt(40),
    (*prompt(40)[:33], *prompt(5, seed=1)),
    (*prompt(40)[:35], *prompt(9, seed=2)),
    prompt(3) * 8,
    prompt(1),
    prompt(23),
]


def executor(name: str, *, paged: bool = False) -> LocalExecutor:
    paging = PagingConfig(4, Recorder()) if paged else None
    runner = build_runner(build(name), num_slots=3, length=LENGTH, budget=2**30, paging=paging)
    runner.asynchronous = paged  # as on a GPU
    return LocalExecutor(runner)


def run(executor: Executor) -> Scheduler:
    return answer_all(executor)[0]


def answer_all(executor: Executor) -> tuple[Scheduler, list[list[int]]]:
    """Requests that come one by one; the fourth is cancelled. With the tokens of each, the prompt's too."""
    scheduler = Scheduler(
        executor.num_slots,
        7,
        cache_tokens=LENGTH,
        min_reuse=16 if executor.reuses else None,
        speculative=executor.supports_drafts,
        page_size=executor.page_size,
    )
    core = EngineCore(executor, scheduler, OutputProcessor(TokenTexts(Alphabet()), lambda deliveries: None))
    sequences = []
    for each in PROMPTS:
        job = Job(f"{len(sequences)}", each, SamplingParams(temperature=0))
        sequences.append(Sequence(job, 25))
        streamer = RequestStreamer(Alphabet(), each, job.sampling, frozenset())
        core.add(Request(sequences[-1], streamer, Mailbox(), 0.0))
        core.step()
    sequences[3].cancelled = True
    while not scheduler.is_idle:
        core.step()
    return scheduler, [sequence.tokens for sequence in sequences]


def rows(log: list[LoggedStep]) -> Iterator[StepRow]:
    for step in log:
        yield from step.content.rows if isinstance(step.content, Step) else step.content[0]


def half_right(name: str) -> Callable[[NgramProposer, list[int], int], tuple[int, ...]]:
    """Drafts two right tokens and two wrong ones."""
    model = build(name)
    texts = [(*each, *generate(model, each, 25)[0]) for each in PROMPTS]

    def draft(_: NgramProposer, tokens: list[int], most: int) -> tuple[int, ...]:
        text = next(text for text in texts if text[: len(tokens)] == tuple(tokens))
        right = text[len(tokens) : len(tokens) + 2]
        return (*right, *((token + 1) % VOCABULARY for token in right))[:most]

    return draft


@pytest.mark.usefixtures("no_headroom")
@pytest.mark.parametrize(
    ("name", "paged"),
    [("llama", False), ("phimoe sliding", False), ("llama", True)],
    ids=["batched", "sequential", "paged"],
)
def test_pickled_steps_give_the_same_logits_on_another_executor(
    name: str, paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NgramProposer, "draft", half_right(name))
    logging = LoggingExecutor(executor(name, paged=paged))

    scheduler = run(logging)

    changes = {
        type(change) for step in logging.log if isinstance(step.content, Step) for change in step.content.changes
    }
    assert scheduler.num_preemptions > 0
    assert any(row.num_tokens > 1 and not row.num_logits for row in rows(logging.log))  # chunks of prompts
    assert (CopySlot in changes and scheduler.num_reused > 0) is logging.reuses
    assert (scheduler.num_accepted > 0) is logging.supports_drafts
    assert any(not row.token_ids for row in rows(logging.log)) is paged  # lookahead
    assert ClearSlot in changes
    replay(logging.log, executor(name, paged=paged))


def test_a_replay_notices_a_step_that_is_missing() -> None:
    logging = LoggingExecutor(executor("llama"))
    run(logging)

    with pytest.raises(AssertionError):
        replay(logging.log[2:], executor("llama"))
