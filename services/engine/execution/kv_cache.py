"""Keys and values of the running sequences: one contiguous slot each, no pages."""

import mmap
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from services.engine.scheduling.step import CacheChange, ClearSlot, CopySlot, SwapSlots

PAGE = mmap.PAGESIZE
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.13 on
SCALE_BYTES = 4  # at the end of a row of 8-bit numbers: what each of them is to be multiplied with
LINUX = sys.platform == "linux"  # elsewhere memory that was advised away need not come back as zeros


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps of one token."""

    num_heads: int  # key/value heads
    key_dim: int
    value_dim: int
    dtype: torch.dtype  # int8: each row of numbers has a scale of its own

    @property
    def key_width(self) -> int:
        """Elements of a row."""
        return self.key_dim + self._scale_width

    @property
    def value_width(self) -> int:
        return self.value_dim + self._scale_width

    @property
    def num_bytes(self) -> int:
        return self.num_heads * (self.key_width + self.value_width) * self.dtype.itemsize

    @property
    def _scale_width(self) -> int:
        return SCALE_BYTES if self.dtype == torch.int8 else 0

    def in_8_bits(self) -> "LayerShape":
        return replace(self, dtype=torch.int8)


@dataclass(frozen=True, slots=True)
class LayerCache:
    keys: Tensor  # [slots, heads, length + 1, key_width]
    values: Tensor  # [slots, heads, length + 1, value_width]


class SlotCache:
    """One LayerCache for each attention layer, by its `layer_idx`.

    The position behind the last one belongs to no token: compiled steps let rows write there that take no part.
    """

    def __init__(self, shapes: Mapping[int, LayerShape], num_slots: int, length: int, device: torch.device) -> None:
        self.shapes = dict(shapes)
        self.num_slots = num_slots
        self.length = length
        self._banks: list[_Bank] = []
        self.layers = {
            index: LayerCache(
                keys=self._bank((num_slots, shape.num_heads, length + 1, shape.key_width), shape.dtype, device),
                values=self._bank((num_slots, shape.num_heads, length + 1, shape.value_width), shape.dtype, device),
            )
            for index, shape in shapes.items()
        }

    @torch.inference_mode()
    def apply(self, changes: Sequence[CacheChange]) -> None:
        for change in changes:
            for bank in self._banks:
                bank.apply(change)

    def _bank(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        self._banks.append(_Bank.zeros(shape, dtype, device))
        return self._banks[-1].tensor


@dataclass(frozen=True, slots=True)
class _Bank:
    tensor: Tensor  # [slots, heads, length, dim]
    memory: mmap.mmap | None  # what it lies in, where that can be given back in parts

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> "_Bank":
        """Zeros, because masked garbage may be NaN and 0 x NaN is not 0.

        On the CPU straight from the kernel: its pages cost memory only once they are written. `torch.zeros` touches
        all of them, and huge pages would be cleared whole for the first token of each head of each slot.
        """
        if device.type != "cpu":
            return cls(torch.zeros(shape, dtype=dtype, device=device), None)
        memory = _memory(prod(shape) * dtype.itemsize)
        return cls(torch.frombuffer(memory, dtype=dtype).view(shape), memory if LINUX else None)

    def apply(self, change: CacheChange) -> None:
        tensor = self.tensor
        match change:
            case CopySlot(source, target, length):
                tensor[target, :, :length] = tensor[source, :, :length]
            case SwapSlots(one, other, length):
                kept = tensor[one, :, :length].clone()
                tensor[one, :, :length] = tensor[other, :, :length]
                tensor[other, :, :length] = kept
            case ClearSlot(slot, 0) if self.memory:
                self._clear(tensor[slot])
            case ClearSlot(slot, start, end):
                for head in tensor[slot]:
                    self._clear(head[start:end])

    def _clear(self, part: Tensor) -> None:
        """Zeros again, by giving whole pages back."""
        item = part.element_size()
        begin = part.storage_offset() * item
        end = begin + part.numel() * item
        first, last = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
        if self.memory is None or first >= last:
            part.zero_()
            return
        flat = part.view(-1)
        flat[: (first - begin) // item].zero_()
        flat[(last - begin) // item :].zero_()
        self.memory.madvise(mmap.MADV_DONTNEED, first, last - first)


def _memory(size: int) -> mmap.mmap:
    if not LINUX:
        return mmap.mmap(-1, size)
    # private: of shared memory nothing can be given back; not reserved: slots are as long as the context, few get full
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def fit(shapes: Mapping[int, LayerShape], num_slots: int, length: int, budget: int) -> int:
    """How many slots of `length` tokens fit into `budget` bytes; at most `num_slots`."""
    per_slot = (length + 1) * sum(shape.num_bytes for shape in shapes.values())
    return min(num_slots, budget // max(per_slot, 1))
