"""Rounds between owners: who comes next, who gives way, how a step and a queue are shared. Plain Python, no clock.

An owner is whoever one key belongs to. Priorities order the sequences of one owner; between owners they mean nothing,
or a flood with an urgent number would be first everywhere. With a single owner every order here is that by priority and
arrival alone.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as List
from itertools import count

from services.engine.scheduling.sequence import Sequence

SLICE = 16  # tokens that a sequence writes before it gives way to another owner, who holds less
QUANTUM = 256  # tokens after which it gives way to one who holds nothing, though it holds no more than its share
REREAD = 64  # tokens that may be read again for one that was written: a long past gives way less often
MOST = 2  # queues full, that all owners together may wait in beyond the first

SizeOf = Callable[[Sequence], int]


def rank(sequence: Sequence) -> tuple[int, int]:
    """Among one owner's."""
    return sequence.job.priority, sequence.arrival


def usage(sequences: Iterable[Sequence], size: SizeOf) -> Counter[str]:
    """What each owner holds."""
    held: Counter[str] = Counter()
    for each in sequences:
        held[each.job.owner] += size(each)
    return held


class RoundRobin:
    """Remembers who had its turn last; there are as many entries as keys."""

    def __init__(self) -> None:
        self._latest: dict[str, int] = {}
        self._ticks = count(1)

    def record_turn(self, owner: str) -> None:
        self._latest[owner] = next(self._ticks)

    def order(self, waiting: List[Sequence], held: Counter[str]) -> Iterator[Sequence]:
        """Each time the next one of the owner that holds the fewest slots, then of the one whose turn is longest ago.
        What it gives counts as held; who reads it may take from `held` meanwhile."""
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


def heaviest(running: List[Sequence], size: SizeOf) -> Sequence:
    """The last in order of the owner that holds the most: the first to go where there is not enough for all."""
    held = usage(running, size)
    return max(running, key=lambda each: (held[each.job.owner], rank(each)))


def victim(running: List[Sequence], coming: Sequence, size: SizeOf) -> Sequence | None:
    """Who gives way to `coming`, if anybody must: the last in order of the owner that holds the most, and then still
    no less than the other. Who has begun to read writes first, so that all of them come to an end."""
    owner = coming.job.owner
    held = usage(running, size)
    wanted = held[owner] + size(coming)

    def gives_way(each: Sequence) -> bool:
        if held[each.job.owner] - size(each) >= wanted:
            return each.num_computed <= each.num_found or _has_written(each, SLICE)
        return not held[owner] and _has_written(each, QUANTUM)

    found = [each for each in running if each.job.owner != owner and gives_way(each)]
    return max(found, key=lambda each: (held[each.job.owner], rank(each)), default=None)


def _has_written(sequence: Sequence, least: int) -> bool:
    return sequence.num_written >= max(least, len(sequence.tokens) // REREAD)


def prefill_shares(reading: List[Sequence], left: int) -> dict[Sequence, int]:
    """Tokens of a step for each of those that read, which are in order: as much for one owner as for another, and what
    one cannot use is for the rest."""
    shares: dict[Sequence, int] = {}
    owners = sorted(by_owner(reading).values(), key=lambda own: sum(each.num_pending for each in own))
    for claimants, own in zip(range(len(owners), 0, -1), owners, strict=True):
        given = _among_one_owners(own, left // claimants)
        left -= sum(given.values())
        shares |= given
    return shares


def _among_one_owners(reading: List[Sequence], left: int) -> dict[Sequence, int]:
    """Half is for the prompt that is first in order, the rest for the shortest first."""
    first, *others = reading
    reserved = min(first.num_pending, (left + 1) // 2)
    left -= reserved
    shares = {first: reserved}
    for sequence in sorted(others, key=lambda sequence: (sequence.job.priority, sequence.num_pending)):
        shares[sequence] = min(sequence.num_pending, left)
        left -= shares[sequence]
    shares[first] += min(first.num_pending - reserved, left)
    return shares


def may_queue(held: Counter[str], owner: str, amount: int, size: int) -> bool:
    """Whether a queue of `size` takes so much more of an owner's. One alone may fill it; once it is full, whoever has
    less than an equal part still comes in, up to `MOST` queues full, and whoever has nothing there always does."""
    total, own = held.total(), held[owner]
    if total + amount <= size or not own:
        return True
    return own + amount <= equal_part(held, owner, size) and total + amount <= MOST * size


def full(what: str, held: Counter[str], owner: str) -> str:
    """Said to whom it is refused."""
    if set(+held) <= {owner}:
        return what
    return f"{what}, and this key has its share of it: {held[owner]} of {held.total()}"


def equal_part(held: Counter[str], owner: str, size: int) -> int:
    return size // len({owner, *(+held)})
