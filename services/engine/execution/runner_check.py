"""Compares a runner's logits with those of its model alone: a runner that differs is not used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from services.engine.cpu.attention import AttentionProbe, attention_context
from services.engine.execution.kv_cache import LayerShape
from services.engine.execution.model_structure import trial_tokens
from services.engine.execution.runner import Runner
from services.engine.loading.long_rope import short_length
from services.engine.scheduling.step import ImagePrompt, StepRow

CHECK_STEPS = (4, 2, 1, 1)  # a prompt in two chunks, the second too short to hide a lost cache, and two decoded tokens
CHECK_LENGTH = sum(CHECK_STEPS)  # tokens


class LogitsDiffer(Exception):
    """A runner's logits are not the model's."""


class RunsRows(Protocol):
    def run(self, rows: list[StepRow]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class LogitsCheck:
    """A prompt that is computed in several steps, and the logits of the model alone at the end of each."""

    prompt: tuple[int, ...]
    steps: tuple[int, ...]  # tokens
    expected: Tensor  # [steps, vocabulary]
    expected_long: Tensor | None = None  # the same of a sequence with the long factors of LongRoPE, if it has such
    images: ImagePrompt | None = None
    in_8_bits: bool = False  # keys and values are rounded so

    @property
    def least_similarity(self) -> float:
        return 0.9999 if self.expected.dtype == torch.float32 and not self.in_8_bits else 0.99  # 16-bit numbers round


def make_check(model: Any, steps: tuple[int, ...] = CHECK_STEPS) -> LogitsCheck:
    tokens = trial_tokens(model, sum(steps))
    ids = torch.tensor([tokens], device=model.device)
    ends = torch.tensor(steps).cumsum(0) - 1
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits[0, ends]
        expected_long = _long_logits(model, ids, limit)[ends] if (limit := short_length(model)) else None
    return LogitsCheck(tuple(tokens), steps, expected, expected_long)


def _long_logits(model: Any, ids: Tensor, limit: int) -> Tensor:
    """With the long factors, which positions from the limit on have: rotated keys are compared by their distances, so
    the text need not be as long."""
    positions = torch.arange(limit, limit + ids.shape[1], device=ids.device)[None]
    return model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]  # type: ignore[no-any-return]


def probe(model: Any) -> Mapping[int, LayerShape]:
    """The shape of each layer's keys and values."""
    attention = _probed(model, AttentionProbe())
    if not attention.shapes:
        raise LogitsDiffer("its attention does not go through the attention interface")
    # some models make masks that no layer is given; marks show which layer has which
    if (
        attention.windows - {None} != attention.mask_widths
        and _probed(model, AttentionProbe(marks_masks=True)).narrowed
    ):
        raise LogitsDiffer("its masks hide more than its layers say")
    return attention.shapes


def require_no_states(model: Any) -> None:
    """Raises LogitsDiffer where layers keep a state of all tokens, which the sequences of a packed row would share: of
    16-bit numbers, that may be hardly more than they round."""
    with torch.inference_mode():
        out = model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=True)
    layers = getattr(getattr(out, "past_key_values", None), "layers", ())
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        raise LogitsDiffer("some of its layers keep a state")


def _probed(model: Any, attention: AttentionProbe) -> AttentionProbe:
    tokens = torch.zeros(1, CHECK_LENGTH, dtype=torch.long, device=model.device)
    with torch.inference_mode(), attention_context(attention):
        model(input_ids=tokens, position_ids=tokens.new_ones(CHECK_LENGTH).cumsum(0)[None] - 1, use_cache=False)
    return attention


def verify_logits(runner: RunsRows, check: LogitsCheck) -> None:
    """Computes the prompt in two slots at once and compares after each step: a difference may fade in later ones.

    The first slot's is a long sequence, where the model has those."""
    expected = check.expected if check.expected_long is None else check.expected_long, check.expected
    start = 0
    for step, size in enumerate(check.steps):
        row = StepRow("check", 0, start, size, 1, check.prompt[start : start + size], check.images)
        rows = [row._replace(is_long=check.expected_long is not None), row._replace(slot=1)]
        for logits, wanted in zip(runner.run(rows), expected, strict=True):
            require_similar(logits, wanted[step], check.least_similarity)
        start += size


def verify_beside(runner: Runner, check: LogitsCheck, neighbour: tuple[int, ...]) -> list[Tensor]:
    """The same beside a third sequence, which has a token in each step; returns the first slot's logits."""
    runner.run([StepRow("neighbour", 2, 0, len(neighbour), 1, neighbour)])
    found, start = [], 0
    for step, size in enumerate(check.steps):
        row = StepRow("check", 0, start, size, 1, check.prompt[start : start + size])
        beside = StepRow("neighbour", 2, len(neighbour) + step, 1, 1, neighbour[:1])
        logits = runner.run([row, row._replace(slot=1), beside])
        for each in logits[:2]:
            require_similar(each, check.expected[step], check.least_similarity)
        found.append(logits[0].clone())
        start += size
    return found


def verify_adapted(runner: Runner, compiled: RunsRows, check: LogitsCheck, adapters: list[int]) -> None:
    """A prompt with each adapter, and without: by the compiled step as by the runner."""
    for adapter in (*adapters, None):
        row = StepRow("check", 0, 0, len(check.prompt), 1, check.prompt, adapter=adapter)
        rows = [row, row._replace(slot=1, adapter=None)]
        expected = runner.run(rows).clone()
        for logits, wanted in zip(compiled.run(rows), expected, strict=True):
            require_similar(logits, wanted, check.least_similarity)


def require_similar(logits: Tensor, expected: Tensor, least: float) -> None:
    """Raises LogitsDiffer."""
    similarity = torch.cosine_similarity(logits.float(), expected.float(), dim=0)
    if not similarity > least:
        raise LogitsDiffer(f"its logits differ (cosine {similarity:.4f})")


def summarize(error: Exception) -> str:
    """The first line of an error: some of torch's are pages long."""
    return str(error) if isinstance(error, LogitsDiffer) else f"{type(error).__name__}: {error}".splitlines()[0][:200]
