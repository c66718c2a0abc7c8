"""Blocks of GGUF's types as QuantizedBlocks: the file's own codes and scales, nothing rounded but what the file has as
a product of two numbers (the scales of the K types), which float16 holds to 11 bits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from services.engine.quantization.gguf_file import GgufFile
from services.engine.quantization.gguf_header import Tensor as Place
from services.engine.quantization.quantized_blocks import BlockFormat, QuantizedBlocks, factor_of

Kind = GGMLQuantizationType

AT_ONCE = 2**22  # weights that are unpacked at once
FORMATS = {
    Kind.Q8_0: BlockFormat(8, zero=128),
    Kind.Q4_0: BlockFormat(4, zero=8),
    Kind.Q4_1: BlockFormat(4, minima=True),
    Kind.Q5_0: BlockFormat(5, zero=16),
    Kind.Q5_1: BlockFormat(5, minima=True),
    Kind.Q4_K: BlockFormat(4, minima=True),
    Kind.Q5_K: BlockFormat(5, minima=True),
    Kind.Q6_K: BlockFormat(6, group=16, zero=32),
}
WHOLE = {Kind.Q4_K: (0, 63.0), Kind.Q5_K: (0, 63.0), Kind.Q6_K: (208, 127.0)}  # where d is, and its largest multiple


@dataclass(frozen=True)
class GgufWeight:
    """A BlockSource. `order`: which of the file's rows each of the model's is; None: the same. `columns`: which of its
    inputs, in whole blocks; None: all. `expert`: whose weight it is, of a tensor with those of several."""

    file: GgufFile
    place: Place
    order: Tensor | None = None
    columns: range | None = None
    expert: int | None = None

    @property
    def format(self) -> BlockFormat:
        return FORMATS[Kind(self.place.kind)]

    @property
    def outputs(self) -> int:
        return self.place.shape[-2] if self.order is None else len(self.order)

    @property
    def inputs(self) -> int:
        return self.place.shape[-1] if self.columns is None else len(self.columns)

    @property
    def input_order(self) -> Tensor | None:
        return None

    @cached_property
    def factor(self) -> float:
        kind = Kind(self.place.kind)
        if kind not in WHOLE:
            return 1.0
        at, multiple = WHOLE[kind]
        return factor_of(_whole_scales(self._rows, kind, at).float() * multiple)

    def parts(self) -> Iterator[QuantizedBlocks]:
        size = max(1, AT_ONCE // self.inputs)
        for first in range(0, self.outputs, size):
            part = slice(first, first + size)
            rows = self._rows[part] if self.order is None else self._rows[self.order[part]]
            yield unpack(rows.contiguous(), self.place.kind)
        self.file.release(self._own_place)

    @property
    def _own_place(self) -> Place:
        if self.expert is None:
            return self.place
        size = self.place.num_bytes // self.place.shape[0]
        begin = self.place.begin + self.expert * size
        return replace(self.place, shape=self.place.shape[1:], begin=begin, num_bytes=size)

    @cached_property
    def _rows(self) -> Tensor:
        rows = self.file.tensor(self._own_place)
        if self.columns is None:
            return rows
        in_block, num_bytes = GGML_QUANT_SIZES[Kind(self.place.kind)]
        first, end = (each // in_block * num_bytes for each in (self.columns.start, self.columns.stop))
        return rows[:, first:end]


def unpack(rows: Tensor, kind: int) -> QuantizedBlocks:
    """`rows` uint8 [outputs, bytes]; needs the kernel."""
    form = FORMATS[Kind(kind)]
    codes, scales, minima = torch.ops.parley.gguf_unpack(rows, kind)
    return QuantizedBlocks(codes, scales, minima, form.bits, form.group, form.zero)


def _whole_scales(rows: Tensor, kind: int, at: int) -> Tensor:
    """The float16 that all scales of a block are multiples of, and that of its minima, which is behind it."""
    _, num_bytes = GGML_QUANT_SIZES[Kind(kind)]
    end = at + (4 if FORMATS[Kind(kind)].minima else 2)
    return rows.reshape(len(rows), -1, num_bytes)[..., at:end].contiguous().view(torch.float16)
