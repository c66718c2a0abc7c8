"""Weights of a model rounded to 4, 5 or 8 bits, in blocks of 32 inputs, for the kernels of `block_layers`.

Scales and minima of 4 and 5 bits are searched: of several ranges of a block, each fitted to its codes by least squares,
the one with the least squared error is taken.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from services.engine.quantization.block_experts import expert_modules, made_of, replace_experts
from services.engine.quantization.quantized_blocks import INPUTS, BlockFormat, QuantizedBlocks, factor_of

FOUR, FIVE, EIGHT = BlockFormat(4, minima=True), BlockFormat(5, minima=True), BlockFormat(8, zero=128)
AT_ONCE = 2**18  # weights that are rounded at once: they stay in the processor's cache
RANGES = (1.0, 0.92, 0.84)  # shares of a block's range that codes are for; beyond it they are cut off
FITS = 2  # of scales and minima to codes, and of codes to them
TINY = torch.finfo(torch.float32).tiny


class RoundedWeight:
    """A BlockSource; it lets go of the weight once it was read."""

    def __init__(self, weight: Tensor, form: BlockFormat) -> None:
        self.format = form
        self.outputs, self.inputs = weight.shape
        self.factor = factor_of(weight.detach().abs().amax().float())
        self.input_order = None
        self._weight: Tensor | None = weight.detach()

    def parts(self) -> Iterator[QuantizedBlocks]:
        assert self._weight is not None
        rounded = partial(_searched, form=self.format) if self.format.minima else _eight_bits
        for part in torch.split(self._weight, max(1, AT_ONCE // self.inputs)):
            yield rounded(part.float().contiguous() / self.factor, self.factor)
        self._weight = None


def round_experts(model: Any, up: BlockFormat, down: BlockFormat) -> None:
    """The first and the second product of each layer of a mixture; needs the kernel of `block_layers`."""
    first, second = partial(RoundedWeight, form=up), partial(RoundedWeight, form=down)
    replace_experts(model, {path: made_of(experts, first, second) for path, experts in expert_modules(model)})


def _searched(weight: Tensor, factor: float, form: BlockFormat) -> QuantizedBlocks:
    last = weight[:, -1:].expand(-1, -weight.shape[1] % INPUTS)  # zeros might widen the range
    blocks = torch.cat([weight, last], 1).view(len(weight), -1, INPUTS)
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    largest = 2**form.bits - 1
    best = _Fit(blocks, low, high - low, largest)
    for share in RANGES[1:]:
        best.keep_better(_Fit(blocks, low + (1 - share) / 2 * (high - low), share * (high - low), largest))
    codes = best.codes.to(torch.uint8).flatten(1)[:, : weight.shape[1]]
    scales, minima = (each.squeeze(-1) * factor for each in (best.scales, best.minima))
    return QuantizedBlocks(codes, scales, minima, form.bits)


class _Fit:
    """Codes, scales and minima of blocks, rounded to float16, and their squared errors."""

    def __init__(self, blocks: Tensor, minima: Tensor, width: Tensor, largest: int) -> None:
        self._largest = largest  # code
        self.minima, self.scales = _half(minima), _half(width / largest)
        self._round(blocks)
        for _ in range(FITS):
            centred = self.codes - self.codes.mean(-1, keepdim=True)
            spread = centred.square().sum(-1, keepdim=True)
            slope = (centred * blocks).sum(-1, keepdim=True) / spread.clamp(min=1)
            self.scales = _half(torch.where(spread > 0, slope, self.scales))
            self.minima = _half(blocks.mean(-1, keepdim=True) - self.scales * self.codes.mean(-1, keepdim=True))
            self._round(blocks)

    def keep_better(self, other: "_Fit") -> None:
        better = other.errors < self.errors
        for name in ("codes", "scales", "minima", "errors"):
            setattr(self, name, torch.where(better, getattr(other, name), getattr(self, name)))

    def _round(self, blocks: Tensor) -> None:
        steps = self.scales.clamp(min=TINY)
        self.codes = ((blocks - self.minima) / steps).round_().clamp_(0, self._largest)
        self.errors = (self.codes * self.scales + self.minima - blocks).square().sum(-1, keepdim=True)


def _half(numbers: Tensor) -> Tensor:
    return numbers.half().float()


def _eight_bits(weight: Tensor, factor: float) -> QuantizedBlocks:
    blocks = pad(weight, (0, -weight.shape[1] % INPUTS)).view(len(weight), -1, INPUTS)
    scales = _half(blocks.abs().amax(-1) / 127)
    codes = (blocks / scales.clamp(min=TINY)[..., None]).round_().clamp_(-127, 127) + EIGHT.zero
    return QuantizedBlocks(
        codes.to(torch.uint8).flatten(1)[:, : weight.shape[1]], scales * factor, None, EIGHT.bits, zero=EIGHT.zero
    )
