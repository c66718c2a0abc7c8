"""What leader and followers send each other. Plain values, pickled."""

from dataclasses import dataclass

from services.engine.loading.loader import Source
from services.engine.parallel.group import GroupPlan
from services.engine.scheduling.step import Step, StepRow


@dataclass(frozen=True, slots=True)
class RankPlan:
    """What all ranks of a model have in common."""

    source: Source
    device: str  # torch's device type
    dtype: str
    size: int  # ranks
    group: GroupPlan
    compile_dir: str | None  # of kernels
    threads: int | None  # of each rank; None: as many as torch takes
    num_slots: int
    cache_tokens: int | None
    kv_cache_dtype: str
    gpu_memory_utilization: float
    cpu_memory_share: float
    warm_up_tokens: int | None  # of a step; None: no warm-up


@dataclass(frozen=True, slots=True)
class Join:
    plan: RankPlan
    rank: int


@dataclass(frozen=True, slots=True)
class RankLoaded:
    budget: int  # bytes that are free for this rank's cache


@dataclass(frozen=True, slots=True)
class Build:
    length: int  # tokens of a slot
    budget: int  # bytes of the cache of each rank


@dataclass(frozen=True, slots=True)
class Ready: ...


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str


@dataclass(frozen=True, slots=True)
class LookaheadStep:
    rows: list[StepRow]  # whose tokens the leader's device has


LeaderMessage = Join | Build | Step | LookaheadStep
FollowerMessage = RankLoaded | Ready | Failed
