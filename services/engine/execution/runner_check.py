"""Whether a runner says what its model says by itself: nothing is served that does not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.engine.base import Job
from services.engine.cpu.attention import AttentionProbe, attention_context
from services.engine.execution.kv_cache import LayerShape
from services.engine.execution.model_structure import trial_tokens
from services.engine.execution.runner import Runner
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.sequence import Sequence

CHECK_STEPS = (4, 2, 1, 1)  # a prompt in two chunks, the second too short to make up for a lost past, and two tokens
CHECK_LENGTH = sum(CHECK_STEPS)  # tokens of the comparison that each model must pass before it is batched


class LogitsDiffer(Exception):
    """A runner does not say what the model by itself says."""


@dataclass(frozen=True, slots=True)
class LogitsCheck:
    """A prompt that is read in several steps, and the logits that the model by itself gives after each of them."""

    job: Job
    steps: tuple[int, ...]  # tokens
    expected: Tensor  # [steps, vocabulary]


def make_check(model: Any, steps: tuple[int, ...] = CHECK_STEPS) -> LogitsCheck:
    tokens = trial_tokens(model, sum(steps))
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits
    return LogitsCheck(Job("check", tuple(tokens)), steps, logits[0, torch.tensor(steps).cumsum(0) - 1])


def probe(model: Any) -> Mapping[int, LayerShape]:
    """What each layer keeps of a token."""
    asking = AttentionProbe()
    tokens = torch.zeros(1, CHECK_LENGTH, dtype=torch.long, device=model.device)
    with torch.inference_mode(), attention_context(asking):
        model(input_ids=tokens, position_ids=tokens.new_ones(CHECK_LENGTH).cumsum(0)[None] - 1, use_cache=False)
    if not asking.shapes:
        raise LogitsDiffer("its attention does not go through the attention interface")
    if asking.windows - {None} != asking.mask_widths:
        raise LogitsDiffer("its masks hide more than its layers say")
    return asking.shapes


def verify_logits(runner: Runner, check: LogitsCheck) -> None:
    """Reads the tokens in several steps, in company, and compares the logits after each: errors may wear off."""
    sequence, other = (Sequence(check.job, 0) for _ in range(2))
    for size, expected in zip(check.steps, check.expected, strict=True):
        end = sequence.num_computed + size
        sequence.tokens = other.tokens = list(check.job.prompt[:end])
        logits = runner.run([ScheduledSequence(other, 0, size), ScheduledSequence(sequence, 1, size)])[-1]
        similarity = torch.cosine_similarity(logits.float(), expected.float(), dim=0)
        if not similarity > (0.9999 if expected.dtype == torch.float32 else 0.99):  # halves round
            raise LogitsDiffer(f"its logits differ (cosine {similarity:.3f})")
        sequence.num_computed = other.num_computed = end


def summarize(error: Exception) -> str:
    """Some of torch's are pages long."""
    return str(error) if isinstance(error, LogitsDiffer) else f"{type(error).__name__}: {error}".splitlines()[0][:200]
