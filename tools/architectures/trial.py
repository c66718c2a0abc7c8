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
NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.2}  # logits this close are a tie, which rounding decides


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


def attempt(kind: str, dtype: torch.dtype = torch.float32) -> Result:
    try:
        built = tiny.build(kind)
        model = built if dtype == torch.float32 else _reloaded(built, dtype)
        answers = {prompt: _generate(model, prompt) for prompts in SCENARIOS.values() for prompt in prompts}
    except Exception as error:  # whatever a configuration raises that cannot be made tiny
        return Result(kind, Outcome.UNTRIED, _line(error))
    try:
        runner = build_runner(_reloaded(built, dtype), num_slots=4, length=LENGTH, budget=2**30)
        wrong = next(_differences(runner, Reference(model, built), answers), None)
    except (EngineFailed, UnusableModel) as error:
        return Result(kind, Outcome.REFUSED, _line(error))
    if wrong:
        return Result(kind, Outcome.WRONG, wrong)
    return Result(kind, Outcome.SEQUENTIAL if isinstance(runner, SequentialRunner) else Outcome.BATCHED)


def _reloaded(model: Any, dtype: torch.dtype) -> Any:
    """From a checkpoint, so that one that is whole and refused shows."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return read_weights(AutoModelForCausalLM, folder, dtype=dtype).eval()


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


@dataclass(frozen=True, slots=True)
class Reference:
    model: Any
    exact: Any  # the same in float32

    def first_wrong(self, prompt: Prompt, tokens: list[int], logits: Tensor) -> int | None:
        """Ends at the first tie that fell otherwise: what follows is another text."""
        for place, (token, expected) in enumerate(zip(tokens, logits.float(), strict=True)):
            if token != int(expected.argmax()):
                return None if self._is_tie(expected, token, (*prompt.tokens, *tokens[:place])) else place
        return None

    @torch.no_grad()
    def _is_tie(self, expected: Tensor, token: int, before: tuple[int, ...]) -> bool:
        """Or nearly one; in 16 bits also where rounding alone moves the two as far: a router may choose other experts
        for less than the last bit of its scores."""
        best = int(expected.argmax())
        gap = expected[best] - expected[token]
        if gap < NEAR[self.model.dtype]:
            return True
        if self.model.dtype == torch.float32:
            return False
        exact = self.exact(input_ids=torch.tensor([before]), use_cache=False).logits[0, -1]
        return bool((exact[best] - exact[token] - gap).abs() >= gap)


def _differences(runner: Runner, reference: Reference, answers: dict[Prompt, Tensor]) -> Iterator[str]:
    for name, prompts in SCENARIOS.items():
        for prompt, tokens in zip(prompts, run(runner, prompts), strict=True):
            place = reference.first_wrong(prompt, tokens, answers[prompt])
            if place is None:
                continue
            if reference.first_wrong(prompt, tokens, _forward_each(reference.model, prompt)) is not None:
                yield f"{name}: answer token {place} after {prompt.length}"


def run(runner: Runner, prompts: list[Prompt]) -> list[list[int]]:
    """The engine's loop, greedily."""
    scheduler = Scheduler(
        runner.num_slots,
        STEP,
        min_reuse=16 if runner.reuses else None,
        short_length=runner.short_length,
        snapshots=runner.snapshots,
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
