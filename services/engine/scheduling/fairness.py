"""Fairness between owners: admission order, preemption, and shares of a step's token budget and of a queue.

An owner is the holder of an API key. Priorities order the sequences of one owner only: otherwise a flood of requests
with an urgent number would be first everywhere. With a single owner all orders are by priority and arrival.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as List
from itertools import count

from services.engine.scheduling.sequence import Sequence

SLICE = 16  # tokens that a sequence decodes before it may be preempted for an owner that holds less
QUANTUM = 256  # tokens after which it may be preempted for one that holds nothing, within its share or not
REREAD = 64  # tokens that may be computed again for each decoded one: a long context is preempted less often
MOST = 2  # times the size of a queue, up to which owners below their share are admitted

SizeOf = Callable[[Sequence], int]


def rank(sequence: Sequence) -> tuple[int, int]:
    """Within one owner."""
    return sequence.job.priority, sequence.arrival


def usage(sequences: Iterable[Sequence], size: SizeOf) -> Counter[str]:
    """What each owner holds, by `size`."""
    held: Counter[str] = Counter()
    for each in sequences:
        held[each.job.owner] += size(each)
    return held


class RoundRobin:
    """Remembers when each owner had its last turn."""

    def __init__(self) -> None:
        self._latest: dict[str, int] = {}
        self._ticks = count(1)

    def record_turn(self, owner: str) -> None:
        self._latest[owner] = next(self._ticks)

    def order(self, waiting: List[Sequence], held: Counter[str]) -> Iterator[Sequence]:
        """Yields the next sequence of the owner with the fewest slots, then of the one whose last turn is longest ago.
        A yielded sequence counts as held; the caller may change `held` meanwhile."""
        queues = {owner: deque(own) for owner, own in by_owner(waiting).items()}
        while queues:
            owner = min(queues, key=lambda owner: (held[owner], self._latest.get(owner, 0)))
            sequence = queues[owner].popleft()
            if not queues[owner]:
                del queues[owner]
            held[owner] += 1
            yield sequence


def by_owner(sequences: Iterable[Sequence]) -> dict[str, list[Sequence]]:
    found: dict[str, list[Sequence]] = {}
    for each in sequences:
        found.setdefault(each.job.owner, []).append(each)
    return found


def preemption_victim(running: List[Sequence], size: SizeOf) -> Sequence:
    """The last in order of the owner that holds the most."""
    held = usage(running, size)
    return max(running, key=lambda each: (held[each.job.owner], rank(each)))


def victim(running: List[Sequence], coming: Sequence, size: SizeOf) -> Sequence | None:
    """The sequence to be preempted for `coming`: the last in order of the owner that holds the most, and after it still
    no less than the other. One that began its prefill decodes a slice first, so that all of them finish."""
    owner = coming.job.owner
    held = usage(running, size)
    wanted = held[owner] + size(coming)

    def is_preemptible(each: Sequence) -> bool:
        if held[each.job.owner] - size(each) >= wanted:
            return each.num_computed <= each.num_found or _has_decoded(each, SLICE)
        return not held[owner] and _has_decoded(each, QUANTUM)

    found = [each for each in running if each.job.owner != owner and is_preemptible(each)]
    return max(found, key=lambda each: (held[each.job.owner], rank(each)), default=None)


def _has_decoded(sequence: Sequence, least: int) -> bool:
    return sequence.num_written >= max(least, len(sequence.tokens) // REREAD)


def prefill_shares(prefilling: List[Sequence], left: int) -> dict[Sequence, int]:
    """Tokens of a step for each sequence in prefill, which are in order: equal shares for the owners, and the rest of a
    share that its owner cannot use for the others."""
    shares: dict[Sequence, int] = {}
    owners = sorted(by_owner(prefilling).values(), key=lambda own: sum(each.num_pending for each in own))
    for claimants, own in zip(range(len(owners), 0, -1), owners, strict=True):
        given = _among_one_owners(own, left // claimants)
        left -= sum(given.values())
        shares |= given
    return shares


def _among_one_owners(prefilling: List[Sequence], left: int) -> dict[Sequence, int]:
    """Half for the prompt that is first in order, the rest for the shortest first."""
    first, *others = prefilling
    reserved = min(first.num_pending, (left + 1) // 2)
    left -= reserved
    shares = {first: reserved}
    for sequence in sorted(others, key=lambda sequence: (sequence.job.priority, sequence.num_pending)):
        shares[sequence] = min(sequence.num_pending, left)
        left -= shares[sequence]
    shares[first] += min(first.num_pending - reserved, left)
    return shares


def may_queue(held: Counter[str], owner: str, amount: int, size: int) -> bool:
    """Whether a queue of `size` admits so much more of an owner. One owner alone may fill it. In a full queue an owner
    below its equal share is still admitted, up to `MOST` times the size, and one that has nothing in it always is."""
    total, own = held.total(), held[owner]
    if total + amount <= size or not own:
        return True
    return own + amount <= equal_part(held, owner, size) and total + amount <= MOST * size


def queue_full_message(what: str, held: Counter[str], owner: str) -> str:
    """The message of the refusal."""
    if set(+held) <= {owner}:
        return what
    return f"{what}, and this key has its share of it: {held[owner]} of {held.total()}"


def equal_part(held: Counter[str], owner: str, size: int) -> int:
    return size // len({owner, *(+held)})
