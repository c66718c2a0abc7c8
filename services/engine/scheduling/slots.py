"""The prefix cache: which slot holds which tokens. The scheduler plans with it, and the KV cache follows its changes.

A slot keeps its tokens when its sequence ends, until the room is needed: a prompt with the same prefix takes the slot
over or gets a copy of it instead of computing it again. Prefixes are found by comparison, not by hashes of blocks: a
binary search over typed arrays costs microseconds a slot, finds the prefix to the token, and needs no second index.

The tokens of one owner serve no other owner: the number of cached tokens, and the time, would reveal what others have
sent. Only the server's own text at the beginning of a prompt is found by every owner.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.snapshots import SnapshotPrefix, Snapshots
from services.engine.scheduling.step import (
    CacheChange,
    CacheKey,
    ClearSlot,
    CopySlot,
    SaveSnapshot,
    SnapshotRoom,
    SwapSlots,
)

MIN_REUSE = 16  # tokens; fewer are not worth a copy or a wait
MOSTLY = 0.8  # share of a free slot that the prefix must be for it to be taken over; else it is copied
SPARSE = 1.25  # slots from the lowest to the highest in use, for each running sequence


@dataclass(slots=True, eq=False)
class Slot:
    index: int
    tokens: "array[int]" = field(default_factory=lambda: array("i"))  # whose keys and values it holds
    pending: "array[int]" = field(default_factory=lambda: array("i"))  # that its holder is going to compute
    holder: Sequence | None = None
    key: CacheKey | None = None  # of the last holder
    last_used: int = 0  # 0: it holds nothing worth keeping
    written: int = 0  # positions that take memory
    reach: int = 0  # positions that were ever written
    end: int = 0  # positions after its holder's step


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix that a slot and a prompt have in common."""

    slot: Slot
    length: int  # computed
    later: int  # once its holder has computed its prompt

    @property
    def holder(self) -> Sequence | None:
        return self.slot.holder

    @property
    def is_free(self) -> bool:
        """Whether the slot may be taken over: nearly all of it is the prefix."""
        return self.slot.holder is None and self.length >= MOSTLY * len(self.slot.tokens)


class Slots:
    """`min_reuse`: tokens that are worth reusing; None: slots are cleared when they are released.

    Prefixes are multiples of `block_size`; the memory of a slot, of `page_size`. `room`: of snapshots, where the
    content of a slot cannot serve another sequence.
    """

    def __init__(
        self,
        num_slots: int,
        min_reuse: int | None = MIN_REUSE,
        block_size: int = 1,
        page_size: int = 1,
        room: SnapshotRoom | None = None,
    ) -> None:
        assert min_reuse is None or room is None
        self.slots = [Slot(index) for index in range(num_slots)]
        self._min_reuse = min_reuse
        self._block_size = block_size
        self._page_size = page_size
        self._ticks = count(1)
        self.snapshots = Snapshots(room) if room else None
        self._changes: list[CacheChange] = []

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def reuses(self) -> bool:
        return self._min_reuse is not None or self.snapshots is not None

    @property
    def num_free(self) -> int:
        return sum(slot.holder is None for slot in self.slots)

    @property
    def num_written(self) -> int:
        return sum(self._cost(slot.written) for slot in self.slots)

    def _cost(self, length: int) -> int:
        return -(-length // self._page_size) * self._page_size

    def changes(self) -> list[CacheChange]:
        """To be applied to the KV cache, in this order, before the next step; returned once."""
        self._add_snapshot_changes()
        changes, self._changes = self._changes, []
        return changes

    def _add_snapshot_changes(self) -> None:
        if self.snapshots:
            self._changes += self.snapshots.changes()

    def find_prefixes(self, sequence: Sequence) -> Iterator[Prefix | SnapshotPrefix]:
        """The prefixes that a sequence can reuse; never its last token, whose logits are needed."""
        if self.snapshots:
            yield from self.snapshots.find_prefixes(sequence)
        if self._min_reuse is None or len(sequence.tokens) <= self._min_reuse:
            return
        wanted = array("i", sequence.keys(0, -1))
        public = wanted[: sequence.job.num_public]
        for slot in self.slots:
            if slot.key and (slot.key.is_long, slot.key.adapter) != (sequence.is_long, sequence.adapter):
                continue
            is_own = slot.key == sequence.cache_key
            length = later = self._common(wanted if is_own else public, slot.tokens)
            # no sequence waits for another owner's
            if is_own and slot.holder and (length == len(slot.tokens) or not length):
                later = max(length, self._common(wanted, slot.pending))
            if later:
                yield Prefix(slot, length, later)

    def _common(self, wanted: "array[int]", held: "array[int]") -> int:
        assert self._min_reuse is not None
        return common_prefix(wanted, held, self._min_reuse) // self._block_size * self._block_size

    def allocate(self, sequence: Sequence, prefix: Prefix | SnapshotPrefix | None) -> None:
        """Gives a sequence a slot, with its prefix in it."""
        free = [slot for slot in self.slots if slot.holder is None]
        slot = min(free, key=lambda slot: (slot.last_used, slot.index))  # dense from the lowest
        length = 0
        if self.snapshots:
            length = self.snapshots.begin(sequence, slot.index)
            self._add_snapshot_changes()
        elif isinstance(prefix, Prefix) and prefix.length:
            length = prefix.length
            if prefix.is_free:
                slot = prefix.slot
            elif slot is not prefix.slot:
                self._copy(prefix.slot, slot, length)
        del slot.tokens[length:]
        slot.pending = array("i", sequence.keys())
        slot.end = length
        slot.holder, slot.key, sequence.slot, sequence.num_computed = sequence, sequence.cache_key, slot.index, length
        sequence.num_found, sequence.num_known = length, len(sequence.tokens)

    def advance(self, sequence: Sequence, end: int) -> None:
        """Records the tokens that were computed, and how far the next step will write."""
        slot = self._of(sequence)
        slot.tokens.extend(sequence.keys(len(slot.tokens), sequence.num_computed))
        slot.written = max(slot.written, end)
        slot.reach = max(slot.reach, end)
        slot.end = end
        if self.snapshots:
            self.snapshots.advance(sequence)

    def saves(self, sequence: Sequence, end: int) -> tuple[SaveSnapshot, ...]:
        """Snapshots that the next step takes of it."""
        return self.snapshots.saves(sequence, sequence.num_computed, end) if self.snapshots else ()

    def release(self, sequence: Sequence) -> None:
        slot = self._of(sequence)
        self.advance(sequence, sequence.num_computed)
        if self.snapshots:
            self.snapshots.release(sequence)
        slot.holder = sequence.slot = None
        if self._min_reuse is None:
            self._clear(slot)
        else:
            slot.last_used = next(self._ticks) if len(slot.tokens) > self._min_reuse else 0

    def invalidate(self, sequence: Sequence) -> None:
        """Releases and clears a slot with invalid content: NaN reaches the next sequence even where it is masked."""
        slot = self._of(sequence)
        if self.snapshots:
            self.snapshots.invalidate(sequence)
        slot.holder = sequence.slot = None
        self._clear(slot)

    def invalidate_all(self) -> None:
        """Clears every slot, also the parts that were cleared before: that may not have been done."""
        if self.snapshots:
            self.snapshots.clear()
        for slot in self.slots:
            if slot.holder:
                slot.holder.slot = None
            slot.holder, slot.written = None, slot.reach
            self._clear(slot)

    def evict(self, surplus: int) -> None:
        """Clears free slots, the least recently used first, until `surplus` positions are freed."""
        for slot in sorted(self.slots, key=lambda slot: slot.last_used):
            if surplus > 0 and slot.holder is None and slot.written:
                surplus -= self._cost(slot.written)
                self._clear(slot)
        for slot in self.slots:
            needed = max(len(slot.holder.tokens), slot.end) if slot.holder else 0
            gain = self._cost(slot.written) - self._cost(needed)
            if surplus > 0 and gain > 0:
                surplus -= gain
                self._clear(slot, needed)

    def compact(self) -> None:
        """Swaps outlying slots towards the others: a step computes all slots between the lowest and the highest."""
        held = [slot for slot in self.slots if slot.holder]
        while held and held[-1].index - held[0].index >= SPARSE * len(held):
            middle = held[len(held) // 2].index
            outer = max(held[0], held[-1], key=lambda slot: abs(slot.index - middle))
            free = [slot for slot in self.slots if slot.holder is None]
            self._swap(outer, min(free, key=lambda slot: abs(slot.index - middle)))
            held = [slot for slot in self.slots if slot.holder]

    def _of(self, sequence: Sequence) -> Slot:
        assert sequence.slot is not None
        return self.slots[sequence.slot]

    def _copy(self, source: Slot, target: Slot, length: int) -> None:
        source.last_used = next(self._ticks) if source.holder is None else source.last_used
        target.tokens = source.tokens[:length]
        target.written = max(target.written, length)
        target.reach = max(target.reach, length)
        self._changes.append(CopySlot(source.index, target.index, length))

    def _swap(self, one: Slot, other: Slot) -> None:
        """Slots change places with all their records; `reach` belongs to the place."""
        length = one.written = other.written = max(one.written, other.written)
        self._changes.append(SwapSlots(one.index, other.index, length))
        one.index, other.index = other.index, one.index
        one.reach, other.reach = max(other.reach, length), max(one.reach, length)
        self.slots[one.index], self.slots[other.index] = one, other
        for slot in (one, other):
            if slot.holder:
                slot.holder.slot = slot.index

    def _clear(self, slot: Slot, start: int = 0) -> None:
        if slot.written > start:
            self._changes.append(ClearSlot(slot.index, start, slot.written))
        slot.written = min(slot.written, start)
        del slot.tokens[start:]
        if not slot.tokens:
            slot.last_used = 0


def common_prefix(one: "array[int]", other: "array[int]", least: int) -> int:
    """Length of the common prefix, by binary search; 0 for less than `least`."""
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
