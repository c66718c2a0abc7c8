"""All sequences of a step in one forward pass over pages: what a GPU likes best."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.device.device_io import upload
from services.engine.execution.kv_cache import LayerShape
from services.engine.execution.runner_check import LogitsCheck
from services.engine.loading.loader import Source
from services.engine.loading.long_rope import short_length
from services.engine.lora.adapters import Adapters
from services.engine.lora.step_adapters import StepAdapters, adapter_context
from services.engine.paged.cache import PagedCache
from services.engine.paged.graphs import Capture, Graphs
from services.engine.paged.step import BatchShape, Inputs, PagedStep, write
from services.engine.scheduling.step import CacheChange, SnapshotRoom, StepRow
from services.engine.vision.vision import Vision, vision_for


@dataclass(frozen=True, slots=True)
class PagingConfig:
    """How the memory is cut up, and who records steps; nobody: none is."""

    page_size: int
    capture: Capture | None


class PagedRunner:
    """`run` returns when a step is on its way. Its logits last until the next one."""

    reuses = True
    snapshots: SnapshotRoom | None = None
    supports_drafts = False  # they would cost the CUDA graph, which is worth more

    def __init__(
        self,
        model: Any,
        cache: PagedCache,
        check: LogitsCheck,
        paging: PagingConfig,
        cache_tokens: int | None = None,
        vision: Vision | None = None,
    ) -> None:
        self.check = check
        self.vision = vision
        self.cache_tokens = cache_tokens
        self.page_size = paging.page_size
        self.num_slots = cache.num_slots
        self.length = cache.length
        self.short_length = short_length(model)
        self.asynchronous = cache.device.type != "cpu"
        self.model = model
        self.cache = cache
        self._paging = paging
        self._step = PagedStep(model, cache.layers)
        self.graphs = Graphs(self._step, cache, paging.capture) if paging.capture else None
        self.batch_sizes = self.graphs.batch_sizes if self.graphs else [cache.num_slots]

    @property
    def records(self) -> bool:
        return self.graphs is not None and not self.capture_failure

    @property
    def capture_failure(self) -> str | None:
        """Why some steps are not recorded that should be."""
        return self.graphs.failure if self.graphs else None

    @property
    def token_bytes(self) -> int:
        return sum(shape.num_bytes for shape in self.cache.shapes.values())

    def apply(self, changes: list[CacheChange]) -> None:
        self.cache.apply(changes)

    @torch.inference_mode()
    def run(self, rows: list[StepRow]) -> Tensor:
        self.cache.claim(rows)
        vision = vision_for(self.vision, rows)
        decodes = all(row.num_tokens == row.num_logits == 1 for row in rows)
        if self.graphs and decodes and not vision and not StepAdapters.of(rows):
            return self.graphs.run(rows)
        return self._run(rows, vision)

    @torch.inference_mode()
    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None:
        """Only where nothing must be claimed: who knows whether the scheduler lets them go on."""
        if not self.graphs or vision_for(self.vision, rows) or StepAdapters.of(rows):
            return None
        if not all(self.cache.pages.owns(row.slot, row.start) for row in rows):
            return None
        return self.graphs.run(rows, tokens)

    def compilation(self, source: Source, folder: Path, adapters: Adapters | None = None) -> None:
        return None

    def another(self, length: int, vision: Vision | None = None) -> "PagedRunner":
        """With the same model and a small memory of its own, to try something."""
        return trial(self.model, self.cache.shapes, length, self.check, self._paging, vision)

    def _run(self, rows: list[StepRow], vision: Vision | None) -> Tensor:
        shape = BatchShape.of(rows, self.cache.pages)
        array = write(rows, shape, self.cache.pages, self.cache.spare)
        inputs = Inputs.split(upload(array, self.cache.device), shape)
        given = vision.inputs(rows, inputs.ids[None], inputs.positions[None]) if vision else None
        with adapter_context(StepAdapters.of(rows, self._step.kept(rows))):
            return self._step(inputs, given)[: sum(row.num_logits for row in rows)]


def trial(
    model: Any,
    shapes: Mapping[int, LayerShape],
    length: int,
    check: LogitsCheck,
    paging: PagingConfig,
    vision: Vision | None = None,
) -> PagedRunner:
    cache = PagedCache(
        shapes,
        num_pages=2 * -(-length // paging.page_size),
        page_size=paging.page_size,
        num_slots=2,
        length=length,
        device=model.device,
    )
    return PagedRunner(model, cache, check, paging, vision=vision)
