"""ParallelExecutor: every step on all ranks of a model; this process is one of them."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from services.engine.base import ImageReader
from services.engine.execution.executor import ExecutorLost
from services.engine.execution.local_executor import LocalExecutor
from services.engine.loading.unusable import UnusableModel
from services.engine.parallel.followers import Followers
from services.engine.parallel.group import RankGroup
from services.engine.parallel.messages import LeaderMessage, LookaheadStep
from services.engine.scheduling.step import Step, StepRow

R = TypeVar("R")


class ParallelExecutor:
    """A step that fails on one rank leaves the others waiting, so after any failure it computes no more: the memory of
    a GPU included, where one process would try smaller steps."""

    image_reader: ImageReader | None = None

    def __init__(self, local: LocalExecutor, followers: Followers, group: RankGroup) -> None:
        self._local = local
        self._followers = followers
        self._group = group
        self._has_failed = False
        self.num_slots = local.num_slots
        self.length = local.length
        self.cache_tokens = local.cache_tokens
        self.page_size = local.page_size
        self.short_length = local.short_length
        self.reuses = local.reuses
        self.snapshots = local.snapshots
        self.supports_drafts = local.supports_drafts
        self.asynchronous = local.asynchronous

    @property
    def is_lost(self) -> bool:
        return self._has_failed or self._followers.lost is not None

    def encode_images(self, row: StepRow) -> None:
        raise NotImplementedError  # there is no image_reader

    def execute(self, step: Step) -> Tensor:
        return self._on_all(step, lambda: self._local.execute(step))

    def execute_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None:
        def execute() -> Tensor | None:
            return self._local.execute_lookahead(rows, self._group.sum(tokens))  # those of the others are zeros

        return self._on_all(LookaheadStep(rows), execute)

    def add_adapter(self, id: int, folder: str) -> None:
        raise UnusableModel("a model that is split over several processes ('tensor_parallel_size') takes no adapters")

    def remove_adapter(self, id: int) -> None:
        """There is none."""

    def close(self) -> None:
        self._followers.close()
        self._local.close()

    def _on_all(self, message: LeaderMessage, execute: Callable[[], R]) -> R:
        if self.is_lost:
            raise ExecutorLost(self._followers.failure() or "a step has failed")
        try:
            self._followers.send(message)
            return execute()
        except Exception as error:
            self._has_failed = True
            self._group.abort()
            raise ExecutorLost(self._followers.failure() or str(error)) from error
