"""Layers of weights in blocks (quantized_blocks.py), by a kernel of our own (block_linear.cpp), on the CPU.

    if ensure_kernel(folder):
        replace_layers(model, {"lm_head.weight": source, …}, torch.bfloat16)

Everything else follows: eager and compiled steps, merged siblings, instructions picked at run time (AVX512-VNNI, AVX2,
plain C++), and the key of compiled steps. Inputs are rounded to 8 bits in blocks of 32, as llama.cpp does: products are
those of `QuantizedBlocks.dequantize()` within that rounding.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from services.engine.cpu import kernels
from services.engine.cpu.merged_linear import SIBLINGS, LinearSlice, MergedLinear
from services.engine.quantization.quantized_blocks import (
    INPUTS,
    BlockFormat,
    BlockSource,
    PackedBlocks,
    QuantizedBlocks,
)
from services.engine.quantization.quantized_blocks import pack as pack_blocks

logger = logging.getLogger(__name__)

LARGEST = 127  # code of an input

KERNELS = tuple(Path(__file__).with_name(name) for name in ("block_linear.cpp", "gguf_unpack.cpp"))


class BlockLinear(nn.Module):
    """Takes the place of an `nn.Linear`. `dtype` of the outputs; None: that of the inputs."""

    unrounded = True  # float32 for float32

    def __init__(self, packed: PackedBlocks, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.codes: Tensor
        self.scales: Tensor
        self.bias: Tensor | None
        self.in_features, self.out_features = packed.inputs, packed.outputs
        self.register_buffer("codes", packed.codes, persistent=False)
        self.register_buffer("scales", packed.scales, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)
        self.format = packed.format
        self.factor = packed.factor
        self._arguments = packed.arguments
        self._dtype = dtype

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = torch.ops.parley.quantized_linear(
            inputs, self.codes, self.scales, self.bias, self.out_features, *self._arguments, self._dtype
        )
        return out


class ReorderedLinear(BlockLinear):
    """Of inputs in another order: that of the groups which share a scale."""

    def __init__(self, packed: PackedBlocks, order: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(packed, bias)
        self.order: Tensor
        self.register_buffer("order", order, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.index_select(-1, self.order))


class BlockHead(BlockLinear):
    """The language head. What rounding leaves of its inputs is rounded to 8 bits and multiplied, too: no layer behind
    it evens out its errors, which were most of the perplexity that rounding costs."""

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features).float()
        first, second = super().forward(torch.stack([rows, _left_by_rounding(rows)])).unbind()
        if self.bias is not None:
            second = second - self.bias
        out: Tensor = (first + second).to(self._dtype or inputs.dtype)
        return out.view(*inputs.shape[:-1], self.out_features)


def _left_by_rounding(rows: Tensor) -> Tensor:
    """By the kernel, in blocks of INPUTS."""
    size = rows.shape[-1]
    blocks = pad(rows, (0, -size % INPUTS)).view(*rows.shape[:-1], -1, INPUTS)
    steps = blocks.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
    left = blocks - (blocks / steps).round() * steps
    return left.flatten(-2)[..., :size]


class BlockEmbedding(nn.Module):
    """Takes the place of an `nn.Embedding`; rows are unpacked as they are read. May share its weight with a head.

    `scale`: what rows are multiplied with, as in Gemma."""

    def __init__(self, packed: PackedBlocks, dtype: torch.dtype, scale: Tensor | None = None) -> None:
        super().__init__()
        self.codes: Tensor
        self.scales: Tensor
        self.scale: Tensor | None
        self.num_embeddings, self.embedding_dim = packed.outputs, packed.inputs
        self.register_buffer("codes", packed.codes, persistent=False)
        self.register_buffer("scales", packed.scales, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.format = packed.format
        self.factor = packed.factor
        self._arguments = packed.arguments
        self._dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = torch.ops.parley.quantized_rows(
            ids, self.codes, self.scales, self.num_embeddings, self.embedding_dim, *self._arguments, self._dtype
        )
        return rows if self.scale is None else rows * self.scale.to(self._dtype)


def replace_layers(model: nn.Module, weights: Mapping[str, BlockSource], dtype: torch.dtype) -> None:
    """Replaces the `nn.Linear` and `nn.Embedding` modules of these weights, named as in the model's state. Siblings of
    one format become one product; layers that share a weight go on sharing it. `dtype`: of embeddings."""
    shared = _shared_weights(model, weights)
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    for parent in list(model.modules()):
        for names in SIBLINGS:
            _merge(parent, names, weights, shared)
        for name, child in list(parent.named_children()):
            if can_replace(child) and (source := shared.get(id(child.weight))) is not None:
                setattr(parent, name, _layer(child, source, dtype, is_head=head in (child, parent)))


def can_replace(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, nn.Embedding)


def block_formats(model: nn.Module) -> dict[str, tuple[str, BlockFormat, float]]:
    """Of all layers in blocks, by their paths, with their classes and factors: a compiled step depends on them."""
    found: dict[str, Any] = dict(model.named_modules())
    return {
        name: (type(module).__name__, module.format, module.factor)
        for name, module in found.items()
        if isinstance(getattr(module, "format", None), BlockFormat)
    }


@dataclass(slots=True)
class _Shared:
    """A weight that is packed for the first layer that needs it, and kept for others."""

    source: BlockSource
    packed: PackedBlocks | None = None

    def pack(self) -> PackedBlocks:
        self.packed = self.packed or _packed([self.source])
        return self.packed


def _shared_weights(model: nn.Module, weights: Mapping[str, BlockSource]) -> dict[int, _Shared]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {id(parameters[name]): _Shared(source) for name, source in weights.items()}


def _merge(
    parent: nn.Module, names: tuple[str, ...], weights: Mapping[str, BlockSource], shared: Mapping[int, _Shared]
) -> None:
    linears = {name: child for name in names if type(child := getattr(parent, name, None)) is nn.Linear}
    sources = {name: shared[id(each.weight)].source for name, each in linears.items() if id(each.weight) in shared}
    if len(sources) < len(names):
        return

    def alike(name: str) -> tuple[BlockFormat, int, bool, list[int] | None]:
        order = sources[name].input_order
        ordered = None if order is None else order.tolist()
        return sources[name].format, sources[name].inputs, linears[name].bias is None, ordered

    for _, run in groupby(names, alike):
        together = list(run)
        if len(together) > 1:
            biases: list[Tensor] = [linears[name].bias for name in together if linears[name].bias is not None]
            product = _linear([sources[name] for name in together], torch.cat(biases) if biases else None)
            first = MergedLinear(product, [sources[name].outputs for name in together])
            for index, name in enumerate(together):
                setattr(parent, name, LinearSlice(first, index) if index else first)


def _linear(sources: list[BlockSource], bias: Tensor | None, packed: PackedBlocks | None = None) -> BlockLinear:
    order, packed = sources[0].input_order, packed or _packed(sources)
    return BlockLinear(packed, bias) if order is None else ReorderedLinear(packed, order, bias)


def _packed(sources: list[BlockSource]) -> PackedBlocks:
    outputs, factor = sum(source.outputs for source in sources), max(source.factor for source in sources)
    return pack_blocks(_parts(sources), outputs, sources[0].inputs, factor)


def _parts(sources: list[BlockSource]) -> Iterator[QuantizedBlocks]:
    for source in sources:
        yield from source.parts()


def _layer(module: Any, shared: _Shared, dtype: torch.dtype, *, is_head: bool) -> nn.Module:
    if is_head:
        return BlockHead(shared.pack(), module.bias)
    if isinstance(module, nn.Embedding):
        return BlockEmbedding(shared.pack(), dtype, getattr(module, "embed_scale", None))
    return _linear([shared.source], module.bias, shared.pack())


def is_available() -> bool:
    return hasattr(torch.ops.parley, "quantized_linear")


def ensure_kernel(folder: Path | None) -> bool:
    """Compiles it, or finds it in the folder, and says whether it can be used. None: nothing may be compiled."""
    try:
        if folder is not None and not is_available():
            kernels.ensure_loaded(folder)
    except Exception as error:  # whatever a machine without a compiler may lack
        logger.warning("no kernel can be compiled here: %s", str(error).splitlines()[:1])
    return is_available()


def instructions() -> list[str]:
    """What the loaded kernel has, the best first."""
    names: list[str] = torch.ops.parley.quantized_instructions()
    return names


def register_fakes() -> None:
    def linear(
        inputs: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, outputs: int, *args: Any, **_: Any
    ) -> Tensor:
        dtype = args[5] if len(args) > 5 else None
        return inputs.new_empty(*inputs.shape[:-1], outputs, dtype=dtype or inputs.dtype)

    def rows(ids: Tensor, codes: Tensor, scales: Tensor, outputs: int, size: int, *args: Any) -> Tensor:
        return scales.new_empty(*ids.shape, size, dtype=args[-1])

    if is_available():
        torch.library.register_fake("parley::quantized_linear", linear, allow_override=True)
        torch.library.register_fake("parley::quantized_rows", rows, allow_override=True)
