"""Keys and values in pages that slots share: on a GPU a slot costs what it holds, and a common prefix is held once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from services.engine.execution.kv_cache import LayerCache, LayerShape
from services.engine.scheduling.pages import CopyPage, Pages
from services.engine.scheduling.step import CacheChange, StepRow


class PagedCache:
    """One LayerCache for each attention layer: keys and values `[pages, page size, heads, dim]`.

    Behind the last page is one that belongs to nobody: rows that take no part in a step write there.
    """

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        num_pages: int,
        page_size: int,
        num_slots: int,
        length: int,
        device: torch.device,
    ) -> None:
        self.shapes = dict(shapes)
        self.num_slots = num_slots
        self.length = length
        self.device = device
        self.pages = Pages(num_pages, page_size, num_slots, length)
        self.spare = num_pages

        def bank(num_heads: int, dim: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(num_pages + 1, page_size, num_heads, dim, dtype=dtype, device=device)

        self.layers = {
            index: LayerCache(
                keys=bank(shape.num_heads, shape.key_dim, shape.dtype),
                values=bank(shape.num_heads, shape.value_dim, shape.dtype),
            )
            for index, shape in shapes.items()
        }

    def apply(self, changes: Sequence[CacheChange]) -> None:
        for change in changes:
            self.pages.apply(change)

    @torch.inference_mode()
    def claim(self, rows: Sequence[StepRow]) -> None:
        """Before a step writes: copies all that must not be written over, and only then anything is."""
        for row in rows:
            for copy in self.pages.claim(row.slot, row.start, row.end):
                self._copy(copy)

    def _copy(self, copy: CopyPage) -> None:
        for layer in self.layers.values():
            for bank in (layer.keys, layer.values):
                bank[copy.target, : copy.length] = bank[copy.source, : copy.length]
