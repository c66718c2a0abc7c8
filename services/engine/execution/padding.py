"""Finds how a model's sequences can be batched with the cache that it makes itself."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from services.engine.execution.cache_division import CacheDivision, divided
from services.engine.execution.cache_layout import CacheLayout
from services.engine.execution.model_structure import has_indexer, trial_tokens
from services.engine.execution.padded_runner import PaddedRunner, PaddingUse
from services.engine.execution.runner_check import (
    CHECK_LENGTH,
    LogitsCheck,
    LogitsDiffer,
    require_similar,
    summarize,
    verify_beside,
)
from services.engine.execution.sequential_runner import SequentialRunner
from services.engine.execution.snapshot_check import TRIAL_CHUNK, TRIAL_LENGTH, verify_snapshots
from services.engine.execution.snapshot_store import SnapshotStore

logger = logging.getLogger(__name__)

NEIGHBOUR = 48  # tokens of a longer sequence, beside which others are padded
# Tokens between which a state is rounded to 16 bits: the company of a step, which leaves more or less room for a chunk
# of a prompt, must not decide where that is. Models divide prompts by 64, 128 or 256 themselves.
CHUNK = 256
SAME = 0.9995  # cosine of logits with and without padding: less than 16-bit numbers round, which they do in both


def padded_runner(
    model: Any, alone: SequentialRunner, check: LogitsCheck, budget: int, *, snapshots: bool = True
) -> PaddedRunner:
    """`budget`: bytes that all caches may take, and snapshots of them. Raises LogitsDiffer where sequences have other
    logits in company than alone."""
    if has_indexer(model):
        raise LogitsDiffer("its sparse indexer may choose padding")
    failures = []
    for way in _ways(model, alone):
        try:
            _verify(partial(way.runner, model, alone.another(3, NEIGHBOUR + CHECK_LENGTH)), model, check)
        except Exception as error:  # whatever an unknown architecture may throw
            failures.append(error)
        else:
            kept = snapshots and _keeps_snapshots(way, model, alone)
            return way.runner(model, alone, way.division(alone, budget, snapshots=kept))
    raise LogitsDiffer(summarize(failures[0])) from failures[0]


@dataclass(frozen=True, slots=True)
class _Way:
    """How sequences might be batched."""

    layout: CacheLayout
    use: PaddingUse
    make_cache: Callable[[], Any]
    reuses: bool

    has_windows: bool

    def can_be_saved(self, alone: SequentialRunner) -> bool:
        """Whether prompts are read in chunks, at whose ends a snapshot is more than a prefix that could be cut out."""
        return self.layout.has_states and not self.has_windows and not alone.use.whole_prompts

    def division(self, alone: SequentialRunner, budget: int, *, snapshots: bool) -> CacheDivision:
        return divided(budget, self.layout, alone.num_slots, alone.length, CHUNK if snapshots else None)

    def runner(
        self,
        model: Any,
        alone: SequentialRunner,
        division: CacheDivision = CacheDivision(),  # noqa: B008  # a frozen value
        chunk: int | None = None,
    ) -> PaddedRunner:
        """`chunk`: another one than models with states get."""
        chunk = chunk or (CHUNK if self.layout.has_states else None)
        store = SnapshotStore(self.layout) if chunk else None
        return PaddedRunner(
            model,
            SequentialRunner(model, alone.num_slots, alone.length, alone.use, self.make_cache, chunk, store),
            self.layout,
            self.use,
            reuses=self.reuses,
            cache_tokens=division.cache_tokens,
            snapshots=division.snapshots,
        )


def _keeps_snapshots(way: _Way, model: Any, alone: SequentialRunner) -> bool:
    if not way.can_be_saved(alone):
        return False
    trial = way.runner(model, alone.another(1, TRIAL_LENGTH + 1), chunk=TRIAL_CHUNK)
    try:
        verify_snapshots(trial, tuple(trial_tokens(model, TRIAL_LENGTH)))
    except Exception as error:  # whatever an unknown cache may throw
        logger.warning("%s runs without prefix cache: %s", type(model).__name__, summarize(error))
        return False
    return True


def _ways(model: Any, alone: SequentialRunner) -> Iterator[_Way]:
    """The best first: a cache without windows can be cut back."""
    own = _read(model, alone, torch.ones(1, 1, dtype=torch.long), alone.make_cache)
    for make_cache in [DynamicCache, alone.make_cache] if _has_mere_windows(own) else [alone.make_cache]:
        try:
            layout = CacheLayout.probe(partial(_read, model, alone, make_cache=make_cache))
        except Exception as error:
            raise LogitsDiffer(summarize(error)) from error
        has_windows = make_cache is alone.make_cache and any(getattr(own, "is_sliding", ()))
        reuses = not layout.has_states and not has_windows and not alone.use.whole_prompts
        for use in _uses(model, alone, layout):
            yield _Way(layout, use, make_cache, reuses, has_windows)


def _has_mere_windows(cache: Any) -> bool:
    """Whether it would be one of keys and values of all tokens, if some layers did not drop those beyond a window."""
    if type(cache) is not DynamicCache or not any(cache.is_sliding):
        return False
    return {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}


def _verify(trial: Callable[[], PaddedRunner], model: Any, check: LogitsCheck) -> None:
    """Without padding and with much: what a model makes of it may be small beside rounding."""
    neighbour = tuple(trial_tokens(model, NEIGHBOUR))
    without, padded = (verify_beside(trial(), check, each) for each in (neighbour[:1], neighbour))
    for one, other in zip(without, padded, strict=True):
        require_similar(other, one, SAME)


@torch.inference_mode()
def _read(model: Any, alone: SequentialRunner, ids: Tensor, make_cache: Callable[[], Any]) -> Any:
    given = {"input_ids": ids.to(model.device), alone.cache_name: make_cache()}
    if alone.use.position_ids:
        given["position_ids"] = torch.arange(ids.shape[1], device=model.device).expand(ids.shape)
    return getattr(model(**given, use_cache=True), alone.cache_name)


def _uses(model: Any, alone: SequentialRunner, layout: CacheLayout) -> Iterator[PaddingUse]:
    if not layout.is_padded:
        yield PaddingUse(attention_mask=False, position_ids=alone.use.position_ids)
        return
    yield PaddingUse(attention_mask=True, position_ids=True)
    yield PaddingUse(attention_mask=True, position_ids=False)
    if (unused := getattr(model.config, "pad_token_id", None)) is not None:  # as RoBERTa counts positions
        yield PaddingUse(attention_mask=True, position_ids=True, first_position=unused + 1)
