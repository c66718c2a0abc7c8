"""Which adapter each token of the running step has, for layers that are called with tensors only."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.engine.scheduling.step import StepRow

Ids = tuple[int | None, ...]  # None: the model as it is


@dataclass(slots=True)
class StepAdapters:
    tokens: Ids
    logits: Ids  # of the tokens that the language head is given
    reached: set[int] = field(default_factory=set)  # sites that have added something
    rows: dict[tuple[int, Ids], Tensor] = field(default_factory=dict)  # which of the tokens have an id
    is_handed_over: bool = False  # to the kernel

    @classmethod
    def of(cls, rows: list[StepRow], kept: Iterable[int] | None = None) -> "StepAdapters | None":
        """None: no row has an adapter. `kept`: the tokens that the head is given, where it is not given all."""
        if not any(row.adapter is not None for row in rows):
            return None
        tokens = tuple(row.adapter for row in rows for _ in range(row.num_tokens))
        return cls(tokens, tokens if kept is None else tuple(tokens[index] for index in kept))


def forget_adapters() -> None:
    """Takes back what this thread has handed over to the kernel: weights of adapters may be unloaded."""
    nothing = torch.empty(0, dtype=torch.int64)
    torch.ops.parley.use_adapters(nothing, nothing, nothing, nothing)


# beside the thread, like the step of the attention (services/engine/cpu/attention.py)
_current = threading.local()


class adapter_context:
    """`with adapter_context(StepAdapters.of(rows)): model(...)`"""

    def __init__(self, step: StepAdapters | None) -> None:
        self._step = step

    def __enter__(self) -> None:
        _current.step = self._step

    def __exit__(self, *_: object) -> None:
        _current.step = None
        if self._step and self._step.is_handed_over:
            forget_adapters()


def current_adapters() -> StepAdapters | None:
    return getattr(_current, "step", None)
