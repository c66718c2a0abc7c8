"""What one request used, measured from its events."""

import time
from collections import defaultdict
from dataclasses import replace

from database.models import CANCELLED
from database.models import Turn as TurnRow
from database.turn_repository import LockedTurn
from database.usage_repository import Usage, UsageBucket, UsageCounts, UsageKind
from services.callers import Caller, current
from services.chat.events import Compacted, Compacting, Event, Finish, Head

HOUR_S = 3600


def usage_of(caller: Caller, model: str, kind: UsageKind, counts: UsageCounts) -> Usage:
    """In the current hour."""
    return Usage(UsageBucket(_hour(), caller.owner, caller.key_id, model, kind), counts)


def input_usage(model: str, kind: UsageKind, tokens: int, started: float) -> Usage:
    """Of a request of the current caller that no tokens are generated for; `started`: by time.perf_counter."""
    counts = UsageCounts(requests=1, prompt_tokens=tokens, seconds=time.perf_counter() - started)
    return usage_of(current(), model, kind, counts)


class UsageMeter:
    """Counts the tokens of an answer, also of one that is cut short."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._caller = current()
        self._started = time.perf_counter()
        self._head: Head | None = None
        self._unfinished: defaultdict[int, int] = defaultdict(int)  # tokens by choice
        self._finished = UsageCounts()

    def add(self, event: Event) -> None:
        match event:
            case Head():
                self._head = event
            case Finish():
                self._unfinished.pop(event.index, None)
                self._finished += self._counts(event)
            case Compacting() | Compacted():
                pass
            case _:
                self._unfinished[event.index] += len(event.token_ids)

    def _counts(self, finish: Finish) -> UsageCounts:
        has_prompt = self._head is not None and finish.index % self._head.shares == 0  # choices share a prompt
        return UsageCounts(
            cached_tokens=finish.cached_tokens if has_prompt else 0,
            completion_tokens=finish.completion_tokens,
            reasoning_tokens=finish.reasoning_tokens,
        )

    @property
    def tokens(self) -> int:
        return self.usage(failed=False).counts.tokens

    def usage(self, *, failed: bool) -> Usage:
        rest = UsageCounts(
            requests=1,
            errors=int(failed),
            prompt_tokens=self._head.prompt_tokens if self._head else 0,
            completion_tokens=sum(self._unfinished.values()),
            seconds=time.perf_counter() - self._started,
        )
        return usage_of(self._caller, self._model, "completions", self._finished + rest)


def abandoned_usage(turn: TurnRow) -> Usage:
    """Of an admitted turn whose process is gone: its tokens are not known."""
    counts = UsageCounts(requests=1, errors=1)
    return Usage(UsageBucket(_hour(), turn.owner, turn.key_id or turn.owner, turn.model, "completions"), counts)


def settled(usage: Usage, turn: LockedTurn | None) -> Usage:
    """What is still to be counted of a turn that ends. One that was taken for abandoned is counted as an error
    already; of one that was cancelled or deleted (None) nothing is."""
    if turn is None or turn.completed_at is None or turn.status == CANCELLED:
        return usage
    counts = usage.counts
    return replace(usage, counts=replace(counts, requests=0, errors=counts.errors - 1))


def _hour() -> int:
    return int(time.time()) // HOUR_S * HOUR_S
