"""Which runner a model gets: the fastest of those that say the same as the model by itself."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from services.engine.cpu.attention import ATTENTION, ATTENTION_UNMASKED
from services.engine.cpu.merged_linear import pack_linears, unpack_linears
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.kv_cache import LayerShape, SlotCache, fit
from services.engine.execution.model_structure import has_indexer, language_model
from services.engine.execution.padding import padded_runner
from services.engine.execution.rounded_cache import AUTO, INT8, SETTING, in_8_bits, require_kernel
from services.engine.execution.runner import Runner
from services.engine.execution.runner_check import (
    CHECK_LENGTH,
    LogitsCheck,
    LogitsDiffer,
    make_check,
    probe,
    require_no_states,
    summarize,
    verify_logits,
)
from services.engine.execution.sequential_runner import CACHE_USES, SequentialRunner
from services.engine.loading import progress
from services.engine.loading.long_rope import install_long_rope
from services.engine.paged.attention import PAGE_SIZE
from services.engine.paged.cache import PagedCache
from services.engine.paged.graphs import CudaCapture
from services.engine.paged.runner import PagedRunner, PagingConfig, trial
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

MIN_TOKENS = 16  # less than that is no cache

Shapes = Mapping[int, LayerShape]


@dataclass(frozen=True, slots=True)
class _Size:
    num_slots: int
    length: int  # tokens
    budget: int  # bytes
    cache_tokens: int | None  # instead of the budget
    snapshots: bool
    in_8_bits: bool = False  # keys and values


class _NoRoom(ValueError): ...


def build_runner(
    model: Any,
    *,
    num_slots: int,
    length: int,
    budget: int,
    cache_tokens: int | None = None,
    kv_cache_dtype: str = AUTO,
    paging: PagingConfig | None = None,
    kernels: Path | None = None,
    prefix_cache: bool = True,
) -> Runner:
    """The first whose logits are the model's: a PagedRunner (on a GPU), a BatchedRunner, a PaddedRunner, and a
    SequentialRunner.

    `budget`: bytes the key/value cache may take; `cache_tokens`: what it holds, whatever the budget is.
    `kv_cache_dtype`: of `rounded_cache`. `paging`: pages, also where slots would be better. `kernels`: the folder of
    compiled ones, if they may be compiled. `prefix_cache`: whether a part of the budget may be for snapshots.
    """
    require_kernel(kv_cache_dtype, model.device.type, kernels)
    check = make_check(model)
    size = _Size(num_slots, length, budget, cache_tokens, prefix_cache, in_8_bits=kv_cache_dtype == INT8)
    if model.device.type == "cuda":
        paging = paging or PagingConfig(PAGE_SIZE, CudaCapture(model.device))
    install_long_rope(model)
    progress.report("packing")
    pack_linears(model, kernels)
    progress.report("checking")
    try:
        return _any_runner(model, check, size, paging)
    except LogitsDiffer:  # some models reach for a layer's weight themselves and cannot read it packed
        unpack_linears(model)
    try:
        return _any_runner(model, check, size, paging)
    except LogitsDiffer as reason:  # and some keep their past elsewhere than where `generate` would look for it
        raise EngineFailed(f"Models of the kind {type(model).__name__} cannot be served: {reason}") from reason


def _any_runner(model: Any, check: LogitsCheck, size: _Size, paging: PagingConfig | None) -> Runner:
    name = type(model).__name__
    if paging:
        try:
            return _interfaced(
                model, ATTENTION_UNMASKED, lambda shapes: _paged_runner(model, check, size, shapes, paging)
            )
        except LogitsDiffer as reason:
            logger.warning("%s runs without pages: %s", name, reason)
    try:
        return _interfaced(model, ATTENTION, lambda shapes: _batch_runner(model, check, size, shapes))
    except LogitsDiffer as reason:
        logger.warning("%s runs without slots: %s", name, reason)
    if size.cache_tokens is not None:
        raise EngineFailed("'num_gpu_blocks_override': this model keeps its past itself, in no blocks")
    if size.in_8_bits:
        raise EngineFailed(f"{SETTING}: this model keeps its past itself, which int8 is not for; set auto")
    alone = _solo_runner(model, check, size)
    try:
        return padded_runner(model, alone, check, size.budget, snapshots=size.snapshots)
    except LogitsDiffer as reason:
        logger.warning("%s runs one sequence at a time: %s", name, reason)
        return alone


def _interfaced(model: Any, name: str, runner: Callable[[Shapes], Runner]) -> Runner:
    """With its attention handed over to us, or as it was before."""
    speaks = language_model(model)
    original = speaks.config._attn_implementation
    try:
        require_no_states(model)
        speaks.set_attn_implementation(ATTENTION)
        shapes = probe(model)
        speaks.set_attn_implementation(name)
        return runner(shapes)
    except (_NoRoom, EngineFailed):
        raise
    except Exception as error:  # whatever an unknown architecture may throw; it is served a slower way instead
        speaks.set_attn_implementation(original)
        raise LogitsDiffer(summarize(error)) from error


def _paged_runner(model: Any, check: LogitsCheck, size: _Size, shapes: Shapes, paging: PagingConfig) -> PagedRunner:
    verify_logits(trial(model, shapes, 2 * CHECK_LENGTH, check, replace(paging, capture=None)), check)
    if paging.capture:
        paging = _recorded(model, check, shapes, paging)
    room = _fit_pages(shapes, size, paging.page_size)
    cache = PagedCache(
        shapes,
        num_pages=room.num_pages,
        page_size=paging.page_size,
        num_slots=size.num_slots,
        length=size.length,
        device=model.device,
    )
    return PagedRunner(model, cache, check, paging, room.cache_tokens)


def _recorded(model: Any, check: LogitsCheck, shapes: Shapes, paging: PagingConfig) -> PagingConfig:
    """Without recording, if that goes wrong: some models look at their numbers on the way."""
    try:
        verify_logits(tried := trial(model, shapes, 2 * CHECK_LENGTH, check, paging), check)
        reason = tried.capture_failure
    except Exception as error:
        reason = summarize(error)
    if reason is None:
        return paging
    logger.warning("steps of %s are not recorded: %s", type(model).__name__, reason)
    return replace(paging, capture=None)


def _batch_runner(model: Any, check: LogitsCheck, size: _Size, shapes: Shapes) -> BatchedRunner:
    verify_logits(BatchedRunner(model, SlotCache(shapes, 2, 2 * CHECK_LENGTH, model.device), check), check)
    if size.in_8_bits:
        shapes, check = in_8_bits(shapes), replace(check, in_8_bits=True)
        _verify_rounded(model, check, shapes)
    room = _fit(shapes, size, model.device)
    cache = SlotCache(shapes, room.num_slots, size.length, model.device)
    return BatchedRunner(model, cache, check, room.cache_tokens)


def _verify_rounded(model: Any, check: LogitsCheck, shapes: Shapes) -> None:
    try:
        verify_logits(BatchedRunner(model, SlotCache(shapes, 2, 2 * CHECK_LENGTH, model.device), check), check)
    except LogitsDiffer as reason:
        raise EngineFailed(f"{SETTING}: int8 does not do for this model, {reason}; set auto") from reason


def _solo_runner(model: Any, check: LogitsCheck, size: _Size) -> SequentialRunner:
    """As the model uses its cache: reading prompts in chunks is tried first."""
    failures = []
    for use in CACHE_USES:
        if has_indexer(model) and not use.whole_prompts:
            continue
        try:
            verify_logits(SequentialRunner(model, 2, 2 * CHECK_LENGTH, use), check)
        except Exception as error:  # whatever an unknown architecture may throw
            failures.append(error)
        else:
            return SequentialRunner(model, size.num_slots, size.length, use)
    raise LogitsDiffer(summarize(failures[0])) from failures[0]


@dataclass(frozen=True, slots=True)
class _Room:
    num_slots: int
    cache_tokens: int | None


def _fit(shapes: Shapes, size: _Size, device: torch.device) -> _Room:
    """On the CPU a slot costs what is written into it, so there may be more of them than could ever be full."""
    of_a_token = _bytes(shapes)
    tokens = size.budget // of_a_token if size.cache_tokens is None else size.cache_tokens
    slots = fit(shapes, size.num_slots, size.length, tokens * of_a_token)
    if slots == size.num_slots:
        return _Room(slots, None)
    if device.type == "cpu" and tokens >= MIN_TOKENS:
        return _Room(size.num_slots, tokens)
    if slots == 0:
        raise _no_room(size)
    return _Room(slots, None)


@dataclass(frozen=True, slots=True)
class _PagedRoom:
    num_pages: int
    cache_tokens: int | None


def _fit_pages(shapes: Shapes, size: _Size, page_size: int) -> _PagedRoom:
    """One page is nobody's, and is not counted where the size is given."""
    needed = size.num_slots * -(-size.length // page_size)
    pages = size.budget // (_bytes(shapes) * page_size) - 1
    if size.cache_tokens is not None:
        pages = size.cache_tokens // page_size
    if pages >= needed:
        return _PagedRoom(needed, None)
    if pages < 1 or pages * page_size < MIN_TOKENS:
        raise _no_room(size)
    return _PagedRoom(pages, pages * page_size)


def _bytes(shapes: Shapes) -> int:
    """Of a token."""
    return sum(shape.num_bytes for shape in shapes.values())


def _no_room(size: _Size) -> _NoRoom:
    return _NoRoom(
        f"a cache for one sequence of {size.length} tokens does not fit into memory: set a smaller max_model_len"
    )
