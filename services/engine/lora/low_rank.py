"""The weights of all adapters of a model in one tensor, and what they add to a layer's outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from services.engine.cpu import kernels
from services.engine.lora.adapter import Adapter, LowRank
from services.engine.lora.sites import Site, find_sites
from services.engine.lora.step_adapters import Ids, StepAdapters

NONE = -1  # the row of a token without an adapter
KERNEL_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class LowRankBank:
    """Never changed: adapters come and go with another bank, so that a running step keeps what it began with."""

    weights: Tensor  # [numbers]: of each adapter, of each of its layers: down [rank, inputs], up [rank, outputs]
    table: Tensor  # [adapters, sites, 2]: where a layer's numbers begin, and its rank; 0: it has none
    rows: Mapping[int, int]  # id -> row of the table
    layers: Mapping[int, Mapping[int, LowRank]]  # id -> site -> its part of `weights`

    @classmethod
    def empty(cls, device: torch.device, dtype: torch.dtype) -> "LowRankBank":
        return cls(torch.zeros(0, dtype=dtype, device=device), torch.zeros(0, 0, 2, dtype=torch.int64), {}, {})

    def with_adapter(self, id: int, adapter: Adapter, sites: Mapping[str, Site]) -> "LowRankBank":
        indexed = {sites[path].index: low_rank for path, low_rank in adapter.layers.items()}
        return self._of({**self.layers, id: indexed}, len(sites))

    def without_adapter(self, id: int) -> "LowRankBank":
        return self._of({each: layers for each, layers in self.layers.items() if each != id}, self.table.shape[1])

    def _of(self, adapters: Mapping[int, Mapping[int, LowRank]], num_sites: int) -> "LowRankBank":
        parts = [part for layers in adapters.values() for each in layers.values() for part in (each.down, each.up)]
        weights = torch.cat([part.to(self.weights.device).flatten() for part in parts]) if parts else self.weights[:0]
        table = torch.zeros(len(adapters), num_sites, 2, dtype=torch.int64)
        views: dict[int, dict[int, LowRank]] = {}
        start = 0
        for row, (id, layers) in enumerate(adapters.items()):
            views[id] = {}
            for site, each in layers.items():
                table[row, site] = torch.tensor([start, each.rank])
                middle, end = start + each.down.numel(), start + each.down.numel() + each.up.numel()
                views[id][site] = LowRank(
                    weights[start:middle].view_as(each.down), weights[middle:end].view_as(each.up)
                )
                start = end
        return LowRankBank(weights, table.to(weights.device), {id: row for row, id in enumerate(adapters)}, views)

    def added(self, out: Tensor, inputs: Tensor, site: Site, step: StepAdapters) -> Tensor | None:
        """`out` with what the adapter of each token adds; None where nothing is added."""
        ids = step.logits if site.is_head else step.tokens
        present = {id for id in ids if id is not None and site.index in self.layers[id]}
        if not present:
            return None
        flat = inputs.reshape(-1, site.inputs)
        if len(flat) != len(ids):
            raise ValueError(f"a layer is given {len(flat)} of {len(ids)} tokens")
        step.reached.add(site.index)
        if self._has_kernel(out, inputs):
            self.hand_over(step)
            return add_low_rank(out, inputs, site)
        sums = out.reshape(-1, site.outputs).clone()
        for id in sorted(present):
            layer = self.layers[id][site.index]
            rows = self._rows_of(id, ids, step)
            sums.index_add_(0, rows, (flat[rows] @ layer.down.T @ layer.up).to(sums.dtype))
        return sums.view_as(out)

    def _has_kernel(self, *tensors: Tensor) -> bool:
        return kernels.is_loaded() and all(
            each.device.type == "cpu" and each.dtype in KERNEL_DTYPES for each in (self.weights, *tensors)
        )

    def hand_over(self, step: StepAdapters) -> None:
        """To the kernel, for what this thread computes from now on."""
        if not step.is_handed_over:
            torch.ops.parley.use_adapters(
                self.weights, self.table, self._numbered(step.tokens), self._numbered(step.logits)
            )
            step.is_handed_over = True

    def _numbered(self, ids: Ids) -> Tensor:
        return torch.tensor([NONE if id is None else self.rows[id] for id in ids])

    def _rows_of(self, id: int, ids: Ids, step: StepAdapters) -> Tensor:
        key = (id, ids)
        if key not in step.rows:
            step.rows[key] = torch.tensor(
                [row for row, each in enumerate(ids) if each == id], device=self.weights.device
            )
        return step.rows[key]


def add_low_rank(out: Tensor, inputs: Tensor, site: Site) -> Tensor:
    """What the kernel makes of the adapters that were handed over to it."""
    sums: Tensor = torch.ops.parley.add_low_rank(out, inputs, site.index, site.is_head)
    return sums


def hook_kernel(model: nn.Module) -> None:
    """For a step that is compiled: behind each layer that an adapter may change, whether one does or not."""
    for site in find_sites(model).values():
        site.module.register_forward_hook(partial(_add_low_rank, site))


def _add_low_rank(site: Site, module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return add_low_rank(out, arguments[0], site)
