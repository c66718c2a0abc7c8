"""The seam between scheduling and the model: a step goes in, logits come out."""

from typing import Protocol

from torch import Tensor

from services.engine.base import ImageReader
from services.engine.scheduling.step import SnapshotRoom, Step, StepRow


class OutOfMemory(Exception):
    """A step found no memory. Its changes are applied, its rows are not computed; a smaller step may succeed."""


class ExecutorLost(Exception):
    """Nothing can be computed any more, by this executor."""


class Executor(Protocol):
    """Computes steps in the order in which it gets them. It sees nothing but steps: which requests were cancelled or
    preempted shows in the rows that are missing."""

    num_slots: int
    length: int  # tokens that a slot can hold
    cache_tokens: int | None  # tokens that all slots together can hold; None: each may be full
    page_size: int  # a slot takes a multiple of so many tokens
    short_length: int | None  # tokens beyond which rows must be `is_long`; None: they never need to
    reuses: bool  # whether the content of a slot can serve another sequence
    snapshots: SnapshotRoom | None  # by which sequences can share prefixes instead; None: there are none
    supports_drafts: bool
    asynchronous: bool  # whether `execute` returns before its step is done
    image_reader: ImageReader | None  # None: text only

    @property
    def is_lost(self) -> bool:
        """Whether all steps raise ExecutorLost from now on. From any thread."""
        ...

    def encode_images(self, row: StepRow) -> None:
        """Encodes the images that the row needs; fails here, for this row alone, if it fails."""
        ...

    def execute(self, step: Step) -> Tensor:
        """Logits `[rows, vocabulary]` in the order of the step: of each row the last `num_logits` tokens. They last
        until the next step with rows. Raises OutOfMemory and ExecutorLost."""
        ...

    def execute_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None:
        """The same for one more token each, where only the device knows these `tokens`. None where that is not
        possible, or there is no memory."""
        ...

    def add_adapter(self, id: int, folder: str) -> None:
        """Reads a LoRA adapter, which rows may name from then on. From any thread; blocking. Raises UnusableModel."""
        ...

    def remove_adapter(self, id: int) -> None:
        """Once no later row names it."""
        ...

    def close(self) -> None:
        """Frees the model's memory."""
        ...
