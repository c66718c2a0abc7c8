"""What computes a step."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from services.engine.cpu.compilation import Compilation
from services.engine.loading.loader import Source
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.slots import CacheChange
from services.engine.vision.vision import Vision


class Runner(Protocol):
    num_slots: int
    length: int  # tokens a slot can hold
    cache_tokens: int | None  # tokens all slots together can hold; None: each may be full
    reuses: bool  # whether what a slot holds can serve another sequence
    vision: Vision | None  # None: it takes text only
    speculates: bool  # whether it takes drafts
    page_size: int  # tokens of which a slot takes a whole number
    asynchronous: bool  # whether `run` returns before its step is done
    batch_sizes: list[int]  # of one token each: which are worth a step before anybody waits for it

    def change(self, changes: list[CacheChange]) -> None:
        """To be followed, in this order, before the next step."""
        ...

    def compilation(self, source: Source, folder: Path) -> Compilation | None:
        """What gets this model's step compiled, or from the disk; None where steps stay eager."""
        ...

    def run(self, batch: list[ScheduledSequence]) -> Tensor:
        """One step -> logits `[rows, vocabulary]` of those works that sample, in the order of the batch: one row for
        the last known token, and one for each of the draft behind it."""
        ...

    def run_lookahead(self, works: list[ScheduledSequence], tokens: Tensor) -> Tensor | None:
        """A step for those who just got `tokens`, before anybody here knows them: one more for each, as `run` would
        do it. None where that cannot be."""
        ...
