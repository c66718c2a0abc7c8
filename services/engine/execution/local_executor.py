"""LocalExecutor: a runner in this process."""

import logging

import torch
from torch import Tensor

from services.engine.base import ImageReader
from services.engine.cpu.threads import neighbours
from services.engine.device.resources import is_out_of_memory
from services.engine.execution.executor import OutOfMemory
from services.engine.execution.runner import Runner
from services.engine.loading.unusable import UnusableModel
from services.engine.lora.adapters import Adapters
from services.engine.scheduling.step import Step, StepRow

logger = logging.getLogger(__name__)


class LocalExecutor:
    is_lost = False  # it goes with this process

    def __init__(self, runner: Runner, adapters: Adapters | None = None) -> None:
        """`adapters`: those of the runner's model; None: it takes none."""
        self.runner = runner
        self.adapters = adapters
        self.num_slots = runner.num_slots
        self.length = runner.length
        self.cache_tokens = runner.cache_tokens
        self.page_size = runner.page_size
        self.short_length = runner.short_length
        self.reuses = runner.reuses
        self.snapshots = runner.snapshots
        self.supports_drafts = runner.supports_drafts
        self.asynchronous = runner.asynchronous
        self.image_reader: ImageReader | None = runner.vision.reader if runner.vision else None

    def encode_images(self, row: StepRow) -> None:
        if self.runner.vision:
            self.runner.vision.encode(row)

    def execute(self, step: Step) -> Tensor:
        self.runner.apply(step.changes)
        if not step.rows:
            return torch.empty(0)
        try:
            with neighbours.watched():
                return self.runner.run(step.rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        torch.cuda.empty_cache()  # now that the error and its frames, which hold tensors, are gone
        raise OutOfMemory(reason)

    def execute_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None:
        try:
            return self.runner.run_lookahead(rows, tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory in a lookahead step of %d sequences: %s", len(rows), error)
        torch.cuda.empty_cache()
        return None

    def add_adapter(self, id: int, folder: str) -> None:
        if self.adapters is None:
            raise UnusableModel(f"{type(self.runner).__name__} takes no adapters")
        self.adapters.add(id, folder)

    def remove_adapter(self, id: int) -> None:
        if self.adapters:
            self.adapters.remove(id)

    def close(self) -> None:
        self.adapters = None
        del self.runner
