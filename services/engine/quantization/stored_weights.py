"""Weights as quantised checkpoints in safetensors have them: what a format reads, and what a model is made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from services.engine.quantization.quantized_blocks import (
    INPUTS,
    BlockFormat,
    BlockSource,
    QuantizedBlocks,
    factor_of,
)

AT_ONCE = 2**22  # weights that are unpacked at once
OUTPUTS = 64  # of which they are a multiple: checkpoints have up to 32 numbers in a word
HALF = 4  # bits of the smallest codes that there is a kernel for


class StoredWeight(Protocol):
    @property
    def tensors(self) -> tuple[str, ...]:
        """Of which it is made: the model itself has none of them."""
        ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def blocks(self) -> BlockSource | None:
        """None for what there is no kernel for: it must be expanded."""
        ...

    def expanded(self, dtype: torch.dtype) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Groups:
    """`scales * (codes - zeros)`, each scale and zero for some inputs of an output.

    `codes` of some outputs: uint8 [outputs, inputs]; `scales` [outputs, groups], `zeros` likewise or one for all;
    `group_of` each input; None: groups are of inputs that follow each other."""

    codes: Callable[[slice], Tensor]
    scales: Tensor
    zeros: Tensor | int
    group_of: Tensor | None = None


@dataclass(frozen=True)
class GroupedWeight:
    """A StoredWeight, and a BlockSource where `blocks` says so. Reads its tensors when it is asked for them."""

    tensors: tuple[str, ...]
    shape: tuple[int, int]
    bits: int
    group: int  # inputs
    zero: int | None  # that all groups have; None: they have their own
    read: Callable[[], Groups]
    input_order: Tensor | None = None  # in which groups follow each other; None: as they are

    @property
    def format(self) -> BlockFormat:
        return BlockFormat(max(HALF, self.bits), INPUTS, self.zero is None, self.zero or 0)

    @property
    def outputs(self) -> int:
        return self.shape[0]

    @property
    def inputs(self) -> int:
        return self.shape[1]

    @cached_property
    def factor(self) -> float:
        groups = self.read()
        return factor_of(groups.scales, _minima(groups) if self.zero is None else None)

    def blocks(self) -> BlockSource | None:
        return self if self.group % INPUTS == 0 and self._is_regular() else None

    def parts(self) -> Iterator[QuantizedBlocks]:
        groups, form = self.read(), self.format
        minima = _minima(groups) if form.minima else None
        for part in self._parts():
            codes = groups.codes(part)
            yield QuantizedBlocks(
                codes if self.input_order is None else codes[:, self.input_order],
                groups.scales[part],
                None if minima is None else minima[part],
                form.bits,
                self.group,
                form.zero,
            ).repeated_groups()

    def expanded(self, dtype: torch.dtype) -> Tensor:
        groups = self.read()
        group_of = torch.arange(self.inputs) // self.group if groups.group_of is None else groups.group_of.long()
        weight = torch.empty(self.shape, dtype=dtype)
        for part in self._parts():
            zeros = groups.zeros if isinstance(groups.zeros, int) else groups.zeros[part].float()[:, group_of]
            weight[part] = ((groups.codes(part).float() - zeros) * groups.scales[part].float()[:, group_of]).to(dtype)
        return weight

    def _parts(self) -> Iterator[slice]:
        size = max(1, AT_ONCE // (self.inputs * OUTPUTS)) * OUTPUTS
        for first in range(0, self.outputs, size):
            yield slice(first, min(first + size, self.outputs))

    def _is_regular(self) -> bool:
        """Whether all groups but the last one are of the same size."""
        given = self.read().group_of
        if given is None:
            return True
        ordered = given if self.input_order is None else given[self.input_order]
        return torch.equal(ordered.long(), torch.arange(self.inputs) // self.group)


def input_order(group_of: Tensor | None) -> Tensor | None:
    """In which the inputs of a group follow each other; None: they do already."""
    if group_of is None or bool((group_of.diff() >= 0).all()):
        return None
    return group_of.argsort(stable=True)


def _minima(groups: Groups) -> Tensor:
    zeros = groups.zeros if isinstance(groups.zeros, int) else groups.zeros.float()
    return -groups.scales.float() * zeros


@dataclass(frozen=True)
class ExpandedWeight:
    """A StoredWeight whose numbers are no multiples of a scale."""

    tensors: tuple[str, ...]
    shape: tuple[int, int]
    read: Callable[[], Tensor]

    def blocks(self) -> BlockSource | None:
        return None

    def expanded(self, dtype: torch.dtype) -> Tensor:
        return self.read().to(dtype)
