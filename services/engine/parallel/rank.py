"""What every rank does, the leader and the followers, in the same order: load its part, build a runner, warm it up."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.engine.device.resources import cache_budget, num_processors
from services.engine.device.selection import pick_dtype
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner import Runner
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.warm_up import warm_up
from services.engine.loading.loader import read_model
from services.engine.parallel.group import RankGroup
from services.engine.parallel.messages import Build, LookaheadStep, RankPlan
from services.engine.scheduling.step import Step


@dataclass(frozen=True, slots=True)
class LoadedRank:
    model: Any
    group: RankGroup
    device: torch.device
    dtype: torch.dtype


def load_rank(plan: RankPlan, rank: int) -> LoadedRank:
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    device = torch.device(plan.device, rank) if plan.device == "cuda" else torch.device(plan.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype = pick_dtype(plan.dtype, device)
    group = plan.group.join(rank, plan.size)
    folder = Path(plan.compile_dir) if plan.compile_dir else None
    return LoadedRank(read_model(plan.source, device, dtype, folder, group), group, device, dtype)


def free_budget(plan: RankPlan, device: torch.device) -> int:
    """Bytes for the cache of one rank. On the CPU all share one memory: right once all have loaded."""
    budget = cache_budget(device, plan.gpu_memory_utilization, plan.cpu_memory_share)
    return budget // plan.size if device.type == "cpu" else budget


def build_rank(plan: RankPlan, model: Any, build: Build) -> Runner:
    """All ranks come to the same runner: they see the same logits."""
    runner = build_runner(
        model,
        num_slots=plan.num_slots,
        length=build.length,
        budget=build.budget,
        cache_tokens=plan.cache_tokens,
        kv_cache_dtype=plan.kv_cache_dtype,
        kernels=Path(plan.compile_dir) if plan.compile_dir else None,
    )
    if plan.warm_up_tokens is not None:
        warm_up(runner, plan.warm_up_tokens)
    return runner


def compute(step: object, executor: LocalExecutor, loaded: LoadedRank) -> None:
    """A follower's part of a step."""
    match step:
        case Step():
            executor.execute(step)
        case LookaheadStep(rows):
            tokens = torch.zeros(len(rows), dtype=torch.long, device=loaded.device)
            executor.execute_lookahead(rows, loaded.group.sum(tokens))


def threads_of_each(size: int) -> int | None:
    """The processors divided between the ranks; None: OMP_NUM_THREADS says it."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, (num_processors() or len(os.sched_getaffinity(0))) // size)
