"""Which slot of the cache holds which tokens. Plain Python: the scheduler plans on it, the runner's memory follows.

A slot keeps its tokens when its sequence ends, until somebody needs the room: a prompt that begins with them takes the
slot over or gets a copy of them instead of computing them again. Candidates are found by comparing, not by hashes of
blocks: halving over typed arrays costs microseconds a slot, finds the prefix to the token, and leaves no second book
that must be kept in step.

What one owner's sequences left serves no other owner's: how much of a prompt was found, and how long it took, would
tell what others have asked. Only the server's own text, with which a prompt may begin, is found by everybody.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import CacheChange, CacheKey, ClearSlot, CopySlot, SwapSlots

MIN_REUSE = 16  # tokens; copying fewer, or waiting for them, is not worth its bookkeeping
MOSTLY = 0.8  # so much of a free slot must be the prefix for it to be taken over; else the rest is worth keeping
SPARSE = 1.25  # slots for each running sequence between the lowest and the highest in use


@dataclass(slots=True, eq=False)
class Slot:
    index: int
    tokens: "array[int]" = field(default_factory=lambda: array("i"))  # whose keys and values it holds, from the start
    ahead: "array[int]" = field(default_factory=lambda: array("i"))  # what its holder is going to read
    holder: Sequence | None = None
    key: CacheKey | None = None  # of the last holder: who else finds what it holds
    used: int = 0  # when it was last of use; 0: it holds nothing worth keeping
    written: int = 0  # positions that may hold something: what it costs
    reach: int = 0  # positions that were ever written
    end: int = 0  # positions that its holder's step writes


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a slot has in common with a prompt."""

    slot: Slot
    length: int  # computed
    later: int  # once its holder has read its prompt

    @property
    def is_free(self) -> bool:
        """Whether the slot may be taken over: nearly all that it holds goes on living in the new sequence."""
        return self.slot.holder is None and self.length >= MOSTLY * len(self.slot.tokens)


class Slots:
    """`min_reuse`: tokens that are worth reusing; None: slots are forgotten as soon as they are given back.

    What is reused is a multiple of `block_size`; what a slot costs, of `page_size`.
    """

    def __init__(
        self, num_slots: int, min_reuse: int | None = MIN_REUSE, block_size: int = 1, page_size: int = 1
    ) -> None:
        self._slots = [Slot(index) for index in range(num_slots)]
        self._min_reuse = min_reuse
        self._block_size = block_size
        self._page_size = page_size
        self._ticks = count(1)
        self._changes: list[CacheChange] = []

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def num_free(self) -> int:
        return sum(slot.holder is None for slot in self._slots)

    @property
    def num_written(self) -> int:
        return sum(self._cost(slot.written) for slot in self._slots)

    def _cost(self, length: int) -> int:
        return -(-length // self._page_size) * self._page_size

    def changes(self) -> list[CacheChange]:
        """What the memory must follow, in this order, before the next step; handed out once."""
        changes, self._changes = self._changes, []
        return changes

    def search(self, sequence: Sequence) -> Iterator[Prefix]:
        """All that is worth reusing for a sequence; never its last token, which must be computed to be answered."""
        if self._min_reuse is None or len(sequence.tokens) <= self._min_reuse:
            return
        wanted = array("i", sequence.keys(0, -1))
        public = wanted[: sequence.job.num_public]
        for slot in self._slots:
            is_own = slot.key == sequence.cache_key
            length = later = self._common(wanted if is_own else public, slot.tokens)
            # nobody waits for what another owner reads
            if is_own and slot.holder and (length == len(slot.tokens) or not length):
                later = max(length, self._common(wanted, slot.ahead))
            if later:
                yield Prefix(slot, length, later)

    def _common(self, wanted: "array[int]", held: "array[int]") -> int:
        assert self._min_reuse is not None
        return common_prefix(wanted, held, self._min_reuse) // self._block_size * self._block_size

    def take(self, sequence: Sequence, prefix: Prefix | None) -> None:
        """Gives a sequence a slot, and in it what is already known of its tokens."""
        free = [slot for slot in self._slots if slot.holder is None]
        slot = min(free, key=lambda slot: (slot.used, slot.index))  # low ones first keep the part in use dense
        if prefix and prefix.length:
            if prefix.is_free:
                slot = prefix.slot
            elif slot is not prefix.slot:
                self._copy(prefix.slot, slot, prefix.length)
        length = prefix.length if prefix else 0
        del slot.tokens[length:]
        slot.ahead = array("i", sequence.keys())
        slot.end = length
        slot.holder, slot.key, sequence.slot, sequence.num_computed = sequence, sequence.cache_key, slot.index, length
        sequence.num_found, sequence.num_known = length, len(sequence.tokens)

    def advance(self, sequence: Sequence, end: int) -> None:
        """What is computed by now, and how far the next step will write."""
        slot = self._of(sequence)
        slot.tokens.extend(sequence.keys(len(slot.tokens), sequence.num_computed))
        slot.written = max(slot.written, end)
        slot.reach = max(slot.reach, end)
        slot.end = end

    def give_back(self, sequence: Sequence) -> None:
        slot = self._of(sequence)
        self.advance(sequence, sequence.num_computed)
        slot.holder = sequence.slot = None
        if self._min_reuse is None:
            self._forget(slot)
        else:
            slot.used = next(self._ticks) if len(slot.tokens) > self._min_reuse else 0

    def invalidate(self, sequence: Sequence) -> None:
        """Gives back a slot whose content may be anything: masked or not, not-a-number would reach the next one."""
        slot = self._of(sequence)
        slot.holder = sequence.slot = None
        self._forget(slot)

    def forget_all(self) -> None:
        """Everything in every slot, also where it was forgotten before: who knows whether that was done."""
        for slot in self._slots:
            if slot.holder:
                slot.holder.slot = None
            slot.holder, slot.written = None, slot.reach
            self._forget(slot)

    def make_room(self, surplus: int) -> None:
        """Forgets what nobody is using, the least recently used first, until `surplus` positions are given up."""
        for slot in sorted(self._slots, key=lambda slot: slot.used):
            if surplus > 0 and slot.holder is None and slot.written:
                surplus -= self._cost(slot.written)
                self._forget(slot)
        for slot in self._slots:
            needed = max(len(slot.holder.tokens), slot.end) if slot.holder else 0
            gain = self._cost(slot.written) - self._cost(needed)
            if surplus > 0 and gain > 0:
                surplus -= gain
                self._forget(slot, needed)

    def close_up(self) -> None:
        """Moves sequences that run far from the others into their midst: a step works on all slots between them."""
        held = [slot for slot in self._slots if slot.holder]
        while held and held[-1].index - held[0].index >= SPARSE * len(held):
            middle = held[len(held) // 2].index
            outer = max(held[0], held[-1], key=lambda slot: abs(slot.index - middle))
            free = [slot for slot in self._slots if slot.holder is None]
            self._swap(outer, min(free, key=lambda slot: abs(slot.index - middle)))
            held = [slot for slot in self._slots if slot.holder]

    def _of(self, sequence: Sequence) -> Slot:
        assert sequence.slot is not None
        return self._slots[sequence.slot]

    def _copy(self, source: Slot, target: Slot, length: int) -> None:
        source.used = next(self._ticks) if source.holder is None else source.used
        target.tokens = source.tokens[:length]
        target.written = max(target.written, length)
        target.reach = max(target.reach, length)
        self._changes.append(CopySlot(source.index, target.index, length))

    def _swap(self, one: Slot, other: Slot) -> None:
        """Slots change places, so that everything known of them goes along; `reach` is the place's own."""
        length = one.written = other.written = max(one.written, other.written)
        self._changes.append(SwapSlots(one.index, other.index, length))
        one.index, other.index = other.index, one.index
        one.reach, other.reach = max(other.reach, length), max(one.reach, length)
        self._slots[one.index], self._slots[other.index] = one, other
        for slot in (one, other):
            if slot.holder:
                slot.holder.slot = slot.index

    def _forget(self, slot: Slot, start: int = 0) -> None:
        if slot.written > start:
            self._changes.append(ClearSlot(slot.index, start, slot.written))
        slot.written = min(slot.written, start)
        del slot.tokens[start:]
        if not slot.tokens:
            slot.used = 0


def common_prefix(one: "array[int]", other: "array[int]", least: int) -> int:
    """How many tokens they begin with in common, by halving; 0 for fewer than `least`."""
    low, high = 0, min(len(one), len(other))
    if high < least or one[:least] != other[:least]:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
