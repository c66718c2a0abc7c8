"""Loads a model in several processes, of which this one leads."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from services.engine.device.selection import pick_device
from services.engine.execution.local_executor import LocalExecutor
from services.engine.loading.load_options import LoadOptions
from services.engine.loading.loader import Loaded, Source, described, read_tokenizer, split_kind
from services.engine.parallel.executor import ParallelExecutor
from services.engine.parallel.followers import Followers
from services.engine.parallel.group import GroupPlan, RankGroup
from services.engine.parallel.messages import Build, RankLoaded, RankPlan, Ready
from services.engine.parallel.process_group import TorchPlan
from services.engine.parallel.rank import build_rank, free_budget, load_rank, threads_of_each
from services.engine.parallel.shared_memory import NoCompiler, shared_memory
from services.engine.parallel.split import SETTING, check_split
from services.errors import EngineFailed

logger = logging.getLogger(__name__)


def load_parallel(source: Source, size: int, options: LoadOptions) -> tuple[Loaded, ParallelExecutor]:
    """Raises EngineFailed for what cannot be split, before anything is read."""
    if source.enable_mm:
        raise EngineFailed(f"{SETTING}: images are not supported with more than one")
    device = _device_type(options.device, size)
    kind, config = split_kind(source)
    if getattr(config, "quantization_config", None):
        raise EngineFailed(f"{SETTING}: quantised checkpoints are read in one piece")
    check_split(kind, config, size)
    tokenizer = read_tokenizer(source)
    with _group_plan(device, options.compile_dir, size) as (group, inherited):
        plan = RankPlan(
            source=source,
            device=device,
            dtype=options.dtype,
            size=size,
            group=group,
            compile_dir=options.compile_dir,
            threads=threads_of_each(size) if device == "cpu" else None,
            num_slots=options.max_num_seqs,
            cache_tokens=options.cache_tokens,
            kv_cache_dtype=options.kv_cache_dtype,
            gpu_memory_utilization=options.gpu_memory_utilization,
            cpu_memory_share=options.cpu_memory_share,
            warm_up_tokens=options.warm_up_tokens,
        )
        return _Leader(plan, inherited).load(tokenizer, options.max_model_len)


class _Leader:
    def __init__(self, plan: RankPlan, inherited: tuple[int, ...]) -> None:
        self._plan = plan
        self._group: RankGroup | None = None
        self._followers = Followers(plan, inherited, self._abort)

    def load(self, tokenizer: Any, max_model_len: int | None) -> tuple[Loaded, ParallelExecutor]:
        try:
            return self._load(tokenizer, max_model_len)
        except Exception as error:
            failure = self._followers.failure()
            self._followers.close()
            if failure is None or isinstance(error, EngineFailed):
                raise
            raise EngineFailed(f"The model cannot be loaded by {self._plan.size} processes: {failure}") from error

    def _load(self, tokenizer: Any, max_model_len: int | None) -> tuple[Loaded, ParallelExecutor]:
        read = load_rank(self._plan, 0)
        self._group = read.group
        loaded = described(self._plan.source, read.model, tokenizer, read.device, read.dtype)
        free = [each.budget for each in self._followers.receive(RankLoaded)]
        length = min(max_model_len or loaded.max_length, loaded.max_length)
        build = Build(length, min(free_budget(self._plan, read.device), *free))
        self._followers.send(build)
        runner = build_rank(self._plan, read.model, build)
        self._followers.receive(Ready)
        logger.info(
            "%s on %d ranks (%s) in %s: %d sequences of %d tokens, %s together, %s; steps are not compiled",
            type(read.model).__name__,
            self._plan.size,
            self._plan.device,
            read.dtype,
            runner.num_slots,
            runner.length,
            runner.cache_tokens or "full",
            type(runner).__name__,
        )
        return loaded, ParallelExecutor(LocalExecutor(runner), self._followers, read.group)

    def _abort(self) -> None:
        if self._group is not None:
            self._group.abort()


def _device_type(device: str, size: int) -> str:
    place = pick_device(device)
    if place.type not in ("cpu", "cuda") or place.index is not None:
        raise EngineFailed(f"{SETTING}: 'device' is 'cpu' or 'cuda' with more than one, not '{device}'")
    if place.type == "cuda" and torch.cuda.device_count() < size:
        raise EngineFailed(f"{SETTING}: {size} GPUs are needed, {torch.cuda.device_count()} are there")
    return place.type


@contextmanager
def _group_plan(device: str, compile_dir: str | None, size: int) -> Iterator[tuple[GroupPlan, tuple[int, ...]]]:
    """With the file descriptors that followers inherit; both are needed until all have joined."""
    with ExitStack() as stack:
        if device == "cpu" and compile_dir is not None:
            try:
                memory = shared_memory(Path(compile_dir), size)
                stack.callback(os.close, memory.fd)
                yield memory, (memory.fd,)
                return
            except NoCompiler as reason:
                logger.warning("sums between ranks go over loopback, which is slow: %s", reason)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="parley-ranks-"))
        yield TorchPlan(str(Path(folder, "store")), device), ()
