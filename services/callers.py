"""Who calls: the key of a request, and what it may do.

The caller of the current request is a context variable, so that whatever a request starts (streams, background
answers) acts for its key; work that no request starts, such as a batch, enters `acting_as`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["user", "admin"]
ANYBODY = "local"  # the owner of everything if there are no keys


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None: no limit. `budget` is in tokens a calendar month (UTC), `rpm` and `tpm` are a minute's."""

    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """`owner` has all that is stored: the key's project, or a key of the settings by itself."""

    owner: str
    key: str = ""  # the key's id; by default the owner
    role: Role = "user"
    models: frozenset[str] | None = None  # that the key may use; None: all
    limits: KeyLimits = field(default=KeyLimits())
    project_limits: Mapping[str, KeyLimits] = field(default_factory=dict)  # by model, of all keys of the project
    flex: bool = False  # its requests come after all others

    @property
    def key_id(self) -> str:
        return self.key or self.owner

    @property
    def is_limited(self) -> bool:
        return self.limits != KeyLimits() or bool(self.project_limits)

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


_current: ContextVar[Caller] = ContextVar("caller", default=Caller(ANYBODY))  # noqa: B039  it is frozen


def current() -> Caller:
    return _current.get()


@contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)


@dataclass(frozen=True, slots=True)
class RateStatus:
    """One limit as it is after a request. `reset_s`: until nothing of it is used."""

    limit: int
    remaining: int
    reset_s: float

    @classmethod
    def of(cls, limit: int, level: float) -> "RateStatus":
        return cls(limit, max(0, int(limit - level)), level * 60 / limit)


@dataclass(slots=True)
class RateReport:
    """What the headers of an answer say of its key's limits; filled where the request is admitted or refused."""

    requests: RateStatus | None = None
    tokens: RateStatus | None = None


_report: ContextVar[RateReport | None] = ContextVar("rate report", default=None)


@contextmanager
def reporting() -> Iterator[RateReport]:
    """Of the request that runs within the `with`."""
    made = RateReport()
    token = _report.set(made)
    try:
        yield made
    finally:
        _report.reset(token)


def report(*, requests: RateStatus | None, tokens: RateStatus | None) -> None:
    if (wanted := _report.get()) is not None:
        wanted.requests, wanted.tokens = requests, tokens
