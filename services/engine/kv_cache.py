"""Keys and values of the running sequences: one contiguous slot each, no pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from mmap import mmap

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps of one token."""

    num_heads: int  # key/value heads
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.num_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class LayerCache:
    keys: Tensor  # [slots, heads, length + 1, key_dim]
    values: Tensor  # [slots, heads, length + 1, value_dim]


class SlotCache:
    """One LayerCache for each attention layer, by its `layer_idx`.

    The position behind the last one belongs to no token: compiled steps let rows write there that take no part.
    """

    def __init__(self, shapes: Mapping[int, LayerShape], num_slots: int, length: int, device: torch.device) -> None:
        self.shapes = dict(shapes)
        self.num_slots = num_slots
        self.length = length
        self.layers = {
            index: LayerCache(
                keys=_zeros((num_slots, shape.num_heads, length + 1, shape.key_dim), shape.dtype, device),
                values=_zeros((num_slots, shape.num_heads, length + 1, shape.value_dim), shape.dtype, device),
            )
            for index, shape in shapes.items()
        }


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, because masked garbage may be NaN and 0 x NaN is not 0.

    On the CPU straight from mmap: its pages cost memory only once they are written. `torch.zeros` touches all of them,
    and numpy asks for huge pages, of which each head of each slot would clear one at its first token.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap(-1, prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def fit(shapes: Mapping[int, LayerShape], num_slots: int, length: int, budget: int) -> int:
    """How many slots of `length` tokens fit into `budget` bytes; at most `num_slots`."""
    per_slot = (length + 1) * sum(shape.num_bytes for shape in shapes.values())
    return min(num_slots, budget // max(per_slot, 1))
