"""CUDA graphs: a decode step is captured once for each batch shape and replayed, instead of launching each kernel.

Decode steps are padded to few batch sizes and few lengths, so that there are few shapes.
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from services.engine.device.device_io import pinned
from services.engine.execution.runner_check import summarize
from services.engine.paged.cache import PagedCache
from services.engine.paged.step import BatchShape, Inputs, PagedStep, write
from services.engine.scheduling.step import StepRow

logger = logging.getLogger(__name__)

MULTIPLE = 8  # batch sizes are 1, 2, 4 and its multiples
NUM_PAGES = 4  # of the shortest shape; each longer one has four times as many, because attention is split by length

ALONE = threading.Lock()  # a process may record one at a time

Replay = Callable[[], Tensor]


class Capture(Protocol):
    def __call__(self, forward: Callable[[], Tensor]) -> Replay:
        """Records what `forward` does on the device; each replay does it again, and gives the same tensor."""
        ...


class CudaCapture:
    """All its recordings share one pool of memory, so a replay's tensor lasts until the next replay of any of them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Callable[[], Tensor]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # a recording that fails does not put back the stream that was current before
        with ALONE, torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            self._warm_up(forward)
            # other engines' threads go on meanwhile: what they allocate is no error of this recording
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = forward()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _warm_up(self, forward: Callable[[], Tensor]) -> None:
        """What libraries do at first use cannot be recorded."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                forward()
        finally:
            torch.cuda.current_stream().wait_stream(stream)


def call_again(forward: Callable[[], Tensor]) -> Replay:
    """A Capture for where nothing can be recorded: the same buffers, computed anew."""
    return forward


class Graphs:
    def __init__(self, step: PagedStep, cache: PagedCache, capture: Capture) -> None:
        self._step = step
        self._cache = cache
        self._capture = capture
        self._buffers: dict[BatchShape, Tensor] = {}
        self._replays: dict[BatchShape, Replay] = {}
        self.failure: str | None = None  # why the latest shape that is not recorded is not
        self.batch_sizes = batch_sizes(cache.num_slots)

    def run(self, rows: list[StepRow], tokens: Tensor | None = None) -> Tensor:
        """Logits of one new token each; they last until the next step. `tokens`: where only the device knows them."""
        shape = self.shape(rows)
        array = write(rows, shape, self._cache.pages, self._cache.spare)
        if shape not in self._buffers:
            self._buffers[shape] = torch.empty(len(array), dtype=torch.int32, device=self._cache.device)
        self._buffers[shape].copy_(pinned(array, self._cache.device), non_blocking=True)
        if tokens is not None:
            self._buffers[shape][: len(tokens)] = tokens
        logits = self._replays[shape]() if shape in self._replays else self._first(shape)
        return logits[: len(rows)]

    def shape(self, rows: list[StepRow]) -> BatchShape:
        """The smallest that the works fit into."""
        size = self.batch_sizes[bisect_left(self.batch_sizes, len(rows))]
        pages, table = self._cache.pages, self._cache.pages.table
        needed = pages.needed(max(row.end for row in rows))
        width = NUM_PAGES
        while width < needed:
            width *= 4
        width = min(width, table.shape[1])
        return BatchShape(size, size, size, width, max_queries=1, max_length=width * pages.page_size)

    def _first(self, shape: BatchShape) -> Tensor:
        """Where it cannot be recorded, it is computed anew, now and from now on: that must cost nobody an answer."""
        buffer = self._buffers[shape]

        def forward() -> Tensor:
            return self._step(Inputs.split(buffer, shape))

        try:
            replay = self._capture(forward)
        except Exception as error:  # whatever a driver may throw
            failure = summarize(error)
        else:
            self._replays[shape] = replay
            return replay()
        logits = forward()  # if this fails too, recording it was not what failed
        self._replays[shape] = forward
        self.failure = failure
        logger.warning("steps of %s are not recorded: %s", shape, failure)
        return logits


def batch_sizes(most: int) -> list[int]:
    return [*(size for size in (1, 2, 4, *range(MULTIPLE, most, MULTIPLE)) if size < most), most]
