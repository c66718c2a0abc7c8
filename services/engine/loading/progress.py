"""How far a load is. Reported from the thread that loads, in whatever depth; the model's manager keeps the newest."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")

Stage = Literal["fetching", "waiting", "reading", "quantizing", "compiling", "packing", "checking", "warming_up"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """`done` and `total` are of the stage: bytes of what is fetched, tensors of what is read. A total of 0: unknown."""

    stage: Stage
    done: int = 0
    total: int = 0


Report = Callable[[LoadProgress], None]

_report: ContextVar[Report | None] = ContextVar("load progress", default=None)


@contextmanager
def reported_to(report: Report) -> Iterator[None]:
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def report(stage: Stage, done: int = 0, total: int = 0) -> None:
    """Nothing happens where nobody looks."""
    if (wanted := _report.get()) is not None:
        wanted(LoadProgress(stage, done, total))


def counted(stage: Stage, items: Collection[T]) -> Iterator[T]:
    for done, item in enumerate(items):
        report(stage, done, len(items))
        yield item
    report(stage, len(items), len(items))
