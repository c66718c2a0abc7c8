"""The page table: which pages of the KV cache hold a slot's tokens. No tensors.

Slots share the pages of a common prefix. A shared page is never written: copy on write gives the slot a page of its
own first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.engine.scheduling.step import CacheChange, ClearSlot, CopySlot, SwapSlots


@dataclass(frozen=True, slots=True)
class CopyPage:
    """The first `length` positions of one page to another."""

    source: int
    target: int
    length: int


class Pages:
    """Never runs out while all slots together, each rounded up to whole pages, hold no more than there are."""

    def __init__(self, num_pages: int, page_size: int, num_slots: int, length: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        # one row a slot, valid as far as `_sizes`
        self.table: NDArray[np.int32] = np.zeros((num_slots, self.needed(length)), np.int32)
        self._sizes = [0] * num_slots  # pages of each slot
        self.num_users = [0] * num_pages  # slots of each page
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def needed(self, length: int) -> int:
        return -(-length // self.page_size)

    def of(self, slot: int) -> list[int]:
        pages: list[int] = self.table[slot, : self._sizes[slot]].tolist()
        return pages

    def apply(self, change: CacheChange) -> None:
        match change:
            case CopySlot(source, target, length):
                self._share(source, target, self.needed(length))
            case SwapSlots(one, other):
                self.table[[one, other]] = self.table[[other, one]]
                self._sizes[one], self._sizes[other] = self._sizes[other], self._sizes[one]
            case ClearSlot(slot, start):
                self._cut(slot, self.needed(start))

    def owns(self, slot: int, position: int) -> bool:
        """Whether the page of this position is there and not shared."""
        index = position // self.page_size
        return index < self._sizes[slot] and self.num_users[self.table[slot, index]] == 1

    def claim(self, slot: int, start: int, end: int) -> list[CopyPage]:
        """Makes the pages of these positions the slot's own. Returns the copies to be made before they are written."""
        first = start // self.page_size
        assert first <= self._sizes[slot]
        copies = []
        for index in range(first, self.needed(end)):
            if index == self._sizes[slot]:
                self._append(slot, self._free.pop())
            elif self.num_users[page := int(self.table[slot, index])] > 1:
                own = self._replace(slot, index, page)
                if index == first and start % self.page_size:
                    copies.append(CopyPage(page, own, start % self.page_size))
        return copies

    def _share(self, source: int, target: int, size: int) -> None:
        assert size <= self._sizes[source]
        self._cut(target, 0)
        for page in self.table[source, :size].tolist():
            self._append(target, page)

    def _append(self, slot: int, page: int) -> None:
        self.table[slot, self._sizes[slot]] = page
        self._sizes[slot] += 1
        self.num_users[page] += 1

    def _replace(self, slot: int, index: int, page: int) -> int:
        own = self._free.pop()
        self.table[slot, index] = own
        self.num_users[own] = 1
        self.num_users[page] -= 1
        return own

    def _cut(self, slot: int, size: int) -> None:
        for page in self.of(slot)[size:]:
            self.num_users[page] -= 1
            if not self.num_users[page]:
                self._free.append(page)
        self._sizes[slot] = min(size, self._sizes[slot])
