"""Runner: computes the rows of a step with a model in this process."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from services.engine.cpu.compilation import Compilation
from services.engine.loading.loader import Source
from services.engine.lora.adapters import Adapters
from services.engine.scheduling.step import CacheChange, SnapshotRoom, StepRow
from services.engine.vision.vision import Vision


class Runner(Protocol):
    """See Executor for what the attributes and the logits mean."""

    num_slots: int
    length: int
    cache_tokens: int | None
    page_size: int
    short_length: int | None
    reuses: bool
    snapshots: SnapshotRoom | None
    supports_drafts: bool
    asynchronous: bool
    vision: Vision | None  # None: text only
    batch_sizes: list[int]  # of one token each, which are worth a warm-up step

    def apply(self, changes: list[CacheChange]) -> None: ...

    def run(self, rows: list[StepRow]) -> Tensor: ...

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None: ...

    def compilation(self, source: Source, folder: Path, adapters: Adapters | None = None) -> Compilation | None:
        """Compiles this model's step, or finds it on disk; None where steps stay eager. `adapters`: of rows that
        name one of them."""
        ...
