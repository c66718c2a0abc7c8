"""The only place that calls the model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from services.engine.attention import NAME, Chunk, Decodes, Group, Probe, Step, running
from services.engine.base import Job
from services.engine.compilation import Compilation
from services.engine.compiled import CompiledStep, Plan, asked_of, keeps_logits
from services.engine.kv_cache import LayerShape, SlotCache, fit
from services.engine.packed import pack_linears, unpack_linears
from services.engine.parts import language_part
from services.engine.scheduler import Work
from services.engine.sequence import Sequence
from services.engine.slots import Change, Copy, Forget, Swap
from services.engine.vision import Vision
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

MIN_TOKENS = 16  # less than that is no cache
CHECK_STEPS = (4, 2, 1, 1)  # a prompt in two chunks, the second too short to make up for a lost past, and two tokens
CHECK_LENGTH = sum(CHECK_STEPS)  # tokens of the comparison that each model must pass before it is batched


class Runner(Protocol):
    num_slots: int
    length: int  # tokens a slot can hold
    cache_tokens: int | None  # tokens all slots together can hold; None: each may be full
    reuses: bool  # whether what a slot holds can serve another sequence
    vision: Vision | None  # None: it takes text only
    speculates: bool  # whether it takes drafts

    def change(self, changes: list[Change]) -> None:
        """To be followed, in this order, before the next step."""
        ...

    def compilation(self, source: str, folder: Path) -> Compilation | None:
        """What gets this model's step compiled, or from the disk; None where steps stay eager."""
        ...

    def run(self, batch: list[Work]) -> Tensor:
        """One step -> logits `[rows, vocabulary]` of those works that sample, in the order of the batch: one row for
        the last known token, and one for each of the draft behind it."""
        ...


class BatchRunner:
    """All sequences of a step in one forward pass, for models whose attention goes through `AttentionInterface`."""

    reuses = True
    speculates = True

    def __init__(
        self,
        model: Any,
        cache: SlotCache,
        check: "Check",
        cache_tokens: int | None = None,
        vision: Vision | None = None,
    ) -> None:
        self.check = check
        self.vision = vision
        self.cache_tokens = cache_tokens
        self._model = model
        self._cache = cache
        self._compiled: CompiledStep | None = None
        self._keeps = keeps_logits(model)
        self.num_slots = cache.num_slots
        self.length = cache.length

    def change(self, changes: list[Change]) -> None:
        self._cache.change(changes)

    @torch.inference_mode()
    def run(self, batch: list[Work]) -> Tensor:
        if self._compiled and not self._sees(batch):
            return self._compiled.run(batch)
        decodes = sorted((work for work in batch if work.num_tokens == 1), key=lambda work: work.slot)
        chunks = [work for work in batch if work.num_tokens > 1]
        works = [*decodes, *chunks]
        groups: list[Group] = [*self._decodes(decodes), *self._chunks(chunks, start=len(decodes))]
        with running(Step(self._cache, groups)):
            logits = self._forward(works)
        return _in_order(logits, works, batch)

    def compilation(self, source: str, folder: Path) -> Compilation | None:
        if self._model.device.type != "cpu":
            return None
        if hasattr(self._model.base_model, "get_rope_index"):
            return None  # its positions bring tensors of their own into the step, which nobody could give it
        dtype = str(self._model.dtype).removeprefix("torch.")
        plan = Plan(source, dtype, self.num_slots, self.length, self._cache.shapes)
        return Compilation(plan.file(folder, self._model), plan, self.adopt)

    def adopt(self, file: Path) -> None:
        """Takes a compiled step over, if it agrees with the model by itself; from any thread, between two steps."""
        trial = self.another(self.length)
        trial._compiled = CompiledStep.load(file, self._model, trial._cache)
        compare(trial, self.check)
        self._compiled = CompiledStep.load(file, self._model, self._cache)
        logger.info("steps are compiled from now on")

    def another(self, length: int, vision: Vision | None = None) -> "BatchRunner":
        """With the same model and a small memory of its own, to try something."""
        cache = SlotCache(self._cache.shapes, 2, length, self._model.device)
        return BatchRunner(self._model, cache, self.check, vision=vision)

    def _sees(self, works: list[Work]) -> bool:
        return self.vision is not None and self.vision.concerns(works)

    def _forward(self, works: list[Work]) -> Tensor:
        """Logits of the tokens that are asked for."""
        ids = self._row([token for work in works for token in work.tokens])
        positions = self._row([position for work in works for position in range(work.start, work.end)])
        asked = self._row(asked_of(works) or [0])[0]  # no product likes to be empty
        given = {"input_ids": ids, "position_ids": positions}
        if self.vision is not None and self.vision.concerns(works):
            given = self.vision.inputs(works, ids, positions)
        if self._keeps:
            return self._model(**given, use_cache=False, logits_to_keep=asked).logits[0]  # type: ignore[no-any-return]
        return self._model(**given, use_cache=False).logits[0, asked]  # type: ignore[no-any-return]

    def _decodes(self, works: list[Work]) -> list[Decodes]:
        if not works:
            return []
        slots = [work.slot for work in works]
        base = min(slots)
        return [
            Decodes(
                tokens=slice(0, len(works)),
                rows=self._row([slot - base for slot in slots])[0],
                positions=self._row([work.start for work in works])[0],
                base=base,
                height=max(slots) + 1 - base,
                length=max(work.end for work in works),
            )
        ]

    def _chunks(self, works: list[Work], start: int) -> list[Chunk]:
        chunks = []
        for work in works:
            chunks.append(Chunk(slice(start, start + work.num_tokens), work.slot, work.start, work.end))
            start += work.num_tokens
        return chunks

    def _row(self, values: list[int]) -> Tensor:
        return torch.tensor([values], device=self._model.device)


class SoloRunner:
    """Any architecture that `generate` can run: one sequence at a time, each with the cache its model makes itself.

    What such a cache holds is its model's own affair (states, windows), so a slot's content serves nobody else.
    """

    reuses = False
    speculates = False
    cache_tokens: int | None = None
    vision: Vision | None = None

    def __init__(self, model: Any, num_slots: int, length: int) -> None:
        self._model = model
        self._caches: dict[int, Any] = {}
        self.num_slots = num_slots
        self.length = length

    def change(self, changes: list[Change]) -> None:
        for change in changes:
            match change:
                case Swap(one, other):
                    places = {one: other, other: one}
                    self._caches = {places.get(slot, slot): cache for slot, cache in self._caches.items()}
                case Forget(slot):
                    self._caches.pop(slot, None)
                case Copy():
                    raise NotImplementedError

    def compilation(self, source: str, folder: Path) -> None:
        return None

    @torch.inference_mode()
    def run(self, batch: list[Work]) -> Tensor:
        rows = [(work, self._forward(work)) for work in batch]
        drawn = [row for work, row in rows if work.samples]
        return torch.stack(drawn) if drawn else torch.empty(0)

    def _forward(self, work: Work) -> Tensor:
        cache = self._caches.get(work.slot) if work.start else None
        ids = torch.tensor([work.sequence.tokens[work.start : work.end]], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
        self._caches[work.slot] = out.past_key_values
        return out.logits[0, -1]  # type: ignore[no-any-return]


def build_runner(model: Any, *, num_slots: int, length: int, budget: int, cache_tokens: int | None = None) -> Runner:
    """A BatchRunner if the model gives the same answer with it as without, else a SoloRunner, else a refusal.

    `budget`: bytes the key/value cache may take; `cache_tokens`: what it holds, whatever the budget is.
    """
    check = _check(model)
    size = _Size(num_slots, length, budget, cache_tokens)
    pack_linears(model)
    try:
        return _any_runner(model, check, size)
    except _Differs:  # some models reach for a layer's weight themselves and cannot read it packed
        unpack_linears(model)
    try:
        return _any_runner(model, check, size)
    except _Differs as reason:  # and some keep their past elsewhere than where `generate` would look for it
        raise EngineFailed(f"Models of the kind {type(model).__name__} cannot be served: {reason}") from reason


@dataclass(frozen=True, slots=True)
class _Size:
    num_slots: int
    length: int  # tokens
    budget: int  # bytes
    cache_tokens: int | None  # instead of the budget


def _any_runner(model: Any, check: "Check", size: _Size) -> Runner:
    try:
        return _batch_runner(model, check, size)
    except _Differs as reason:
        logger.warning("%s runs one sequence at a time: %s", type(model).__name__, reason)
    if size.cache_tokens is not None:
        raise EngineFailed("'num_gpu_blocks_override': this model keeps its past itself, in no blocks")
    return _solo_runner(model, check, size.num_slots, size.length)


class _Differs(Exception):
    """A runner does not say what the model by itself says."""


@dataclass(frozen=True, slots=True)
class Check:
    """A prompt that is read in several steps, and the logits that the model by itself gives after each of them."""

    job: Job
    steps: tuple[int, ...]  # tokens
    expected: Tensor  # [steps, vocabulary]


def _solo_runner(model: Any, check: Check, num_slots: int, length: int) -> SoloRunner:
    try:
        compare(SoloRunner(model, 2, 2 * CHECK_LENGTH), check)
    except Exception as error:
        raise _Differs(_brief(error)) from error
    return SoloRunner(model, num_slots, length)


def _batch_runner(model: Any, check: Check, size: _Size) -> BatchRunner:
    speaks = language_part(model)
    original = speaks.config._attn_implementation
    try:
        speaks.set_attn_implementation(NAME)
        shapes = _probe(model, check.job.prompt)
        room = _fit(shapes, size, model.device)
        compare(BatchRunner(model, SlotCache(shapes, 2, 2 * CHECK_LENGTH, model.device), check), check)
        cache = SlotCache(shapes, room.num_slots, size.length, model.device)
        return BatchRunner(model, cache, check, room.cache_tokens)
    except _NoRoom:
        raise
    except Exception as error:  # whatever an unknown architecture may throw; it is served the slow way instead
        speaks.set_attn_implementation(original)
        raise _Differs(_brief(error)) from error


class _NoRoom(ValueError): ...


def _check(model: Any) -> Check:
    tokens = [(7 * i + 1) % model.config.get_text_config().vocab_size for i in range(CHECK_LENGTH)]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits
    return Check(Job("check", tuple(tokens)), CHECK_STEPS, logits[0, torch.tensor(CHECK_STEPS).cumsum(0) - 1])


def _probe(model: Any, tokens: tuple[int, ...]) -> Mapping[int, LayerShape]:
    probe = Probe()
    row = torch.tensor([tokens], device=model.device)
    with torch.inference_mode(), running(probe):
        model(input_ids=row, position_ids=torch.arange(len(tokens), device=model.device)[None], use_cache=False)
    if not probe.shapes:
        raise _Differs("its attention does not go through the attention interface")
    if probe.windows - {None} != probe.mask_widths:
        raise _Differs("its masks hide more than its layers say")
    return probe.shapes


@dataclass(frozen=True, slots=True)
class _Room:
    num_slots: int
    cache_tokens: int | None


def _fit(shapes: Mapping[int, LayerShape], size: _Size, device: torch.device) -> _Room:
    """On the CPU a slot costs what is written into it, so there may be more of them than could ever be full."""
    of_a_token = sum(shape.num_bytes for shape in shapes.values())
    tokens = size.budget // of_a_token if size.cache_tokens is None else size.cache_tokens
    slots = fit(shapes, size.num_slots, size.length, tokens * of_a_token)
    if slots == size.num_slots:
        return _Room(slots, None)
    if device.type == "cpu" and tokens >= MIN_TOKENS:
        return _Room(size.num_slots, tokens)
    if slots == 0:
        raise _NoRoom(
            f"a cache for one sequence of {size.length} tokens does not fit into memory: set a smaller max_model_len"
        )
    return _Room(slots, None)


def compare(runner: Runner, check: Check) -> None:
    """Reads the tokens in several steps, in company, and compares the logits after each: errors may wear off."""
    sequence, other = (Sequence(check.job, 0) for _ in range(2))
    for size, expected in zip(check.steps, check.expected, strict=True):
        end = sequence.num_computed + size
        sequence.tokens = other.tokens = list(check.job.prompt[:end])
        logits = runner.run([Work(other, 0, size), Work(sequence, 1, size)])[-1]
        similarity = torch.cosine_similarity(logits.float(), expected.float(), dim=0)
        if not similarity > (0.9999 if expected.dtype == torch.float32 else 0.99):  # halves round
            raise _Differs(f"its logits differ (cosine {similarity:.3f})")
        sequence.num_computed = other.num_computed = end


def _in_order(logits: Tensor, works: list[Work], batch: list[Work]) -> Tensor:
    """From the order in which they were computed to that of the batch."""
    rows: dict[int, range] = {}
    start = 0
    for work in works:
        rows[id(work)] = range(start, start := start + work.num_logits)
    order = [row for work in batch for row in rows[id(work)]]
    return (
        logits[: len(order)] if order == list(range(len(order))) else logits[order]
    )  # a copy is megabytes in every step


def _brief(error: Exception) -> str:
    """Some of torch's are pages long."""
    return str(error) if isinstance(error, _Differs) else f"{type(error).__name__}: {error}".splitlines()[0][:200]
