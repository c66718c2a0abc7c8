"""Weights in blocks of 4, 5, 6 or 8 bits: a value that any checkpoint can be read into, and the kernel's own layout.

To bring a format: a `BlockSource` that reads a tensor, some of its rows at a time, as `QuantizedBlocks`;
`block_layers.replace_layers` puts layers of them into a model. Formats with wider groups repeat their scales
(`repeated_groups`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

LANES, INPUTS = 16, 32  # outputs and inputs of a block, as block_linear.cpp has them
FORMATS = {(4, 32, False), (4, 32, True), (5, 32, False), (5, 32, True), (6, 16, False), (8, 32, False), (8, 32, True)}
HALF_RANGE = 2.0**15  # scales beyond are divided by a power of two
COARSE = 8  # the exponents of which are multiples of this: a compiled step is for models of the same


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """bits, inputs a scale, whether there are minima: one of FORMATS. `zero`: the code that stands for 0."""

    bits: int
    group: int = INPUTS
    minima: bool = False
    zero: int = 0

    def __post_init__(self) -> None:
        if (self.bits, self.group, self.minima) not in FORMATS:
            raise ValueError(f"no kernel for {self}")


@dataclass(frozen=True, slots=True)
class QuantizedBlocks:
    """Some outputs of a weight: `scales * (codes - zero) + minima`, each scale and minimum for `group` inputs.

    `codes` uint8 [outputs, inputs], each below 2**bits; `scales`, `minima` [outputs, ceil(inputs / group)], of any
    floating type: float16 is kept as it is, others are rounded to float16 (see `pack`). An asymmetric format with zero
    points has `minima = -scales * zero_points`, and zero 0.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    bits: int
    group: int = INPUTS
    zero: int = 0

    @property
    def format(self) -> BlockFormat:
        return BlockFormat(self.bits, self.group, self.minima is not None, self.zero)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[outputs, inputs]; the reference that products are compared with."""
        size = self.codes.shape[1]
        weight = (self.codes.float() - self.zero) * self._spread(self.scales, size)
        return (weight if self.minima is None else weight + self._spread(self.minima, size)).to(dtype)

    def rows(self, indices: Tensor) -> "QuantizedBlocks":
        minima = None if self.minima is None else self.minima[indices]
        return replace(self, codes=self.codes[indices], scales=self.scales[indices], minima=minima)

    def repeated_groups(self) -> "QuantizedBlocks":
        """The same with groups of 32, from groups of 64, 128 or whole rows."""
        if self.group % INPUTS:
            raise ValueError(f"groups of {self.group} inputs are no multiple of {INPUTS}")
        blocks = -(-self.codes.shape[1] // INPUTS)
        times = self.group // INPUTS
        scales = self.scales.repeat_interleave(times, dim=1)[:, :blocks]
        minima = None if self.minima is None else self.minima.repeat_interleave(times, dim=1)[:, :blocks]
        return replace(self, scales=scales, minima=minima, group=INPUTS)

    def _spread(self, numbers: Tensor, size: int) -> Tensor:
        return numbers.float().repeat_interleave(self.group, dim=1)[:, :size]


class BlockSource(Protocol):
    """A weight that is read when it is packed, and not before."""

    @property
    def format(self) -> BlockFormat: ...

    @property
    def outputs(self) -> int: ...

    @property
    def inputs(self) -> int: ...

    @property
    def factor(self) -> float:
        """See `pack`."""
        ...

    @property
    def input_order(self) -> Tensor | None:
        """Which of the layer's inputs each of the weight's is; None: the same."""
        ...

    def parts(self) -> Iterator[QuantizedBlocks]:
        """All outputs, some after another, so that one part need be in memory at a time."""
        ...


@dataclass(frozen=True, slots=True)
class PackedBlocks:
    """A weight in the kernel's own layout, of `outputs` rows of `inputs` numbers."""

    codes: Tensor  # uint8, in one line
    scales: Tensor  # float16, in one line, minima among them
    outputs: int
    inputs: int
    format: BlockFormat
    factor: float = 1.0  # of all scales: a power of two

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.rows(torch.arange(self.outputs), dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[*ids.shape, inputs]"""
        rows: Tensor = torch.ops.parley.quantized_rows(
            ids, self.codes, self.scales, self.outputs, self.inputs, *self.arguments, dtype
        )
        return rows

    @property
    def arguments(self) -> tuple[int, int, bool, int, float]:
        return (self.format.bits, self.format.group, self.format.minima, self.format.zero, self.factor)


def pack(parts: Iterable[QuantizedBlocks], outputs: int, inputs: int, factor: float = 1.0) -> PackedBlocks:
    """Of the outputs in `parts`, one after another; only one of them need be in memory at a time. Needs the kernel.

    `factor`: scales are divided by it before they are rounded to float16 (`factor_of` finds one where they are not
    float16 already)."""
    rest = iter(parts)
    some = next(rest, None)
    if some is None:
        raise ValueError(f"0 of {outputs} outputs")
    packed = _empty(some.format, outputs, inputs, factor)
    _fill(packed, chain([some], rest))
    return packed


def _fill(packed: PackedBlocks, parts: Iterable[QuantizedBlocks]) -> None:
    first = 0
    for part in parts:
        if part.format != packed.format:
            raise ValueError(f"{part.format} and {packed.format} in one layer")
        scales, minima = (
            None if each is None else (each.float() / packed.factor).half() for each in (part.scales, part.minima)
        )
        torch.ops.parley.quantized_pack(
            part.codes, scales, minima, packed.codes, packed.scales, first, packed.outputs, part.bits, part.group
        )
        first += len(part.codes)
    if first != packed.outputs:
        raise ValueError(f"{first} of {packed.outputs} outputs")


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """The weights of as many layers of one size, one after another in the kernel's own layout."""

    codes: Tensor  # uint8 [experts, bytes]
    scales: Tensor  # float16 [experts, numbers]
    outputs: int  # of each
    inputs: int
    format: BlockFormat
    factor: float = 1.0

    def __getitem__(self, index: int) -> PackedBlocks:
        codes, scales = self.codes[index], self.scales[index]
        return PackedBlocks(codes, scales, self.outputs, self.inputs, self.format, self.factor)


def pack_experts(experts: Sequence[Sequence[BlockSource]]) -> PackedExperts:
    """Of each expert the outputs of its sources, one after another."""
    every = [source for sources in experts for source in sources]
    outputs, factor = sum(source.outputs for source in experts[0]), max(source.factor for source in every)
    empty = _empty(every[0].format, outputs, every[0].inputs, factor)
    codes, scales = (torch.zeros(len(experts), len(each), dtype=each.dtype) for each in (empty.codes, empty.scales))
    packed = PackedExperts(codes, scales, outputs, every[0].inputs, empty.format, factor)
    for index, sources in enumerate(experts):
        _fill(packed[index], chain.from_iterable(source.parts() for source in sources))
    return packed


def factor_of(*numbers: Tensor | None) -> float:
    """1 for float16; else the power of two that brings the largest of these scales and minima into its range."""
    given = [each for each in numbers if each is not None]
    largest = max((float(each.abs().max()) for each in given if each.numel()), default=0.0)
    if largest == 0 or all(each.dtype == torch.float16 for each in given):
        return 1.0
    return float(2.0 ** (COARSE * (torch.tensor(largest / HALF_RANGE).log2() / COARSE).ceil()))


def _empty(form: BlockFormat, outputs: int, inputs: int, factor: float) -> PackedBlocks:
    blocks = -(-outputs // LANES) * -(-inputs // INPUTS)
    codes = torch.zeros(blocks * LANES * INPUTS * form.bits // 8, dtype=torch.uint8)
    scales = torch.zeros(blocks * LANES * (INPUTS // form.group) * (1 + form.minima), dtype=torch.float16)
    return PackedBlocks(codes, scales, outputs, inputs, form, factor)
