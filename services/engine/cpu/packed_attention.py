"""Attention of a step's packed tokens by our kernel: no bit of a token depends on what else is in the step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from services.engine.cpu import kernels
from services.engine.cpu.attention import Scoring
from services.engine.execution.kv_cache import SCALE_BYTES, LayerShape, SlotCache
from services.engine.scheduling.step import StepRow

WIDEST = 256  # numbers of a head, whatever the processor
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """`ends` (of what each token sees), `writes` (where its key and value go) and `slots` [tokens]; `layers`: the
    memory's keys and values."""

    ends: Tensor
    writes: Tensor
    slots: Tensor
    layers: Mapping[int, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, rows: list[StepRow], cache: SlotCache) -> "PackedAttention":
        positions = torch.tensor([position for row in rows for position in range(row.start, row.end)])
        slots = torch.tensor([row.slot for row in rows for _ in range(row.num_tokens)])
        layers = {index: (layer.keys, layer.values) for index, layer in cache.layers.items()}
        return cls(positions + 1, positions, slots, layers)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        cached_keys, cached_values = self.layers[layer]
        self._write(cached_keys, keys)
        self._write(cached_values, values)
        window = scoring.window
        begins = torch.zeros_like(self.ends) if window is None else (self.ends - window).clamp(min=0)
        return kernels.attend(queries, cached_keys, cached_values, self.slots, begins, self.ends, scoring)

    def _write(self, cache: Tensor, new: Tensor) -> None:
        if cache.dtype == torch.int8:
            new = kernels.round_rows(new)
        heads = torch.arange(new.shape[1])[None]
        cache.index_put_((self.slots[:, None], heads, self.writes[:, None]), new)


def can_attend(cache: SlotCache) -> bool:
    """Whether the kernel is for such a memory; whether there is one is `kernels.is_loaded`."""
    on_cpu = all(layer.keys.device.type == "cpu" for layer in cache.layers.values())
    return on_cpu and all(is_known(shape) for shape in cache.shapes.values())


def is_known(shape: LayerShape) -> bool:
    whole = shape.dtype != torch.int8 or (shape.key_dim | shape.value_dim) % SCALE_BYTES == 0  # scales lie aligned
    return whole and shape.dtype in DTYPES and max(shape.key_dim, shape.value_dim) <= WIDEST
