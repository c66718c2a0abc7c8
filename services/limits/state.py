"""The state of one subject's limits: leaky buckets that drain in a minute, and what runs. Plain Python: no clock.

Not the `limits` library: none of its storages is an SQL database, what was reserved cannot be given back, and what runs
at once is not counted.
"""

from dataclasses import dataclass, field

from services.callers import KeyLimits

MINUTE_S = 60.0
STALE_S = 120.0  # after which the requests of a process that shows no sign of life are not counted
PARALLEL_RETRY_S = 1.0


@dataclass(slots=True)
class Running:
    """Of one process."""

    requests: int = 0
    tokens: int = 0  # reserved
    seen_at: float = 0.0


@dataclass(slots=True)
class LimitState:
    at: float = 0.0  # when the levels were right
    requests: float = 0.0
    tokens: float = 0.0
    running: dict[str, Running] = field(default_factory=dict)

    def advance(self, limits: KeyLimits, now: float) -> None:
        elapsed = max(0.0, now - self.at)
        self.requests = _drained(self.requests, limits.rpm, elapsed)
        self.tokens = _drained(self.tokens, limits.tpm, elapsed)
        self.running = {name: each for name, each in self.running.items() if now - each.seen_at < STALE_S}
        self.at = now

    @property
    def num_running(self) -> int:
        return sum(each.requests for each in self.running.values())

    @property
    def reserved(self) -> int:
        return sum(each.tokens for each in self.running.values())

    def take(self, process: str, tokens: int) -> None:
        self.requests += 1
        self.tokens += tokens
        own = self.running.setdefault(process, Running())
        own.requests, own.tokens, own.seen_at = own.requests + 1, own.tokens + tokens, self.at

    def settle(self, process: str, reserved: int, used: int | None) -> None:
        """`used` None: the request was not admitted, and does not count."""
        self.tokens = max(0.0, self.tokens + (used or 0) - reserved)
        if used is None:
            self.requests = max(0.0, self.requests - 1)
        own = self.running.setdefault(process, Running())
        own.requests, own.tokens, own.seen_at = max(0, own.requests - 1), max(0, own.tokens - reserved), self.at


def _drained(level: float, limit: int | None, elapsed: float) -> float:
    return max(0.0, level - limit * elapsed / MINUTE_S) if limit else 0.0


def wait_for(level: float, cost: float, limit: int | None) -> float:
    """Seconds until the bucket has room for so much more; 0: it has."""
    return max(0.0, level + cost - limit) * MINUTE_S / limit if limit else 0.0
