"""Traces: what a request spends its time with, as spans. Each step makes a child of the current span.

Without a tracer the current span is NO_SPAN, which is its own child: nothing is recorded, and no library is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]
Kind = Literal["internal", "server", "client"]

NONE: Attributes = {}


class Span(Protocol):
    """Times are in nanoseconds of the epoch; None is now."""

    @property
    def is_recording(self) -> bool:
        """Whether it is sampled. Children of one that has ended are recorded like others."""
        ...

    @property
    def records_content(self) -> bool:
        """Whether the texts of prompts and answers may be set."""
        ...

    @property
    def trace_id(self) -> str:
        """Empty without a tracer."""
        ...

    def child(
        self, name: str, attributes: Attributes = NONE, *, kind: Kind = "internal", started: int | None = None
    ) -> "Span": ...

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, error: str) -> None:
        """`error`: its class, or a status code."""
        ...

    def end(self, at: int | None = None) -> None: ...

    def headers(self) -> dict[str, str]:
        """Of a request to another service, which goes on with the trace."""
        ...


class NoSpan:
    is_recording = False
    records_content = False
    trace_id = ""

    def child(
        self, name: str, attributes: Attributes = NONE, *, kind: Kind = "internal", started: int | None = None
    ) -> "NoSpan":
        return self

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, error: str) -> None: ...

    def end(self, at: int | None = None) -> None: ...

    def headers(self) -> dict[str, str]:
        return {}


class Tracer(Protocol):
    def root(self, name: str, headers: Mapping[str, str], attributes: Attributes, *, kind: Kind) -> Span:
        """`headers`: those of the request that is traced; the trace of its sender is continued."""
        ...

    def shut_down(self) -> None:
        """Exports what has ended. May block for some seconds."""
        ...


class NoTracer:
    def root(self, name: str, headers: Mapping[str, str], attributes: Attributes, *, kind: Kind) -> NoSpan:
        return NO_SPAN

    def shut_down(self) -> None: ...


NO_SPAN = NoSpan()
NO_TRACER = NoTracer()

_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


def current() -> Span:
    return _current.get()


@contextmanager
def under(span: Span) -> Iterator[None]:
    """Makes it the current one. Nothing may be yielded to another task's generator within the `with`."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def ending(span: Span) -> Iterator[Span]:
    """Ends it with the `with`, as failed if an exception leaves it. A cancelled step has not failed."""
    try:
        yield span
    except Exception as error:
        span.fail(type(error).__name__)
        raise
    finally:
        span.end()


@contextmanager
def step(name: str, attributes: Attributes = NONE, *, kind: Kind = "internal") -> Iterator[Span]:
    """A child that is current within the `with`."""
    with ending(_current.get().child(name, attributes, kind=kind)) as span, under(span):
        yield span
