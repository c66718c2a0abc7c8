"""One architecture: loaded, run in the shapes in which it can go wrong, and compared with its own `generate`."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from services.engine.base import Job
from services.engine.execution.runner import Runner
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.sequential_runner import SequentialRunner
from services.engine.loading.unusable import UnusableModel
from services.engine.loading.weights import read_weights
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from services.errors import EngineFailed
from tools.architectures import tiny

LENGTH = 200  # tokens of a slot
STEP = 64  # tokens
NEAR = 1e-3  # logits this close are a tie, which rounding decides


class Outcome(StrEnum):
    BATCHED = "batched"
    SEQUENTIAL = "one at a time"
    REFUSED = "refused"
    WRONG = "wrong"
    UNTRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Result:
    kind: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    length: int
    max_tokens: int

    @property
    def tokens(self) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(self.length)
        return tuple(torch.randint(4, tiny.VOCABULARY, (self.length,), generator=generator).tolist())


SCENARIOS: dict[str, list[Prompt]] = {
    "alone": [Prompt(40, 16)],
    "in company": [Prompt(5, 12), Prompt(23, 12), Prompt(41, 12), Prompt(71, 12)],
    "in chunks": [Prompt(150, 4)],
    "in chunks beside a short one": [Prompt(7, 12), Prompt(150, 4)],
}


def attempt(kind: str) -> Result:
    try:
        model = tiny.build(kind)
        answers = {prompt: _generate(model, prompt) for prompts in SCENARIOS.values() for prompt in prompts}
    except Exception as error:  # whatever a configuration raises that cannot be made tiny
        return Result(kind, Outcome.UNTRIED, _line(error))
    try:
        runner = build_runner(_reloaded(model), num_slots=4, length=LENGTH, budget=2**30)
        wrong = next(_differences(runner, model, answers), None)
    except (EngineFailed, UnusableModel) as error:
        return Result(kind, Outcome.REFUSED, _line(error))
    if wrong:
        return Result(kind, Outcome.WRONG, wrong)
    return Result(kind, Outcome.SEQUENTIAL if isinstance(runner, SequentialRunner) else Outcome.BATCHED)


def _reloaded(model: Any) -> Any:
    """From a checkpoint, so that one that is whole and refused shows."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return read_weights(AutoModelForCausalLM, folder, dtype=torch.float32).eval()


def _generate(model: Any, prompt: Prompt) -> Tensor:
    """[tokens, vocabulary]: the logits of its greedy answer."""
    ids = torch.tensor([prompt.tokens])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=prompt.max_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(out.logits)


@torch.no_grad()
def _forward_each(model: Any, prompt: Prompt) -> Tensor:
    """The same by a forward pass for each token: some kinds number positions otherwise in `generate`."""
    tokens, logits = list(prompt.tokens), []
    for _ in range(prompt.max_tokens):
        logits.append(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
    return torch.stack(logits)


def _differences(runner: Runner, model: Any, answers: dict[Prompt, Tensor]) -> Iterator[str]:
    for name, prompts in SCENARIOS.items():
        for prompt, tokens in zip(prompts, _run(runner, prompts), strict=True):
            place = _first_wrong(tokens, answers[prompt])
            if place is not None and _first_wrong(tokens, _forward_each(model, prompt)) is not None:
                yield f"{name}: answer token {place} after {prompt.length}"


def _first_wrong(tokens: list[int], logits: Tensor) -> int | None:
    """Ends at the first tie that fell otherwise: what follows is another text."""
    for place, (token, expected) in enumerate(zip(tokens, logits, strict=True)):
        if token != int(expected.argmax()):
            return None if expected.max() - expected[token] < NEAR else place
    return None


def _run(runner: Runner, prompts: list[Prompt]) -> list[list[int]]:
    """The engine's loop, greedily."""
    scheduler = Scheduler(
        runner.num_slots, STEP, min_reuse=16 if runner.reuses else None, short_length=runner.short_length
    )
    sequences = [Sequence(Job("trial", prompt.tokens), prompt.max_tokens) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
    while not scheduler.is_idle:
        batch = scheduler.schedule()
        runner.apply(batch.changes)
        if not batch.scheduled:
            continue
        logits = runner.run([entry.row() for entry in batch.scheduled])
        sampling = [entry.sequence for entry in batch.scheduled if entry.samples]
        for entry in batch.scheduled:
            entry.sequence.num_computed += entry.num_tokens
        for sequence, row in zip(sampling, logits, strict=True):
            sequence.append(int(row.argmax()))
    return [sequence.tokens[len(sequence.job.prompt) :] for sequence in sequences]


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
