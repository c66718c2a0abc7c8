"""Limits of keys and projects: requests and tokens a minute, requests at once, tokens a month.

Tokens are reserved when a request is admitted (its prompt, and the answer's `max_tokens` if it names one), and settled
at its end. With PostgreSQL the processes share the states; SQLite has one process, which keeps them.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from database.session import Database
from services.callers import Caller, KeyLimits, RateStatus, current, report
from services.errors import QuotaExceeded, RequestsLimited, ServiceError, TokensLimited, Unavailable
from services.history.store import Store
from services.limits.state import PARALLEL_RETRY_S, LimitState, Running, wait_for
from services.limits.states import DatabaseStates, MemoryStates, States

logger = logging.getLogger(__name__)

BUDGET_S = 10.0  # after which what a key has spent is read again
HEARTBEAT_S = 30.0


@dataclass(slots=True)
class Reservation:
    """`used` is to be set once the request is admitted, and to its tokens at its end."""

    used: int | None = None


class Limiter(Protocol):
    def reserved(self, model: str, prompt: int, answer: int = 0) -> AbstractAsyncContextManager[Reservation]:
        """Raises RequestsLimited, TokensLimited or QuotaExceeded. `prompt`, `answer`: tokens; the answer's if known."""


class Unlimited:
    @asynccontextmanager
    async def reserved(self, model: str, prompt: int, answer: int = 0) -> AsyncIterator[Reservation]:
        yield Reservation()


UNLIMITED = Unlimited()


@dataclass(slots=True)
class _Spent:
    """Of a key in a month: what the database has, and what was settled here since it was read."""

    tokens: int
    month: float
    read_at: float


@dataclass(frozen=True, slots=True)
class _Held:
    """A reservation and where it is to be settled."""

    states: States
    limits: Mapping[str, KeyLimits]  # by subject
    tokens: int


@dataclass(slots=True)
class LimitService:
    database: Database
    process: str
    _memory: MemoryStates = field(default_factory=MemoryStates)
    _spent: dict[str, _Spent] = field(default_factory=dict)
    _running: dict[str, int] = field(default_factory=dict)  # requests of this process, by subject
    _settling: "set[asyncio.Task[None]]" = field(default_factory=set)
    _heart: "asyncio.Task[None] | None" = None

    @property
    def _store(self) -> Store:
        return Store(self.database)

    def start(self) -> None:
        if self._store.is_shared:
            self._heart = asyncio.create_task(self._beat_forever(), name="limits")

    async def stop(self) -> None:
        if self._heart:
            self._heart.cancel()

    @asynccontextmanager
    async def reserved(self, model: str, prompt: int, answer: int = 0) -> AsyncIterator[Reservation]:
        caller, reservation = current(), Reservation()
        limits = _limits(caller, model)
        if not limits:
            yield reservation
            return
        held = await self._reserve(caller, model, limits, prompt, answer)
        try:
            yield reservation
        finally:
            settling = asyncio.ensure_future(self._settle(caller, held, reservation.used))
            self._settling.add(settling)  # the event loop keeps only weak references to tasks
            settling.add_done_callback(self._settling.discard)
            await asyncio.shield(settling)

    async def _reserve(
        self, caller: Caller, model: str, limits: Mapping[str, KeyLimits], prompt: int, answer: int
    ) -> _Held:
        tokens = _reservable(limits, prompt, answer)
        spent = await self._spent_by(caller) if caller.limits.budget else 0
        self._count(limits, 1)
        try:
            return _Held(await self._taken(limits, model, tokens, spent), limits, tokens)
        except BaseException:
            self._count(limits, -1)
            raise

    def _count(self, subjects: Iterable[str], change: int) -> None:
        for subject in subjects:
            self._running[subject] = self._running.get(subject, 0) + change

    async def _taken(self, limits: Mapping[str, KeyLimits], model: str, tokens: int, spent: int) -> States:
        """Where it was taken: during an outage each process has the limits by itself."""
        if self._store.is_shared:
            with suppress(Unavailable):
                states = DatabaseStates(self._store)
                await self._take(states, limits, model, tokens, spent)
                return states
        await self._take(self._memory, limits, model, tokens, spent)
        return self._memory

    async def _take(self, states: States, limits: Mapping[str, KeyLimits], model: str, tokens: int, spent: int) -> None:
        now = time.time()
        refusal: ServiceError | None = None
        async with states.locked(list(limits)) as known:
            for subject, each in limits.items():
                known[subject].advance(each, now)
                refusal = refusal or _refusal(known[subject], each, model, tokens, spent)
            if refusal is None:
                for subject in limits:
                    known[subject].take(self.process, tokens)
            _report(known, limits)
        if refusal is not None:
            raise refusal

    async def _settle(self, caller: Caller, held: _Held, used: int | None) -> None:
        if (spent := self._spent.get(caller.key_id)) is not None:
            spent.tokens += used or 0
        now = time.time()
        with suppress(Unavailable):  # the reservation drains, and what ran is not counted once it is stale
            async with held.states.locked(list(held.limits)) as known:
                for subject, limits in held.limits.items():
                    known[subject].advance(limits, now)
                    known[subject].settle(self.process, held.tokens, used)
        self._count(held.limits, -1)

    async def _spent_by(self, caller: Caller) -> int:
        now, month = time.time(), _month()
        known = self._spent.get(caller.key_id)
        if known is None or known.month != month or now - known.read_at > BUDGET_S:
            with suppress(Unavailable):
                async with self._store.reading() as repositories:
                    tokens = await repositories.usage.tokens_of_key(caller.key_id, int(month))
                known = self._spent[caller.key_id] = _Spent(tokens, month, now)
        return known.tokens if known else 0

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with suppress(Unavailable):
                await self.beat()

    async def beat(self) -> None:
        """Says how many requests of this process run: also corrects what a request left that was cancelled while it
        was admitted."""
        running, now = dict(self._running), time.time()
        for subject in [subject for subject, count in running.items() if not count]:
            del self._running[subject]
        if running:
            async with DatabaseStates(self._store).locked(list(running)) as known:
                for subject, state in known.items():
                    tokens = state.running.get(self.process, Running()).tokens
                    state.running[self.process] = Running(running[subject], tokens if running[subject] else 0, now)


def _limits(caller: Caller, model: str) -> dict[str, KeyLimits]:
    """By subject: the key, and its project for this model."""
    found = {f"key:{caller.key_id}": caller.limits, f"project:{caller.owner}:{model}": caller.project_limits.get(model)}
    return {subject: limits for subject, limits in found.items() if limits and limits != KeyLimits()}


def _reservable(limits: Mapping[str, KeyLimits], prompt: int, answer: int) -> int:
    """Of an answer no more than fits beside its prompt: it rarely takes all of its `max_tokens`."""
    tpm = min((each.tpm for each in limits.values() if each.tpm), default=None)
    if tpm is None:
        return prompt + answer
    if prompt > tpm:
        raise TokensLimited(
            f"Request too large on tokens per min (TPM): Limit {tpm}, Requested {prompt}. The input must be reduced.",
            retry_after=60,
        )
    return min(prompt + answer, tpm)


def _refusal(state: LimitState, limits: KeyLimits, model: str, tokens: int, spent: int) -> ServiceError | None:
    if limits.budget and spent + state.reserved + tokens > limits.budget:
        return QuotaExceeded(
            f"You exceeded your current quota: of {limits.budget} tokens a month {min(spent, limits.budget)} are used",
            retry_after=round(_next_month() - time.time()),
        )
    if limits.parallel and state.num_running >= limits.parallel:
        return RequestsLimited(
            f"Rate limit reached for {model} on parallel requests: Limit {limits.parallel}, Used {state.num_running}",
            retry_after=PARALLEL_RETRY_S,
        )
    if wait := wait_for(state.requests, 1, limits.rpm):
        return RequestsLimited(
            _reached(model, "requests per min (RPM)", limits.rpm, state.requests, 1, wait), retry_after=_seconds(wait)
        )
    if wait := wait_for(state.tokens, tokens, limits.tpm):
        return TokensLimited(
            _reached(model, "tokens per min (TPM)", limits.tpm, state.tokens, tokens, wait), retry_after=_seconds(wait)
        )
    return None


def _reached(model: str, what: str, limit: int | None, used: float, requested: int, wait: float) -> str:
    return (
        f"Rate limit reached for {model} on {what}: Limit {limit}, Used {round(used)}, Requested {requested}. "
        f"Please try again in {_seconds(wait):g}s."
    )


def _report(known: Mapping[str, LimitState], limits: Mapping[str, KeyLimits]) -> None:
    """The tighter limit of each kind, for the headers of the answer."""
    requests = [RateStatus.of(each.rpm, known[subject].requests) for subject, each in limits.items() if each.rpm]
    tokens = [RateStatus.of(each.tpm, known[subject].tokens) for subject, each in limits.items() if each.tpm]
    report(
        requests=min(requests, key=lambda each: each.remaining, default=None),
        tokens=min(tokens, key=lambda each: each.remaining, default=None),
    )


def _seconds(wait: float) -> float:
    """Rounded up, so that the next attempt does not come too early."""
    return -(-wait * 1000 // 1) / 1000


def _month() -> float:
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


def _next_month() -> float:
    now = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return now.replace(year=now.year + now.month // 12, month=now.month % 12 + 1).timestamp()
